"""Runs a plan on this machine: a few threads over mapped files, in constant memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.filesize import decimal
from torch import Tensor

from isthmus import progress, weights
from isthmus.combine import ARITHMETIC, BLOCK, BlockRule, compiled
from isthmus.engine.checks import check
from isthmus.engine.jobs import Work, digest
from isthmus.engine.memory import private, size
from isthmus.engine.pool import Pool
from isthmus.engine.stream import Stream, measure_all
from isthmus.errors import InputError, IsthmusError, WeightsError

# Finished tensors are put on the disk and into the journal when this many bytes or seconds have gathered:
# what a kill may cost. Asking the disk more often would slow it down.
_BYTES, _SECONDS = 256 << 20, 2.0

# Blocks that a thread may hold at once beside one per source: scratch of the widest rules.
_SCRATCH = 12


@dataclass(frozen=True)
class Written:
    """What a run has made.

    Args:
        folder: where it is.
        tensors: how many.
        bytes: of all files of tensors.
        resumed: tensors that an interrupted run had finished.
        seconds: that the run took.
        threads: that it used.
    """

    folder: Path
    tensors: int
    bytes: int
    resumed: int
    seconds: float
    threads: int

    def __str__(self) -> str:
        again = f", {self.resumed} of them from the run before" if self.resumed else ""
        return f"{self.folder}: {self.tensors} tensors, {decimal(self.bytes)}{again}, in {self.seconds:.1f} s"


def run(work: Work, *, threads: int | None = None, max_memory: int | str | None = None) -> Written:
    """Merge on this machine.

    The output folder appears when it is complete. Until then its files are in a hidden folder beside it, and
    the same work, run again after a kill, goes on from there: the result is the same to the last byte, as it
    is for any number of threads. Headers are checked, and the disk's room is set aside, before any work.

    Args:
        work: what to do.
        threads: how many; by default as many as the process has processors.
        max_memory: private memory of the whole process, in bytes or as "512MiB"; mapped files, whose pages
            the system can take back, do not count. By default only rules that cannot work in blocks take
            more than a few megabytes per thread.

    Raises:
        InputError: jobs contradict themselves or the checkpoints, or do not fit in `max_memory`.
        WeightsError: a checkpoint cannot be read or holds numbers that are not finite, or the output cannot
            be written.
    """
    began = time.monotonic()
    checkpoints = [weights.open(path) for path in work.checkpoints]
    streams = check(work, checkpoints)
    layout = layout_of(work)
    pool = pool_of(streams, threads, max_memory)
    draft = weights.Draft(Path(work.out), layout, key(work, checkpoints))
    try:
        for file in work.files:
            draft.copy(file.name, file.source, file.text)
        resumed = fill(draft.files, streams, pool)
        refuse_changed(checkpoints)
        draft.publish()
    except BaseException as error:
        draft.close()
        draft.remove_if_empty()
        tell_what_stays(error, draft.folder)
        raise
    seconds = time.monotonic() - began
    return Written(draft.out, len(streams), layout.size, resumed, seconds, pool.threads)


def tell_what_stays(error: BaseException, folder: Path) -> None:
    """Add to an error where finished tensors lie: a hidden folder as large as the output is not found by chance.

    Args:
        error: that ended a run.
        folder: of its draft, which is there if something in it is worth keeping.
    """
    if isinstance(error, IsthmusError) and folder.exists():
        stays = f"what is finished stays in {folder}, from where the same call goes on; else remove it"
        error.hint = f"{error.hint}\n      {stays}" if error.hint else stays
        error.args = (error.render(),)


def layout_of(work: Work) -> weights.Layout:
    """The files that a work makes."""
    return weights.lay_out(
        [(job.name, job.dtype, job.shape) for job in work.jobs],
        shard_size=work.shard_size,
        metadata=work.metadata,
        stem=work.stem,
    )


def fill(
    files: Sequence[weights.ShardFile], streams: Sequence[Stream], pool: Pool, *, measured: bool = False
) -> int:
    """Write tensors into their files, going on where an earlier run was cut off.

    Args:
        files: open; every stream's tensor is in one of them.
        streams: what to write.
        pool: who does it.
        measured: whether rules that look at all tensors have done so.

    Returns:
        How many tensors an earlier run had finished.
    """
    by_name = {name: file for file in files for name in file.shard.entries}
    _forget_unsound(streams, by_name, pool)
    finished = {name for file in files for name in file.checks}
    left = [stream for stream in streams if stream.job.name not in finished]
    diary = _Diary(by_name)
    diary.total = sum(stream.traffic + (0 if measured else stream.measuring) for stream in left)
    with progress.task("merging", total=lambda: diary.total, unit="bytes", note=diary.now) as diary.advance:
        for stream in left:
            stream.to(by_name[stream.job.name], diary)
        for group in () if measured else _shared(streams, left):
            diary.began("the whole model")
            pool.run([group])
        try:
            pool.run(left, diary.enter)
        finally:  # what is finished stays finished, also when something else has failed
            diary.enter(everything=True)
    return len(finished)


def refuse_changed(checkpoints: Sequence[Mapping[str, Tensor]]) -> None:
    """Say that inputs were written to while they were read: the output would be of neither state.

    Raises:
        WeightsError: some were.
    """
    if found := [name for tensors in checkpoints for name in weights.changed(tensors)]:
        raise WeightsError(
            "files were changed while they were merged", found, hint="merge again when they are complete"
        )


def key(work: Work, checkpoints: Sequence[Mapping[str, Tensor]]) -> str:
    """What determines the bytes of the output: the work, its inputs as they are now, and the arithmetic.

    Args:
        work: what is asked for; where it goes does not count.
        checkpoints: opened, in the order of the work.
    """
    identities = [[dataclasses.astuple(i) for i in weights.identify(tensors)] for tensors in checkpoints]
    parts = [digest(dataclasses.replace(work, out="")), identities, torch.__version__, BLOCK, ARITHMETIC]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class _Diary:
    """What is being done, and what is finished but not yet on the disk."""

    def __init__(self, files: Mapping[str, weights.ShardFile]):
        self._files = files
        self._lock = threading.Lock()
        self._ended: list[tuple[str, str]] = []
        self._bytes = 0
        self._last = time.monotonic()
        self._current = ""
        self.total = 0
        self.advance: progress.Advance = lambda _: None

    def began(self, name: str) -> None:
        self._current = name

    def moved(self, count: int) -> None:
        self.advance(count)

    def spared(self, count: int) -> None:
        with self._lock:
            self.total -= count

    def ended(self, name: str, check: str, count: int) -> None:
        with self._lock:
            self._ended.append((name, check))
            self._bytes += count

    def now(self) -> str:
        """The tensor at hand and the memory held, for the display."""
        return f"{self._current}, {decimal(private())} held"

    def enter(self, everything: bool = False) -> None:
        """Put what is finished on the disk, if it is worth the trouble."""
        with self._lock:
            late = time.monotonic() - self._last >= _SECONDS or self._bytes >= _BYTES
            if not self._ended or not (late or everything):
                return
            ended, self._ended, self._bytes = self._ended, [], 0
        by_file: dict[weights.ShardFile, dict[str, str]] = {}
        for name, seen in ended:
            by_file.setdefault(self._files[name], {})[name] = seen
        for file, checks in by_file.items():
            file.enter(checks)
        self._last = time.monotonic()


class _Measuring:
    """The measuring passes of a rule that looks at all tensors before it writes one."""

    cost = 0

    def __init__(self, rule: BlockRule, streams: Sequence[Stream]):
        self._rule = rule
        self._streams = streams

    def run(self, pool: Pool) -> None:
        measure_all(pool, self._rule, [(stream, run) for stream in self._streams for run in stream.runs])


def _shared(streams: Sequence[Stream], left: Sequence[Stream]) -> Iterator[_Measuring]:
    """Rules that serve several tensors, of which some are yet to be written."""
    groups: dict[int, list[Stream]] = {}
    for stream in streams:
        if stream.rule is not None and stream.rule.scope == "model":
            groups.setdefault(id(stream.rule), []).append(stream)
    for group in groups.values():
        if group[0].rule is not None and any(stream in left for stream in group):
            yield _Measuring(group[0].rule, group)


class _Verifying:
    """A look at what an interrupted run has entered as finished."""

    cost = 0

    def __init__(self, stream: Stream, file: weights.ShardFile, wrong: list[str]):
        self._stream, self._file, self._wrong = stream, file, wrong

    def run(self, pool: Pool) -> None:
        del pool
        if not self._stream.verify(self._file):
            self._wrong.append(self._stream.job.name)


def _forget_unsound(streams: Sequence[Stream], files: Mapping[str, weights.ShardFile], pool: Pool) -> None:
    """Have done again what is entered as finished and is not what was entered."""
    wrong: list[str] = []
    again = [s for s in streams if s.job.name in files[s.job.name].checks]
    pool.run([_Verifying(s, files[s.job.name], wrong) for s in again])
    for file in {id(file): file for file in files.values()}.values():
        file.forget(wrong)


def pool_of(streams: Sequence[Stream], threads: int | None, max_memory: int | str | None) -> Pool:
    """As many threads as fit in the memory, and what is left of it for whole tensors.

    Raises:
        InputError: no thread fits, or a rule that cannot work in blocks does not.
    """
    if threads is not None and threads < 1:
        raise InputError(f"{threads} threads do no work")
    count = threads or _processors()
    if max_memory is None:
        compiled.allow(None)
        return Pool(count, _available() // 2)
    limit, held = size(max_memory), private()
    each = max((len(s.inputs) + _SCRATCH for s in streams), default=0) * BLOCK * 8
    each += max((s.rule.held for s in streams if s.rule is not None), default=0)
    largest = max((s.cost for s in streams), default=0)
    count = min(count, (limit - held) // each)
    room = limit - held - max(count, 1) * each
    compiled.allow(room - largest)
    if count < 1 or room < largest:
        wide = [s for s in streams if s.cost > max(room, 0)]
        raise InputError(
            f"{decimal(limit)} of memory are too little: this needs {decimal(held + each + largest)}",
            [
                f"{s.job.name}    {s.job.rule} takes {decimal(s.cost)}: it cannot be cut into blocks"
                for s in wide
            ],
            hint="raise max_memory" + (", or choose a rule that works in blocks" if wide else ""),
        )
    return Pool(count, room)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _available() -> int:
    """Bytes of memory that the system could give."""
    try:
        text = Path("/proc/meminfo").read_text()
        return int(text.partition("MemAvailable:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return 1 << 62
