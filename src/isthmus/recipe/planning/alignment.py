"""`isthmus: {align: ...}`: whether models can be brought together as a recipe asks, before a tensor is read.

Weight matching by parts reads models as they stream (`running/streamed.py`); all other methods, and its other options,
hold them whole (`running/moved.py`). Of these the registry says what there is, so a plan that names one imports torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from isthmus.errors import InputError
from isthmus.recipe.language.aligning import Align, Whole
from isthmus.recipe.language.methods import method_of
from isthmus.recipe.language.recipe import Recipe
from isthmus.recipe.language.text import Problems, nearest
from isthmus.recipe.parents.parent import Parent
from isthmus.recipe.parents.places import find
from isthmus.recipe.planning import options
from isthmus.recipe.planning.afterwards import Afterwards
from isthmus.recipe.planning.rig import DATA_HINT, MODEL_HINT
from isthmus.recipe.rows.row import Row

_WHERE = ("isthmus", "align")
_FILE_HINT = "graph: FILE, which `isthmus symmetry MODEL --save FILE` writes"

#: Rules that are a weighted average of the models, which is all that models can do whose units are mixed.
AVERAGES = ("average", "linear")


@dataclass(frozen=True)
class Moving:
    """An alignment of models that are held whole.

    Args:
        method: its name.
        options: as the method takes them.
        data: whether it is shown data.
        symmetries: whether these are read off a file, a configuration or the program, which is then run.
        keeps: whether it claims that each moved model computes what it did.
    """

    method: str
    options: Mapping[str, object]
    data: bool
    symmetries: Literal["file", "configuration", "program"]
    keeps: bool

    @property
    def needed(self) -> tuple[str, ...]:
        """What it reads of the recipe beside its own block."""
        if self.data:
            return ("model", "data", "calibration", "validation")
        return ("model", "data", "validation") if self.symmetries == "program" else ()


def reference_of(recipe: Recipe, parents: Mapping[str, Parent]) -> str:
    """The model whose units the output has: as the recipe says, else the base, else the first."""
    assert recipe.isthmus.align is not None
    named = recipe.isthmus.align.reference or recipe.base_model
    return str(named) if named is not None else next(iter(parents))


def graph_file(align: Align, roots: Sequence[Path], inside: Path | None) -> Path | None:
    """Where the graph is that a recipe names; None where it is nowhere that the recipe may name."""
    if align.graph is None:
        return None
    found = find(align.graph, roots)
    if found is None or not found.is_file():
        return None
    return found if inside is None or found.resolve().is_relative_to(inside.resolve()) else None


def read(
    recipe: Recipe, after: Afterwards | None, roots: Sequence[Path], inside: Path | None, problems: Problems
) -> Moving | None:
    """What a recipe asks for whose models are held whole, or None.

    Args:
        recipe: as read.
        after: what it asks for beyond the merge.
        roots: folders that relative paths begin in.
        inside: as for `plan_text`.
        problems: told what is wrong.
    """
    ours = recipe.isthmus
    if not isinstance(ours.align, Whole):
        return None
    from isthmus.align import ALIGNMENTS
    from isthmus.registry import keywords

    try:
        method = ALIGNMENTS.get(ours.align.method)
    except InputError:
        near = nearest(ours.align.method, ALIGNMENTS.names())
        problems.add((*_WHERE, "method"), f"no alignment is called {ours.align.method!r}{near}")
        return None
    taken = options.read(method, ours.align.options, _WHERE, roots, inside, problems)
    needed = "data" in method.needs
    data = needed or (ours.data is not None and "data" in keywords(method.function))
    if needed and ours.data is None:
        problems.add(_WHERE, f"{method.name} runs the models on data, and the recipe names none", DATA_HINT)
    file = ours.align.graph is not None
    if data and file:
        problems.add(
            (*_WHERE, "graph"),
            f"{method.name} is shown data, and a file of symmetries holds no program to run",
            MODEL_HINT,
        )
    run = data or ours.model is not None or after is not None
    symmetries = "file" if file else "program" if run else "configuration"
    return Moving(method.name, taken, data, symmetries, "function-kept" in method.claims)


def check(
    recipe: Recipe,
    moving: Moving | None,
    parents: Mapping[str, Parent],
    rows: Sequence[Row],
    roots: Sequence[Path],
    inside: Path | None,
    problems: Problems,
) -> None:
    """Find what is wrong with an alignment before a tensor is read.

    Args:
        recipe: as read.
        moving: where models are held whole.
        parents: by the recipe's own names.
        rows: of the plan.
        roots: folders that relative paths begin in.
        inside: as for `plan_text`.
        problems: told what is wrong.
    """
    align = recipe.isthmus.align
    if align is None or (moving is None and isinstance(align, Whole)):
        return
    if len(parents) < 2:
        problems.add(_WHERE, "one model alone is aligned to nothing")
    reference = reference_of(recipe, parents)
    if reference not in parents:
        near = ", ".join(parents)
        problems.add((*_WHERE, "reference"), f"{reference} is no model of this recipe", f"there is {near}")
        return
    for name, parent in parents.items():
        if parent.adapter is not None and not isinstance(align, Whole):
            problems.add(
                _WHERE,
                f"{name} has an adapter, and only whole models are aligned",
                "merge it into its model first",
            )
    other = [row.name for row in rows if any(part.name != row.name for part in row.parts)]
    if other:
        problems.add(
            _WHERE,
            f"{len(other)} tensors are made of others of another name: {', '.join(other[:3])}",
            "models are aligned layer by layer: align whole models, and cut the result into slices",
        )
    elif moving is not None:
        _check_whole(recipe, moving, parents, rows, problems)
    _check_symmetries(align, moving, parents[reference], reference, roots, inside, problems)


def _check_symmetries(
    align: Align,
    moving: Moving | None,
    parent: Parent,
    reference: str,
    roots: Sequence[Path],
    inside: Path | None,
    problems: Problems,
) -> None:
    """Whether there is something that symmetries can be read off."""
    if align.graph is not None:
        if graph_file(align, roots, inside) is None:
            problems.add(
                (*_WHERE, "graph"),
                f"{align.graph} does not exist",
                "isthmus symmetry MODEL --save FILE writes it",
            )
    elif moving is not None and moving.symmetries == "program":
        return  # the model is made and compared with the rows
    elif not parent.config:
        problems.add(
            _WHERE,
            f"{reference} has no config.json that its symmetries could be read from",
            _FILE_HINT if moving is None else f"{_FILE_HINT}; or {MODEL_HINT}",
        )
    elif importlib.util.find_spec("transformers") is None:
        problems.add(
            _WHERE,
            "to read symmetries from a config.json, the package transformers is needed",
            f"pip install transformers; or {_FILE_HINT}",
        )


def _check_whole(
    recipe: Recipe,
    moving: Moving,
    parents: Mapping[str, Parent],
    rows: Sequence[Row],
    problems: Problems,
) -> None:
    """Whether each parent is a whole model of the output's shape, and the merge one that such models can have."""
    merged = [row for row in rows if row.how == "merged"]
    lacking = [row.name for row in merged if sorted(p.model for p in row.parts) != sorted(parents)]
    if lacking:
        problems.add(
            _WHERE,
            f"{len(lacking)} tensors are merged of some of the models: {', '.join(lacking[:3])}",
            "models that are aligned whole are merged whole",
        )
    wrong = [
        f"{row.name}    {name} {entry.shape}, recipe {row.shape}"
        for row in rows
        if row.how == "copied" and not row.tokens
        for name, parent in parents.items()
        if (entry := parent.checkpoint.entries.get(row.name)) is not None and entry.shape != row.shape
    ]
    if wrong:
        problems.add(
            _WHERE,
            "\n".join(["tensors that are not merged have other shapes in some models", *wrong[:6]]),
            "models are run whole: in Python, isthmus.merge(models, skip=...) aligns models with other heads",
        )
    if moving.keeps:
        return
    rule = method_of(recipe.merge_method)
    if rule is None or rule.rule not in AVERAGES:
        problems.add(
            ("merge_method",),
            f"{moving.method} mixes units, so that models meet by weighted average, not by {recipe.merge_method}",
            "merge_method: linear; or an alignment that claims function-kept (isthmus methods alignment)",
        )
        return
    told = {
        tuple(p.values.get("weight") for p in sorted(row.parts, key=lambda part: part.model))
        for row in merged
    }
    numbers = [value for weights in told for value in weights if isinstance(value, int | float)]
    if len(told) > 1 or any(value < 0 for value in numbers) or (numbers and sum(numbers) <= 0):
        problems.add(
            ("parameters",),
            f"{moving.method} makes units of several models' by their weights: each model has one, not negative, "
            "for all tensors",
        )
