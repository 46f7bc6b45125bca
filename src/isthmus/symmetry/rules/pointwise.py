"""Elementwise operations: dimensions unify under broadcasting; activations leave a mark."""

from __future__ import annotations

from torch import Tensor, fx, ops

from isthmus.symmetry import rules
from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, every, rule
from isthmus.symmetry.terms import Term, size

aten = ops.aten

#: Operations that return their first argument's values.
PASSING = (
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.detach_.default,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.lift_fresh_copy.default,
    aten.to.device,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.other,
    aten._to_copy.default,
    aten.type_as.default,
    aten.real.default,
    aten.imag.default,
    aten.resolve_conj.default,
    aten.resolve_neg.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
)

#: Elementwise operations that neither bend nor gate: they leave no mark.
_AFFINE = {"add", "sub", "mul", "div", "neg", "clone", "_to_copy", "to", "rsub"}

#: Other names of the same operations.
_ALIASES = {"multiply": "mul", "subtract": "sub", "divide": "div", "true_divide": "div", "negative": "neg"}


def broadcast(trace: Reading, *operands: Axes) -> Axes:
    """Unify dimensions aligned from the right; a dimension of size one asks nothing."""
    result: Axes = []
    pairs: list[tuple[Term, Term]] = []
    for position in range(1, max((len(axes) for axes in operands), default=0) + 1):
        here = [axes[-position] for axes in operands if len(axes) >= position]
        chosen = next((term for term in here if size(term) != 1), here[0])
        pairs += [(chosen, term) for term in here if size(term) != 1 and term is not chosen]
        result.insert(0, chosen)
    trace.unify_all(pairs)
    return result


@rule(*PASSING)
def passing(trace: Reading, node: fx.Node) -> Axes:
    """y = x"""
    return trace.axes(node.args[0])


def pointwise(trace: Reading, node: fx.Node) -> Axes:
    """z = f(x, y, ...), element by element."""
    tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    axes = broadcast(trace, *(trace.axes(n) for n in tensors))
    name = str(node.target).removeprefix("aten.").split(".")[0].rstrip("_")
    name = _ALIASES.get(name, name)
    if name not in _AFFINE:
        trace.mark(axes, name)
    elif name in ("mul", "div") and len([n for n in tensors if n.name in trace.program.dynamic]) > 1:
        trace.mark(axes, "gate")
    return axes


rules.TABLE["pointwise"] = pointwise


@rule(
    aten.relu.default,
    aten.relu_.default,
    aten.gelu.default,
    aten.silu.default,
    aten.mish.default,
    aten.elu.default,
    aten.selu.default,
    aten.celu.default,
    aten.leaky_relu.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.hardtanh.default,
    aten.relu6.default,
    aten.softplus.default,
    aten.logaddexp.default,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.where.self,
    aten.where.ScalarSelf,
    aten.where.ScalarOther,
    aten.log_sigmoid.default,
    aten.add_.Tensor,
    aten.mul_.Tensor,
    aten.square.default,
    aten.hardswish_.default,
    aten.hardtanh_.default,
    aten.silu_.default,
    aten.floor_divide.default,
    aten.nan_to_num.default,
    aten.__and__.Tensor,
    aten.__or__.Tensor,
    aten.__xor__.Tensor,
    aten.where.Scalar,
    aten.rsub.Tensor,
    aten.complex.default,
    aten.polar.default,
    aten.conj.default,
    aten._conj.default,
    *every("multiply", "subtract", "divide", "true_divide", "negative", "absolute", "arctan", "arctan2"),
    *every("arcsin", "arccos", "fix", "not_equal", "less", "less_equal", "greater", "greater_equal"),
    *every("isclose", "special_expit", "special_erf", "special_logit", "ldexp"),
)
def activation(trace: Reading, node: fx.Node) -> Axes:
    """Elementwise operations that do not carry the pointwise tag in every release."""
    return pointwise(trace, node)


@rule(aten.prelu.default)
def prelu(trace: Reading, node: fx.Node) -> Axes:
    """y = max(x, 0) + a[c] min(x, 0), with one slope or one per channel (dimension 1)."""
    x, slope = node.args
    axes, (slopes,) = trace.axes(x), trace.axes(slope)
    if size(slopes) > 1:
        trace.unify(axes[1] if len(axes) > 1 else axes[0], slopes)
    trace.mark(axes, "prelu")
    return axes
