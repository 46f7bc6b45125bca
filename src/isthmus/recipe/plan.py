"""A recipe, checked against the headers of its models: everything that a merge will do, before it does it."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isthmus.errors import InputError, IsthmusError
from isthmus.recipe import afterwards, alignment, costs, rig
from isthmus.recipe.afterwards import Afterwards
from isthmus.recipe.alignment import Moving
from isthmus.recipe.dialect import Method, method_of
from isthmus.recipe.folder import Beside, beside
from isthmus.recipe.headers import SIZES
from isthmus.recipe.parents import Parent, open_parent, size_of
from isthmus.recipe.reading import examine
from isthmus.recipe.rig import MODEL_HINT, Rig
from isthmus.recipe.rows import Row, plan_rows
from isthmus.recipe.schema import UNKNOWN_MODEL, Recipe, Whole
from isthmus.recipe.show import describe, size, tabulate
from isthmus.recipe.templates import chat_template
from isthmus.recipe.text import Problems, read_file
from isthmus.recipe.vocabulary import Vocabulary, plan_vocabulary

if TYPE_CHECKING:
    from isthmus.recipe.run import Outcome

_LIMIT = ("isthmus", "limits", "memory")


@dataclass(frozen=True)
class Plan:
    """What a recipe will do.

    Args:
        path: the recipe's file.
        text: as written.
        recipe: as read.
        parents: the models, by the recipe's own names.
        rows: one per output tensor, in natural order of their names.
        vocabulary: the output's tokens, where the recipe asks for a tokenizer.
        files: what the output holds beside the tensors and the card.
        notes: what was inferred, changed, left out or not read.
        graph: the file of symmetries that the recipe aligns by, where it names one.
        after: what is done with the merged model, where the recipe asks for a repair or an evaluation.
        moving: how models are brought together, where they are held whole for it.
        rig: what weights are run in and on, where any are.

    Examples:
        >>> import isthmus
        >>> plan = isthmus.plan("recipe.yml")  # doctest: +SKIP
        >>> print(plan)  # doctest: +SKIP
        >>> plan.run(out="merged")  # doctest: +SKIP
    """

    path: Path
    text: str
    recipe: Recipe
    parents: Mapping[str, Parent]
    rows: tuple[Row, ...]
    vocabulary: Vocabulary | None
    files: tuple[Beside, ...]
    notes: tuple[str, ...] = ()
    graph: Path | None = None
    after: Afterwards | None = None
    moving: Moving | None = None
    rig: Rig | None = None

    @property
    def method(self) -> Method:
        """The method, as mergekit has it."""
        name = self.recipe.merge_method
        return method_of(name) or Method(name, name, {})

    @property
    def bytes_written(self) -> int:
        """Bytes of all output tensors."""
        return sum(nbytes(row) for row in self.rows)

    @property
    def bytes_read(self) -> int:
        """Bytes of all inputs, each as often as it is read."""
        total = 0
        for row in self.rows:
            times = self.method.passes if row.how == "merged" else 1
            for part in row.parts if row.how != "copied" else row.parts[:1]:
                total += times * self.parents[part.model].checkpoint.entries[part.name].nbytes
        return total

    @property
    def threads(self) -> int:
        """How many threads work."""
        return self.recipe.isthmus.limits.threads or min(os.cpu_count() or 1, 8)

    @property
    def runs(self) -> bool:
        """Whether models are run, rather than looked at."""
        return self.after is not None or (self.moving is not None and self.moving.symmetries == "program")

    @property
    def memory(self) -> int:
        """Bytes of memory that the merge should need, apart from the page cache; and models that are held whole."""
        return max(costs.merging(self), costs.aligning(self), costs.running(self))

    @property
    def disk(self) -> int:
        """Bytes of disk that the merge needs on its way: moved models, and a model that is measured twice."""
        return self.bytes_written * (1 if self.after is None else 2) + costs.moved(self)

    @property
    def seconds(self) -> float:
        """Seconds that the merge should take, to about a factor of two."""
        return costs.seconds(self)

    def run(
        self,
        out: str | os.PathLike[str],
        *,
        max_memory: int | str | None = None,
        threads: int | None = None,
        shard_size: int | None = None,
        engine: str = "local",
        address: str | None = None,
    ) -> Outcome:
        """Do it: write the merged model into a new folder.

        Args:
            out: the folder; it appears complete, or not at all. Called again after a kill, a run goes on.
            max_memory: private memory in bytes, or as "512MiB"; by default the recipe's.
            threads: how many; by default the recipe's.
            shard_size: bytes of tensors per file; by default the recipe's.
            engine: on this machine, or on a Ray cluster that sees the same folders (extra `ray`).
            address: of the cluster.

        Returns:
            What was written, and what was found on the way.

        Raises:
            IsthmusError: a parent has changed, cannot be read, or the output cannot be written.
        """
        from isthmus.recipe.run import run

        return run(
            self,
            Path(out),
            max_memory=max_memory,
            threads=threads,
            shard_size=shard_size,
            engine=engine,
            address=address,
        )

    def is_base(self, name: str) -> bool:
        """Whether a parent is the recipe's base model."""
        return self.recipe.base_model is not None and str(self.recipe.base_model) == name

    def table(self) -> str:
        """One line per output tensor: what it is made of, with the weight and parameters of each."""
        return tabulate(self)

    def __str__(self) -> str:
        return describe(self)


