"""Moving a whole model: one map per space, applied to every weight that carries it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from isthmus import weights as files
from isthmus.errors import InputError, MismatchError
from isthmus.maps.kinds import Dense, Map, Membership, Permutation, ScaledPermutation, Stack, compose, invert
from isthmus.symmetry import Axis, Blocks, Concat, Element, Leaf, SymmetryGraph, misfits, spaces_of

_KINDS = {kind.__name__: kind for kind in (Permutation, ScaledPermutation, Dense, Membership, Stack)}


@dataclass(frozen=True, eq=False)
class Transport:
    """One model's maps: how it is moved to where the models agree.

    Attributes:
        graph: the symmetries it moves along.
        maps: space name -> map; spaces that are not named stay.
        values: gauge name -> the scales, signs or matrices done to a space's units in their new places, as in
            `Element.values`; they keep the function.
    """

    graph: SymmetryGraph
    maps: Mapping[str, Map]
    values: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = misfits(self.element, self.graph)
        for name, item in self.maps.items():
            space = self.graph.spaces.get(name)
            if isinstance(item, Permutation):
                continue
            if space is None:
                problems.append(f"{name}: no such space")
            elif space.within:
                problems.append(f"{name}: only permutations can differ within {', '.join(space.within)}")
            elif item.source != space.size:
                problems.append(f"{name}: the map takes {item.source} units, the space has {space.size}")
        if problems:
            raise InputError("the maps do not fit the model", problems)

    @property
    def orders(self) -> dict[str, Int[Tensor, "*within units"]]:
        """The index vectors of the permutations."""
        return {name: m.index for name, m in self.maps.items() if isinstance(m, Permutation)}

    @property
    def element(self) -> Element:
        """The part that keeps the function: permutations, and what is done to units after them."""
        return Element(self.orders, self.values)

    def apply(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move a model: W = A_o W B_n for every weight.

        Args:
            weights: its state dict; keys that no space touches pass unchanged.

        Returns:
            The moved weights, on the device and in the dtype they came in.

        Raises:
            MismatchError: a weight has another shape than the graph says.
            InputError: running statistics meet a map that is no permutation, or a scale would make a running
                variance negative.
        """
        graph = self.graph
        problems = [
            f"{key}: {tuple(weights[key].shape)}, expected {graph.program.shapes[key]}"
            for key in graph.layout
            if key in weights and tuple(weights[key].shape) != graph.program.shapes[key]
        ]
        if problems:
            raise MismatchError("the weights do not have the shapes of the graph", problems)
        graph.require_folded(weights)
        result = dict(weights)
        general = {name: m for name, m in self.maps.items() if not isinstance(m, Permutation)}
        aliases = {alias: key for alias, key in graph.program.tied.items() if alias in weights}
        sources = {
            key: key if key in weights else next((a for a, k in aliases.items() if k == key), None)
            for key in graph.layout
        }
        moved = self.element.apply(graph, {key: weights[s] for key, s in sources.items() if s is not None})
        self._check_variances(moved)
        for key, axes in graph.layout.items():
            source = sources.get(key)
            if source is None:
                continue
            for dim, axis in enumerate(axes):
                if spaces_of(axis) & general.keys():
                    moved[key] = _apply(moved[key], dim, axis, general, self._role(key, dim))
            result[source] = moved[key]
        for alias, key in aliases.items():
            if key in result:
                result[alias] = result[key]
        return result

    def _role(self, key: str, dim: int) -> str:
        for space in self.graph.spaces.values():
            for member in space.members:
                if (member.key, member.axis) == (key, dim):
                    if member.role == "statistic":
                        raise InputError(
                            "running statistics follow permutations only",
                            [key],
                            hint="fold the batch norms into the layers before them, or reset them after merging",
                        )
                    return member.role
        return "writes"

    def _check_variances(self, moved: Mapping[str, Tensor]) -> None:
        """What a norm adds to its variance does not scale, so a tiny variance cannot become tinier."""
        slots = [slot for name in self.values for slot in self.graph.gauges[name].slots if slot.offset]
        below = [slot.key for slot in slots if slot.key in moved and bool((moved[slot.key] < 0).any())]
        if below:
            raise InputError(
                "a scale before a batch norm would make its running variance negative",
                list(dict.fromkeys(below)),
                hint="scale these units up instead, or leave the scale to the norm's own weight",
            )

    def then(self, other: Transport) -> Transport:
        """This transport followed by another."""
        element = self.element.then(other.element, self.graph)
        maps: dict[str, Map] = {name: Permutation(index) for name, index in element.orders.items()}
        for name in {*self.maps, *other.maps}:
            ours, theirs = self.maps.get(name), other.maps.get(name)
            if isinstance(ours or theirs, Permutation) and isinstance(theirs or ours, Permutation):
                continue
            known = [m for m in (ours, theirs) if m is not None]
            maps[name] = known[0] if len(known) == 1 else compose(known[0], known[1])
        return Transport(self.graph, maps, element.values)

    def inverse(self) -> Transport:
        """The transport back."""
        element = self.element.inverse(self.graph)
        maps: dict[str, Map] = {name: Permutation(index) for name, index in element.orders.items()}
        maps |= {name: invert(m) for name, m in self.maps.items() if not isinstance(m, Permutation)}
        return Transport(self.graph, maps, element.values)

    def save(self, path: str | Path) -> None:
        """Write the maps as safetensors, each under its space's name."""
        # A map without tensors (kept apart) is all in the metadata; a file of tensors must hold one.
        tensors: dict[str, Tensor] = {"isthmus.maps": torch.zeros(0)}
        kinds: dict[str, dict[str, object]] = {}
        for name, item in self.maps.items():
            fields: dict[str, object] = {"kind": type(item).__name__}
            for entry in item.__dataclass_fields__:  # type: ignore[attr-defined]
                value = getattr(item, entry)
                if isinstance(value, Tensor):
                    tensors[f"{name}:{entry}"] = value
                else:
                    fields[entry] = value
            kinds[name] = fields
        for name, value in self.values.items():
            # The format has no complex numbers: real and imaginary parts stand beside each other.
            tensors[f"isthmus.values/{name}"] = torch.view_as_real(value) if value.is_complex() else value
        described = {"isthmus.maps": json.dumps(kinds), "isthmus.values": json.dumps(list(self.values))}
        files.save(tensors, path, metadata=described)

    @staticmethod
    def load(path: str | Path, graph: SymmetryGraph) -> Transport:
        """Read maps back, for a graph that has their spaces.

        Raises:
            InputError: the file holds no maps, or maps of another model.
        """
        given = files.metadata(path)
        described = given.get("isthmus.maps")
        if described is None:
            raise InputError("the file holds no maps", [str(path)])
        tensors = files.load(path)
        maps: dict[str, Map] = {}
        for name, fields in json.loads(described).items():
            kind = _KINDS.get(fields.pop("kind", ""))
            if kind is None:
                raise InputError("the file holds a kind of map that this version does not know", [name])
            prefix = f"{name}:"
            own = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
            maps[name] = kind(**own, **fields)
        values = {
            name: tensors[f"isthmus.values/{name}"] for name in json.loads(given.get("isthmus.values", "[]"))
        }
        planes = {name for name in values if name in graph.gauges and graph.gauges[name].kind == "planes"}
        values |= {name: torch.view_as_complex(values[name]) for name in planes}
        return Transport(graph, maps, values)

    def __str__(self) -> str:
        width = max((len(name) for name in self.maps), default=0)
        lines = [f"{name:<{width}}  {item}" for name, item in self.maps.items()]
        return "\n".join([*lines, *(f"{name}  {tuple(value.shape)}" for name, value in self.values.items())])


def _apply(tensor: Tensor, dim: int, axis: Axis, maps: Mapping[str, Map], role: str) -> Tensor:
    """Apply maps along one dimension, by the structure of its axis."""
    if isinstance(axis, Leaf):
        item = maps.get(axis.space) if axis.space else None
        if item is None:
            return tensor
        return item.read(tensor, dim) if role == "reads" else item.write(tensor, dim)
    if isinstance(axis, Blocks):
        opened = tensor.unflatten(dim, [factor.size for factor in axis.factors])
        for offset, factor in enumerate(axis.factors):
            opened = _apply(opened, dim + offset, factor, maps, role)
        return opened.flatten(dim, dim + len(axis.factors) - 1)
    assert isinstance(axis, Concat)
    pieces = tensor.split([part.size for part in axis.parts], dim)
    moved = [_apply(p, dim, part, maps, role) for p, part in zip(pieces, axis.parts, strict=True)]
    return torch.cat(moved, dim)
