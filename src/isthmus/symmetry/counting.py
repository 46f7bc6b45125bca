"""Where a program depends on how many units a space has.

Any order of the units leaves a sum, a mean or a norm over them alone, so a symmetry passes these. A unit more does not:
a network can only be given other widths along spaces whose units are computed one by one and read by weights, which
are zero where a unit is not meant. What is known to be so passes; every other operation counts.
"""

from __future__ import annotations

import operator
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from isthmus.symmetry import rules
from isthmus.symmetry.axes import Axis, Interleaved, Leaf, parts_of, spaces_of
from isthmus.symmetry.graph import SymmetryGraph
from isthmus.symmetry.intertwiners import INTERTWINERS
from isthmus.symmetry.operations import operation

aten = torch.ops.aten

Kind = Literal["mean", "sum", "told"]

#: Operations that are told the shape of their result, and at which argument: these can be told another.
SHAPED = {
    **dict.fromkeys((aten.view.default, aten.reshape.default, aten._unsafe_view.default), 1),
    **dict.fromkeys((aten.expand.default, aten.broadcast_to.default), 1),
    **dict.fromkeys((aten.zeros.default, aten.ones.default, aten.full.default), 0),
    **dict.fromkeys((aten.new_zeros.default, aten.new_ones.default, aten.new_full.default), 1),
}

#: Operations that move elements and are told no sizes.
_MOVING = frozenset(
    {"permute", "movedim", "moveaxis", "transpose", "swapaxes", "swapdims", "t", "mT", "numpy_T", "squeeze"}
    | {"unsqueeze", "flatten", "ravel", "view_as", "reshape_as", "expand_as", "cat", "concat", "concatenate"}
)

