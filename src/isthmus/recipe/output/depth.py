"""What a configuration says of layers, for the layers that the output has: how many, and what each is."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from isthmus.recipe.language.text import few
from isthmus.recipe.parents.layers import counted, counts, layout, numbered
from isthmus.recipe.parents.parent import Parent
from isthmus.recipe.rows.row import Row

_Path = tuple[str, ...]

# Lists that may be as long as there are layers, and are about something else.
_OTHERS = re.compile(r"architectures|.*tokens?(_ids?)?|.*labels?|(image|patch|crop|kernel|window)_size")

# Lists of the numbers of some layers: mlp_only_layers, attn_layer_indices, full_attn_idxs.
_NUMBERS = re.compile(
    r"\w+_layers|(\w+_)?layers?_(indices|indexes|idxs?|ids)|\w*attn\w*_(indices|indexes|idxs?|ids)"
)


@dataclass(frozen=True)
class _Layer:
    """A layer of a model: what one of the output is made of."""

    model: str
    number: int


def follow_layers(
    config: dict[str, object],
    donor: Parent,
    parents: Mapping[str, Parent],
    rows: Sequence[Row],
    notes: list[str],
) -> None:
    """Have a configuration say what the layers of the output are.

    Each number of layers becomes that of the layers that are written. Lists with an entry per layer (`layer_types`)
    take theirs from the configurations of the models that the layers come from: of several the donor's, else the first.
    Lists of the numbers of some layers (`mlp_only_layers`) name the layers that come from those.

    Args:
        config: the donor's; is changed.
        donor: whose configuration it is.
        parents: by the recipe's own names.
        rows: of the output.
        notes: told what was changed, and what could not be.
    """
    if not counts(config):
        return
    before = {prefix: stack.count for prefix, stack in layout(donor.checkpoint.entries).stacks.items()}
    origins, numbers = _origins(rows, donor), counted(config, before)
    listed: set[_Path] = set()
    for prefix, had in before.items():
        if not (origin := origins.get(prefix, [])):
            continue
        written = len(origin)
        mine = [path for path, named in numbers.items() if named == prefix]
        if not mine and written != had:
            said = f"config.json says nowhere that {donor.name} has {had} {prefix}"
            notes.append(f"{said}, so nothing in it says that {written} are written")
        still = [sources[0] for sources in origin] == [_Layer(str(donor.reference), n) for n in range(had)]
        for path in mine:
            part = _part(config, path)
            old = cast("int", part[path[-1]])
            if written not in (old, had):
                part[path[-1]] = written
                notes.append(f"config.json: {'.'.join(path)} {old} becomes {written}")
            if path[:-1] not in listed:
                listed.add(path[:-1])
                lists = _Lists(donor, parents, path, origin[:old] if still else origin)
                notes += lists.follow(part, old)


def _origins(rows: Sequence[Row], donor: Parent) -> dict[str, list[list[_Layer]]]:
    """What the layers of the output are made of, by prefix: the donor's layer first, if that is among them."""
    found: dict[str, dict[int, list[_Layer]]] = defaultdict(dict)
    for row in rows:
        if (place := numbered(row.name)) is None or place[1] in found[place[0]]:
            continue
        sources = [_Layer(part.model, from_[1]) for part in row.parts if (from_ := numbered(part.name))]
        if sources:  # a head that an embedding stands for comes from no layer
            found[place[0]][place[1]] = sorted(sources, key=lambda layer: layer.model != str(donor.reference))
    return {prefix: [layers[n] for n in sorted(layers)] for prefix, layers in found.items()}


