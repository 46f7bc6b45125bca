"""Windows, grids and spectra: positions have names, channels go along."""

from __future__ import annotations

from torch import fx, ops

from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, given, rule
from isthmus.symmetry.rules.pointwise import broadcast
from isthmus.symmetry.terms import Product, size

aten = ops.aten


@rule(aten.pixel_shuffle.default)
def pixel_shuffle(trace: Reading, node: fx.Node) -> Axes:
    """(channels x r^2, h, w) to (channels, h r, w r)"""
    axes, shape = trace.axes(node.args[0]), trace.shape(node)
    channels, inside = trace.factor(axes[-3], shape[-3])
    trace.freeze([inside, *axes[-2:]])
    return [*axes[:-3], channels, *(trace.fixed(n) for n in shape[-2:])]


@rule(aten.pixel_unshuffle.default)
def pixel_unshuffle(trace: Reading, node: fx.Node) -> Axes:
    """(channels, h r, w r) to (channels x r^2, h, w)"""
    axes, shape = trace.axes(node.args[0]), trace.shape(node)
    trace.freeze(axes[-2:])
    inside = trace.fixed(shape[-3] // size(axes[-3]))
    return [*axes[:-3], Product((axes[-3], inside)), *(trace.fixed(n) for n in shape[-2:])]


@rule(aten.channel_shuffle.default, aten.native_channel_shuffle.default)
def channel_shuffle(trace: Reading, node: fx.Node) -> Axes:
    """Groups x within, exchanged (dimension 1)."""
    axes = trace.axes(node.args[0])
    groups, within = trace.factor(axes[1], int(str(node.args[1])))
    axes[1] = Product((within, groups))
    return axes


@rule(aten.im2col.default)
def im2col(trace: Reading, node: fx.Node) -> Axes:
    """(channels, h, w) to (channels x window, positions)"""
    axes, shape = trace.axes(node.args[0]), trace.shape(node)
    trace.freeze(axes[-2:])
    window = trace.fixed(shape[-2] // size(axes[-3]))
    return [*axes[:-3], Product((axes[-3], window)), trace.fixed(shape[-1])]


@rule(aten.col2im.default)
def col2im(trace: Reading, node: fx.Node) -> Axes:
    """(channels x window, positions) to (channels, h, w)"""
    axes, shape = trace.axes(node.args[0]), trace.shape(node)
    channels, window = trace.factor(axes[-2], shape[-3])
    trace.freeze([window, axes[-1]])
    return [*axes[:-2], channels, *(trace.fixed(n) for n in shape[-2:])]


@rule(aten.unfold.default)
def unfold(trace: Reading, node: fx.Node) -> Axes:
    """One dimension in windows: their places, and, last, the place in a window."""
    axes, shape = trace.axes(node.args[0]), trace.shape(node)
    dim = int(str(node.args[1])) % len(axes)
    trace.freeze([axes[dim]])
    trace.mix(axes, [dim])
    axes[dim] = trace.fixed(shape[dim])
    return [*axes, trace.fixed(shape[-1])]


@rule(aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def grid_sample(trace: Reading, node: fx.Node) -> Axes:
    """Channels at the places that a grid names; the places keep the grid's order."""
    axes, grid = trace.axes(node.args[0]), trace.axes(node.args[1])
    trace.freeze([*axes[2:], grid[-1]])
    trace.unify(axes[0], grid[0])
    return [axes[0], axes[1], *grid[1:-1]]


@rule(aten.affine_grid_generator.default)
def affine_grid(trace: Reading, node: fx.Node) -> Axes:
    """An affine map of each example, applied to all places."""
    axes, shape = trace.axes(node.args[0]), trace.shape(node)
    trace.freeze(axes[1:])
    return [axes[0], *(trace.fixed(n) for n in shape[1:])]


_SPECTRA = (
    aten.fft_fft.default,
    aten.fft_ifft.default,
    aten.fft_rfft.default,
    aten.fft_irfft.default,
    aten.fft_fft2.default,
    aten.fft_ifft2.default,
    aten.fft_rfft2.default,
    aten.fft_irfft2.default,
    aten.fft_fftn.default,
    aten.fft_ifftn.default,
    aten.fft_rfftn.default,
    aten.fft_irfftn.default,
)


@rule(*_SPECTRA)
def spectrum(trace: Reading, node: fx.Node) -> Axes:
    """A Fourier transform along some dimensions, whose indices have names."""
    axes, shape = trace.axes(node.args[0]), trace.shape(node)
    default = range(len(axes)) if str(node.target).endswith("n.default") else -1
    dims = given(node, "dim")
    dims = default if dims is None else dims
    chosen = [int(str(d)) % len(axes) for d in ([dims] if isinstance(dims, int) else dims)]
    trace.freeze(axes[d] for d in chosen)
    trace.mix(axes, chosen)
    return [trace.fixed(shape[i]) if i in chosen else term for i, term in enumerate(axes)]


@rule(aten.view_as_complex.default)
def view_as_complex(trace: Reading, node: fx.Node) -> Axes:
    """Pairs (last dimension) as complex numbers."""
    axes = trace.axes(node.args[0])
    trace.freeze(axes[-1:])
    trace.mix(axes, [-1])
    return axes[:-1]


@rule(aten.view_as_real.default)
def view_as_real(trace: Reading, node: fx.Node) -> Axes:
    """Complex numbers as pairs (a new last dimension)."""
    return [*trace.axes(node.args[0]), trace.fixed(2)]


@rule(aten.cdist.default, aten._cdist_forward.default, aten._euclidean_dist.default)
def distance(trace: Reading, node: fx.Node) -> Axes:
    """d[..., m, n] = |x[..., m, k] - y[..., n, k]|"""
    left, right = trace.axes(node.args[0]), trace.axes(node.args[1])
    trace.unify(left[-1], right[-1])
    return [*broadcast(trace, left[:-2], right[:-2]), left[-2], right[-2]]
