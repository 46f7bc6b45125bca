"""Moving a whole model: one map per space, applied to every weight that carries it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx

from isthmus.errors import InputError, MismatchError
from isthmus.maps.affine import Shift, places, read_shifted, write_shifted
from isthmus.maps.elementwise import absorb, multipliers
from isthmus.maps.kinds import (
    Map,
    Membership,
    Mixture,
    Permutation,
    compose,
    invert,
)
from isthmus.program import Program
from isthmus.symmetry import (
    Axis,
    Blocks,
    Element,
    Interleaved,
    Leaf,
    SymmetryGraph,
    misfits,
    spaces_of,
)


@dataclass(frozen=True, eq=False)
class Transport:
    """One model's maps: how it is moved to where the models agree.

    Attributes:
        graph: the symmetries it moves along.
        maps: space name -> map; spaces that are not named stay. A map under "space@key:axis" stands in for the
            space's own on that axis of that weight, one under "@key:axis" for all maps there: what methods do that
            follow no symmetry.
        values: gauge name -> the scales, signs or matrices done to a space's units in their new places, as in
            `Element.values`; they keep the function.
        shifts: space -> what is added beside its map; see `isthmus.maps.affine`.
    """

    graph: SymmetryGraph
    maps: Mapping[str, Map]
    values: Mapping[str, Tensor] = field(default_factory=dict)
    shifts: Mapping[str, Shift] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = misfits(self.element, self.graph)
        for name, item in self.maps.items():
            space = self.graph.spaces.get(name.partition("@")[0])
            if isinstance(item, Permutation) or name.startswith("@"):
                continue
            if space is None:
                problems.append(f"{name}: no such space")
            elif space.within:
                problems.append(f"{name}: only permutations can differ within {', '.join(space.within)}")
            elif item.source != space.size:
                problems.append(f"{name}: the map takes {item.source} units, the space has {space.size}")
        if self.shifts:
            able = places(self.graph)
            problems += [
                f"{name}: nothing there can take a shift" for name in self.shifts if name not in able
            ]
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
        held, moved, deviations = self._ordered(weights)
        moved = self._turn(read_shifted(self.graph, moved, self.shifts), deviations)
        return self._named(weights, held, write_shifted(self.graph, moved, self.shifts))

    def turned(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Some weights of a model that is `own` already, with the maps alone: to compare them, not to run them."""
        return self._turn(self.element.apply(self.graph, weights), frozenset())

    def _turn(self, moved: dict[str, Tensor], deviations: frozenset[str]) -> dict[str, Tensor]:
        """A_o W B_n with everything but permutations, in place."""
        scales = multipliers(self.graph) if self._soft else frozenset[str]()
        for key, axes in self.graph.layout.items():
            if key not in moved:
                continue
            for dim, axis in enumerate(axes):
                here = self._here(key, dim, axis)
                whole = self.maps.get(f"@{key}:{dim}")
                if not here and whole is None:
                    continue
                role = self._role(key, dim)
                if role == "writes" and key in deviations:
                    role = "deviation"
                elif role == "writes" and key in scales:
                    role = "scales"
                if whole is not None:
                    moved[key] = _act(whole, moved[key], dim, role)
                else:
                    moved[key] = _apply(moved[key], dim, axis, here, role)
        return moved

    def own(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model as far as it is moved without a change of its function: before its units are mixed.

        These are the coordinates that `bridge` and `statistics` turn into the merged ones.

        Args, Raises: see `apply`.
        """
        held, moved, _ = self._ordered(weights)
        return self._named(weights, held, moved)

    def bridge(self, value: str, axis: int, enters: bool) -> Float[Tensor, "to from"]:
        """A (into the merged coordinates) or B (out of them) along one axis of a value, float64."""
        term = self.graph.values[value][axis]
        if enters:
            return _apply(torch.eye(term.size, dtype=torch.float64), 0, term, self._general, "writes")
        back = _apply(torch.eye(term.size, dtype=torch.float64), 0, term, self._general, "reads")
        return back.mT.contiguous()

    def statistics(
        self, value: str, axis: int, mean: Float[Tensor, " units"], variance: Float[Tensor, " units"]
    ) -> tuple[Float[Tensor, " merged"], Float[Tensor, " merged"]]:
        """Mean and variance of a value of the `own` model, in merged coordinates (the variance an estimate)."""
        term = self.graph.values[value][axis]
        able = places(self.graph) if self.shifts else {}
        mean = _apply(mean, 0, term, self._general, "writes")
        for name, shift in self.shifts.items():
            if term == Leaf(term.size, name) and able[name].written in self._added_at(value):
                mean = mean + shift.written
        return mean, _apply(variance, 0, term, self._general, "variance")

    def _added_at(self, value: str) -> set[str]:
        program = self.graph.program
        nodes = program.nodes[value].all_input_nodes if isinstance(program, Program) else []
        return {program.weights[node.name] for node in nodes if node.name in program.weights}

    @cached_property
    def _general(self) -> dict[str, Map]:
        return {name: m for name, m in self.maps.items() if not isinstance(m, Permutation)}

    def _here(self, key: str, dim: int, axis: Axis) -> dict[str, Map]:
        """The maps of the spaces on one axis of a weight."""
        found: dict[str, Map] = {}
        for name in spaces_of(axis):
            item = self._general.get(f"{name}@{key}:{dim}", self._general.get(name))
            if item is not None:
                found[name] = item
        return found

    @cached_property
    def _soft(self) -> tuple[str, ...]:
        soft = (n for n, m in self._general.items() if isinstance(m, Mixture) and not m.keeps_function)
        return tuple(dict.fromkeys(name.partition("@")[0] for name in soft if not name.startswith("@")))

    @property
    def mixed(self) -> frozenset[str]:
        """The spaces whose units are mixed."""
        return frozenset(self._soft)

    def _ordered(
        self, weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, str], dict[str, Tensor], frozenset[str]]:
        """Key of the graph -> key it is held under; the reordered weights; scales that became deviations."""
        graph = self.graph
        problems = [
            f"{key}: {tuple(weights[key].shape)}, expected {graph.program.shapes[key]}"
            for key in graph.layout
            if key in weights and tuple(weights[key].shape) != graph.program.shapes[key]
        ]
        if problems:
            raise MismatchError("the weights do not have the shapes of the graph", problems)
        graph.require_folded(weights)
        held = {key: key for key in graph.layout if key in weights}
        for alias, key in graph.program.tied.items():
            if alias in weights and key in graph.layout:
                held.setdefault(key, alias)
        moved = self.element.apply(graph, {key: weights[source] for key, source in held.items()})
        self._check_variances(moved)
        if not self._soft:
            return held, moved, frozenset()
        return held, *absorb(graph, moved, self._soft)

    def _named(
        self, weights: Mapping[str, Tensor], held: Mapping[str, str], moved: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The moved weights under the keys that they came with."""
        result = dict(weights) | {source: moved[key] for key, source in held.items()}
        for alias, key in self.graph.program.tied.items():
            if alias in weights and (key in result or key in held):
                result[alias] = result[held.get(key, key)]
        return result

    def _role(self, key: str, dim: int) -> str:
        for name, space in self.graph.spaces.items():
            for member in space.members:
                if (member.key, member.axis) == (key, dim) and member.role == "statistic":
                    item = self.maps.get(name)
                    if item is not None and item.keeps_function and not isinstance(item, Permutation):
                        raise InputError(
                            "running statistics follow permutations only, of maps that keep the function",
                            [key],
                            hint="fold the batch norms into the layers before them, or reset them after merging",
                        )
                    return "variance" if key in self._variances else "writes"
                if (member.key, member.axis) == (key, dim):
                    return member.role
        return "writes"

    @cached_property
    def _variances(self) -> frozenset[str]:
        """Keys of the running variances."""
        program = self.graph.program
        nodes = program.graph.nodes if isinstance(program, Program) else ()
        norms = [n for n in nodes if str(n.target).startswith(("aten.batch_norm", "aten.instance_norm"))]
        names = [n.args[4].name for n in norms if isinstance(n.args[4], fx.Node)]
        return frozenset(program.weights[name] for name in names if name in program.weights)

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
        if self.shifts or other.shifts:
            raise InputError("shifted maps do not compose: apply one after the other")
        return Transport(self.graph, maps, element.values)

    def inverse(self) -> Transport:
        """The transport back."""
        if self.shifts:
            raise InputError("shifted maps have no inverse of their own kind")
        element = self.element.inverse(self.graph)
        maps: dict[str, Map] = {name: Permutation(index) for name, index in element.orders.items()}
        maps |= {name: invert(m) for name, m in self.maps.items() if not isinstance(m, Permutation)}
        return Transport(self.graph, maps, element.values)

    def save(self, path: str | Path) -> None:
        """Write the maps as safetensors, each under its space's name."""
        from isthmus.maps import saved  # it makes transports

        saved.save([self], path)

    @staticmethod
    def load(path: str | Path, graph: SymmetryGraph) -> Transport:
        """Read maps back, for a graph that has their spaces; what is in the file is checked first.

        Raises:
            InputError: the file holds no maps, or maps of another model; all problems are listed.
        """
        from isthmus.maps import saved

        (transport,), _ = saved.load(path, [graph])
        return transport

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
        return _act(item, tensor, dim, role)
    if isinstance(axis, Blocks):
        opened = tensor.unflatten(dim, [factor.size for factor in axis.factors])
        for offset, factor in enumerate(axis.factors):
            opened = _apply(opened, dim + offset, factor, maps, role)
        return opened.flatten(dim, dim + len(axis.factors) - 1)
    if isinstance(axis, Interleaved):
        gathered = torch.tensor(axis.gathered, device=tensor.device)
        whole = _apply(tensor.index_select(dim, gathered), dim, axis.concatenated, maps, role)
        if whole.shape[dim] != axis.size:
            raise InputError("units that come in turn with others cannot change their number", [str(axis)])
        return whole.index_select(dim, gathered.argsort())
    pieces = tensor.split([part.size for part in axis.parts], dim)
    moved = [_apply(p, dim, part, maps, role) for p, part in zip(pieces, axis.parts, strict=True)]
    return torch.cat(moved, dim)


def _act(item: Map, tensor: Tensor, dim: int, role: str) -> Tensor:
    """What a map does to a dimension, by what the weight is to the space."""
    if role == "reads":
        return item.read(tensor, dim)
    if role == "writes" or not isinstance(item, Mixture):
        return item.write(tensor, dim)
    if role == "scales":
        return item.scale(tensor, dim)
    if role == "variance":
        return item.variance(tensor, dim)
    assert role == "deviation"
    # Models' weights stand in the rows of A, so what comes of groups must be linear in them: a mean of deviations.
    return (
        item.write(tensor, dim)
        if isinstance(item, Membership)
        else item.variance(tensor.square(), dim).sqrt()
    )