def plan(path: str | os.PathLike[str]) -> Plan:
    """Read a recipe and check it against the headers of its models; no tensor is read, nothing is written.

    A plan of three 7B models takes well under a second. Whatever is wrong is found here, all at once,
    with the recipe's lines.

    Args:
        path: a recipe (`.yml`, `.yaml`), in mergekit's words. Models are looked for from the current folder,
            then from the recipe's, then in the Hugging Face cache.

    Returns:
        The plan: print it, look at `plan.rows`, or `plan.run(out=...)`.

    Raises:
        InputError: the recipe is wrong; every problem is listed with its line.
    """
    path = Path(path)
    return plan_text(read_file(path), path.name, path, (Path(), path.parent))


def plan_text(text: str, name: str, path: Path, roots: tuple[Path, ...], inside: Path | None = None) -> Plan:
    """`plan` of a recipe that is not in a file of its own.

    Args:
        text: the recipe.
        name: what problems call it.
        path: where it was found.
        roots: folders that relative paths begin in.
        inside: where given, the recipe is not trusted, and no path leads out of this folder.

    Raises:
        InputError: the recipe is wrong.
    """
    recipe, problems = examine(text, name)
    if recipe is None:
        raise problems.error()
    if (said := costs.too_low(recipe.isthmus.limits.memory)) is not None:
        problems.add(_LIMIT, said)
    after = afterwards.read(recipe, problems)
    moving = alignment.read(recipe, after, roots, inside, problems)
    needed = {way: afterwards.NEEDED.get(way, ()) for way in (after.ways if after is not None else ())}
    if moving is not None or not isinstance(recipe.isthmus.align, Whole):
        needed["align"] = moving.needed if moving is not None else ()
        afterwards.check_of_use(recipe.isthmus, needed, problems)
    named = rig.read(recipe.isthmus, roots, inside, problems)
    run = named if after is not None or (moving is not None and moving.symmetries != "file") else None
    parents = _parents(recipe, problems, roots, inside)
    if parents is None or not parents:
        raise problems.error()
    base = str(recipe.base_model) if recipe.base_model else None
    vocabulary = plan_vocabulary(recipe, parents, base, problems)
    template = (
        chat_template(recipe.chat_template, list(parents.values()), problems)
        if recipe.chat_template
        else None
    )
    rows = plan_rows(recipe, parents, vocabulary, problems)
    alignment.check(recipe, moving, parents, rows.rows, roots, inside, problems)
    asking = after.ways[0] if after is not None else "align"
    traced = moving is not None and moving.symmetries == "program"
    runs = after is not None or traced
    if runs and not recipe.isthmus.model and not parents[base or next(iter(parents))].config:
        what = "the merged model" if after is not None else "the models"
        problems.add(
            ("isthmus", asking),
            f"{asking} runs {what}, and there is no config.json that says what it is",
            MODEL_HINT,
        )
    if not rows.rows and not problems.found:
        problems.add((), "no tensor would come out of this recipe")
    problems.check()
    aligned = recipe.isthmus.align
    graph = alignment.graph_file(aligned, roots, inside) if aligned is not None else None
    notes = [*rows.notes]
    files = beside(recipe, text, parents, vocabulary, rows, template, notes)
    if run is not None:
        config = next((file.text for file in files if file.name == "config.json"), None)
        tokenizer = next((file for file in files if file.name == "tokenizer.json"), None)
        cut = "" if tokenizer is None or run.text is None else tokenizer.content()
        run = dataclasses.replace(run, config=config or "", tokenizer=cut)
        rig.check_fit(run, ("isthmus", asking), traced, rows.rows, problems)
        problems.check()
    notes += _adapters(parents)
    notes += [
        f"{name}: {size(parent.awaited)} are fetched from the hub when this runs"
        for name, parent in parents.items()
        if parent.awaited
    ]
    made = (recipe, parents, tuple(rows.rows), vocabulary, tuple(files), tuple(notes))
    plan = Plan(path, text, *made, graph, after, moving, run)
    if (said := costs.over(plan, recipe.isthmus.limits.memory)) is not None:
        problems.add(_LIMIT, said, costs.STREAMED)
        problems.check()
    if (said := costs.tight(plan)) is not None:
        plan = dataclasses.replace(plan, notes=(*plan.notes, said))
    return plan


