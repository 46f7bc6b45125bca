"""Run a plan: jobs to the engine, files beside the tensors, and a look at what came out."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from isthmus import progress, weights
from isthmus.combine import ARITHMETIC
from isthmus.engine import File, Job, Source, Work
from isthmus.engine.local import Written, key
from isthmus.engine.local import run as run_locally
from isthmus.engine.memory import size
from isthmus.engine.ray import run as run_on_ray
from isthmus.errors import InputError, WeightsError
from isthmus.recipe.output.folder import Beside, card, provenance
from isthmus.recipe.parents.content import content_hash
from isthmus.recipe.parents.opening import fetch
from isthmus.recipe.planning import costs
from isthmus.recipe.planning.planned import Planned
from isthmus.recipe.running import streamed
from isthmus.recipe.running.aligned import Aligned
from isthmus.recipe.running.jobs import Jobs, TensorsOf
from isthmus.recipe.running.looking import check_agreed, check_room, check_tokens, look
from isthmus.recipe.running.padding import write_means

if TYPE_CHECKING:
    from isthmus.recipe.running.bench import Bench
    from isthmus.recipe.running.finished import Finished
    from isthmus.recipe.running.trial import Trial


#: What can do the work.
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Outcome:
    """What a plan has made.

    Args:
        folder: the merged model.
        written: what the engine says of it.
        hashes: of the parents' contents, by the recipe's own names.
        checks: what was looked at afterwards, in words.
        aligned: how models were brought to one order of units first, in words.
        finished: what came of repairing and measuring, where the recipe asks for it.
    """

    folder: Path
    written: Written
    hashes: Mapping[str, str]
    checks: tuple[str, ...]
    aligned: tuple[str, ...] = ()
    finished: Finished | None = None

    def as_dict(self) -> dict[str, object]:
        """What was made, as plain data for JSON."""
        return {
            "out": str(self.folder),
            "tensors": self.written.tensors,
            "bytes": self.written.bytes,
            "seconds": round(self.written.seconds, 3),
            "parents": dict(self.hashes),
            "checks": list(self.checks),
            "aligned": list(self.aligned),
            "finished": None if self.finished is None else self.finished.as_dict(),
        }

    def __str__(self) -> str:
        told = [f"aligned: {line}" for line in self.aligned] + [f"checked: {line}" for line in self.checks]
        told += self.finished.told if self.finished is not None else ()
        return "\n".join([str(self.written), *told])


def run(
    plan: Planned,
    out: Path,
    *,
    max_memory: int | str | None = None,
    threads: int | None = None,
    shard_size: int | None = None,
    engine: str = "local",
    address: str | None = None,
) -> Outcome:
    """Do what a plan says.

    Args:
        plan: a checked recipe.
        out: the folder that shall appear.
        max_memory: as `isthmus.engine`; by default the recipe's.
        threads: likewise.
        shard_size: bytes of tensors per file.
        engine: "local" for this machine, "ray" for a cluster (see `isthmus.engine.ray`), whose every task is then
            held to `threads` and `max_memory`.
        address: of the cluster.

    Raises:
        InputError: no such engine, an address for one that has none, or less memory than models take that are
            held whole.
        IsthmusError: a parent has changed since the plan, or the output cannot be written.
    """
    means = _means(plan, _Means(threads, max_memory, shard_size, engine, address))
    check_room(plan, out)
    for parent in plan.parents.values():
        fetch(parent)
    check_agreed(plan)
    check_tokens(plan)
    bench, trial = _made_for_running(plan)
    hashes = _hashes(plan)
    hidden = _Hidden.of(out.absolute())
    made, found, aligned = _jobs(plan, hidden, bench, means)
    work = Work(
        checkpoints=tuple(made.checkpoints),
        jobs=tuple(made.jobs),
        out=str(out.absolute()),
        shard_size=Work.shard_size if means.shard_size is None else means.shard_size,
    )
    began, finished, again = time.monotonic(), None, 0
    if trial is not None:
        checkpoints = [weights.open(path) for path in work.checkpoints]
        staged = dataclasses.replace(work, out=str(hidden.staged))
        again = _stage(staged, key(work, checkpoints), means.do)
        # A model that was moved whole may compute nothing by itself: what is measured is the model as it was found.
        dtypes = {job.name: job.dtype for job in work.jobs}
        alignment = None if aligned is None else aligned.alignment
        finished = trial.finish(hidden.staged, _parents(plan, found), dtypes, alignment)
        work = _copied(work, hidden, finished.changed)
    written = means.do(
        dataclasses.replace(
            work,
            metadata={
                **provenance(plan.recipe, plan.text, hashes, plan.parents),
                "isthmus.arithmetic": str(ARITHMETIC),
                **(finished.provenance() if finished is not None else {}),
            },
            files=tuple(_file(file) for file in _files(plan, hashes, out, finished)),
        )
    )
    hidden.remove(aligned)
    if finished is not None:
        written = dataclasses.replace(
            written, seconds=time.monotonic() - began, resumed=again or written.resumed
        )
    told = aligned.told if aligned is not None else ()
    return Outcome(out, written, hashes, tuple(look(plan, out)), told, finished)


@dataclass(frozen=True)
class _Means:
    """Who does the work, and with how much (`run`)."""

    threads: int | None
    max_memory: int | str | None
    shard_size: int | None
    engine: str
    address: str | None

    def do(self, work: Work) -> Written:
        if self.engine == "ray":
            return run_on_ray(work, address=self.address, threads=self.threads, max_memory=self.max_memory)
        return run_locally(work, threads=self.threads, max_memory=self.max_memory)


def _means(plan: Planned, asked: _Means) -> _Means:
    """What is asked for, and where nothing is, what the recipe says.

    Raises:
        InputError: nothing can be done with that.
    """
    engine, address = asked.engine, asked.address
    if engine not in ENGINES or (address is not None and engine == "local"):
        raise InputError(
            f"engine = {engine!r}" + (f" has no address ({address})" if engine == "local" else " is none"),
            hint=f"there is {' and '.join(ENGINES)}; address= goes with ray",
        )
    limits = plan.recipe.isthmus.limits
    means = _Means(
        limits.threads if asked.threads is None else asked.threads,
        limits.memory if asked.max_memory is None else asked.max_memory,
        limits.shard_size if asked.shard_size is None else asked.shard_size,
        engine,
        address,
    )
    counts = (("threads", means.threads), ("shard_size", means.shard_size))
    if wrong := [f"{name} = {n}" for name, n in counts if n is not None and n < 1]:
        raise InputError(f"{' and '.join(wrong)}: nothing can be done with that", hint="1 is the least")
    if (said := costs.over(plan, None if means.max_memory is None else size(means.max_memory))) is not None:
        raise InputError(said, hint=costs.STREAMED)
    return means


@dataclass(frozen=True)
class _Hidden:
    """Places beside the output, fixed so that a run after a kill finds the same inputs and goes on.

    Attributes:
        padding: rows of tokens that models lack.
        orders: of units, or models that were moved.
        maps: of an alignment.
        repaired: tensors that a repair changed.
        staged: the merge as it came, where it is measured.
    """

    padding: Path
    orders: Path
    maps: Path
    repaired: Path
    staged: Path

    @classmethod
    def of(cls, out: Path) -> _Hidden:
        def file(kind: str) -> Path:
            return out.with_name(f".{out.name}.{kind}.safetensors")

        staged = out.with_name(f".{out.name}.merged")
        return cls(file("padding"), file("aligned"), file("maps"), file("repaired"), staged)

    def remove(self, aligned: Aligned | None) -> None:
        """Let go of what is of no more use."""
        for file in (self.padding, self.maps, self.repaired, *(aligned.files.values() if aligned else ())):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.staged, ignore_errors=True)


def _made_for_running(plan: Planned) -> tuple[Bench | None, Trial | None]:
    """Where models are run on the way, if they are, and what measures the merge."""
    if plan.rig is None:
        return None, None
    from isthmus.recipe.running.bench import Bench
    from isthmus.recipe.running.trial import Trial

    bench = Bench(plan.rig, plan.recipe.isthmus, "cpu" if plan.runs else "meta")
    return bench, None if plan.after is None else Trial(plan, bench)


def _jobs(
    plan: Planned, hidden: _Hidden, bench: Bench | None, means: _Means
) -> tuple[Jobs, Jobs, Aligned | None]:
    """What the engine shall do; the same with the models as they were found; how they were brought together."""
    found: Jobs | None = None
    aligned: Aligned | None = None
    if plan.moving is not None:
        from isthmus.recipe.running.moved import move

        found = Jobs(plan, str(hidden.padding))
        write_means(found.padding.values(), found.checkpoints)
        aligned = move(plan, hidden.orders, hidden.maps, _parents(plan, found), bench)
    elif plan.recipe.isthmus.align is not None:
        aligned = streamed.align(plan, hidden.orders, means.threads)
    made = Jobs(plan, str(hidden.padding), aligned)
    write_means(made.padding.values(), made.checkpoints)
    return made, found or made, aligned


def _files(plan: Planned, hashes: Mapping[str, str], out: Path, finished: Finished | None) -> list[Beside]:
    """What lies beside the tensors; the card, and the report if one is asked for, tell what was found."""
    measured = finished.told if finished is not None else ()
    files = [*plan.files, card(plan.recipe, plan.text, plan.parents, hashes, out, measured)]
    page = plan.recipe.isthmus.report
    if page is not None and finished is not None:
        from isthmus.recipe.running.results import results_of
        from isthmus.report.page import page as render_page

        results = results_of(plan, finished)
        files.append(Beside("results.json", text=results.model_dump_json(indent=2) + "\n"))
        files.append(Beside(page, text=render_page(results)))
    return files


def _stage(work: Work, identity: str, do: Callable[[Work], Written]) -> int:
    """Merge into a hidden folder, unless an interrupted run of the same work has.

    Returns:
        How many tensors an interrupted run had finished.

    Raises:
        InputError: something else is in the way.
    """
    folder = Path(work.out)
    if folder.exists():
        try:
            held = weights.metadata(folder)
        except WeightsError:
            held = {}
        if held.get("isthmus.key") == identity:
            return len(work.jobs)
        if "isthmus.key" not in held:
            raise InputError(f"{folder} is in the way, and no merge has made it", hint="remove it")
        shutil.rmtree(folder)
    return do(dataclasses.replace(work, metadata={"isthmus.key": identity})).resumed


def _copied(work: Work, hidden: _Hidden, changed: Mapping[str, Tensor]) -> Work:
    """The same tensors from where they are now: what the repair changed, and the merge as it came."""
    if changed:
        weights.save(changed, hidden.repaired)
    jobs = tuple(
        Job(job.name, job.shape, job.dtype, (Source(int(job.name in changed), job.name),))
        for job in work.jobs
    )
    checkpoints = (str(hidden.staged), *([str(hidden.repaired)] if changed else ()))
    return dataclasses.replace(work, jobs=jobs, checkpoints=checkpoints)


def _file(file: Beside) -> File:
    return File(file.name, source=None if file.source is None else str(file.source), text=file.text)


def _hashes(plan: Planned) -> dict[str, str]:
    """What the parents' bytes are, adapters included."""
    found: dict[str, str] = {}
    with progress.task("hashing", unit="bytes") as advance:
        for name, parent in plan.parents.items():
            found[name] = content_hash(parent.checkpoint.files, advance)
            if parent.adapter is not None:
                found[name] += f" + {content_hash((parent.adapter.path,), advance)}"
    return found


def _parents(plan: Planned, jobs: Jobs) -> dict[str, TensorsOf]:
    """Each parent's tensors under the output's names, read when they are touched."""
    opened = [weights.open(path) for path in jobs.checkpoints]
    return {name: TensorsOf(jobs.of(name), opened) for name in plan.parents}
