"""What does not fit between a recipe and its models, gathered over all tensors and said once each."""

from __future__ import annotations

import fnmatch
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from isthmus.recipe.language.dialect import NORMALIZED, Method
from isthmus.recipe.language.ours import Block
from isthmus.recipe.language.recipe import Recipe
from isthmus.recipe.language.text import Problems, Where, few, near
from isthmus.recipe.parents.layers import layout, natural
from isthmus.recipe.parents.parent import Parent
from isthmus.recipe.rows.settings import Spot, filters, fits
from isthmus.recipe.rows.unread import misplaced, unread
from isthmus.recipe.tokens.names import is_tokens


class Misfits:
    """An account that is kept while rows are made.

    Attributes:
        mismatched: tensors of several shapes, with each model's.
        missing: tensors that some models lack, by those models.
        lacking: parameters that nobody gives, by the place that should, with the models (or tensors) meant.
        dropped: buffers that are left out.
        ties: heads that are their embeddings, by model.
        skipped: how many tensors are not merged, as `skip` asks.
        cancelled: tensors whose weights sum to 0 and are to be divided by that, by the place of the models.
        unseen: whether some tensors could not be looked at, so that nothing is said to meet none.
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
        self.skipped = 0
        self.cancelled: dict[Where, list[str]] = defaultdict(list)
        self.unseen = False
        self._names: set[str] = set()
        self._skipping = [0] * len(recipe.isthmus.skip)
        self._called = [0] * len(recipe.isthmus.blocks)
        self._fitting = [0] * len(recipe.isthmus.blocks)
        self._owned = [0] * len(recipe.isthmus.blocks)
        self._deepest = [0] * len(recipe.isthmus.blocks)

    def met(self, spot: Spot, models: Sequence[str], names: Sequence[str | None], base: int | None) -> None:
        """Take a tensor into account.

        Args:
            spot: of the output.
            models: that it is made of.
            names: of it in each of them.
            base: index of the model that has no parameters of its own, if one is.
        """
        owners = [model for index, model in enumerate(models) if index != base]
        self._names.add(spot.name)
        self._names.update(name for name in names if name is not None)
        for index, block in enumerate(self._recipe.isthmus.blocks):
            if not fnmatch.fnmatchcase(spot.name, block.match):
                continue
            self._called[index] += 1
            self._deepest[index] = max(self._deepest[index], spot.layers)
            fitting, model = fits(block, spot), str(block.model)
            self._fitting[index] += fitting and (block.model is None or model in models)
            self._owned[index] += fitting and model in owners

    def skips(self, name: str) -> bool:
        """Whether a tensor is not merged, as the recipe asks; every pattern that fits has then met it."""
        fitting = [fnmatch.fnmatchcase(name, pattern) for pattern in self._recipe.isthmus.skip]
        self._skipping = [count + one for count, one in zip(self._skipping, fitting, strict=True)]
        self.skipped += any(fitting)
        return any(fitting)

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
            what = f"{_tensors(len(names))} {'is' if len(names) == 1 else 'are'} missing in {' and '.join(models)}"
            what += f": {_few(names)}"
            self._problems.add(self._place_of(models[0], top), what, self._why_missing(models[0], names))
        if self.mismatched:
            self._tell_shapes(top, rows)
        for (name, where), owners in self.lacking.items():
            if any(place[-1] in (name, "parameters") for place in self._problems.gone):
                continue  # it was given, wrongly
            who = f"of {owners[0]}" if where is not None else "of every tensor"
            many = f" ({len(owners)} tensors have none)" if len(owners) < rows else ""
            hint = misplaced(self._recipe, name, method, self._problems)
            self._problems.add(where or ("merge_method",), f"{method.name} needs a {name} {who}{many}", hint)
        for where, names in self.cancelled.items():
            what = f"the weights of {_tensors(len(names))} sum to 0, by which they are divided: {_few(names)}"
            self._problems.add(where, what, f"`{NORMALIZED[method.name]}: false` leaves the sum as it is")
        if not self.unseen:
            self._tell_unmet(method)
        if self.skipped:
            self._notes.append(
                f"{self.skipped} tensors are skipped: taken from the base (else the first model) as they are"
            )
        if self.dropped:
            first = min(self.dropped, key=natural)
            self._notes.append(
                f"{len(self.dropped)} buffers that some models lack are left out: {first}, ..."
            )
        for model, count in self.ties.items():
            self._notes.append(f"{model} stores no head: its embedding stands for {count}")
        return [*self._notes, *unread(self._recipe, method, self._problems)]

    def _tell_unmet(self, method: Method) -> None:
        """Patterns, blocks and filters that are about no tensor, and values in blocks that nothing reads."""
        ours = self._recipe.isthmus
        for index, (pattern, count) in enumerate(zip(ours.skip, self._skipping, strict=True)):
            if not count:
                what = f"skip: no tensor is called {pattern!r}{self._alike(pattern)}"
                self._problems.add(("isthmus", "skip", index), what)
        models = {str(reference) for _, reference in self._recipe.references()}
        for index, block in enumerate(ours.blocks):
            where, of = ("isthmus", "blocks", index), f" of {block.model}" if block.model else ""
            if not self._called[index]:
                what = f"blocks[{index}]: no tensor is called {block.match!r}{self._alike(block.match)}"
                self._problems.add((*where, "match"), what)
            elif block.layers is not None and 0 < self._deepest[index] < block.layers[1]:
                first, end = block.layers
                what = f"blocks[{index}]: [{first}, {end}] goes beyond the {self._deepest[index]} layers"
                self._problems.add((*where, "layers"), what)
            elif not self._fitting[index] and (not block.model or str(block.model) in models):
                within = "" if block.layers is None else f" in layers {list(block.layers)}"
                self._problems.add(where, f"blocks[{index}]: no tensor{of} is called {block.match!r}{within}")
            elif block.model is not None and str(block.model) in models:
                self._tell_unowned(method, index, block)
        told: set[str] = set()
        for where, settings in self._recipe.settings():
            for name, setting in settings.items():
                for index, part in filters(setting):
                    if part in told or any(part in known for known in self._names):
                        continue
                    told.add(part)
                    line = self._problems.line((*where, name, *(() if index is None else (index,))))
                    way = ": it is a part of a name, without *" if "*" in part else self._alike(part)
                    self._notes.append(f"filter {part!r} at line {line} fits no tensor{way}")

    def _tell_unowned(self, method: Method, index: int, block: Block) -> None:
        """Parameters that a block gives one model, and that this model has not."""
        for name in block.parameters:
            if name not in method.parameters:
                continue  # said of all levels at once
            if name not in method.per_model:
                what, hint = f"{method.name} has one {name} for all models", "leave `model` out of the block"
            elif not self._owned[index]:
                what, hint = f"{block.model} is the base, and {method.name} gives a base no {name}", None
            else:
                continue
            self._problems.add(
                ("isthmus", "blocks", index, "parameters", name), f"blocks[{index}]: {what}", hint
            )

    def _alike(self, pattern: str) -> str:
        """`, did you mean 'mlp'?`, for the first part of a pattern that is in no name; else what names look like."""
        known = {part for name in self._names for part in name.split(".")}
        for word in re.split(r"[.*?\[\]]+", pattern):
            if word and not any(word in name for name in self._names):
                if (found := near(word, known)) is not None:
                    return f", did you mean {found!r}?"
                break
        for wider in (f"{pattern}*", f"*{pattern}", f"*{pattern}*"):
            if fitting := fnmatch.filter(self._names, wider):
                return f", did you mean {wider!r}? There is {min(fitting, key=natural)}"
        return f"; names are such as {min(self._names, key=natural)}" if self._names else ""

    def _tell_shapes(self, top: Where, rows: int) -> None:
        lines: list[str] = []
        for name, entries in self.mismatched[:4]:
            lines.append("    ".join([name, *(f"{model} {what}" for model, what in dict(entries).items())]))
        if len(self.mismatched) > 4:
            lines.append(f"and {len(self.mismatched) - 4} more")
        name, entries = self.mismatched[0]
        skip = f"isthmus: {{skip: {json.dumps(self._patterns())}}}"
        odd = next((m for m, what in entries[1:] if what != entries[0][1]), entries[0][0])
        hint = f"if they are not to be merged: {skip}"
        sizes = {
            entry.shape[0]
            for model, _ in entries
            if (entry := self._parents[model].checkpoint.entries.get(name)) is not None and entry.shape
        }
        if is_tokens(name, 0, None) and len(sizes) > 1:
            way = "" if self._recipe.tokenizes else "add `tokenizer: {source: union}`, or "
            hint = f"the vocabularies differ by {max(sizes) - min(sizes)} rows; {way}{skip}"
        elif self._recipe.isthmus.align is not None:
            hint += (
                "; models of several widths are aligned in Python, isthmus.merge, or by isthmus merge --arch"
            )
        shapes = any(
            len({what.partition(" ")[2] for _, what in entries}) > 1 for _, entries in self.mismatched
        )
        why = "shapes differ" if shapes else "integers in one model are weights in another"
        what = f"{len(self.mismatched)} of {len(self.mismatched) + rows} tensors cannot be merged: {why}"
        self._problems.add(self._place_of(odd, top), "\n".join([what, *lines]), hint)

    def _patterns(self) -> list[str]:
        """What fits all tensors that cannot be merged and no other, so that following the hint ends the matter."""
        wrong = [name for name, _ in self.mismatched]
        others = self._names.difference(wrong)
        by_pattern: dict[str, list[str]] = defaultdict(list)
        for name in wrong:
            by_pattern[re.sub(r"\.\d+\.", ".*.", name)].append(name)
        found: list[str] = []
        for pattern, names in by_pattern.items():
            exact = len(names) == 1 or any(fnmatch.fnmatchcase(other, pattern) for other in others)
            found += names if exact else [pattern]
        return found

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


def _few(names: Sequence[str]) -> str:
    return few(sorted(names, key=natural))


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"