def _parents(
    recipe: Recipe, problems: Problems, roots: tuple[Path, ...], inside: Path | None
) -> dict[str, Parent] | None:
    """Open every model once; None where one cannot be, since what follows would be guesses."""
    parents: dict[str, Parent] = {}
    failed: dict[str, IsthmusError] = {}
    for where, reference in recipe.references():
        name = str(reference)
        if name == UNKNOWN_MODEL or name in parents:
            continue
        if name not in failed:
            try:
                parents[name] = open_parent(reference, roots, inside)
                continue
            except IsthmusError as error:
                failed[name] = error
        said = failed[name]
        more = [f"and {len(said.where) - 6} more"] if len(said.where) > 6 else []
        problems.add(where, "\n".join([said.what, *said.where[:6], *more]), said.hint)
    same: dict[tuple[Path, ...], str] = {}
    told: set[str] = set()
    for where, reference in recipe.references():
        if (parent := parents.get(name := str(reference))) is None or name in told:
            continue
        adapter = () if parent.adapter is None else (parent.adapter.path.resolve(),)
        first = same.setdefault((parent.path.resolve(), *adapter), name)
        if first != name:
            told.add(name)
            problems.add(
                where, f"{name} is the same model as {first}", "write it alike, wherever it is meant"
            )
    return parents if not failed and recipe.readable else None


def _adapters(parents: Mapping[str, Parent]) -> list[str]:
    notes: list[str] = []
    for name, parent in parents.items():
        if (adapter := parent.adapter) is not None:
            replaced = f", {len(adapter.replaced)} tensors replaced" if adapter.replaced else ""
            notes.append(
                f"{name}: LoRA of rank {adapter.rank} added to {len(adapter.factors)} tensors{replaced}"
            )
    return notes


def nbytes(row: Row) -> int:
    """Bytes of a row's tensor in the output."""
    return math.prod(row.shape) * (SIZES[row.dtype] if row.dtype in SIZES else size_of(row.dtype))


def check_room(plan: Plan, out: Path) -> None:
    """Make sure that the output fits on its disk and may be written there, before any work.

    Raises:
        InputError: it does not, or may not.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} exists and is not empty", hint="name another folder, or remove it")
    folder = out.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"--out {out}: {folder} cannot be written")
    free = shutil.disk_usage(folder).free
    needed = plan.disk + 50_000_000
    if needed > free:
        raise InputError(
            f"--out {out}: {size(needed)} are needed and {size(free)} are free",
            hint="name a folder on another disk, or write a narrower out_dtype",
        )
