"""How each family of operations passes scales, signs and changes of basis.

A rule sees one operation in a flow: it says how the powers of the inputs depend on each other and returns that of the
output, or None for an output that does not answer. What it does not let through it stops, which is always right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import cast

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from isthmus.symmetry.axes import Leaf
from isthmus.symmetry.flow import ONE, Flow, Labels, Slots, State, passes
from isthmus.symmetry.intertwiners import clipped, power
from isthmus.symmetry.operations import (
    JOINS,
    LIKE,
    LINEAR_REDUCTIONS,
    MOVES,
    ORDERED_REDUCTIONS,
    PADS,
    PERMUTES,
    SAME,
    joined_axis,
    operation,
    pads_zeros,
)
from isthmus.symmetry.rules.einsum import parse

CONVOLUTIONS = frozenset(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))


@passes("pow")
def _pow(flow: Flow, node: fx.Node) -> State | None:
    """A power, by a number."""
    exponent = node.args[1]
    if not isinstance(exponent, (int, float)):
        return flow.stop(node)
    return flow.unary(node, power(float(exponent)))


@passes("clamp", "hardtanh")
def _clip(flow: Flow, node: fx.Node) -> State | None:
    """What cuts off below and above."""
    name = operation(node)
    defaults = (-1.0, 1.0) if name == "hardtanh" else (None, None)
    named = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    bounds = [
        node.args[i + 1] if len(node.args) > i + 1 else node.kwargs.get(named[i], defaults[i]) for i in (0, 1)
    ]
    if any(bound is not None and not isinstance(bound, (int, float)) for bound in bounds):
        return flow.stop(node)
    low, high = (None if bound is None else float(cast("float", bound)) for bound in bounds)
    return flow.unary(node, clipped(low, high))


@passes("clamp_min")
def _floor(flow: Flow, node: fx.Node) -> State | None:
    """What cuts off below: at zero, a ReLU."""
    return flow.unary(node, clipped(0.0, None)) if _is_zero(node.args[1]) else flow.stop(node)


@passes("clamp_max")
def _ceiling(flow: Flow, node: fx.Node) -> State | None:
    """What cuts off above: at zero, a ReLU of the negated."""
    return flow.unary(node, clipped(None, 0.0)) if _is_zero(node.args[1]) else flow.stop(node)


def _is_zero(argument: object) -> bool:
    return isinstance(argument, (int, float)) and argument == 0


@passes(*MOVES, "embedding", "index")
def _move(flow: Flow, node: fx.Node) -> State | None:
    """Elements are moved, not changed."""
    name = operation(node)
    arguments = [a for a in pytree.tree_leaves(node.args) if isinstance(a, fx.Node)]
    if name in LIKE:
        arguments = arguments[:1]
    states = [s for a in arguments if (s := flow.state(a)) is not None]
    if not states or (name in PADS and not pads_zeros(node)):
        return flow.stop(node) if states else None
    axes = flow.out(node)
    if name in SAME and isinstance(states[0], Labels) and not axes:
        return states[0]
    if name in JOINS and set(axes) != {joined_axis(node)}:
        # Not side by side along the space itself: each must carry it.
        tensors = [a for a in arguments if isinstance(a.meta.get("val"), Tensor)]
        if any(flow.state(a) is None for a in tensors):
            return flow.stop(node)
    if all(isinstance(s, Slots) and len(s.powers) == 1 for s in states) and len(axes) == 1:
        return flow.equal(states, axes)
    if len(states) == 1 and name not in PERMUTES and len(states[0].powers) == len(axes):
        return flow.equal(states, axes) or flow.by_elements(node)
    return flow.by_elements(node)


@passes(*LINEAR_REDUCTIONS, *ORDERED_REDUCTIONS)
def _reduce(flow: Flow, node: fx.Node) -> State | None:
    """A mean, sum or resampling along axes other than the space's."""
    name = operation(node)
    state = flow.state(node.args[0])
    axes = flow.out(node)
    ordered = name not in LINEAR_REDUCTIONS
    if state is None or not axes or (ordered and flow.mode != "scale"):
        return flow.stop(node)
    return flow.equal([state], axes) or flow.stop(node)


@passes("add", "sub", "rsub", "where", "maximum", "minimum", "lerp")
def _add(flow: Flow, node: fx.Node) -> State | None:
    """A sum or a choice: all that is added scales alike."""
    name = operation(node)
    operands = list(node.args[1:3] if name == "where" else node.args[:2])
    # Zero may be added to anything.
    terms = [a for a in operands if not _is_zero(a)]
    if flow.mode != "scale" and name in ("maximum", "minimum"):
        return flow.stop(node)
    states = [flow.state(a) for a in terms]
    known = [s for s in states if s is not None]
    chosen_by = node.args[:1] if name == "where" else node.args[2:]
    beside = [a for a in chosen_by if flow.state(a) is not None]
    if beside or len(known) < len(states):
        return flow.stop(node)
    return flow.equal(known, flow.out(node)) or flow.stop(node)


