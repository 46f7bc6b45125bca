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
from isthmus.recipe import afterwards, alignment
from isthmus.recipe.afterwards import Afterwards
from isthmus.recipe.dialect import Method, method_of
from isthmus.recipe.folder import Beside, beside
from isthmus.recipe.headers import SIZES
from isthmus.recipe.parents import Parent, open_parent, size_of
from isthmus.recipe.reading import examine
from isthmus.recipe.rows import Row, plan_rows
from isthmus.recipe.schema import Recipe
from isthmus.recipe.show import describe, size, tabulate
from isthmus.recipe.templates import chat_template
from isthmus.recipe.text import Problems, read_file
from isthmus.recipe.vocabulary import Vocabulary, plan_vocabulary

if TYPE_CHECKING:
    from isthmus.recipe.run import Outcome

# CPU time per element of an input, in nanoseconds, and bytes per second of a disk: the order of magnitude on which a
# person decides to wait. Measured on 2 cores with three bf16 models of 0.4 GB (user + system, less the start).
_COST = {
    "linear": 4, "task-arithmetic": 3, "passthrough": 2, "slerp": 5, "nuslerp": 5, "model-stock": 5, "karcher": 6,
    "ties": 8, "breadcrumbs": 8, "breadcrumbs-ties": 8, "dare-linear": 12, "dare-ties": 12,
    "della": 32, "della-linear": 32,
}  # fmt: skip
_COST_OTHERWISE, _DISK, _START = 10, 1.0e9, 2.0
# What the interpreter and torch take, and each thread for every input and the output, in private bytes. Measured on
# three bf16 models of 0.1 GB: TIES 189, 197 and 213 MB on 1, 2 and 4 threads, DARE 175 to 194, DELLA 189 on 2.
_MEMORY, _MEMORY_PER_THREAD = 180_000_000, 2_500_000
# The same where a model is made and run: libraries of models, activations of a batch.
_RUNNING = 600_000_000


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
    def memory(self) -> int:
        """Bytes of memory that the merge should need, apart from the page cache; and the models, if any is run."""
        merging = _MEMORY + self.threads * _MEMORY_PER_THREAD * (1 + len(self.parents))
        if self.after is None:
            return merging
        # The model itself, the merge, the repaired merge or a parent; and all parents where they are goals.
        states = 3 + (len(self.parents) if self.after.goals else 0)
        return max(merging, _RUNNING + 4 * states * sum(math.prod(row.shape) for row in self.rows))

    @property
    def disk(self) -> int:
        """Bytes of disk that the merge needs on its way: a model that is measured is written twice."""
        return self.bytes_written * (1 if self.after is None else 2)

    @property
    def seconds(self) -> float:
        """Seconds that the merge should take, to about a factor of two."""
        cost = _COST.get(self.method.rule, _COST_OTHERWISE) * 1e-9
        elements = sum(math.prod(row.shape) * len(row.parts) for row in self.rows if row.how == "merged")
        moved = sum(parent.checkpoint.nbytes for parent in self.parents.values()) + self.bytes_written
        return _START + max(cost * elements / self.threads, moved / _DISK)

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
    asked = afterwards.read(recipe, roots, inside, problems)
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
    alignment.check(recipe, parents, rows.rows, roots, inside, problems)
    after = None if asked is None else afterwards.of(recipe, asked, parents, problems)
    if not rows.rows and not problems.found:
        problems.add((), "no tensor would come out of this recipe")
    problems.check()
    aligned = recipe.isthmus.align
    graph = alignment.graph_file(aligned, roots, inside) if aligned is not None else None
    notes = [*rows.notes]
    files = beside(recipe, text, parents, vocabulary, rows, template, notes)
    if after is not None:
        config = next((file.text for file in files if file.name == "config.json"), None)
        tokenizer = next((file for file in files if file.name == "tokenizer.json"), None)
        cut = "" if tokenizer is None or after.text is None else tokenizer.content()
        after = dataclasses.replace(after, config=config or "", tokenizer=cut)
        afterwards.check_fit(after, rows.rows, problems)
        problems.check()
    notes += _adapters(parents)
    notes += [
        f"{name}: {size(parent.awaited)} are fetched from the hub when this runs"
        for name, parent in parents.items()
        if parent.awaited
    ]
    return Plan(
        path, text, recipe, parents, tuple(rows.rows), vocabulary, tuple(files), tuple(notes), graph, after
    )


def _parents(
    recipe: Recipe, problems: Problems, roots: tuple[Path, ...], inside: Path | None
) -> dict[str, Parent] | None:
    """Open every model once; None where one cannot be, since what follows would be guesses."""
    parents: dict[str, Parent] = {}
    failed: dict[str, IsthmusError] = {}
    for where, reference in recipe.references():
        name = str(reference)
        if name == "?" or name in parents:
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
    stand_ins = any(str(reference) == "?" for _, reference in recipe.references())
    return None if failed or stand_ins else parents


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
