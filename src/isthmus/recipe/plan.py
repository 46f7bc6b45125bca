"""A recipe, checked against the headers of its models: everything that a merge will do, before it does it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isthmus.recipe.language.aligning import Whole
from isthmus.recipe.language.reading import examine
from isthmus.recipe.language.recipe import Recipe
from isthmus.recipe.language.text import Problems, read_file
from isthmus.recipe.output.folder import Beside, beside
from isthmus.recipe.parents import opening
from isthmus.recipe.planning import afterwards, alignment, costs, rig
from isthmus.recipe.planning.planned import Planned
from isthmus.recipe.planning.rig import MODEL_HINT
from isthmus.recipe.planning.show import describe, tabulate
from isthmus.recipe.rows.rows import plan_rows
from isthmus.recipe.tokens.templates import chat_template
from isthmus.recipe.tokens.vocabulary import plan_vocabulary

if TYPE_CHECKING:
    from isthmus.recipe.running.run import Outcome

_LIMIT = ("isthmus", "limits", "memory")


@dataclass(frozen=True)
class Plan(Planned):
    """What a recipe will do, which `Planned` holds: what it takes, how it reads, and how it is done.

    Examples:
        >>> import isthmus
        >>> plan = isthmus.plan("recipe.yml")  # doctest: +SKIP
        >>> print(plan)  # doctest: +SKIP
        >>> plan.run(out="merged")  # doctest: +SKIP
    """

    @property
    def memory(self) -> int:
        """Bytes of memory that the merge should need, apart from the page cache; and models that are held whole."""
        return costs.memory(self)

    @property
    def disk(self) -> int:
        """Bytes of disk that the merge needs on its way: moved models, and a model that is measured twice."""
        return costs.disk(self)

    @property
    def seconds(self) -> float:
        """Seconds that the merge should take, to about a factor of two."""
        return costs.seconds(self)

    def within(self, *, max_memory: int | None = None, threads: int | None = None) -> Plan:
        """The same plan with other limits than the recipe's, so that it says what it takes with these.

        Args:
            max_memory: private memory in bytes; None is the recipe's.
            threads: how many; None is the recipe's.
        """
        given = {"memory": max_memory, "threads": threads}
        ours = self.recipe.isthmus
        limits = ours.limits.model_copy(update={k: v for k, v in given.items() if v is not None})
        recipe = self.recipe.model_copy(update={"isthmus": ours.model_copy(update={"limits": limits})})
        before = costs.told(self)
        notes = tuple(note for note in self.notes if note not in before)
        plan = dataclasses.replace(self, recipe=recipe, notes=notes)
        return dataclasses.replace(plan, notes=(*notes, *costs.told(plan)))

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
        from isthmus.recipe.running.run import run

        return run(
            self,
            Path(out),
            max_memory=max_memory,
            threads=threads,
            shard_size=shard_size,
            engine=engine,
            address=address,
        )

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
    asked = _asked(recipe, roots, inside, problems)
    parents = opening.open_parents(recipe, problems, roots, inside)
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
    alignment.check(recipe, asked.moving, parents, rows.rows, roots, inside, problems)
    if asked.runs and not recipe.isthmus.model and not parents[base or next(iter(parents))].config:
        what = "the merged model" if asked.after is not None else "the models"
        problems.add(
            ("isthmus", asked.by),
            f"{asked.by} runs {what}, and there is no config.json that says what it is",
            MODEL_HINT,
        )
    if not rows.rows and not problems.found:
        problems.add((), "no tensor would come out of this recipe")
    problems.check()
    notes = [*rows.notes]
    files = beside(recipe, text, parents, vocabulary, rows, template, notes)
    run = asked.run and _fitted(asked.run, files)
    if run is not None:
        rig.check_fit(run, ("isthmus", asked.by), asked.traced, rows.rows, problems)
        problems.check()
    notes += opening.told(parents)
    aligned = recipe.isthmus.align
    graph = alignment.graph_file(aligned, roots, inside) if aligned is not None else None
    made = (recipe, parents, tuple(rows.rows), vocabulary, tuple(files), tuple(notes))
    plan = Plan(path, text, *made, graph, asked.after, asked.moving, run)
    if (said := costs.over(plan, recipe.isthmus.limits.memory)) is not None:
        problems.add(_LIMIT, said, costs.STREAMED)
        problems.check()
    return dataclasses.replace(plan, notes=(*plan.notes, *costs.told(plan)))


@dataclass(frozen=True)
class _Asked:
    """What a recipe asks for beyond its rows.

    Attributes:
        after: what is done with the merged model.
        moving: how models are brought together, where they are held whole for it.
        run: what weights are run in, where any are.
    """

    after: afterwards.Afterwards | None
    moving: alignment.Moving | None
    run: rig.Rig | None

    @property
    def traced(self) -> bool:
        """Whether symmetries are read off the model's program."""
        return self.moving is not None and self.moving.symmetries == "program"

    @property
    def runs(self) -> bool:
        """Whether models are run, rather than looked at."""
        return self.after is not None or self.traced

    @property
    def by(self) -> str:
        """The entry of the recipe that has a model run."""
        return self.after.ways[0] if self.after is not None else "align"


def _asked(recipe: Recipe, roots: tuple[Path, ...], inside: Path | None, problems: Problems) -> _Asked:
    after = afterwards.read(recipe, problems)
    moving = alignment.read(recipe, after, roots, inside, problems)
    needed = {way: afterwards.NEEDED.get(way, ()) for way in (after.ways if after is not None else ())}
    if moving is not None or not isinstance(recipe.isthmus.align, Whole):
        needed["align"] = moving.needed if moving is not None else ()
        afterwards.check_of_use(recipe.isthmus, needed, problems)
    named = rig.read(recipe.isthmus, roots, inside, problems)
    holds = after is not None or (moving is not None and moving.symmetries != "file")
    return _Asked(after, moving, named if holds else None)


def _fitted(run: rig.Rig, files: Sequence[Beside]) -> rig.Rig:
    """What weights are run in, as the output will describe it."""
    config = next((file.text for file in files if file.name == "config.json"), None)
    tokenizer = next((file for file in files if file.name == "tokenizer.json"), None)
    cut = "" if tokenizer is None or run.text is None else tokenizer.content()
    return dataclasses.replace(run, config=config or "", tokenizer=cut)