@passes("masked_fill")
def _fill(flow: Flow, node: fx.Node) -> State | None:
    """A mask: zero is zero at any scale."""
    state = flow.state(node.args[0])
    only = all(flow.state(a) is None for a in node.all_input_nodes if a is not node.args[0])
    passed = None
    if state is not None and only and _is_zero(node.args[2]):
        passed = flow.equal([state], flow.out(node))
    return passed or flow.stop(node)


@passes("mul", "div")
def _multiply(flow: Flow, node: fx.Node) -> State | None:
    """A product or quotient of two tensors, element by element."""
    name = operation(node)
    one, two = node.args[:2]
    if name == "div" and node.kwargs.get("rounding_mode"):
        return flow.stop(node)
    first, second = flow.state(one), flow.state(two)
    sign = -ONE if name == "div" else ONE
    axes = flow.out(node)
    if flow.mode == "basis":
        if one is two and name == "mul":
            flow.squares.add(node)
            return None
        if first is not None and second is not None:
            for scale, other in ((two, first), (one, second)):
                if (key := _vector(flow, scale)) is not None and not (scale is one and name == "div"):
                    flow.scales.setdefault(key, []).append(node.name)
                    return flow.equal([other], axes) or flow.stop(node)
            return flow.stop(node)
        if second is not None and name == "div":
            return flow.stop(node)
    terms = [(s, f) for s, f in ((first, ONE), (second, sign)) if s is not None]
    return flow.combined(terms, axes) or flow.stop(node)


def _vector(flow: Flow, node: object) -> str | None:
    """The key of a weight that is one number per unit of the space, if the node is one."""
    while isinstance(node, fx.Node) and operation(node) in ("view", "reshape", "unsqueeze", "to", "_to_copy"):
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.name not in flow.layout.weights:
        return None
    axes = [axis for axis in flow.layout.weights[node.name] if axis.size > 1]
    alone = len(axes) == 1 and isinstance(axes[0], Leaf) and axes[0].space == flow.space
    return flow.program.weights[node.name] if alone else None


@passes(*("linear", "addmm", "mm", "matmul", "bmm", "baddbmm", "einsum", "convolution"), *CONVOLUTIONS)
def _contract(flow: Flow, node: fx.Node) -> State | None:
    """A product that sums over some axes: linear, convolution, matmul, einsum."""
    name = operation(node)
    tensors = [a for a in pytree.tree_leaves(node.args) if isinstance(a, fx.Node)]
    tensors = [a for a in tensors if isinstance(a.meta.get("val"), Tensor)]
    added: list[fx.Node] = []
    if name in ("addmm", "baddbmm"):
        added, tensors = tensors[:1], tensors[1:]
    elif name != "einsum":
        tensors, added = tensors[:2], tensors[2:3]
    states = [flow.state(a) for a in tensors]
    if any(isinstance(s, Labels) for s in states):
        return flow.stop(node)
    inputs, result = _letters(flow, node, tensors)
    # Letter of an axis -> the powers of each factor that has the space there; None where it is known to have none.
    found: dict[str, list[list[int] | None]] = {}
    for tensor, state, letters in zip(tensors, states, inputs, strict=True):
        for axis in dict.fromkeys(flow.out(tensor)):
            powers = [u for at, u in cast("Slots", state).places if at == axis] if state else None
            found.setdefault(letters[axis], []).append(powers)
    for letter, factors in found.items():
        if letter not in result and any(factors) and not _cancel(flow, factors):
            return flow.stop(node)
    places = _passed(flow, node, found, result)
    if not places:
        if places is None or flow.out(node):
            return flow.stop(node)
        flow.zero(*(flow.state(a) for a in added))
        return None
    made = Slots(places)
    for term in added:
        state = flow.state(term)
        if state is None or flow.equal([made, state], flow.out(node)) is None:
            flow.zero(state, made)
            return flow.stop(node)
    return made


