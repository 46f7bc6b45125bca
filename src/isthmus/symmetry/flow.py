"""How a scale, a sign or a change of basis of one space travels through a program.

Multiply each unit of a space by a number d, or mix the units by a matrix, where a weight writes them: every
value that carries the space answers with some power of d (the matrix, or its inverse transposed). Each
operation says how the powers of its inputs and its output depend on each other; a scale that the
outputs do not see is a solution of all these equations, and the weights' powers in it say how to apply it.
Signs are the same question modulo two. What an operation does not say anything about has power zero, which is
always right, only less.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, cast

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from isthmus.program import Program
from isthmus.symmetry.axes import Axis, spaces_of
from isthmus.symmetry.expose import exposed, occurrences, out_of_reach
from isthmus.symmetry.intertwiners import INTERTWINERS, Intertwiner
from isthmus.symmetry.linear_system import System
from isthmus.symmetry.operations import COMPARISONS, MOVES, PADS, SAME, SHAPES, makes_zeros, operation

#: What is done to the units: scaled by positive numbers, negated, or mixed by a matrix.
Mode = Literal["scale", "sign", "basis"]

ONE = Fraction(1)


class BrokenError(Exception):
    """A change of basis meets an operation that it does not pass; the message says where."""


@dataclass
class Slots:
    """A value that carries the space on known axes: (axis, unknown power) for each place, left to right."""

    places: list[tuple[int, int]]

    @property
    def powers(self) -> list[int]:
        return [unknown for _, unknown in self.places]


@dataclass
class Labels:
    """A value of which only its elements are known: the unknown power of each, zero where it has none."""

    tensor: Tensor

    @property
    def powers(self) -> list[int]:
        return [n for n in _distinct(self.tensor) if n]


State = Slots | Labels


#: A rule: (flow, node) -> what its output answers with.
Rule = Callable[["Flow", fx.Node], State | None]

#: Name of an operation -> its rule; `flow_rules` fills it. Elementwise functions are in `INTERTWINERS`.
RULES: dict[str, Rule] = {}


def passes(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for some operations."""

    def add(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return add


@dataclass(frozen=True)
class Place:
    """Where a weight carries the space: `occurrence` counts its places on that axis, left to right."""

    key: str
    axis: int
    occurrence: int


class Layout:
    """What every flow through one program needs: the nodes in order, and the axes of values."""

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, tuple[Axis, ...]],
        values: Mapping[str, tuple[Axis, ...]],
        ones: frozenset[str],
    ):
        self.program, self.values = program, values
        self.position = {node: i for i, node in enumerate(program.graph.nodes)}
        self.nodes = list(program.graph.nodes)
        self.weights = {program.keys[key]: axes for key, axes in weights.items() if key in program.keys}
        self.ones = frozenset(program.keys[key] for key in ones if key in program.keys)
        # Of some spaces there is no view: an element of theirs could not be applied.
        self.hidden = {
            s for axes in (*weights.values(), *values.values()) for axis in axes for s in out_of_reach(axis)
        }
        self.carriers: dict[str, list[str]] = {}
        for name, axes in self.weights.items():
            for space in {s for axis in axes for s in spaces_of(axis)}:
                self.carriers.setdefault(space, []).append(name)