#: Operations that look at one dimension as a whole, or cut it: their argument `dim`, all where it is not given.
_ALONG = frozenset(
    {"softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "max", "min", "median", "glu"}
    | {"slice", "narrow", "select", "unbind", "chunk", "split", "split_with_sizes", "tensor_split"}
    | {"unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes"}
)

#: Functions of all units that stay as they are if each unit is there twice.
_MEANS = frozenset(
    {
        "mean",
        "nanmean",
        "var",
        "std",
        "var_mean",
        "std_mean",
        "amax",
        "amin",
        "aminmax",
        "max",
        "min",
        "median",
    }
    | {"layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm", "group_norm", "native_group_norm"}
)

_SUMS = frozenset(
    {
        "sum",
        "nansum",
        "prod",
        "logsumexp",
        "linalg_vector_norm",
        "norm",
        "frobenius_norm",
        "cosine_similarity",
    }
    | {"pairwise_distance", "softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax"}
)

#: Families of rules whose operations sum over what they contract.
_PRODUCTS = ("linear", "einsum", "attention", "experts")

_CONVOLUTIONS = frozenset({aten.conv1d.default, aten.conv2d.default, aten.conv3d.default})

_QUOTIENTS = frozenset({"div", "divide", "true_divide"})

#: Functions that are infinite at zero.
_POLES = frozenset({"reciprocal", "rsqrt", "log", "log2", "log10"})

#: Functions of a weight that leave zeros where they are, beside those that the intertwiner table knows.
_ZERO_STAYS = frozenset({"mul", "multiply", "slice", "select", "narrow", *_MOVING})


@dataclass(frozen=True)
class Count:
    """An operation whose result depends on how many units a space has.

    Attributes:
        place: its module and name.
        kind: "mean" of all units (moments, norms, the largest), which does not change if each unit is there twice;
            "sum", any other function of all (sums, softmax, products of two activations); "told", where the number
            itself stands in the program, or nothing is known of the operation.
    """

    place: str
    kind: Kind


def counted(graph: SymmetryGraph) -> dict[str, tuple[Count, ...]]:
    """The spaces that may have no other number of units, and the operations that count them.

    Args:
        graph: the symmetries, with the program that they were read off.
    """
    found: dict[str, dict[Count, None]] = {}
    reading = _Counting(graph)
    for node in graph.program.graph.nodes:
        for space in reading.counts(node):
            found.setdefault(space, {})[Count(graph.program.origin[node.name], _kind(node))] = None
    return {name: tuple(found[name]) for name in graph.spaces if name in found}


class _Counting:
    """What each operation of one program asks of the spaces it meets."""

    def __init__(self, graph: SymmetryGraph):
        self.graph, self.program = graph, graph.program
        self.dynamic = graph.program.dynamic

    def axes(self, node: fx.Node) -> list[tuple[Axis, ...]]:
        """The axes of a value; of each result that is used, where there are several."""
        if node.name in self.graph.values:
            return [self.graph.values[node.name]]
        parts = (user for user in node.users if user.target is operator.getitem)
        return [self.graph.values[part.name] for part in parts if part.name in self.graph.values]

    def carried(self, node: fx.Node) -> Counter[str]:
        """Space -> on how many axes a value carries it."""
        found: Counter[str] = Counter()
        for axes in self.axes(node):
            found |= Counter(name for axis in axes for name in spaces_of(axis))
        return found

    def counts(self, node: fx.Node) -> Iterator[str]:
        """The spaces that an operation counts."""
        if node.op == "placeholder":
            # A constant that is alike along a space is no weight, and stays as long as it is.
            if self.program.weights.get(node.name) not in self.graph.layout:
                yield from self.carried(node)
            return
        if node.op != "call_function" or not self.axes(node) or node.target is operator.getitem:
            return
        for axes in self.axes(node):
            yield from (name for axis in axes for name in _in_turn(axis))
        family = _family(node)
        if family in _PRODUCTS:
            yield from self._contracted(node, family)
        elif family == "recurrent":
            yield from self._unstarted(node)
        else:
            yield from self._together(node, family, operation(node))
            # A space that is gone was reduced, whatever the operation is called.
            made = self.carried(node)
            for argument in self._tensors(node):
                yield from (space for space, count in self.carried(argument).items() if made[space] < count)

    def _tensors(self, node: fx.Node) -> list[fx.Node]:
        return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]

    def _unstarted(self, node: fx.Node) -> Iterable[str]:
        """The spaces of a recurrent layer that a first state does not show, which is one for several layers."""
        states = [n for n in pytree.tree_leaves(node.args[1]) if isinstance(n, fx.Node)]
        held = {name for argument in self._tensors(node) for name in self.carried(argument)}
        read = self.carried(node.all_input_nodes[0])
        return sorted(held - read.keys() - set.intersection(*(set(self.carried(n)) for n in states)))

    def _together(self, node: fx.Node, family: str, name: str) -> Iterable[str]:
        """The spaces along which an operation is not unit by unit, as far as its arguments say."""
        # What a rule of these freezes, no space is on; windows go over places, which have names.
        if family == "pointwise":
            return self._divided(node, name)
        if family == "index" or (family == "reduce" and name not in _ALONG):
            return ()
        if node.target in SHAPED or name in _MOVING or name in ("batch_norm", "instance_norm"):
            return ()
        given = [axes for argument in self._tensors(node) for axes in self.axes(argument)]
        axes = given[0] if given else ()
        if name in ("layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm"):
            return _names(axes[-len(list(node.args[1])) :])  # type: ignore[arg-type]
        if name in ("group_norm", "native_group_norm"):
            return _names(axes[1:2])
        if name in _ALONG and axes:
            dim = rules.given(node, "dim")
            whole = name == "slice" and rules.given(node, "start") in (None, 0) and _to_the_end(node)
            return () if whole else _names(axes if dim is None else [axes[int(dim) % len(axes)]])
        if name in ("pad", "constant_pad_nd", "repeat", "tile", "repeat_interleave"):
            # Where the length stays, nothing was put in.
            made = self.axes(node)[0]
            before = [Leaf(1)] * (len(made) - len(axes)) + list(axes)
            pairs = ((old, new) for old, new in zip(before, made, strict=True) if old.size != new.size)
            return _names(axis for pair in pairs for axis in pair)
        return _names(axis for axes in (*given, *self.axes(node)) for axis in axes)

    def _divided(self, node: fx.Node, name: str) -> Iterable[str]:
        """The spaces of weights that something is divided by: of a unit that no model has, they are zero."""
        divisor = node.args[0] if name in _POLES else node.args[1] if name in _QUOTIENTS else None
        if not isinstance(divisor, fx.Node) or divisor.name in self.dynamic:
            return ()
        return self.carried(divisor)

    # -- products ------------------------------------------------------------------------------

    def _contracted(self, node: fx.Node, family: str) -> Iterable[str]:
        """The spaces that a product sums over without a weight that is zero where a unit is not meant."""
        operands = self._tensors(node)
        if family == "attention":
            query, key, value = (self.graph.values[n.name] for n in node.args[:3])  # type: ignore[union-attr]
            return _names([query[-1], key[-1], key[-2], value[-2]])
        if operation(node) in ("addmm", "baddbmm"):
            operands = operands[1:]
        elif family != "einsum":
            operands = operands[: 3 if operation(node) == "bilinear" else 2]
        made = self.carried(node)
        if node.target in _CONVOLUTIONS and self.program.size(operands[1].name)[1] == 1:
            return set(self.carried(operands[0])) - set(made)  # depthwise: unit by unit
        return [
            space
            for space in dict.fromkeys(name for operand in operands for name in self.carried(operand))
            if not self._by_weights(space, operands, made[space])
        ]

    def _by_weights(self, space: str, operands: Sequence[fx.Node], kept: int) -> bool:
        """Whether a space passes a product, or is summed over by weights."""
        held = [(operand, self.carried(operand)[space]) for operand in operands]
        held = [(operand, count) for operand, count in held if count]
        if sum(count for _, count in held) <= kept:
            return True
        fixed = [operand for operand, _ in held if operand.name not in self.dynamic]
        # Of two activations, one may be summed over without the weights.
        enough = len(fixed) >= max(len(held) - 1, 1) and any(self._reads(n, space) for n in fixed)
        return enough and all(self._zero_stays(n, space) for n in fixed)

    def _reads(self, node: fx.Node, space: str) -> bool:
        """Whether a weight that takes B along the space is in what is computed of weights."""
        if node.op == "placeholder":
            key = self.program.weights.get(node.name)
            return any(m.key == key and m.role == "reads" for m in self.graph.spaces[space].members)
        return any(self._reads(argument, space) for argument in node.all_input_nodes)

    def _zero_stays(self, node: fx.Node, space: str) -> bool:
        """Whether what is computed of weights is zero wherever they are, along a space."""
        if node.op == "placeholder":
            return self.program.weights.get(node.name) in self.graph.layout
        name, tensors = operation(node), self._tensors(node)
        holders = [a for a in tensors if self.carried(a)[space]]
        if not holders or not all(self._zero_stays(a, space) for a in holders):
            return False
        if name in ("add", "sub"):
            return len(holders) == 2
        if name in _QUOTIENTS:
            return holders == tensors[:1]
        row = INTERTWINERS.get(name)
        passes = row is not None and (row.parity == "odd" or (row.degree is not None and row.degree > 0))
        return passes or node.target in SHAPED or name in _ZERO_STAYS or _family(node) in ("linear", "einsum")


def _kind(node: fx.Node) -> Kind:
    if (name := operation(node)) in _MEANS:
        return "mean"
    return "sum" if name in _SUMS or _family(node) in _PRODUCTS else "told"


def _family(node: fx.Node) -> str:
    """The file of the rule by which an operation was read; "" for a rule of the user's own, or none."""
    rule = rules.TABLE.get(node.target) or rules.TABLE.get(str(node.target))
    if rule is None:
        return "pointwise" if torch.Tag.pointwise in getattr(node.target, "tags", ()) else ""
    package, _, file = rule.__module__.rpartition(".")
    return file if package == rules.__name__ else ""


def _to_the_end(node: fx.Node) -> bool:
    end, step = rules.given(node, "end"), rules.given(node, "step")
    return step in (None, 1) and (end is None or (isinstance(end, int) and end >= sys.maxsize))


def _names(axes: Iterable[Axis]) -> Iterator[str]:
    return (name for axis in axes for name in sorted(spaces_of(axis)))


def _in_turn(axis: Axis) -> set[str]:
    """The spaces whose units come in turn with others, by places that the program is told."""
    if isinstance(axis, Interleaved):
        return spaces_of(axis)
    return set().union(*(_in_turn(part) for part in parts_of(axis)))
