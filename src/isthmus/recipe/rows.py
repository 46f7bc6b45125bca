"""A recipe and its parents' headers to one row per output tensor: what it is made of, with which parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from isthmus.recipe.dialect import METHODS, Method, method_of
from isthmus.recipe.headers import NAMES, Entry
from isthmus.recipe.layers import Layout, Stack, counts, layout, natural
from isthmus.recipe.misfits import Misfits
from isthmus.recipe.own import refusal
from isthmus.recipe.parents import Parent
from isthmus.recipe.schema import Input, Module, Recipe, Slice, SliceInput
from isthmus.recipe.settings import Level, Spot
from isthmus.recipe.text import Problems, Where
from isthmus.recipe.values import Context, Given, Source
from isthmus.recipe.vocabulary import EMBEDDINGS, HEADS, Vocabulary, is_tokens

# Buffers that are computed, not learned, and that old checkpoints carry: their absence is no loss.
_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|position_ids|attn\.(masked_)?bias|attention\.(masked_)?bias)$")


@dataclass(frozen=True)
class Part:
    """One model's tensor in a row.

    Args:
        model: the recipe's name of the model.
        name: of the tensor there.
        values: of the parameters that each model has its own of.
        base: whether it is what the others are compared with.
    """

    model: str
    name: str
    values: Mapping[str, object] = field(default_factory=lambda: cast("dict[str, object]", {}))
    base: bool = False


@dataclass(frozen=True)
class Row:
    """One tensor of the output.

    Args:
        name: of the tensor.
        shape: of the tensor.
        dtype: torch's name, or safetensors' for what is no weight.
        how: merged by the method; taken from one model; an integer that all models must agree on.
        parts: what it is made of, in the recipe's order.
        values: of the parameters that the tensor has as a whole.
        tokens: whether it has a row per token, remade for the output's tokenizer.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    how: Literal["merged", "copied", "agreed"]
    parts: tuple[Part, ...]
    values: Mapping[str, object] = field(default_factory=lambda: cast("dict[str, object]", {}))
    tokens: bool = False


