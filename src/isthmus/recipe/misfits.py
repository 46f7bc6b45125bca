"""What does not fit between a recipe and its models, gathered over all tensors and said once each."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from isthmus.recipe.dialect import METHODS, Method
from isthmus.recipe.layers import layout, natural
from isthmus.recipe.parents import Parent
from isthmus.recipe.schema import Recipe
from isthmus.recipe.text import Problems, Where
from isthmus.recipe.vocabulary import is_tokens


class Misfits:
    """An account that is kept while rows are made.

    Attributes:
        mismatched: tensors of several shapes, with each model's.
        missing: tensors that some models lack, by those models.
        lacking: parameters that nobody gives, by the place that should, with the models (or tensors) meant.
        dropped: buffers that are left out.
        ties: heads that are their embeddings, by model.
        skipped: how many tensors each pattern of `skip` has met.
    """

    def __init__(self, recipe: Recipe, parents: Mapping[str, Parent], problems: Problems):
        self._recipe = recipe
        self._parents = parents
        self._problems = problems
        self._notes: list[str] = []
        self.mismatched: list[tuple[str, list[tuple[str, str]]]] = []
        self.missing: dict[tuple[str, ...], list[str]] = defaultdict(list)
        self.lacking: dict[tuple[str, Where | None], list[str]] = defaultdict(list)
        self.dropped: set[str] = set()
        self.ties: dict[str, int] = defaultdict(int)
        self.skipped = [0] * len(recipe.isthmus.skip)

    def tell(self, method: Method, rows: int) -> list[str]:
        """Say it all: what is wrong as problems, the rest as notes.

        Args:
            method: of the recipe.
            rows: how many tensors were fine.
        """
        top: Where = (
            ("models",) if self._recipe.models else ("slices",) if self._recipe.slices else ("modules",)
        )
        for models, names in self.missing.items():
            shown = ", ".join(sorted(names, key=natural)[:3]) + (", ..." if len(names) > 3 else "")
            what = f"{_tensors(len(names))} missing in {' and '.join(models)}: {shown}"
            self._problems.add(self._place_of(models[0], top), what, self._why_missing(models[0], names))
        if self.mismatched:
            self._tell_shapes(top, rows)
        for (name, where), owners in self.lacking.items():
            who = f"of {owners[0]}" if where is not None else "of every tensor"
            many = f" ({len(owners)} tensors have none)" if len(owners) < rows else ""
            self._problems.add(where or ("merge_method",), f"{method.name} needs a {name} {who}{many}")
        for pattern, count, index in zip(self._recipe.isthmus.skip, self.skipped, range(99), strict=False):
            if not count:
                self._problems.add(("isthmus", "skip", index), f"skip: no tensor is called {pattern!r}")
        if any(self.skipped):
            self._notes.append(
                f"{sum(self.skipped)} tensors are skipped: taken from the base (else the first model) as they are"
            )
        if self.dropped:
            first = min(self.dropped, key=natural)
            self._notes.append(
                f"{len(self.dropped)} buffers that some models lack are left out: {first}, ..."
            )
        for model, count in self.ties.items():
            self._notes.append(f"{model} stores no head: its embedding stands for {count}")
        self._unread(method)
        return self._notes

    def _tell_shapes(self, top: Where, rows: int) -> None:
        lines: list[str] = []
        for name, entries in self.mismatched[:4]:
            lines.append("    ".join([name, *(f"{model} {what}" for model, what in dict(entries).items())]))
        if len(self.mismatched) > 4:
            lines.append(f"and {len(self.mismatched) - 4} more")
        name, entries = self.mismatched[0]
        odd = next((m for m, what in entries[1:] if what != entries[0][1]), entries[0][0])
        hint = f'if they are not to be merged: isthmus: {{skip: ["{name}"]}}'
        sizes = {
            entry.shape[0]
            for model, _ in entries
            if (entry := self._parents[model].checkpoint.entries.get(name)) is not None and entry.shape
        }
        if is_tokens(name, 0, None) and len(sizes) > 1:
            hint = (
                f"the vocabularies differ by {max(sizes) - min(sizes)} rows; add `tokenizer: {{source: union}}`, "
                f'or isthmus: {{skip: ["{name}"]}}'
            )
        shapes = any(
            len({what.partition(" ")[2] for _, what in entries}) > 1 for _, entries in self.mismatched
        )
        why = "shapes differ" if shapes else "integers in one model are weights in another"
        what = f"{len(self.mismatched)} of {len(self.mismatched) + rows} tensors cannot be merged: {why}"
        self._problems.add(self._place_of(odd, top), "\n".join([what, *lines]), hint)

    def _why_missing(self, model: str, names: Sequence[str]) -> str | None:
        """Names that differ only in what they begin with are of one architecture, saved from two classes."""
        theirs = set(self._parents[model].checkpoint.entries)
        for prefix in ("model.", "transformer.", "bert.", "roberta.", "module.", "_orig_mod."):
            if all(name.removeprefix(prefix) in theirs for name in names[:5]) or all(
                prefix + n in theirs for n in names[:5]
            ):
                return (
                    f"names in {model} differ by {prefix!r} at the beginning: it was saved from another class"
                )
        layers = {prefix: stack.count for prefix, stack in layout(theirs).stacks.items()}
        numbers = [int(match[1]) for name in names if (match := re.search(r"\.(\d+)\.", name))]
        if layers and len(numbers) == len(names) and min(numbers) >= min(layers.values()):
            return f"{model} has fewer layers: choose which with `slices` and `layer_range`"
        return "these are not of one architecture; what is not to be merged: isthmus: {skip: [PATTERN, ...]}"

    def _place_of(self, model: str, top: Where) -> Where:
        for where, reference in self._recipe.references():
            if str(reference) == model and where[0] == top[0]:
                return where
        return next((where for where, r in self._recipe.references() if str(r) == model), top)

    def _unread(self, method: Method) -> None:
        """Parameters that another method has, and this one does not read."""
        unread = {
            name
            for _, settings in self._recipe.settings()
            for name in settings
            if name not in method.parameters
        }
        if unread and method.name in METHODS:
            self._notes.append(f"{method.name} does not read {', '.join(sorted(unread))}")
        for piece in self._recipe.slices or ():
            if piece.residual_weight is not None:
                self._notes.append("residual_weight is read by no method, here as in mergekit")


def _tensors(count: int) -> str:
    return "1 tensor is" if count == 1 else f"{count} tensors are"
