"""A recipe and its parents' headers to one row per output tensor: what it is made of, with which parameters."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from isthmus.recipe.language.dialect import Method
from isthmus.recipe.language.methods import method_of
from isthmus.recipe.language.recipe import Input, Module, Recipe, Slice, SliceInput
from isthmus.recipe.language.text import Problems, Where, near
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


# mergekit's name of the module of a model that has but one.
_REST = "default"


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
        self._depths: dict[str, dict[str, int]] = defaultdict(dict)
        self._misfits = Misfits(recipe, parents, problems)
        self._made = Made(recipe, self._method, parents, vocabulary, self._misfits, problems)

    def rows(self) -> Rows:
        names = {name for parent in self._parents.values() for name in parent.checkpoint.entries}
        if self._recipe.modules:
            owned = self._shared_out(self._recipe.modules, names)
            for key, mine in owned.items():
                self._module(self._recipe.modules[key], mine, ("modules", key))
            self._leave(names.difference(*owned.values()))
            if any(module.slices for module in self._recipe.modules.values()):
                self._check_depths()
        else:
            plain = Module.model_construct(
                models=self._recipe.models, slices=self._recipe.slices, parameters=None
            )
            self._module(plain, names, ())
        self._notes += self._misfits.tell(self._method, len(self._made.rows))
        ordered = sorted(self._made.rows.values(), key=lambda row: natural(row.name))
        return Rows(ordered, self._notes)

    def _shared_out(self, modules: Iterable[str], names: set[str]) -> dict[str, set[str]]:
        """Names by module: of several that a name fits the last has it, and `default` what no other has."""
        owned: dict[str, set[str]] = {}
        for key in sorted(modules, key=_REST.__eq__):
            taken = set[str]().union(*owned.values())
            mine = names - taken if key == _REST else self._of_module(key, names)
            for other, theirs in owned.items():
                if common := theirs & mine:
                    few = f"{len(common)} of the {len(theirs)} tensors of the module {other}"
                    self._notes.append(f"{few} are of {key} too, which stands behind it and merges them")
                    theirs -= mine
            owned[key] = mine
        if _REST in owned and not owned[_REST]:
            self._notes.append(f"the module {_REST} has no tensor: the other modules have them all")
        return {key: mine for key, mine in owned.items() if mine}

    def _of_module(self, key: str, names: set[str]) -> set[str]:
        """The names of a module: those with a part of that name."""
        known = {
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
            meant = near(key, {_REST, *known, *(part for name in names for part in name.split("."))})
            way = f"; names begin with {', '.join(there)}" if meant is None else f", did you mean {meant!r}?"
            self._problems.add(("modules", key), f"no tensor is of a module {key!r}{way}")
        return found

    def _leave(self, left: set[str]) -> None:
        """What no module takes comes from the base as it is: an output without it would not load."""
        donor = self._donor()
        taken = sorted(left & donor.checkpoint.entries.keys(), key=natural)
        for name in taken:
            self._made.copy(name, str(donor.reference), name)
        if taken:
            self._notes.append(
                f"{len(taken)} tensors are of no module here and are taken from {donor.reference} as they are"
            )
            for prefix, stack in layout(taken).stacks.items():
                self._depths[prefix]["no module"] = stack.count

    def _check_depths(self) -> None:
        """Modules that have parts of the same layers have equally many."""
        for prefix, depths in self._depths.items():
            if len(set(depths.values())) > 1:
                told = " and ".join(f"{count} in what is of {module}" for module, count in depths.items())
                what = f"{prefix} would have {told}: slices of a module hold whole layers"
                self._problems.add(("modules",), what)

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
            for stack in found.stacks.values():
                self._depths[stack.prefix][str(where[-1]) if where else ""] = stack.count
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
        return Context(tuple(sources), base, self._outer(module, where), (*where, "models"))

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
        stack = self._stack(found, names, where)
        if stack is None:
            self._misfits.unseen = True
            return
        total = sum(piece.sources[0].layer_range[1] - piece.sources[0].layer_range[0] for piece in slices)
        contexts = [self._slice(module, piece, (*where, "slices", i)) for i, piece in enumerate(slices)]
        number = 0
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
        self._depths[stack.prefix][str(where[-1]) if where else ""] = total
        models = dict.fromkeys(str(source.model) for piece in slices for source in piece.sources)
        had = sorted({self._depth(model, stack.prefix) for model in models})
        self._notes.append(f"layers: {stack.prefix} x {total} of {' and '.join(map(str, had))}")

    def _donor(self) -> Parent:
        """The model that the output's configuration comes from."""
        return self._parents[str(self._recipe.base_model or next(iter(self._parents)))]

    def _depth(self, model: str, prefix: str) -> int:
        own = layout(self._parents[model].checkpoint.entries).stacks.get(prefix)
        return own.count if own else 0

    def _stack(self, found: Layout, names: set[str], where: Where) -> Stack | None:
        """The layers that are meant, found in the model whose configuration counts them; members are all models'."""
        donor = self._donor()
        own = layout(names & donor.checkpoint.entries.keys())
        known = counts(donor.config).values()
        stack = own.main(known)
        stack = found.main(known) if stack is None else found.stacks.get(stack.prefix)
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
            first, end = source.layer_range
            if end > (have := self._depth(str(source.model), stack.prefix)):
                self._problems.add(
                    (*where, "sources", j, "layer_range"),
                    f"[{first}, {end}] goes beyond the {have} layers of {source.model}",
                )
