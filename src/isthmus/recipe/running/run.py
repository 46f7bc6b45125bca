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
    from isthmus.recipe.running.finished import Finished


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
    if engine not in ENGINES or (address is not None and engine == "local"):
        raise InputError(
            f"engine = {engine!r}" + (f" has no address ({address})" if engine == "local" else " is none"),
            hint=f"there is {' and '.join(ENGINES)}; address= goes with ray",
        )
    limits = plan.recipe.isthmus.limits
    threads = limits.threads if threads is None else threads
    max_memory = limits.memory if max_memory is None else max_memory
    shard_size = limits.shard_size if shard_size is None else shard_size
    if wrong := [
        f"{name} = {n}"
        for name, n in (("threads", threads), ("shard_size", shard_size))
        if n is not None and n < 1
    ]:
        raise InputError(f"{' and '.join(wrong)}: nothing can be done with that", hint="1 is the least")
    if (said := costs.over(plan, None if max_memory is None else size(max_memory))) is not None:
        raise InputError(said, hint=costs.STREAMED)
    check_room(plan, out)
    for parent in plan.parents.values():
        fetch(parent)
    check_agreed(plan)
    check_tokens(plan)
    bench = None
    if plan.rig is not None:
        from isthmus.recipe.running.bench import Bench

        bench = Bench(plan.rig, plan.recipe.isthmus, "cpu" if plan.runs else "meta")
    trial = None
    if plan.after is not None and bench is not None:
        from isthmus.recipe.running.trial import Trial

        trial = Trial(plan, bench)
    hashes = _hashes(plan)
    # Fixed places, so that a run after a kill finds the same inputs and goes on.
    padding, orders, maps, repaired = (
        out.absolute().with_name(f".{out.name}.{kind}.safetensors")
        for kind in ("padding", "aligned", "maps", "repaired")
    )
    found: Jobs | None = None
    aligned: Aligned | None = None
    if plan.moving is not None:
        from isthmus.recipe.running.moved import move

        found = Jobs(plan, str(padding))
        write_means(found.padding.values(), found.checkpoints)
        aligned = move(plan, orders, maps, _parents(plan, found), bench)
    elif plan.recipe.isthmus.align is not None:
        aligned = streamed.align(plan, orders, threads)
    made = Jobs(plan, str(padding), aligned)
    write_means(made.padding.values(), made.checkpoints)
    work = Work(
        checkpoints=tuple(made.checkpoints),
        jobs=tuple(made.jobs),
        out=str(out.absolute()),
        shard_size=Work.shard_size if shard_size is None else shard_size,
    )

    def do(part: Work) -> Written:
        if engine == "ray":
            return run_on_ray(part, address=address, threads=threads, max_memory=max_memory)
        return run_locally(part, threads=threads, max_memory=max_memory)

    began, finished, again = time.monotonic(), None, 0
    staged = out.absolute().with_name(f".{out.name}.merged")
    if trial is not None:
        checkpoints = [weights.open(path) for path in work.checkpoints]
        again = _stage(dataclasses.replace(work, out=str(staged)), key(work, checkpoints), do)
        # A model that was moved whole may compute nothing by itself: what is measured is the model as it was found.
        parents = _parents(plan, found or made)
        dtypes = {job.name: job.dtype for job in work.jobs}
        finished = trial.finish(staged, parents, dtypes, None if aligned is None else aligned.alignment)
        work = _copied(work, staged, repaired, finished.changed)
    written = do(
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
    for file in (padding, maps, repaired, *(aligned.files.values() if aligned is not None else ())):
        file.unlink(missing_ok=True)
    shutil.rmtree(staged, ignore_errors=True)
    if finished is not None:
        written = dataclasses.replace(
            written, seconds=time.monotonic() - began, resumed=again or written.resumed
        )
    told = aligned.told if aligned is not None else ()
    return Outcome(out, written, hashes, tuple(look(plan, out)), told, finished)


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


def _copied(work: Work, staged: Path, file: Path, changed: Mapping[str, Tensor]) -> Work:
    """The same tensors from where they are now: what the repair changed, and the merge as it came."""
    if changed:
        weights.save(changed, file)
    jobs = tuple(
        Job(job.name, job.shape, job.dtype, (Source(int(job.name in changed), job.name),))
        for job in work.jobs
    )
    checkpoints = (str(staged), str(file)) if changed else (str(staged),)
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
