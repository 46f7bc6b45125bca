"""Moving a whole model: one map per space, applied to every weight that carries it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from isthmus import weights as files
from isthmus.errors import InputError, MismatchError
from isthmus.maps.kinds import Dense, Map, Membership, Permutation, ScaledPermutation, Stack, compose, invert
from isthmus.symmetry import Axis, Blocks, Concat, Leaf, Space, SymmetryGraph, reorder, spaces_of

_KINDS = {kind.__name__: kind for kind in (Permutation, ScaledPermutation, Dense, Membership, Stack)}


@dataclass(frozen=True, eq=False)
class Transport:
    """One model's maps: how it is moved to where the models agree.

    Attributes:
        graph: the symmetries it moves along.
        maps: space name -> map; spaces that are not named stay.
    """

    graph: SymmetryGraph
    maps: Mapping[str, Map]

    def __post_init__(self) -> None:
        problems = [f"{name}: no such space" for name in self.maps if name not in self.graph.spaces]
        for name, item in self.maps.items():
            space = self.graph.spaces.get(name)
            if space is None:
                continue
            shape = (*(self.graph.spaces[outer].size for outer in space.within), space.size)
            if isinstance(item, Permutation) and item.index.shape != shape:
                problems.append(f"{name}: the permutation has shape {tuple(item.index.shape)}, needs {shape}")
            elif not isinstance(item, Permutation) and space.within:
                problems.append(f"{name}: only permutations can differ within {', '.join(space.within)}")
            elif isinstance(item, Permutation) and not _is_permutation(item.index):
                problems.append(f"{name}: the index does not name each unit once")
            elif item.source != space.size:
                problems.append(f"{name}: the map takes {item.source} units, the space has {space.size}")
        if problems:
            raise InputError("the maps do not fit the model", problems)

    @property
    def orders(self) -> dict[str, Int[Tensor, "*within units"]]:
        """The index vectors of the permutations."""
        return {name: m.index for name, m in self.maps.items() if isinstance(m, Permutation)}

    def apply(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move a model: W = A_o W B_n for every weight.

        Args:
            weights: its state dict; keys that no space touches pass unchanged.

        Returns:
            The moved weights, on the device and in the dtype they came in.

        Raises:
            MismatchError: a weight has another shape than the graph says.
            InputError: running statistics meet a map that is no permutation.
        """
        graph = self.graph
        problems = [
            f"{key}: {tuple(weights[key].shape)}, expected {graph.program.shapes[key]}"
            for key in graph.layout
            if key in weights and tuple(weights[key].shape) != graph.program.shapes[key]
        ]
        if problems:
            raise MismatchError("the weights do not have the shapes of the graph", problems)
        result = dict(weights)
        general = {name: m for name, m in self.maps.items() if not isinstance(m, Permutation)}
        aliases = {alias: key for alias, key in graph.program.tied.items() if alias in weights}
        for key, axes in graph.layout.items():
            source = key if key in weights else next((a for a, k in aliases.items() if k == key), None)
            if source is None:
                continue
            moved = reorder(weights[source], axes, self.orders, graph.spaces)
            for dim, axis in enumerate(axes):
                if spaces_of(axis) & general.keys():
                    moved = _apply(moved, dim, axis, general, self._role(key, dim))
            result[source] = moved
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

    def then(self, other: Transport) -> Transport:
        """This transport followed by another."""
        spaces = self.graph.spaces
        orders = _compose_orders(self.orders, other.orders, spaces)
        maps: dict[str, Map] = {name: Permutation(index) for name, index in orders.items()}
        for name in {*self.maps, *other.maps}:
            ours, theirs = self.maps.get(name), other.maps.get(name)
            if isinstance(ours or theirs, Permutation) and isinstance(theirs or ours, Permutation):
                continue
            known = [m for m in (ours, theirs) if m is not None]
            maps[name] = known[0] if len(known) == 1 else compose(known[0], known[1])
        return Transport(self.graph, maps)

    def inverse(self) -> Transport:
        """The transport back."""
        spaces = self.graph.spaces
        maps: dict[str, Map] = {
            name: Permutation(index) for name, index in _invert_orders(self.orders, spaces).items()
        }
        maps |= {name: invert(m) for name, m in self.maps.items() if not isinstance(m, Permutation)}
        return Transport(self.graph, maps)

    def save(self, path: str | Path) -> None:
        """Write the maps as safetensors, each under its space's name."""
        # A map without tensors (kept apart) is all in the metadata; a file of tensors must hold one.
        tensors: dict[str, Tensor] = {"isthmus.maps": torch.zeros(0)}
        kinds: dict[str, dict[str, object]] = {}
        for name, item in self.maps.items():
            fields: dict[str, object] = {"kind": type(item).__name__}
            for field in item.__dataclass_fields__:  # type: ignore[attr-defined]
                value = getattr(item, field)
                if isinstance(value, Tensor):
                    tensors[f"{name}:{field}"] = value
                else:
                    fields[field] = value
            kinds[name] = fields
        files.save(tensors, path, metadata={"isthmus.maps": json.dumps(kinds)})

    @staticmethod
    def load(path: str | Path, graph: SymmetryGraph) -> Transport:
        """Read maps back, for a graph that has their spaces.

        Raises:
            InputError: the file holds no maps, or maps of another model.
        """
        described = files.metadata(path).get("isthmus.maps")
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
        return Transport(graph, maps)

    def __str__(self) -> str:
        width = max((len(name) for name in self.maps), default=0)
        return "\n".join(f"{name:<{width}}  {item}" for name, item in self.maps.items())


def _is_permutation(index: Tensor) -> bool:
    return torch.equal(index.sort(-1).values, torch.arange(index.shape[-1]).expand(index.shape).to(index))


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


def _outer_index(
    orders: Mapping[str, Tensor], spaces: Mapping[str, Space], space: Space
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Old outer position of every new outer position, and the outer sizes."""
    sizes = tuple(spaces[outer].size for outer in space.within)
    grid = torch.meshgrid(*(torch.arange(n) for n in sizes), indexing="ij") if sizes else ()
    new = dict(zip(space.within, grid, strict=True))
    old = []
    for outer in space.within:
        order = orders.get(outer)
        enclosing = tuple(new[name] for name in spaces[outer].within if name in new)
        old.append(new[outer] if order is None else order[(*enclosing, new[outer])])
    return tuple(old), sizes


def _full(orders: Mapping[str, Tensor], space: Space, sizes: tuple[int, ...]) -> Tensor:
    order = orders.get(space.name)
    return torch.arange(space.size).expand(*sizes, -1) if order is None else order


def _compose_orders(
    first: Mapping[str, Tensor], then: Mapping[str, Tensor], spaces: Mapping[str, Space]
) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for name, space in spaces.items():
        if name not in first and name not in then:
            # An order per head moves along when the heads do.
            continue
        old, sizes = _outer_index(then, spaces, space)
        ours, theirs = _full(first, space, sizes), _full(then, space, sizes)
        result[name] = (ours[old] if old else ours).gather(-1, theirs)
    return result


def _invert_orders(orders: Mapping[str, Tensor], spaces: Mapping[str, Space]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    # Outer spaces first: the inverse of an inner order is addressed through them.
    for name in sorted(orders, key=lambda n: len(spaces[n].within)):
        old, _ = _outer_index(result, spaces, spaces[name])
        order = orders[name][old] if old else orders[name]
        result[name] = order.argsort(-1)
    return result