def _passed(
    flow: Flow, node: fx.Node, found: Mapping[str, list[list[int] | None]], result: list[str]
) -> list[tuple[int, int]] | None:
    """What a product keeps, axis by axis: the product of its factors; None where their places do not correspond."""
    places: list[tuple[int, int]] = []
    axes = flow.out(node)
    for axis in dict.fromkeys(axes):
        factors = found.get(result[axis], [])
        powers = [p for p in factors if p is not None]
        if any(len(p) != axes.count(axis) for p in powers) or (flow.mode == "basis" and len(factors) != 1):
            return None
        for index in range(axes.count(axis)):
            terms: list[tuple[State, Fraction]] = [(Slots([(axis, p[index])]), ONE) for p in powers]
            if not terms:
                # What another operation has stopped.
                unknown = flow.system.new()
                flow.zero(Slots([(axis, unknown)]))
                terms = [(Slots([(axis, unknown)]), ONE)]
            places += cast("Slots", flow.combined(terms, [axis])).places
    return places


def _letters(flow: Flow, node: fx.Node, tensors: list[fx.Node]) -> tuple[list[list[str]], list[str]]:
    """A product as an Einstein sum: a letter for each axis of its factors, and of what it makes."""
    name = operation(node)
    ranks = [len(flow.program.size(tensor.name)) for tensor in tensors]
    if name == "einsum":
        return parse(str(node.args[0]), ranks)
    if name in CONVOLUTIONS or name == "convolution":
        return _of_convolution(flow, node, tensors)
    first, second = ranks
    batch = [str(n) for n in reversed(range(max(first, second)))]
    if name == "linear":
        kept = batch[len(batch) - first + 1 :]
        return [[*kept, "k"], ["n", "k"][-second:]], [*kept, *["n"][: second - 1]]
    outer = max(first, second) - 2
    one = ["k"] if first == 1 else [*batch[-(first - 2) or len(batch) :], "m", "k"]
    two = ["k"] if second == 1 else [*batch[-(second - 2) or len(batch) :], "k", "n"]
    kept = batch[-outer:] if outer > 0 else []
    return [one, two], [*kept, *["m"][: first - 1], *["n"][: second - 1]]


def _of_convolution(flow: Flow, node: fx.Node, tensors: list[fx.Node]) -> tuple[list[list[str]], list[str]]:
    """The channels of a convolution as letters; groups that carry the space are on all three."""
    name = operation(node)
    value, kernel = (len(flow.program.size(tensor.name)) for tensor in tensors)
    batch, space = ["b"][: value - kernel + 1], [str(n) for n in range(kernel - 2)]
    transposed = name.startswith("conv_transpose") or (name == "convolution" and bool(node.args[6]))
    at = 8 if name == "convolution" else 6
    groups = node.args[at] if len(node.args) > at else 1
    channels = ["k", "n"] if transposed else ["n", "k"]
    taken, made = "k", "n"
    if groups != 1:
        kernel_axes = set(flow.out(tensors[1]))
        out = len(batch) in flow.out(node)
        summed = kernel_axes == {0, 1} or (not out if transposed else 1 in kernel_axes)
        if not summed and out and kernel_axes == {0} and len(batch) in flow.out(tensors[0]):
            channels, taken, made = ["g", "k"], "g", "g"
    taps = [f"tap {n}" for n in space]
    return [[*batch, taken, *space], [*channels, *taps]], [*batch, made, *(f"out {n}" for n in space)]


def _cancel(flow: Flow, factors: Sequence[list[int] | None]) -> bool:
    """Powers cancel where factors are contracted; whether a change of basis passes."""
    summed = [powers for powers in factors if powers is not None]
    if len({len(powers) for powers in summed}) > 1 or (flow.mode == "basis" and len(summed) != 2):
        flow.zero(*(Slots([(0, unknown)]) for powers in summed for unknown in powers))
        return False
    for unknowns in zip(*summed, strict=True):
        equation: dict[int, Fraction] = {}
        for unknown in unknowns:
            equation[unknown] = equation.get(unknown, Fraction(0)) + 1
        flow.system.add(equation)
    return True


@passes("scaled_dot_product_attention")
def _attention(flow: Flow, node: fx.Node) -> State | None:
    """softmax(q k^T) v: the logits must stay as they are, the values pass."""
    query, key, value = (flow.state(a) for a in node.args[:3])
    others = [flow.state(a) for a in (*node.args[3:], *node.kwargs.values())]
    if any(s is not None for s in others) or any(isinstance(s, Labels) for s in (query, key, value)):
        return flow.stop(node)
    axes = flow.out(node)
    if flow.mode == "basis":
        states = [(s, a) for s, a in zip((query, key, value), node.args[:3], strict=True) if s]
        for state, argument in states:
            last = len(flow.program.size(cast("fx.Node", argument).name)) - 1
            if [axis for axis, _ in cast("Slots", state).places] != [last]:
                return flow.stop(node)
        if (query is None) != (key is None) or (query is not None and value is not None):
            return flow.stop(node)
    logits = [s.powers for s in (query, key) if s is not None]
    if logits:
        _cancel(flow, logits)
    if value is None:
        return None
    return flow.equal([value], axes) or flow.stop(node)


