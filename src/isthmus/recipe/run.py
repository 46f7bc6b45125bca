"""Run a plan: jobs to the engine, files beside the tensors, and a look at what came out."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from isthmus import progress, weights
from isthmus.combine import ARITHMETIC
from isthmus.engine import File, Job, Source, Work
from isthmus.engine.local import Written, key
from isthmus.engine.local import run as run_locally
from isthmus.engine.ray import run as run_on_ray
from isthmus.engine.sources import reader
from isthmus.errors import InputError, MismatchError, WeightsError
from isthmus.recipe import headers
from isthmus.recipe.alignment import align
from isthmus.recipe.finish import Finished, TensorsOf, Trial
from isthmus.recipe.folder import Beside, card, provenance
from isthmus.recipe.jobs import Jobs, Padding
from isthmus.recipe.parents import content_hash, fetch
from isthmus.recipe.plan import Plan, check_room
from isthmus.recipe.results import results_of
from isthmus.recipe.show import size
from isthmus.report.page import page as render_page

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
    plan: Plan,
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
        InputError: no such engine, or an address for one that has none.
        IsthmusError: a parent has changed since the plan, or the output cannot be written.
    """
    if engine not in ENGINES or (address is not None and engine == "local"):
        raise InputError(
            f"engine = {engine!r}" + (f" has no address ({address})" if engine == "local" else " is none"),
            hint=f"there is {' and '.join(ENGINES)}; address= goes with ray",
        )
    check_room(plan, out)
    for parent in plan.parents.values():
        fetch(parent)
    limits = plan.recipe.isthmus.limits
    _check_agreed(plan)
    _check_tokens(plan)
    trial = Trial(plan) if plan.after is not None else None
    hashes = _hashes(plan)
    # Fixed places, so that a run after a kill finds the same inputs and goes on.
    padding, orders, repaired = (
        out.absolute().with_name(f".{out.name}.{kind}.safetensors")
        for kind in ("padding", "aligned", "repaired")
    )
    threads, max_memory = threads or limits.threads, max_memory or limits.memory
    aligned = align(plan, orders, threads) if plan.recipe.isthmus.align is not None else None
    made = Jobs(plan, str(padding), aligned)
    sources = {name: made.of(name) for name in plan.parents} if trial is not None else {}
    if made.padding:
        _write_padding(list(made.padding.values()), made.checkpoints)
    work = Work(
        checkpoints=tuple(made.checkpoints),
        jobs=tuple(made.jobs),
        out=str(out.absolute()),
        shard_size=shard_size or limits.shard_size or Work.shard_size,
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
        parents = {name: TensorsOf(found, checkpoints) for name, found in sources.items()}
        finished = trial.finish(staged, parents, {job.name: job.dtype for job in work.jobs})
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
    for file in (padding, orders, repaired):
        file.unlink(missing_ok=True)
    shutil.rmtree(staged, ignore_errors=True)
    if finished is not None:
        written = dataclasses.replace(
            written, seconds=time.monotonic() - began, resumed=again or written.resumed
        )
    told = aligned.told if aligned is not None else ()
    return Outcome(out, written, hashes, tuple(_look(plan, out)), told, finished)


def _files(plan: Plan, hashes: Mapping[str, str], out: Path, finished: Finished | None) -> list[Beside]:
    """What lies beside the tensors; the card, and the report if one is asked for, tell what was found."""
    measured = finished.told if finished is not None else ()
    files = [*plan.files, card(plan.recipe, plan.text, plan.parents, hashes, out, measured)]
    page = plan.recipe.isthmus.report
    if page is not None and finished is not None:
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


def _hashes(plan: Plan) -> dict[str, str]:
    """What the parents' bytes are, adapters included."""
    found: dict[str, str] = {}
    with progress.task("hashing", unit="bytes") as advance:
        for name, parent in plan.parents.items():
            found[name] = content_hash(parent.checkpoint.files, advance)
            if parent.adapter is not None:
                found[name] += f" + {content_hash((parent.adapter.path,), advance)}"
    return found


def _check_agreed(plan: Plan) -> None:
    """Integers are no weights: where models store the same ones they are kept, else there is no right answer."""
    rows = [row for row in plan.rows if row.how == "agreed" and len(row.parts) > 1]
    if not rows:
        return
    opened = {name: weights.open(parent.path) for name, parent in plan.parents.items()}
    wrong: list[str] = []
    for row in rows:
        first, *others = (opened[part.model][part.name] for part in row.parts)
        if not all(torch.equal(first, other) for other in others) and "num_batches_tracked" not in row.name:
            wrong.append(f"{row.name}    {row.dtype} {row.shape}")
    if wrong:
        raise MismatchError(
            f"{len(wrong)} integer tensors differ between the models and cannot be merged",
            wrong,
            hint="take them from the base: isthmus: {skip: [NAME, ...]}",
        )


def _write_padding(padding: list[Padding], checkpoints: list[str]) -> None:
    """Means of the rows of tokens, block by block; a file that holds them already stays as it is."""
    *rest, file = checkpoints
    opened: list[Mapping[str, Tensor]] = [weights.open(path) for path in rest]
    means: dict[str, Tensor] = {}
    for entry in padding:
        source = reader(entry.source, opened)
        width = 1
        for count in source.shape[1:]:
            width *= count
        total = torch.zeros(width, dtype=torch.float64)
        rows = max(1, (1 << 20) // width)
        for first in range(0, source.shape[0], rows):
            last = min(first + rows, source.shape[0])
            block = source.elements(first * width, last * width)
            total += block.view(last - first, width).double().sum(0)
        mean = total / source.shape[0]
        means[entry.key] = mean.float().reshape(1, *source.shape[1:])
    if Path(file).exists():
        held = weights.load(file)
        if set(held) == set(means) and all(torch.equal(held[key], means[key]) for key in means):
            return  # of a run that was killed: the same file, by which that run is known
    weights.save(means, file)


def _look(plan: Plan, out: Path) -> list[str]:
    """Read back what was written and compare it with the plan.

    Raises:
        WeightsError: it is not what was planned.
    """
    held = headers.read(out).entries
    wrong = [
        f"{row.name}    planned {row.dtype} {row.shape}, written {held.get(row.name, 'nothing')}"
        for row in plan.rows
        if row.name not in held
        or held[row.name].shape != row.shape
        or row.dtype not in (held[row.name].dtype, headers.NAMES.get(held[row.name].dtype))
    ]
    if wrong or len(held) != len(plan.rows):
        raise WeightsError(f"{out} is not what was planned", wrong or [f"{len(held)} tensors"])
    looked = [f"{len(held)} tensors, {size(sum(e.nbytes for e in held.values()))}, as planned"]
    if plan.vocabulary is not None:
        looked.append(_look_at_tokens(plan, out / "tokenizer.json"))
    return looked


def _look_at_tokens(plan: Plan, file: Path, text: str | None = None) -> str:
    """Load a tokenizer: every token has the row that the plan gave it.

    Args:
        plan: with a vocabulary.
        file: what errors call it, and where it is.
        text: its content, where it is not written yet.

    Raises:
        WeightsError: it does not load, or has other rows.
    """
    assert plan.vocabulary is not None
    if importlib.util.find_spec("tokenizers") is None:
        return "the tokenizer was not loaded back: pip install 'isthmus[tokenizers]'"
    library = importlib.import_module("tokenizers")
    try:
        loaded = library.Tokenizer.from_file(str(file)) if text is None else library.Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exceptions
        raise WeightsError(f"{file} does not load", [str(error)]) from None
    ids = cast("dict[str, int]", loaded.get_vocab(with_added_tokens=True))
    wrong = [
        f"{token!r}    planned row {row}, read {ids.get(token, 'nothing')}"
        for token, row in plan.vocabulary.ids.items()
        if ids.get(token) != row
    ]
    wrong += [
        f"{token!r}    not planned, read row {row}"
        for token, row in ids.items()
        if token not in plan.vocabulary.ids
    ]
    if wrong:
        raise WeightsError(f"{file} numbers {len(wrong)} tokens otherwise than planned", wrong[:10])
    said = "An isthmus joins two lands. 1234"
    back = loaded.decode(loaded.encode(said, add_special_tokens=False).ids)
    same = "".join(back.split()) == "".join(said.split())
    return f"the tokenizer loads, {len(ids)} tokens in their rows{', text comes back as it went in' if same else ''}"


def _check_tokens(plan: Plan) -> None:
    """The same before the work, which is long."""
    for file in plan.files:
        if plan.vocabulary is not None and file.name == "tokenizer.json":
            path = file.source or plan.vocabulary.folder / file.name
            _look_at_tokens(plan, path, file.text)