@dataclass
class Rows:
    """All rows, and what should be known about them.

    Args:
        rows: in natural order of the names.
        notes: what was inferred, left out or not read.
        layers: path of the configuration's number of layers -> that number in the output.
        origin: for each layer of the output, the layer of the first source that it comes from.
    """

    rows: list[Row]
    notes: list[str]
    layers: dict[tuple[str, ...], int]
    origin: list[int] | None


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
        self._vocabulary = vocabulary
        self._problems = problems
        self._method = method_of(recipe.merge_method) or Method(recipe.merge_method, recipe.merge_method, {})
        self._rows: dict[str, Row] = {}
        self._notes: list[str] = []
        self._layers: dict[tuple[str, ...], int] = {}
        self._origin: list[int] | None = None
        self._misfits = Misfits(recipe, parents, problems)
        self._given = Given(recipe, self._method, self._misfits, problems)

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
        self._notes += self._misfits.tell(self._method, len(self._rows))
        ordered = sorted(self._rows.values(), key=lambda row: natural(row.name))
        return Rows(ordered, self._notes, self._layers, self._origin)

    # Which tensors, in which slices.

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
            self._copy(name, donor, name)
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
                self._row(spot, context, [name] * len(context.sources))
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
                    self._row(
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
            self._row(spot, context, [name] * len(context.sources))
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

    # One row.

    def _row(self, spot: Spot, context: Context, names: Sequence[str]) -> None:
        found = [
            self._resolve(source.model, name) for source, name in zip(context.sources, names, strict=True)
        ]
        if not any(found):
            # A member that only other layers have, or a head that is the embedding everywhere.
            return
        self._misfits.met(spot, [source.model for source in context.sources], found)
        if self._misfits.skips(spot.name):
            self._skip(spot.name, context, found)
            return
        lacking = [s.model for s, name in zip(context.sources, found, strict=True) if name is None]
        if lacking:
            if _BUFFERS.search(spot.name):
                self._misfits.dropped.add(spot.name)
            else:
                self._misfits.missing[tuple(lacking)].append(spot.name)
            return
        entries = [self._entry(s.model, cast("str", n)) for s, n in zip(context.sources, found, strict=True)]
        tokens = self._vocabulary is not None and any(
            is_tokens(cast("str", n), e.shape[0] if e.shape else 0, self._parents[s.model].vocabulary_size)
            for s, n, e in zip(context.sources, found, entries, strict=True)
        )
        shapes = [
            ((self._vocabulary.size, *e.shape[1:]) if tokens and self._vocabulary else e.shape)
            for e in entries
        ]
        if len(set(shapes)) > 1 or len({entry.learned for entry in entries}) > 1:
            self._misfits.mismatched.append(
                (spot.name, [(s.model, str(e)) for s, e in zip(context.sources, entries, strict=True)])
            )
            return
        if not entries[0].learned:
            parts = tuple(Part(s.model, cast("str", n)) for s, n in zip(context.sources, found, strict=True))
            self._rows[spot.name] = Row(spot.name, shapes[0], entries[0].dtype, "agreed", parts)
            return
        self._merged(spot, context, cast("list[str]", found), entries, shapes[0], tokens)

    def _merged(
        self,
        spot: Spot,
        context: Context,
        names: Sequence[str],
        entries: Sequence[Entry],
        shape: tuple[int, ...],
        tokens: bool,
    ) -> None:
        given = self._given.of(spot, context, names)
        parts = tuple(
            Part(source.model, name, own, index == given.base)
            for index, (source, name, own) in enumerate(zip(context.sources, names, given.own, strict=True))
        )
        dtype = self._recipe.out_dtype or self._recipe.dtype or _promoted([NAMES[e.dtype] for e in entries])
        row = Row(spot.name, shape, dtype, "merged", parts, given.shared, tokens)
        self._rows[spot.name] = row
        # mergekit's words are checked by themselves; what is left to a rule is the rule's to judge, which needs torch.
        ours = self._recipe.isthmus.convention == "paper" or self._method.name not in METHODS
        if ours and not self._problems.found and (said := refusal(self._recipe, row)) is not None:
            self._problems.add(("merge_method",), "\n".join([said.what, *said.where]), said.hint)

    def _resolve(self, model: str, name: str) -> str | None:
        """A tensor's name in a model; a head that a model does not store may be its embedding."""
        parent = self._parents[model]
        entries = parent.checkpoint.entries
        if name in entries:
            return name
        if HEADS.search(name) and parent.tied:
            embeddings = [key for key in entries if EMBEDDINGS.search(key)]
            heads = [p for p in self._parents.values() if name in p.checkpoint.entries]
            if len(embeddings) == 1 and heads:
                self._misfits.ties[model] += 1
                return embeddings[0]
        return None

    def _entry(self, model: str, name: str) -> Entry:
        return self._parents[model].checkpoint.entries[name]

    def _skip(self, name: str, context: Context, found: Sequence[str | None]) -> None:
        order = sorted(
            zip(context.sources, found, strict=True), key=lambda pair: pair[0].model != context.base
        )
        for source, there in order:
            if there is not None:
                self._copy(name, source.model, there)
                return

    def _copy(self, name: str, model: str, there: str) -> None:
        entry = self._entry(model, there)
        dtype = (
            (self._recipe.out_dtype or self._recipe.dtype or NAMES[entry.dtype])
            if entry.learned
            else entry.dtype
        )
        shape, tokens = entry.shape, False
        if self._vocabulary and is_tokens(
            there, shape[0] if shape else 0, self._parents[model].vocabulary_size
        ):
            shape, tokens = (self._vocabulary.size, *shape[1:]), True
        self._rows[name] = Row(name, shape, dtype, "copied", (Part(model, there),), {}, tokens)


_WIDTH = {
    "float64": 4,
    "complex64": 4,
    "float32": 3,
    "bfloat16": 2,
    "float16": 2,
    "float8_e5m2": 1,
    "float8_e4m3fn": 1,
}


def _promoted(dtypes: Sequence[str]) -> str:
    """The dtype that holds all of these; two halves of different kinds need float32."""
    widest = max(dtypes, key=lambda d: _WIDTH[d])
    rivals = {d for d in dtypes if _WIDTH[d] == _WIDTH[widest]}
    return widest if len(rivals) == 1 else ("float32" if _WIDTH[widest] <= 2 else "float64")
