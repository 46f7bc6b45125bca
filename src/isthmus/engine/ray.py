"""Runs a plan on a Ray cluster: each worker writes shards of its own into storage that all machines share.

Nothing here decides what runs where or what runs again: that is Ray's. A task is one shard. What a task does is
what the local engine does, so the bytes are the same; that it is done twice, or half and then again by another
worker, changes nothing, since a shard's journal says what of it is on the disk.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from isthmus import progress, weights
from isthmus.combine import BlockRule
from isthmus.engine.checks import check
from isthmus.engine.jobs import Work
from isthmus.engine.local import Written, fill, key, layout_of, pool_of, tell_what_stays
from isthmus.engine.memory import size
from isthmus.engine.stream import Stream
from isthmus.errors import InputError, IsthmusError, MissingExtraError, WeightsError, first_line

T = TypeVar("T")

# Seconds that a worker waits for a shard that another one holds: a lost machine's locks on a network file
# system are let go after its lease, 90 seconds by NFS's default.
_PATIENCE = 180.0

_SHARED = "inputs and output must lie on storage that all machines of the cluster see under the same path"


def run(
    work: Work,
    *,
    address: str | None = None,
    threads: int | None = None,
    max_memory: int | str | None = None,
    retries: int = 3,
) -> Written:
    """Merge on a Ray cluster.

    One task writes one file of tensors, so `work.shard_size` says how finely the work is cut; two or three
    files per machine keep all of them busy. A task whose worker or machine is lost is done again elsewhere and
    goes on where that one was. The bytes are those of the local engine, for any number of machines; and what an
    interrupted run has finished is not done again, whichever engine began it and whichever goes on.

    The machine that calls this checks everything before the work and gives the folder its name after it; it
    needs to see the same storage as the workers. Where the program is connected to a cluster already
    (`ray.init`), that one is used.

    Args:
        work: what to do.
        address: of the cluster, as for `ray.init`: "auto" for the one that this machine belongs to. By default
            the one in `RAY_ADDRESS`, else a cluster of this machine alone, for the time of the call.
        threads: of each task; by default the cluster's processors are shared out among the files.
        max_memory: private memory of each task, in bytes or as "512MiB"; also what Ray is told to set aside.
        retries: how often a file is begun again after its worker was lost.

    Returns:
        What was written.

    Raises:
        InputError: as for the local engine; or the cluster is not there, or has no machine as large as asked for.
        WeightsError: as for the local engine; or a machine does not see the files that this one sees.
        IsthmusError: workers were lost more often than `retries` says. What is finished is kept.
        MissingExtraError: Ray is not installed.
    """
    ray = _library()
    began = time.monotonic()
    if retries < 0:
        raise InputError(f"retries = {retries} is negative")
    if "://" in work.out:
        raise InputError(
            f"{work.out} is no folder", hint="checkpoints are read from URLs, and written to mounted storage"
        )
    opened = [weights.open(path) for path in work.checkpoints]
    streams = check(work, opened)
    layout = layout_of(work)
    pool_of(streams, 1 if threads is None else threads, max_memory)
    identity = key(work, opened)
    with _cluster(ray, address):
        each, at_once = _shares(ray, len(layout.shards), threads, max_memory)
        draft = weights.Draft(Path(work.out), layout, identity)
        try:
            resumed = len(draft.finished)
            _let_go(draft)
            groups = _groups(streams)
            told = _Told(
                dataclasses.replace(work, checkpoints=tuple(map(_absolute, work.checkpoints)), files=()),
                identity,
                str(draft.folder),
                tuple(tuple(map(_known, weights.identify(tensors))) for tensors in opened),
                {name: number for number, names in enumerate(groups.values()) for name in names},
                torch.__version__,
                each,
                max_memory,
            )
            options: dict[str, object] = {
                "num_cpus": each,
                "max_retries": retries,
                "scheduling_strategy": "SPREAD",
            }
            if max_memory is not None:
                options["memory"] = size(max_memory)
            _on_cluster(_Cluster(ray, options), told, layout, streams, groups)
            _take_back(draft, layout, identity)
            for file in work.files:
                draft.copy(file.name, file.source, file.text)
            draft.publish()
        except BaseException as error:
            draft.close()
            with suppress(IsthmusError, OSError):  # what the workers have finished is not thrown away
                _take_back(draft, layout, identity)
                draft.close()
                draft.remove_if_empty()
            tell_what_stays(error, draft.folder)
            raise
    return Written(draft.out, len(streams), layout.size, resumed, time.monotonic() - began, each * at_once)


def _library() -> Any:  # the package's types say less than they promise
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError(
            "merging on a cluster needs Ray", [str(error)], hint="pip install 'isthmus[ray]'"
        ) from None


# On the machine that asks.


@contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[None]:
    """A connection, for as long as it is needed; the caller's own where there is one."""
    if ray.is_initialized():
        if address is not None:
            raise InputError(
                f"address = {address!r}: this program is connected to a cluster already",
                hint="leave address away, or call ray.shutdown() first",
            )
        yield
        return
    # A library reports nobody's usage; and tasks that ask for no GPU need not lose sight of them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # what Ray raises where it cannot start has no class of its own
        raise InputError(
            f"no Ray cluster at {address or os.environ.get('RAY_ADDRESS', 'this machine')}",
            [first_line(error)],
            hint="`ray start --head` starts one; address='auto' finds the one of this machine",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _shares(ray: Any, shards: int, threads: int | None, max_memory: int | str | None) -> tuple[int, int]:
    """Threads of one task, and how many tasks the cluster runs at once."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = int(max((m.get("CPU", 0) for m in machines), default=0))
    total = int(sum(m.get("CPU", 0) for m in machines))
    each = threads if threads is not None else min(max(total // shards, 1), largest)
    if each > largest or each < 1:
        raise InputError(
            f"threads = {each}: the largest machine of the cluster has {largest} processors for its tasks"
        )
    memory = max((m.get("memory", 0) for m in machines), default=0)
    if max_memory is not None and size(max_memory) > memory:
        raise InputError(f"max_memory = {max_memory}: no machine of the cluster has so much for its tasks")
    return each, min(shards, total // each)


def _let_go(draft: weights.Draft) -> None:
    """Close the files, each of which a worker is to open; the folder stays this run's."""
    for file in draft.files:
        file.close()


def _take_back(draft: weights.Draft, layout: weights.Layout, identity: str) -> None:
    """Open the files again, with what the workers have entered as finished."""
    files: list[weights.ShardFile] = []
    try:
        for shard in layout.shards:
            files.append(weights.ShardFile(draft.folder, shard, identity))  # noqa: PERF401 - closed if a later one fails
    except BaseException:
        for file in files:
            file.close()
        raise
    draft.files = tuple(files)


def _groups(streams: Sequence[Stream]) -> dict[int, list[str]]:
    """Names of the tensors of each rule that looks at all of them, by the rule's object."""
    found: dict[int, list[str]] = {}
    for stream in streams:
        if stream.rule is not None and stream.rule.scope == "model":
            found.setdefault(id(stream.rule), []).append(stream.job.name)
    return found


def _absolute(path: str) -> str:
    """A path that means the same wherever a worker was started."""
    return str(Path(path).absolute()) if "://" not in path and Path(path).exists() else path


def _known(file: weights.Identity) -> tuple[object, ...]:
    """What tells a file from another one, on any machine."""
    return Path(file.file).name, file.size, file.header, file.content or file.version


@dataclass(frozen=True)
class _Told:
    """What every task is told.

    Attributes:
        work: with paths that do not depend on a current folder.
        key: of the draft.
        folder: of the draft.
        files: what tells the checkpoints' files from others, one entry per checkpoint.
        groups: names of tensors whose rule looks at all of them -> number of the rule.
        torch: the version here.
        threads: to use.
        max_memory: for each task.
    """

    work: Work
    key: str
    folder: str
    files: tuple[tuple[tuple[object, ...], ...], ...]
    groups: Mapping[str, int]
    torch: str
    threads: int
    max_memory: int | str | None


class _Cluster:
    """Tasks, their results and their errors, in our words."""

    def __init__(self, ray: Any, options: Mapping[str, object]):
        self._ray, self._options = ray, dict(options)

    def share(self, value: T) -> T:
        """Send a value to the cluster once; what comes back stands for it in calls of `each`."""
        return self._ray.put(value)

    def each(
        self, function: Callable[..., T], calls: Sequence[tuple[object, ...]], names: Sequence[str]
    ) -> Iterator[tuple[int, T]]:
        """Results of a function for every call, as they come.

        Raises:
            IsthmusError: what a task has raised, or its workers were lost too often.
        """
        remote = self._ray.remote(function).options(**self._options)
        pending = {remote.remote(*call): number for number, call in enumerate(calls)}
        try:
            while pending:
                done, _ = self._ray.wait(list(pending), num_returns=1)
                for ref in done:
                    number = pending.pop(ref)
                    yield number, self._result(ref, names[number])
        finally:
            for ref in pending:
                self._ray.cancel(ref, force=True)
            if pending:  # their locks are gone when they are
                self._ray.wait(list(pending), num_returns=len(pending), timeout=30)

    def _result(self, ref: object, name: str) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as error:
            if isinstance(error.cause, IsthmusError):
                raise error.cause from None
            raise
        except errors.RayError as error:
            lost = self._options["max_retries"]
            raise IsthmusError(
                f"the workers on {name} were lost, {lost} times after the first",
                [line for line in str(error).strip().splitlines()[:3] if line],
                hint="what is finished is kept: run it again, with more memory or fewer threads per task if they "
                "were killed for their memory",
            ) from None


def _on_cluster(
    cluster: _Cluster,
    told: _Told,
    layout: weights.Layout,
    streams: Sequence[Stream],
    groups: Mapping[int, Sequence[str]],
) -> None:
    """Have all shards written; before that, have rules look at all tensors that do."""
    shared = cluster.share(told)
    traffic = {stream.job.name: stream.traffic for stream in streams}
    files = [shard.file for shard in layout.shards]
    rules: list[BlockRule] = []
    for number, names in enumerate(groups.values()):
        rule = next(s.rule for s in streams if s.job.name == names[0])
        assert rule is not None
        held = [i for i, shard in enumerate(layout.shards) if not set(names).isdisjoint(shard.entries)]
        with progress.task("measuring", total=rule.passes * len(held), unit="files") as advance:
            for index in range(rule.passes):
                if not rule.skips(index):
                    calls = [(shared, shard, number, cluster.share(rule), index) for shard in held]
                    found = _in_order(cluster.each(_measure, calls, [files[i] for i in held]), advance)
                    # Partials in the order of the model's tensors, as one machine takes them in.
                    rule.reduce(index, itertools.chain.from_iterable(found))
        rules.append(rule)
    sent = cluster.share(rules)
    totals = [sum(traffic[name] for name in shard.entries) for shard in layout.shards]
    with progress.task("merging", total=sum(totals), unit="bytes") as advance:
        calls = [(shared, number, sent) for number in range(len(files))]
        for number, _ in cluster.each(_write, calls, files):
            advance(totals[number])


def _in_order(results: Iterable[tuple[int, T]], advance: progress.Advance) -> Iterator[T]:
    """Results by number, each as soon as those before it are there."""
    waiting: dict[int, T] = {}
    following = 0
    for number, result in results:
        advance(1)
        waiting[number] = result
        while following in waiting:
            yield waiting.pop(following)
            following += 1


# On the machines that work. Functions of this module, so that workers import them from their own isthmus.


def _write(told: _Told, number: int, rules: Sequence[BlockRule]) -> int:
    """Write one shard, from where another worker was cut off if one was."""
    streams, shard = _opened(told, number, rules)
    file = _claimed(Path(told.folder), shard, told.key)
    try:
        return fill([file], streams, pool_of(streams, told.threads, told.max_memory), measured=True)
    finally:
        file.close()


def _measure(told: _Told, number: int, group: int, rule: BlockRule, index: int) -> list[object]:
    """What a rule that looks at all tensors finds in those of one shard, in their order."""
    streams, _ = _opened(told, number, {group: rule})
    mine = [s for s in streams if told.groups.get(s.job.name) == group]
    found: list[object] = []

    class Measuring:
        cost = 0

        def run(self, pool: Any) -> None:
            runs = [(stream, run) for stream in mine for run in stream.runs]
            for partials in pool.ordered(runs, lambda r: r[0].measure(index, r[1])):
                found.extend(partials)

    pool_of(streams, told.threads, told.max_memory).run([Measuring()])
    return found


def _opened(
    told: _Told, number: int, rules: Sequence[BlockRule] | Mapping[int, BlockRule]
) -> tuple[list[Stream], weights.Shard]:
    """The tensors of one shard, with their sources open, if they are the files that the driver has seen."""
    host = socket.gethostname()
    if torch.__version__ != told.torch:
        raise InputError(
            f"{host} has torch {torch.__version__}, and the machine that asks {told.torch}",
            hint="the same bytes need the same arithmetic: install one version everywhere",
        )
    try:
        opened = [weights.open(path) for path in told.work.checkpoints]
    except WeightsError as error:
        raise WeightsError(f"on {host}: {error.what}", error.where, hint=error.hint or _SHARED) from None
    wrong = [
        path
        for path, tensors, files in zip(told.work.checkpoints, opened, told.files, strict=True)
        if tuple(map(_known, weights.identify(tensors))) != files
    ]
    if wrong:
        raise WeightsError(f"{host} sees other files than the machine that asks", wrong, hint=_SHARED)
    shard = layout_of(told.work).shards[number]
    jobs = [job for job in told.work.jobs if job.name in shard.entries]
    return [Stream(job, opened, _rule(told, job.name, rules)) for job in jobs], shard


def _rule(told: _Told, name: str, rules: Sequence[BlockRule] | Mapping[int, BlockRule]) -> BlockRule | None:
    group = told.groups.get(name)
    if group is None or (isinstance(rules, Mapping) and group not in rules):
        return None
    return rules[group]


def _claimed(folder: Path, shard: weights.Shard, key: str) -> weights.ShardFile:
    """The shard's file, as soon as no other worker holds it: one that was lost may not be gone yet."""
    host = socket.gethostname()
    if not folder.is_dir():
        raise WeightsError(f"{host} does not see {folder}", hint=_SHARED)
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return weights.ShardFile(folder, shard, key)
        except weights.BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(1.0)
        except OSError as error:
            raise WeightsError(f"{host} cannot write to {folder}", [error.strerror or str(error)]) from error