class Flow:
    """One space's powers, through the whole program.

    Args:
        layout: of the program.
        space: whose units are scaled, negated or mixed.
        mode: which of these.
        until: values at which to stop looking; what reads them says nothing.

    Attributes:
        places: where weights carry the space -> the unknown power there.
        variances: running variances -> the constant that their norm adds to them.
        scales: weights that multiply the space elementwise, which a change of basis does not pass unless
            they are ones -> the nodes where they do.
        squares: values that are squares of the space, for a change of basis.
        norms: "root-mean-square" or "centred" norms over the space that were passed -> the last of them.

    Raises:
        BrokenError: mode "basis", and something is not linear; the message is its place.
    """

    def __init__(self, layout: Layout, space: str, mode: Mode, until: Collection[str] = ()):
        self.layout, self.space, self.mode = layout, space, mode
        self.program = layout.program
        self.system = System(2 if mode == "sign" else None)
        self.places: dict[Place, int] = {}
        self.variances: dict[str, float] = {}
        self.scales: dict[str, list[str]] = {}
        self.norms: dict[str, str] = {}
        self._states: dict[fx.Node, State] = {}
        self.squares: set[fx.Node] = set()
        self._run(until)

    # -- the pass ----------------------------------------------------------------------------

    def _run(self, until: Collection[str]) -> None:
        position = self.layout.position
        queue = [position[self.program.nodes[name]] for name in self.layout.carriers.get(self.space, ())]
        heapq.heapify(queue)
        done = -1
        while queue:
            index = heapq.heappop(queue)
            if index == done:
                continue
            done = index
            node = self.layout.nodes[index]
            try:
                state = self._visit(node)
            except BrokenError as error:
                raise BrokenError(self.program.origin.get(node.name, node.name)) from error
            if state is not None or node in self.squares:
                if state is not None:
                    self._states[node] = state
                for user in node.users:
                    if user.name not in until:
                        heapq.heappush(queue, position[user])

    def _visit(self, node: fx.Node) -> State | None:
        if node.op == "placeholder":
            return self._weight(node)
        if node.op == "output":
            return self.stop(node)
        value = node.meta.get("val")
        name = operation(node)
        if name == "getitem":
            return self._item(node)
        if isinstance(value, (tuple, list)):
            # Its results are looked at one by one; of an operation without a rule nothing is known.
            if name in MOVES:
                return self.state(cast("fx.Node", node.args[0])) or self.stop(node)
            return self.stop(node)
        if not isinstance(value, Tensor) or name in SHAPES:
            return None
        if not (value.is_floating_point() or value.is_complex()):
            # Comparisons, casts to whole numbers, indices: what they make does not scale.
            return None if self._is_compared_with_zero(node, name) else self.stop(node)
        if any(argument in self.squares for argument in node.all_input_nodes):
            return self._square(node, name)
        rule = RULES.get(name)
        if rule is not None:
            return rule(self, node)
        row = INTERTWINERS.get(name)
        return self.stop(node) if row is None else self.unary(node, row)

    def _weight(self, node: fx.Node) -> State | None:
        if node.name in self.layout.ones:
            return None
        places: list[tuple[int, int]] = []
        for axis, term in enumerate(self.layout.weights[node.name]):
            for occurrence in range(occurrences(term, self.space)):
                unknown = self.system.new()
                self.places[Place(self.program.weights[node.name], axis, occurrence)] = unknown
                places.append((axis, unknown))
        return Slots(places) if places else None

    def powers(self) -> Iterator[tuple[str, list[int]]]:
        """The values that were reached, with the unknown powers of each."""
        for node, state in self._states.items():
            yield node.name, state.powers

    # -- what handlers say ---------------------------------------------------------------------

    def state(self, argument: object) -> State | None:
        if not isinstance(argument, fx.Node):
            return None
        if argument not in self._states and self._is_zero(argument) and (axes := self.out(argument)):
            # Zeros are zero at any scale and in any basis.
            self._states[argument] = Slots([(axis, self.system.new()) for axis in axes])
        return self._states.get(argument)

    def _is_zero(self, node: fx.Node) -> bool:
        """Whether what carries the space in a value is nothing but zeros."""
        padded = node.args[0] if operation(node) in PADS else None
        return makes_zeros(node) and not (isinstance(padded, fx.Node) and self.out(padded))

    def out(self, node: fx.Node) -> list[int]:
        """The axes on which a value carries the space, one entry per place."""
        axes = self.layout.values.get(node.name) or self.layout.weights.get(node.name, ())
        return [axis for axis, term in enumerate(axes) for _ in range(occurrences(term, self.space))]

    def zero(self, *states: State | None) -> None:
        for state in states:
            for unknown in state.powers if state else ():
                if self.mode == "basis":
                    raise BrokenError("it takes no change of basis")
                self.system.zero(unknown)

    def stop(self, node: fx.Node) -> None:
        """Nothing passes: every input has power zero."""
        if self.mode == "basis":
            raise BrokenError(operation(node))
        self.zero(*(self.state(a) for a in node.all_input_nodes))

    def equal(self, states: list[State], axes: list[int]) -> State | None:
        """One power for all; None where their places do not correspond."""
        if all(isinstance(s, Slots) and len(s.powers) == len(axes) for s in states):
            first = states[0].powers
            for other in states[1:]:
                for one, two in zip(first, other.powers, strict=True):
                    self.system.equate(one, two)
            return Slots(list(zip(axes, first, strict=True)))
        if len(states) == 1 and isinstance(states[0], Labels) and not axes:
            return states[0]
        return None

    def combined(self, terms: list[tuple[State, Fraction]], axes: list[int]) -> State | None:
        """The power of a product of powers; None where their places do not correspond."""
        if len(terms) == 1 and terms[0][1] == 1:
            return self.equal([terms[0][0]], axes)
        labels, factor = terms[0]
        if len(terms) == 1 and isinstance(labels, Labels) and not axes:
            renamed = labels.tensor.clone()
            for unknown in labels.powers:
                renamed[labels.tensor == unknown] = self._multiple([(unknown, factor)])
            return Labels(renamed)
        if not all(isinstance(s, Slots) and len(s.powers) == len(axes) for s, _ in terms):
            return None
        found = [
            (axis, self._multiple([(s.powers[i], factor) for s, factor in terms]))
            for i, axis in enumerate(axes)
        ]
        return Slots(found)

    def _multiple(self, terms: list[tuple[int, Fraction]]) -> int:
        unknown = self.system.new()
        equation = {unknown: -ONE}
        for other, factor in terms:
            equation[other] = equation.get(other, Fraction(0)) + factor
        self.system.add(equation)
        return unknown

    # -- families of operations ------------------------------------------------------------------

    def unary(self, node: fx.Node, row: Intertwiner) -> State | None:
        """An elementwise function of its first argument."""
        state = self.state(node.args[0])
        self.zero(*(self.state(a) for a in node.all_input_nodes if a is not node.args[0]))
        if state is None:
            return self.stop(node)
        if self.mode == "basis":
            if row.degree == 2 and row.parity == "even":
                self.squares.add(node)
                return None
            return self.equal([state], self.out(node)) if row.linear else self.stop(node)
        if self.mode == "sign":
            if row.parity == "even":
                return None
            passed = self.equal([state], self.out(node)) if row.parity == "odd" else None
        elif row.degree == 0:
            return None
        else:
            passed = None if row.degree is None else self.combined([(state, row.degree)], self.out(node))
        return passed or self.stop(node)

    def _is_compared_with_zero(self, node: fx.Node, name: str) -> bool:
        """Whether a comparison asks for a sign, which no positive scale changes."""
        if name not in COMPARISONS or len(node.all_input_nodes) != 1:
            return False
        zero = isinstance(node.args[1], (int, float)) and node.args[1] == 0
        return zero and (self.mode == "scale" or (self.mode == "sign" and name in ("eq", "ne")))

    def _square(self, node: fx.Node, name: str) -> None:
        """Squares of a mixed space: only their sum means anything."""
        if name in SAME:
            self.squares.add(node)
        elif name in ("mean", "sum") and not self.out(node):
            self.norms["root-mean-square"] = node.name
        else:
            self.stop(node)

    # -- movements, element by element ------------------------------------------------------------

    def _item(self, node: fx.Node) -> State | None:
        source, index = node.args
        assert isinstance(source, fx.Node) and isinstance(index, int)
        state, axes = self.state(source), self.out(node)
        if state is None:
            return None
        if isinstance(state, Slots) and len(state.powers) == len(axes) == 1:
            return self.equal([state], axes)
        return self.by_elements(node)

    def by_elements(self, node: fx.Node) -> State | None:
        """Run a movement on the powers themselves, and read off where they went."""
        moved = self._moved_labels(node)
        if moved is None:
            return self.stop(node)
        places: list[tuple[int, int]] = []
        axes = self.layout.values.get(node.name, ())
        for axis in dict.fromkeys(self.out(node)):
            seen: dict[int, set[int]] = {}
            for occurrence, view in exposed(moved, axes, axis, self.space):
                seen.setdefault(occurrence, set()).update(_distinct(view))
            places += [(axis, self._agreed(seen[n], operation(node))) for n in sorted(seen)]
        if places:
            return Slots(places)
        return Labels(moved) if any(_distinct(moved)) else None

    def _agreed(self, powers: set[int], name: str) -> int:
        """One power for a place in which several were found."""
        first, *others = sorted(powers, reverse=True)
        if first == 0:
            unknown = self.system.new()
            # Zeros beside the space are zero at any scale.
            if name not in PADS:
                self.zero(Slots([(0, unknown)]))
            return unknown
        for other in others:
            if other:
                self.system.equate(first, other)
            elif self.mode == "basis":
                raise BrokenError(name)
            else:
                self.system.zero(first)
        return first

    def _moved_labels(self, node: fx.Node) -> Tensor | None:
        """What a movement makes of the powers of its inputs, element by element."""
        if operation(node) == "getitem":
            source, index = node.args
            assert isinstance(source, fx.Node) and isinstance(index, int)
            whole = self._call_on_labels(source)
            return None if whole is None else cast("list[Tensor]", whole)[index]
        return cast("Tensor | None", self._call_on_labels(node))

    def _call_on_labels(self, node: fx.Node) -> object:
        unfit = False

        def replaced(value: object) -> object:
            nonlocal unfit
            if not isinstance(value, fx.Node):
                return value
            fake = value.meta.get("val")
            if not isinstance(fake, Tensor):
                return int(fake) if isinstance(fake, (int, torch.SymInt)) else fake
            labels = self._labels(value)
            unfit |= labels is None
            return labels

        args, kwargs = pytree.tree_map(replaced, (node.args, dict(node.kwargs)))
        if unfit:
            return None
        kwargs.pop("dtype", None)
        try:
            return cast("Callable[..., object]", node.target)(*args, **kwargs)
        except (RuntimeError, TypeError, IndexError, NotImplementedError):
            return None

    def _labels(self, node: fx.Node) -> Tensor | None:
        """The unknown power of each element; None where an element has two."""
        state = self.state(node)
        if isinstance(state, Labels):
            return state.tensor
        fake = node.meta["val"]
        if state is None and not (fake.is_floating_point() or fake.is_complex()):
            return None  # an index: its values are needed, not its powers
        size = self.program.size(node.name)
        if state is None:
            return torch.zeros((), dtype=torch.int64).expand(size)
        if len({axis for axis, _ in state.places}) > 1:
            return None
        # Alike along all other axes, of which nothing is stored.
        axis = state.places[0][0]
        labels = torch.zeros(size[axis], dtype=torch.int64)
        along = [self.layout.values[node.name][axis]]
        for occurrence, view in exposed(labels, along, 0, self.space):
            view.fill_(state.powers[occurrence])
        return labels.view([-1 if i == axis else 1 for i in range(len(size))]).expand(size)


def _distinct(labels: Tensor) -> list[int]:
    for dim, stride in enumerate(labels.stride()):
        if stride == 0:
            labels = labels.narrow(dim, 0, 1)
    low, high = (int(n) for n in labels.aminmax())
    if low == high:
        return [low]
    return torch.bincount(labels.flatten() - low).nonzero()[:, 0].add(low).tolist()
