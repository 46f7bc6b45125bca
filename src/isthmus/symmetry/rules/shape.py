"""Operations that only regroup, reorder, join or take apart dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx, ops

from isthmus.symmetry import algebra
from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, given, rule
from isthmus.symmetry.rules.pointwise import broadcast
from isthmus.symmetry.terms import Atom, Case, Product, Sum, Term, size

aten = ops.aten


@rule(
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.view_as.default,
    aten.view_copy.default,
    aten.reshape_as.default,
    aten.ravel.default,
    aten.squeeze_copy.dim,
    aten.unsqueeze_copy.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
)
def reshape(trace: Reading, node: fx.Node) -> Axes:
    """The same elements in row-major order under another shape."""
    return regroup(trace, trace.axes(node.args[0]), trace.shape(node))


def regroup(trace: Reading, axes: Axes, shape: Sequence[int]) -> Axes:
    """Give row-major terms a new shape, splitting and joining factors."""
    result: Axes = []
    pending = [term for term in axes if size(term) != 1]
    index = 0
    for want in shape:
        if want == 1:
            result.append(Atom(1))
            continue
        taken: list[Term] = []
        have = 1
        while have < want:
            if index == len(pending):
                return _unaligned(trace, axes, shape)
            term = pending[index]
            n = size(term)
            if have * n <= want and want % (have * n) == 0:
                taken.append(term)
                have *= n
                index += 1
                continue
            need = want // have
            if want % have or n % need:
                return _unaligned(trace, axes, shape)
            outer, inner = trace.factor(term, need)
            taken.append(outer)
            pending[index] = inner
            have = want
        result.append(taken[0] if len(taken) == 1 else Product(tuple(taken)))
    return result


def _unaligned(trace: Reading, axes: Axes, shape: Sequence[int]) -> Axes:
    trace.freeze(axes)
    return [trace.fixed(n) for n in shape]


@rule(aten.permute.default, aten.permute_copy.default)
def permute(trace: Reading, node: fx.Node) -> Axes:
    """Dimensions in another order."""
    axes = trace.axes(node.args[0])
    return [axes[int(d)] for d in node.args[1]]  # type: ignore[union-attr]


@rule(aten.movedim.int, aten.movedim.intlist, aten.moveaxis.int, aten.moveaxis.intlist)
def movedim(trace: Reading, node: fx.Node) -> Axes:
    """Some dimensions to other places, the rest in their order."""
    axes = trace.axes(node.args[0])
    source, target = (
        [int(str(d)) % len(axes) for d in (dims if isinstance(dims, (list, tuple)) else [dims])]
        for dims in node.args[1:3]
    )
    rest = iter([i for i in range(len(axes)) if i not in source])
    places = dict(zip(target, source, strict=True))
    return [axes[places[i] if i in places else next(rest)] for i in range(len(axes))]


@rule(
    aten.transpose.int,
    aten.transpose_copy.int,
    aten.swapaxes.default,
    aten.swapdims.default,
    aten.t.default,
    aten.mT.default,
    aten.numpy_T.default,
    aten.matrix_H.default,
    aten.adjoint.default,
)
def transpose(trace: Reading, node: fx.Node) -> Axes:
    """Two dimensions exchanged (the only two, or the last two, where none are named)."""
    axes = trace.axes(node.args[0])
    if len(node.args) == 3:
        a, b = int(str(node.args[1])), int(str(node.args[2]))
        axes[a], axes[b] = axes[b], axes[a]
    elif len(axes) >= 2:
        axes[-1], axes[-2] = axes[-2], axes[-1]
    return axes


@rule(aten.expand.default, aten.expand_as.default, aten.expand_copy.default, aten.broadcast_to.default)
def expand(trace: Reading, node: fx.Node) -> Axes:
    """Dimensions of size one repeat; the copies are alike."""
    return spread(trace, trace.axes(node.args[0]), trace.shape(node))


def spread(trace: Reading, axes: Axes, shape: Sequence[int]) -> Axes:
    """Terms under a shape that they broadcast to."""
    axes = [Atom(1)] * (len(shape) - len(axes)) + axes
    return [term if size(term) == n else trace.alike(n) for term, n in zip(axes, shape, strict=True)]


@rule(aten.repeat.default, aten.tile.default)
def repeat(trace: Reading, node: fx.Node) -> Axes:
    """Every dimension tiled: copies x dimension."""
    axes, shape = trace.axes(node.args[0]), trace.shape(node)
    axes = [Atom(1)] * (len(shape) - len(axes)) + axes
    return [
        term if size(term) == n else Product((trace.alike(n // size(term)), term))
        for term, n in zip(axes, shape, strict=True)
    ]


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(trace: Reading, node: fx.Node) -> Axes | None:
    """One dimension becomes dimension x copies."""
    axes, dim = trace.axes(node.args[0]), given(node, "dim")
    if dim is None:
        return None
    axes[dim] = Product((axes[dim], trace.alike(trace.shape(node)[dim] // size(axes[dim]))))
    return axes


@rule(aten.cat.default, aten.concat.default, aten.concatenate.default)
def cat(trace: Reading, node: fx.Node) -> Axes:
    """One dimension is a sum, the others unify."""
    tensors = node.args[0]
    assert isinstance(tensors, (list, tuple))
    dim = int(str(node.args[1])) if len(node.args) > 1 else int(str(node.kwargs.get("dim", 0)))
    operands = [trace.axes(t) for t in tensors if trace.shape(t) != (0,)]
    dim %= len(operands[0])
    for other in operands[1:]:
        pairs = list(zip(operands[0], other, strict=True))
        trace.unify_all([*pairs[:dim], *pairs[dim + 1 :]])
    axes = list(operands[0])
    axes[dim] = joined(trace, [axes[dim] for axes in operands])
    return axes


def joined(trace: Reading, parts: Sequence[Term]) -> Term:
    """Terms one after another; a run of nothing but named indices is one such run."""
    if all(isinstance(a, Atom) and a.frozen and not a.dependents for p in parts for a in _flat(p)):
        return trace.fixed(sum(size(p) for p in parts), _flat(parts[0])[0].reason)
    return Sum(tuple(part for part in parts if size(part)))


def _flat(term: Term) -> list[Atom]:
    return list(algebra.atoms(algebra.canon(term)))


@rule(aten.stack.default)
def stack(trace: Reading, node: fx.Node) -> Axes:
    """A new dimension, whose indices have names; the others may differ along it."""
    tensors = node.args[0]
    assert isinstance(tensors, (list, tuple))
    dim = int(str(node.args[1])) if len(node.args) > 1 else int(str(node.kwargs.get("dim", 0)))
    operands = [trace.axes(t) for t in tensors]
    if len(operands) > algebra.APART:
        for other in operands[1:]:
            trace.unify_all(zip(operands[0], other, strict=True))
        alike = list(operands[0])
        alike.insert(dim % (len(alike) + 1), trace.fixed(len(tensors)))
        return alike
    key = Atom(len(operands))
    key.bound = Sum(tuple(Atom(1) for _ in operands))
    axes: Axes = [Case(key, tuple((1, term) for term in terms)) for terms in zip(*operands, strict=True)]
    axes.insert(dim % (len(axes) + 1), key)
    return axes


@rule(aten.slice.Tensor, aten.slice_copy.Tensor, aten.narrow.default)
def slice_(trace: Reading, node: fx.Node) -> Axes | None:
    """A range of one dimension."""
    axes = trace.axes(node.args[0])
    dim = given(node, "dim") % len(axes)
    start, step = given(node, "start") or 0, given(node, "step") or 1
    want, have = trace.shape(node)[dim], size(axes[dim])
    if want == have:
        return axes
    if not isinstance(start, int) or step != 1:
        trace.freeze([axes[dim]])
        axes[dim] = trace.fixed(want)
        return axes
    start = max(start + have, 0) if start < 0 else start
    return taken(trace, axes, dim, start, start + want)


def taken(trace: Reading, axes: Axes, dim: int, start: int, stop: int) -> Axes:
    """The terms of a tensor where dimension `dim` is restricted to start..stop."""
    axes = list(axes)
    term = axes[dim]
    have = size(term)
    if (start, stop) == (0, have):
        return axes
    if start == stop:
        axes[dim] = Atom(0)
        return axes
    if all(a.frozen and not a.dependents for a in _flat(term)):
        axes[dim] = trace.fixed(stop - start, _flat(term)[0].reason)
        return axes
    bounds = sorted({start, stop, have} - {0})
    pieces = algebra.cut_at(term, bounds)
    if pieces is None:
        trace.freeze([term])
        trace.mix(axes, [dim])
        axes[dim] = trace.fixed(stop - start)
        return axes
    piece = pieces[bounds.index(stop)]
    # What differs along the cut dimension is what it is in this range.
    for key, low, high, unit in list(algebra.keys(term)):
        if low * unit < stop and start < high * unit and start % unit == stop % unit == 0:
            inside = (max(start // unit - low, 0), min(stop // unit, high) - low)
            axes = [
                other if index == dim else algebra.restrict(other, key, *inside)
                for index, other in enumerate(axes)
            ]
    axes[dim] = piece
    return axes


@rule(aten.select.int, aten.select_copy.int)
def select(trace: Reading, node: fx.Node) -> Axes | None:
    """One index of one dimension, which disappears."""
    axes = trace.axes(node.args[0])
    dim, index = int(str(node.args[1])) % len(axes), node.args[2]
    if not isinstance(index, int):
        return None
    axes = taken(trace, axes, dim, index % size(axes[dim]), index % size(axes[dim]) + 1)
    del axes[dim]
    return axes


@rule(aten.unbind.int)
def unbind(trace: Reading, node: fx.Node) -> list[Axes]:
    """Every index of one dimension apart."""
    axes = trace.axes(node.args[0])
    dim = int(str(node.args[1])) % len(axes) if len(node.args) > 1 else 0
    results: list[Axes] = []
    for index in range(size(axes[dim])):
        part = taken(trace, axes, dim, index, index + 1)
        del part[dim]
        results.append(part)
    return results


@rule(
    aten.chunk.default,
    aten.split.Tensor,
    aten.split.sizes,
    aten.split_with_sizes.default,
    aten.tensor_split.sections,
    aten.tensor_split.indices,
    aten.unsafe_chunk.default,
    aten.unsafe_split_with_sizes.default,
    aten.unsafe_split.Tensor,
)
def split(trace: Reading, node: fx.Node) -> list[Axes]:
    """One dimension in consecutive ranges."""
    axes = trace.axes(node.args[0])
    dim = int(str(node.args[2])) if len(node.args) > 2 else int(str(node.kwargs.get("dim", 0)))
    dim %= len(axes)
    results: list[Axes] = []
    start = 0
    for value in node.meta["val"]:
        assert isinstance(value, Tensor)
        stop = start + int(value.shape[dim])
        results.append(taken(trace, axes, dim, start, stop))
        start = stop
    return results


@rule(aten.glu.default)
def glu(trace: Reading, node: fx.Node) -> Axes:
    """The first half of a dimension, gated by the second."""
    axes = trace.axes(node.args[0])
    dim = given(node, "dim") % len(axes)
    half = size(axes[dim]) // 2
    value, gate = taken(trace, axes, dim, 0, half), taken(trace, axes, dim, half, 2 * half)
    result = broadcast(trace, value, gate)
    trace.mark(result, "gate")
    return result


@rule(aten.diagonal.default)
def diagonal(trace: Reading, node: fx.Node) -> Axes:
    """Two dimensions walked together, last; both freeze."""
    axes, shape = trace.axes(node.args[0]), trace.shape(node)
    dims = [given(node, name) % len(axes) for name in ("dim1", "dim2")]
    trace.freeze(axes[d] for d in dims)
    trace.mix(axes, dims)
    return [*(term for i, term in enumerate(axes) if i not in dims), trace.fixed(shape[-1])]


@rule(aten.meshgrid.default, aten.meshgrid.indexing)
def meshgrid(trace: Reading, node: fx.Node) -> list[Axes]:
    """Each vector along a dimension of its own."""
    tensors = node.args[0]
    assert isinstance(tensors, (list, tuple))
    axes = [trace.axes(t)[0] if trace.axes(t) else Atom(1) for t in tensors]
    if given(node, "indexing") == "xy" and len(axes) > 1:
        axes[0], axes[1] = axes[1], axes[0]
    return [list(axes) for _ in tensors]


@rule(aten.pad.default, aten.constant_pad_nd.default)
def pad(trace: Reading, node: fx.Node) -> Axes:
    """Padded dimensions are sums with what was put in; constants are alike in any order."""
    axes, shape = trace.axes(node.args[0]), trace.shape(node)
    amounts = [int(str(n)) for n in node.args[1]]  # type: ignore[union-attr]
    mode = node.args[2] if node.target is aten.pad.default and len(node.args) > 2 else "constant"
    for position in range(len(amounts) // 2):
        before, after = amounts[2 * position : 2 * position + 2]
        dim = len(axes) - 1 - position
        if not before and not after:
            continue
        if mode != "constant" or before < 0 or after < 0 or all(a.frozen for a in _flat(axes[dim])):
            trace.freeze([axes[dim]])
            axes[dim] = trace.fixed(shape[dim])
        else:
            parts = [trace.alike(before), axes[dim], trace.alike(after)]
            axes[dim] = Sum(tuple(p for p in parts if size(p)))
    return axes