@dataclass(frozen=True)
class _Lists:
    """Lists over the layers, beside one number of layers in configurations.

    Args:
        donor: whose configuration the output has.
        parents: by the recipe's own names.
        path: of the number.
        origin: for each layer of the output, what it is made of.
    """

    donor: Parent
    parents: Mapping[str, Parent]
    path: _Path
    origin: Sequence[Sequence[_Layer]]

    def follow(self, part: dict[str, object], count: int) -> list[str]:
        """Have the lists follow the layers.

        Args:
            part: of the configuration, where the number stands; is changed.
            count: the number of layers that its lists are of.

        Returns:
            What was changed, and what could not be.
        """
        notes = [
            f"config.json: {key}, a list over the layers of {model}, is not in that of {self.donor.name}, "
            "whose the output has"
            for key, model in self._absent(part).items()
        ]
        by_number = list(_by_number(part, count))  # before lists over the layers have another length
        for key in list(_per_layer(part, count)):
            items = [[self._item(key, layer) for layer in sources] for sources in self.origin]
            firsts = [told[0] for told in items]
            known = [first for first in firsts if first is not None]
            if len(known) < len(firsts):
                model = self.origin[firsts.index(None)][0].model
                del part[key]
                notes.append(f"config.json: {key}, a list over the layers, is left out: {model} has none")
                continue
            moved = copy.deepcopy([item for (item,) in known])
            if moved != list(cast("Sequence[object]", part[key])):
                part[key] = "".join(cast("list[str]", moved)) if isinstance(part[key], str) else moved
                notes.append(f"config.json: {key}, a list over the layers, follows them")
            apart = [n for n, told in enumerate(items) if any(item not in (None, told[0]) for item in told)]
            notes += _disagreeing(key, apart)
        for key in by_number:
            among = [[self._named(key, layer) for layer in sources] for sources in self.origin]
            moved = [n for n, told in enumerate(among) if told[0]]
            if moved != part[key]:
                part[key] = moved
                notes.append(f"config.json: {key}, numbers of layers, follows them")
            notes += _disagreeing(key, [n for n, told in enumerate(among) if len(set(told)) > 1])
        return notes

    def _named(self, key: str, layer: _Layer) -> bool:
        """Whether a layer is among those that a list names."""
        own = self._told(key, layer)
        if own is None or key not in _by_number(*own):
            return False
        return layer.number in cast("Sequence[object]", own[0][key])

    def _absent(self, part: Mapping[str, object]) -> dict[str, str]:
        """Lists that a model has of its layers and the donor has not, with the first such model."""
        found: dict[str, str] = {}
        for model in dict.fromkeys(sources[0].model for sources in self.origin):
            if (theirs := _theirs(self.parents[model], self.path)) is not None:
                for key in _per_layer(*theirs):
                    if key not in part:
                        found.setdefault(key, model)
        return found

    def _item(self, key: str, layer: _Layer) -> tuple[object] | None:
        """What a list says of a layer; None where it says nothing."""
        own = self._told(key, layer)
        if own is None or key not in _per_layer(*own) or layer.number >= own[1]:
            return None
        return (cast("Sequence[object]", own[0][key])[layer.number],)

    def _told(self, key: str, layer: _Layer) -> tuple[Mapping[str, object], int] | None:
        """Where a key is looked up for a layer: with its own model, or with the donor where that is as deep."""
        own, donors = _theirs(self.parents[layer.model], self.path), _theirs(self.donor, self.path)
        if own is None or (key not in own[0] and donors is not None and donors[1] == own[1]):
            return donors
        return own


def _disagreeing(key: str, layers: Sequence[int]) -> list[str]:
    """What is said of layers of whose models the configurations say different things."""
    return [f"config.json: models differ in {key} of layers that are merged: {few(layers)}"] if layers else []


def _theirs(parent: Parent, path: _Path) -> tuple[Mapping[str, object], int] | None:
    """The part of a model's configuration that holds a number of layers, and that number; None where there is none."""
    count = counts(parent.config).get(path)
    return None if count is None else (_part(parent.config, path), count)


def _per_layer(part: Mapping[str, object], count: int) -> Iterator[str]:
    """The keys that have an entry per layer: a list, or a pattern that is written as one word."""
    for key, value in part.items():
        word = isinstance(value, str) and key.endswith("_pattern")
        if not (word or isinstance(value, list)) or _OTHERS.fullmatch(key):
            continue
        if len(cast("Sequence[object]", value)) == count:
            yield key


def _by_number(part: Mapping[str, object], count: int) -> Iterator[str]:
    """The keys that name some of the layers by their numbers."""
    every = set(_per_layer(part, count))
    for key, value in part.items():
        if isinstance(value, list) and key not in every and _NUMBERS.fullmatch(key):
            numbers = cast("list[object]", value)
            if numbers == sorted({n for n in numbers if type(n) is int and 0 <= n < count}):
                yield key


def _part(config: Mapping[str, object], path: _Path) -> dict[str, object]:
    part = cast("dict[str, object]", config)
    for key in path[:-1]:
        part = cast("dict[str, object]", part[key])
    return part