@passes("batch_norm")
def _batch_norm(flow: Flow, node: fx.Node) -> State | None:
    """A batch norm: its running statistics follow what it norms, its own scale makes a new start."""
    value, weight, bias, mean, variance = (flow.state(a) for a in node.args[:5])
    shift = node.args[2]
    running = all(isinstance(a, fx.Node) for a in node.args[3:5]) and not node.args[5]
    axes = flow.out(node)
    if flow.mode == "basis" or not running or isinstance(value, Labels):
        return flow.stop(node)
    for state in (value, weight, bias, mean, variance):
        if state is not None and len(state.powers) != len(axes):
            return flow.stop(node)
    key = flow.program.weights.get(cast("fx.Node", node.args[4]).name, "")
    eps = float(cast("float", node.args[7]))
    if value is None or mean is None or variance is None or flow.variances.setdefault(key, eps) != eps:
        flow.zero(value, mean, variance)
    else:
        flow.equal([value, mean], axes)
        for unknown, scale in zip(variance.powers, value.powers, strict=True):
            flow.system.add({unknown: ONE, scale: Fraction(-2)})
    normed = value if flow.mode == "sign" else None
    return _affine(flow, normed, weight, shift, axes)


def _affine(
    flow: Flow, normed: State | None, weight: State | None, shift: object, axes: list[int]
) -> State | None:
    """What a norm's own scale and shift make of a normalised value."""
    bias = flow.state(shift)
    terms = [(s, ONE) for s in (normed, weight) if s is not None]
    result = flow.combined(terms, axes) if terms else None
    if result is not None and (not isinstance(shift, fx.Node) or bias is not None):
        known = [result, *([bias] if bias is not None else [])]
        if flow.equal(known, axes) is not None:
            return result
    flow.zero(normed, weight, bias, result)
    return None


@passes("layer_norm", "rms_norm")
def _layer_norm(flow: Flow, node: fx.Node) -> State | None:
    """Layer norm, and norms by the root mean square."""
    name = operation(node)
    centred = name == "layer_norm"
    value = flow.state(node.args[0])
    scale = node.args[2] if len(node.args) > 2 else None
    shift = node.args[3] if centred and len(node.args) > 3 else None
    axes = flow.out(node)
    if flow.mode != "basis":
        odd = flow.mode == "sign" and not centred
        if not odd:
            flow.zero(value)
        return _affine(flow, value if odd else None, flow.state(scale), shift, axes)
    axis = flow.layout.values[node.name][-1]
    normed = cast("list[int]", list(node.args)[1])
    alone = isinstance(axis, Leaf) and axis.space == flow.space and len(normed) == 1
    bias = flow.state(shift)
    if value is None or not alone or (isinstance(shift, fx.Node) and bias is None):
        return flow.stop(node)
    if isinstance(scale, fx.Node) and scale.name not in flow.layout.ones:
        if (key := _vector(flow, scale)) is None:
            return flow.stop(node)
        flow.scales.setdefault(key, []).append(node.name)
    flow.norms["centred" if centred else "root-mean-square"] = node.name
    return flow.equal([value, *([bias] if bias is not None else [])], axes) or flow.stop(node)


@passes("group_norm", "instance_norm")
def _group_norm(flow: Flow, node: fx.Node) -> State | None:
    """Group and instance norms; instance norm keeps signs, and may run on statistics as a batch norm does."""
    name = operation(node)
    if name == "instance_norm" and not node.args[5]:
        return _batch_norm(flow, node)
    if flow.mode == "basis":
        return flow.stop(node)
    if name == "instance_norm":
        flow.zero(*(flow.state(a) for a in node.args[3:5]))  # handed over, and not looked at
    first = 1 if name == "instance_norm" else 2
    weight, shift = [*node.args, None, None][first : first + 2]
    value = flow.state(node.args[0])
    odd = flow.mode == "sign" and name == "instance_norm"
    if not odd:
        flow.zero(value)
    return _affine(flow, value if odd else None, flow.state(weight), shift, flow.out(node))


@passes("linalg_vector_norm")
def _length(flow: Flow, node: fx.Node) -> State | None:
    """The Euclidean length along the space."""
    order = node.args[1] if len(node.args) > 1 else 2
    if flow.mode == "scale" or order != 2 or flow.out(node):
        return flow.stop(node)
    if flow.mode == "basis":
        flow.norms["root-mean-square"] = node.name
    return None
