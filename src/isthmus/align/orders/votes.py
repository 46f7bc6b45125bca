"""Two models' parameters, weight by weight: what they vote with, fetched when needed and never all at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from isthmus.errors import MismatchError
from isthmus.symmetry import Axis, Leaf, SymmetryGraph, positions, reorder, spaces_of

#: Elements of a weight that are widened at once: blocks of a few hundred MB, whatever the embedding's size.
BLOCK = 1 << 26

#: Elements of a dot product in float64 at once: small enough for the cache.
CHUNK = 1 << 18


@dataclass(frozen=True)
class Piece:
    """A part of one weight: the whole of it, or some positions along one axis.

    Attributes:
        key: the weight.
        size: number of elements.
        dim: the axis along which positions are chosen; None for the whole weight.
        index: the positions.
    """

    key: str
    size: int
    dim: int | None = None
    index: Int[Tensor, "chosen"] | None = None


class Votes:
    """The parameters of a reference and of a model, which may lie in memory or be mapped from files.

    Running statistics have no vote: they are no parameters, and their scale would drown the others.

    Args:
        graph: the symmetries.
        reference: weights of the model that stays.
        model: weights of the model that moves.

    Raises:
        MismatchError: a weight of the graph is missing, or has another shape.
    """

    def __init__(self, graph: SymmetryGraph, reference: Mapping[str, Tensor], model: Mapping[str, Tensor]):
        self.graph, self.known = graph, graph.spaces
        self.keys = [key for key in graph.layout if key not in graph.program.buffers]
        self._sources = _sources(graph, self.keys, reference), _sources(graph, self.keys, model)
        self._models = reference, model
        samples = [self.ours(key) for key in self.keys]
        wide = any(sample.dtype == torch.float64 for sample in samples)
        self.dtype = torch.float64 if wide else torch.float32
        self.sizes = {key: sample.numel() for key, sample in zip(self.keys, samples, strict=True)}
        self.device = samples[0].device if samples else torch.device("cpu")

    def ours(self, key: str) -> Tensor:
        """A weight of the reference, as stored."""
        return self._models[0][self._sources[0][key]].detach()

    def theirs(self, key: str) -> Tensor:
        """A weight of the model, as stored and in its own order."""
        return self._models[1][self._sources[1][key]].detach()

    def index(
        self, key: str, orders: Mapping[str, Tensor], skip: int | None = None, own: str | None = None
    ) -> dict[int, Tensor] | None:
        """Old position of every new one, per axis that moves.

        Args:
            key: the weight.
            orders: of the spaces that move.
            skip: an axis on which `own` stays.
            own: the space that stays there.

        Returns:
            axis -> positions; None where those on one axis depend on the place along another.
        """
        axes = self.graph.layout[key]
        found: dict[int, Tensor] = {}
        for dim, axis in enumerate(axes):
            moving = {n: o for n, o in orders.items() if not (dim == skip and n == own)}
            if not spaces_of(axis) & moving.keys():
                continue
            index = positions(axes, dim, moving, self.known)
            if index.numel() != index.shape[dim]:
                return None
            found[dim] = index.flatten()
        return found

    def whole(self, key: str, index: Mapping[int, Tensor] | None, apart: Collection[int] = ()) -> list[Piece]:
        """A weight in blocks of bounded size, cut along an axis that is not among those `apart`."""
        shape = [axis.size for axis in self.graph.layout[key]]
        size = self.sizes[key]
        free = [dim for dim in range(len(shape)) if dim not in apart]
        if size <= BLOCK or index is None or not free:
            return [Piece(key, size)]
        dim = max(free, key=lambda d: shape[d])
        step = max(1, shape[dim] * BLOCK // size)
        return [
            Piece(key, size // shape[dim] * len(part), dim, part)
            for part in torch.arange(shape[dim]).split(step)
        ]

    def changed(
        self,
        key: str,
        old: Mapping[int, Tensor] | None,
        new: Mapping[int, Tensor] | None,
        apart: Collection[int] = (),
    ) -> list[Piece]:
        """The part of a weight that moves when the positions on its axes change from old to new."""
        if old is None or new is None:
            return [Piece(key, self.sizes[key])]
        dims = [d for d in {*old, *new} if d not in old or d not in new or not torch.equal(old[d], new[d])]
        if not dims:
            return []
        if len(dims) > 1 or dims[0] in apart or dims[0] not in old or dims[0] not in new:
            return self.whole(key, new, apart)
        dim = dims[0]
        index = (old[dim] != new[dim]).nonzero().flatten()
        each = self.sizes[key] // len(new[dim])
        return [
            Piece(key, each * len(part), dim, part) for part in index.split(max(1, BLOCK // max(each, 1)))
        ]

    def piece(self, piece: Piece) -> tuple[Tensor, list[Axis]]:
        """The reference's part of a weight, as stored, and its axes."""
        axes = list(self.graph.layout[piece.key])
        ours = self.ours(piece.key)
        if piece.dim is None or piece.index is None:
            return ours, axes
        axes[piece.dim] = Leaf(len(piece.index))
        return ours.index_select(piece.dim, piece.index.to(ours.device)), axes

    def moved(
        self,
        piece: Piece,
        index: Mapping[int, Tensor] | None,
        orders: Mapping[str, Tensor],
        skip: int | None = None,
        own: str | None = None,
    ) -> Tensor:
        """The model's part of a weight, as stored, in other orders (arguments as for `index`)."""
        theirs = self.theirs(piece.key)
        if index is None:
            axes = self.graph.layout[piece.key]
            held = {n: o for n, o in orders.items() if n != own}
            theirs = reorder(theirs, axes, held if skip is not None else orders, self.known)
            if skip is not None and own is not None and own in orders:
                theirs = reorder(theirs, axes, {own: orders[own]}, self.known, skip=skip)
            return theirs
        steps = dict(index)
        if piece.dim is not None and piece.index is not None:
            steps[piece.dim] = steps[piece.dim][piece.index] if piece.dim in steps else piece.index
        # The axis that shrinks most goes first.
        for dim in sorted(steps, key=lambda d: len(steps[d]) / theirs.shape[d]):
            theirs = theirs.index_select(dim, steps[dim].to(theirs.device))
        return theirs

    def dots(self, key: str, orders: Mapping[str, Tensor] | None = None) -> tuple[float, float, float]:
        """Inner product of the two, of the reference's and of the model's with itself, in float64."""
        index = None if orders is None else self.index(key, orders)
        total = [0.0, 0.0, 0.0]
        for piece in self.whole(key, index):
            ours, _ = self.piece(piece)
            theirs = self.theirs(key) if orders is None else self.moved(piece, index, orders)
            if orders is None and piece.dim is not None and piece.index is not None:
                theirs = theirs.index_select(piece.dim, piece.index)
            for a, b in _chunks(ours, theirs):
                total[0] += torch.dot(a, b).item()
                total[1] += torch.dot(a, a).item()
                total[2] += torch.dot(b, b).item()
        return total[0], total[1], total[2]

    def gain(self, keys: Collection[str], old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> float:
        """By how much the inner product of some weights grows from old orders to new ones, in float64."""
        total = 0.0
        for key in keys:
            before, after = self.index(key, old), self.index(key, new)
            for piece in self.changed(key, before, after):
                ours, _ = self.piece(piece)
                for sign, index, orders in ((1, after, new), (-1, before, old)):
                    theirs = self.moved(piece, index, orders)
                    total += sign * sum(torch.dot(a, b).item() for a, b in _chunks(ours, theirs))
        return total


def _sources(graph: SymmetryGraph, keys: Sequence[str], weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Key -> the key under which a model has it (a tied weight may come under another)."""
    other: dict[str, list[str]] = {}
    for alias, key in graph.program.tied.items():
        other.setdefault(key, []).append(alias)
    found = {key: next((k for k in (key, *other.get(key, ())) if k in weights), None) for key in keys}
    if missing := [key for key, source in found.items() if source is None]:
        raise MismatchError(f"{len(missing)} weights of the graph are missing", missing)
    sources = {key: source for key, source in found.items() if source is not None}
    if wrong := [
        f"{key}: {tuple(weights[source].shape)}, expected {graph.program.shapes[key]}"
        for key, source in sources.items()
        if tuple(weights[source].shape) != graph.program.shapes[key]
    ]:
        raise MismatchError("the weights do not have the shapes of the graph", wrong)
    return sources


def _chunks(ours: Tensor, theirs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Two tensors in float64, a run of elements at a time."""
    for a, b in zip(ours.flatten().split(CHUNK), theirs.flatten().split(CHUNK), strict=True):
        yield a.double(), b.double()
