"""A recipe and its parents' headers to one row per output tensor: what it is made of, with which parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

from isthmus.recipe.language.dialect import Method
from isthmus.recipe.language.methods import method_of
from isthmus.recipe.language.recipe import Input, Module, Recipe, Slice, SliceInput
from isthmus.recipe.language.text import Problems, Where
from isthmus.recipe.parents.layers import Layout, Stack, counts, layout, natural
from isthmus.recipe.parents.parent import Parent
from isthmus.recipe.rows.made import Made
from isthmus.recipe.rows.misfits import Misfits
from isthmus.recipe.rows.row import Rows
from isthmus.recipe.rows.settings import Level, Spot
from isthmus.recipe.rows.values import Context, Source
from isthmus.recipe.tokens.vocabulary import Vocabulary


def plan_rows(
    recipe: Recipe, parents: Mapping[str, Parent], vocabulary: Vocabulary | None, problems: Problems
) -> Rows:
    """Work out every row.

    Args:
        recipe: as read.
        parents: by the recipe's own names.
        vocabulary: where rows of tokens are remade.
        problems: told what does not fit.
    """
    return _Compiler(recipe, parents, vocabulary, problems).rows()


class _Compiler:
    def __init__(
        self,
        recipe: Recipe,
        parents: Mapping[str, Parent],
        vocabulary: Vocabulary | None,
        problems: Problems,
    ):
        self._recipe = recipe
        self._parents = parents
        self._problems = problems
        self._method = method_of(recipe.merge_method) or Method(recipe.merge_method, recipe.merge_method, {})
        self._notes: list[str] = []
        self._layers: dict[tuple[str, ...], int] = {}
        self._origin: list[int] | None = None
        self._misfits = Misfits(recipe, parents, problems)
        self._made = Made(recipe, self._method, parents, vocabulary, self._misfits, problems)

    def rows(self) -> Rows:
        names = {name for parent in self._parents.values() for name in parent.checkpoint.entries}
        if self._recipe.modules:
            left = set(names)
            for key, module in self._recipe.modules.items():
                mine = self._of_module(key, names)
                left -= mine
                self._module(module, mine, ("modules", key))
            self._leave(left)
        else:
            plain = Module.model_construct(
                models=self._recipe.models, slices=self._recipe.slices, parameters=None
            )
            self._module(plain, names, ())
        self._notes += self._misfits.tell(self._method, len(self._made.rows))
        ordered = sorted(self._made.rows.values(), key=lambda row: natural(row.name))
        return Rows(ordered, self._notes, self._layers, self._origin)

    def _of_module(self, key: str, names: set[str]) -> set[str]:
        """The names of a module: those with a part of that name, or all where mergekit says `default`."""
        known = {
            "default": "",
            "text_decoder": r"(language_model|text_model)\.|^(model\.)?(layers|embed_tokens|norm)\.|lm_head",
            "vision_tower": r"(vision_tower|vision_model|visual)\.",
            "multi_modal_projector": r"(multi_modal_projector|mm_projector|connector)\.|visual\.merger",
        }  # fmt: skip
        pattern = known.get(key, rf"(^|\.){re.escape(key)}(\.|$)")
        found = {name for name in names if re.search(pattern, name)}
        if key == "vision_tower":
            found = {name for name in found if "visual.merger" not in name}
        if not found:
            self._misfits.unseen = True
            there = sorted({name.split(".")[0] for name in names})
            self._problems.add(
                ("modules", key), f"no tensor is of a module {key!r}; names begin with {', '.join(there)}"
            )
        return found

    def _leave(self, left: set[str]) -> None:
        """What no module takes comes from the base as it is: an output without it would not load."""
        donor = str(self._recipe.base_model) if self._recipe.base_model else next(iter(self._parents))
        entries = self._parents[donor].checkpoint.entries
        taken = sorted((name for name in left if name in entries), key=natural)
        for name in taken:
            self._made.copy(name, donor, name)
        if taken:
            self._notes.append(
                f"{len(taken)} tensors are of no module here and are taken from {donor} as they are"
            )

    def _module(self, module: Module, names: set[str], where: Where) -> None:
        found = layout(names)
        if module.slices is not None:
            self._sliced(module, module.slices, found, names, where)
        elif module.models is not None:
            context = self._models(module, module.models, where)
            for name in sorted(names, key=natural):
                prefix, layer, _ = found.place.get(name, ("", None, ""))
                total = found.stacks[prefix].count if layer is not None else 0
                t = 0.0 if layer is None else (layer / (total - 1) if total > 1 else 1.0)
                spot = Spot(name, t, layer, total, before=name not in found.after)
                self._made.row(spot, context, [name] * len(context.sources))
            stacks = ", ".join(f"{s.prefix} x {s.count}" for s in found.stacks.values())
            self._notes.append(
                f"layers: {stacks}"
                if stacks
                else "no layers were found in the names: lists over layers take their first value"
            )

    def _models(self, module: Module, models: Sequence[Input], where: Where) -> Context:
        base = str(self._recipe.base_model) if self._recipe.base_model else None
        sources = [
            Source(str(entry.model), entry.parameters, None, (*where, "models", i))
            for i, entry in enumerate(models)
        ]
        if base is not None and base not in [source.model for source in sources]:
            # mergekit adds the base to the models; methods that know no base then merge it as one more.
            sources.append(Source(base, None, None, ("base_model",)))
            if self._method.base == "none":
                self._notes.append(
                    f"{self._method.name} has no base: {base} is merged as one more model, as in mergekit"
                )
        self._count(len(sources), (*where, "models"))
        self._tell_of_base(base, sources)
        return Context(tuple(sources), base, self._outer(module, where), (*where, "models"))

    def _tell_of_base(self, base: str | None, sources: Sequence[Source]) -> None:
        """Parameters that stand beside the base, which has none."""
        found = next((source for source in sources if source.model == base), None)
        if found is not None and found.level and self._method.base != "none":
            line = self._problems.line((*found.where, "parameters"))
            note = f"{base} is the base: {', '.join(found.level)} at line {line} is not read, as in mergekit"
            self._notes.append(note)

    def _outer(self, module: Module, where: Where) -> tuple[tuple[Where, Level | None], ...]:
        """The levels of a module and of the recipe, with their places."""
        return ((*where, "parameters"), module.parameters), (("parameters",), self._recipe.parameters)

    def _count(self, number: int, where: Where) -> None:
        method = self._method
        if number < method.least or (method.most is not None and number > method.most):
            wanted = str(method.least) if method.most == method.least else f"{method.least} or more"
            base = ", the base among them" if method.base == "required" else ""
            self._problems.add(where, f"{method.name} merges {wanted} models{base}; here are {number}")

    def _sliced(
        self, module: Module, slices: Sequence[Slice], found: Layout, names: set[str], where: Where
    ) -> None:
        stack = self._stack(found, where)
        if stack is None:
            self._misfits.unseen = True
            return
        total = sum(piece.sources[0].layer_range[1] - piece.sources[0].layer_range[0] for piece in slices)
        contexts = [self._slice(module, piece, (*where, "slices", i)) for i, piece in enumerate(slices)]
        number, origin = 0, cast("list[int]", [])
        for i, (piece, context) in enumerate(zip(slices, contexts, strict=True)):
            self._check_ranges(piece.sources, stack, (*where, "slices", i))
            first, end = piece.sources[0].layer_range
            for offset in range(end - first):
                t = offset / (end - first - 1) if end - first > 1 else 1.0
                for member in stack.members:
                    spot = Spot(stack.name(number, member), t, number, total)
                    self._made.row(
                        spot,
                        context,
                        [stack.name(cast("int", s.first) + offset, member) for s in context.sources],
                    )
                origin.append(first + offset)
                number += 1
        around = [name for name in names if name not in found.place or found.place[name][0] != stack.prefix]
        for name in sorted(around, key=natural):
            before = name not in found.after
            spot = Spot(name, 0.0, None, total, before=before)
            context = contexts[0] if before else contexts[-1]
            self._made.row(spot, context, [name] * len(context.sources))
        if contexts[0].sources != contexts[-1].sources:
            self._notes.append(
                f"outside the layers: {len(around) - len(found.after)} tensors as the first slice, "
                f"{len(found.after)} as the last ({', '.join(found.after[:3])}), by their names"
            )
            if found.unsure:
                self._notes.append(
                    f"{len(found.unsure)} tensors may lie before or after the layers, their names do not tell; "
                    f"taken as before: {', '.join(found.unsure[:3])}"
                )
        self._notes.append(f"layers: {stack.prefix} x {total} of {stack.count}")
        for path, count in self._counts().items():
            if count == stack.count:
                self._layers[path] = total
        if not self._layers:
            self._notes.append(f"no configuration says {stack.count} layers, so none is changed to {total}")
        self._origin = origin

    def _counts(self) -> dict[tuple[str, ...], int]:
        donor = str(self._recipe.base_model) if self._recipe.base_model else next(iter(self._parents))
        return counts(self._parents[donor].config)

    def _stack(self, found: Layout, where: Where) -> Stack | None:
        stack = found.main(self._counts().values())
        if stack is None:
            listed = ", ".join(f"{s.prefix} x {s.count}" for s in found.stacks.values()) or "none"
            self._problems.add(
                (*where, "slices"),
                f"which layers are meant cannot be told from the names: there are {listed}",
                "write `modules: {NAME: {slices: ...}}`, NAME being a part of the tensors' names",
            )
        return stack

    def _slice(self, module: Module, piece: Slice, where: Where) -> Context:
        reference = piece.base_model or self._recipe.base_model
        base = str(reference) if reference else None
        sources = tuple(
            Source(str(s.model), s.parameters, s.layer_range[0], (*where, "sources", j))
            for j, s in enumerate(piece.sources)
        )
        self._count(len(sources), (*where, "sources"))
        self._tell_of_base(base, sources)
        if self._method.base == "required" and base not in [source.model for source in sources]:
            self._problems.add(
                (*where, "sources"),
                f"the base {base or 'model'} is not among the sources of this slice",
                "name it in every slice, with its own layer_range",
            )
        levels = (((*where, "parameters"), piece.parameters), *self._outer(module, where[:-2]))
        return Context(sources, base, levels, where)

    def _check_ranges(self, sources: Sequence[SliceInput], stack: Stack, where: Where) -> None:
        for j, source in enumerate(sources):
            own = layout(self._parents[str(source.model)].checkpoint.entries).stacks.get(stack.prefix)
            have = own.count if own else 0
            if source.layer_range[1] > have:
                first, end = source.layer_range
                self._problems.add(
                    (*where, "sources", j, "layer_range"),
                    f"[{first}, {end}] goes beyond the {have} layers of {source.model}",
                )
