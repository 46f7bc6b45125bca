"""Operations that look dimensions up by position, or depend on their order: those freeze."""

from __future__ import annotations

from torch import Tensor, fx, ops

from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, given, rule

aten = ops.aten


@rule(aten.embedding.default)
def embedding(trace: Reading, node: fx.Node) -> Axes:
    """Rows of a table; the rows have names, the columns are free."""
    table, indices = node.args[:2]
    rows, width = trace.axes(table)
    trace.freeze([rows])
    return [*trace.axes(indices), width]


@rule(aten.index_select.default)
def index_select(trace: Reading, node: fx.Node) -> Axes:
    """A dimension in another order or selection."""
    axes = trace.axes(node.args[0])
    dim = int(str(node.args[1])) % len(axes)
    trace.freeze([axes[dim]])
    trace.mix(axes, [dim])
    axes[dim] = trace.fixed(trace.shape(node)[dim])
    return axes


@rule(aten.index.Tensor)
def index(trace: Reading, node: fx.Node) -> Axes:
    """Indexed dimensions are replaced by those of the indices; the others pass."""
    axes, shape = trace.axes(node.args[0]), trace.shape(node)
    indices = list(node.args[1])  # type: ignore[arg-type]
    indices += [None] * (len(axes) - len(indices))
    used = [i for i, item in enumerate(indices) if item is not None]
    for item in indices:
        if isinstance(item, fx.Node):
            trace.freeze(trace.axes(item))
    trace.freeze([axes[i] for i in used])
    trace.mix(axes, used)
    contiguous = used == list(range(used[0], used[-1] + 1))
    start = used[0] if contiguous else 0
    kept = [term for i, term in enumerate(axes) if i not in used]
    count = len(shape) - len(kept)
    return [*kept[:start], *(trace.fixed(n) for n in shape[start : start + count]), *kept[start:]]


@rule(
    aten.cumsum.default,
    aten.cumprod.default,
    aten.logcumsumexp.default,
    aten.roll.default,
    aten.flip.default,
    aten.tril.default,
    aten.triu.default,
    aten.diff.default,
)
def ordered(trace: Reading, node: fx.Node) -> Axes:
    """The order along the dimension matters; for the triangles, along the last two."""
    axes = trace.axes(node.args[0])
    name = str(node.target)
    if "tri" in name:
        dims = [len(axes) - 2, len(axes) - 1]
    elif "diff" in name:
        dims = [int(str(given(node, "dim")))]
    else:
        named = given(node, "dims") if name.split(".")[1] in ("roll", "flip") else given(node, "dim")
        dims = [int(str(d)) for d in named] if isinstance(named, (list, tuple)) else [int(str(named))]
        dims = dims or list(range(len(axes)))  # a roll that names none goes over all
    trace.freeze([axes[d] for d in dims])
    trace.mix(axes, dims)
    for argument in node.all_input_nodes[1:]:
        if isinstance(argument.meta.get("val"), Tensor):
            trace.freeze(trace.axes(argument))
    shape = trace.shape(node)
    return [
        t if shape[i] == trace.shape(node.args[0])[i] else trace.fixed(shape[i]) for i, t in enumerate(axes)
    ]
