"""Procrustes similarity: how near the units of one network come to those of another when they are moved there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from isthmus.errors import DataError, InputError
from isthmus.features import explained, feed, placed, sinks
from isthmus.measure.answers import Weights
from isthmus.measure.finding import Finding
from isthmus.measure.layers import batch_dim
from isthmus.measure.places import At, Place, pairs_of
from isthmus.program import Batch, Program, home

#: What may be done to the units: an order and positive scales of them, or any rotation.
Group = Literal["relu", "orthogonal"]


def procrustes(
    a: Program,
    weights_a: Weights,
    b: Program,
    weights_b: Weights,
    data: Iterable[object],
    *,
    at: Sequence[At | tuple[At, At]] | None = None,
    group: Group = "relu",
    limit: int | None = None,
) -> Finding:
    """One minus the smallest distance between two networks' activations over a group acting on the units of one.

    Units are columns of H, with one row per example and position; where positions differ in number, the smaller map is
    enlarged by its nearest values, and where widths differ, units without a partner count as far away.

    Args:
        a: the program of one network.
        weights_a: its weights.
        b: that of the other one, perhaps of another architecture.
        weights_b: its weights.
        data: inputs, or (inputs, targets).
        at: places to compare; see `isthmus.measure.places.pairs_of`.
        group: "relu" (G_ReLU-Procrustes): columns have unit norm and are assigned to each other,
            d = |H_a - H_b P| / sqrt(2 (n_a + n_b)). "orthogonal": H as a whole has unit norm,
            d = min |H_a - H_b Q| / 2.
        limit: number of examples after which to stop.

    Returns:
        The similarity at each pair of places, 0 to 1; its value is the mean.

    Raises:
        InputError: places that are not there, an unknown group.
        DataError: data that is empty or does not fit, maps of other proportions, or values that are not finite.

    Source: Godfrey et al. 2022 (arXiv:2205.14258), section 5; neither is centred, as in their code.

    Examples:
        >>> import torch
        >>> from isthmus.program import export
        >>> from isthmus.zoo import MLP
        >>> net, x = MLP(d_in=3, widths=(5, 4), num_classes=2), torch.rand(32, 3)
        >>> program, weights = export(net, x), net.state_dict()
        >>> round(procrustes(program, weights, program, weights, [x]).value, 4)
        1.0
    """
    if group not in ("relu", "orthogonal"):
        raise InputError(f"group={group!r} is neither relu nor orthogonal")
    pairs = pairs_of(a, b, at)
    sides = [_Side(a, weights_a, [p for p, _ in pairs]), _Side(b, weights_b, [q for _, q in pairs])]
    products = [torch.zeros((), dtype=torch.float64) for _ in pairs]
    squares = [[torch.zeros((), dtype=torch.float64) for _ in pairs] for _ in sides]
    examples = 0
    for batch in feed(data, "Procrustes", limit):
        seen = [side.look(batch) for side in sides]
        for i, pair in enumerate(pairs):
            first, second = _overlaid(*(v[place.value] for v, place in zip(seen, pair, strict=True)))
            products[i] = products[i] + _product(first, second)
            for own, value in zip(squares, (first, second), strict=True):
                own[i] = own[i] + _flat(value).square().mean(2).sum(0)
        examples += batch.size
    if bad := [p.label for (p, _), c in zip(pairs, products, strict=True) if not bool(c.isfinite().all())]:
        raise DataError("activations are not finite", bad)
    found = [_similarity(c, own, other, group) for c, own, other in zip(products, *squares, strict=True)]
    layers = {p.label: value for (p, _), value in zip(pairs, found, strict=True)}
    name = "G_ReLU-Procrustes" if group == "relu" else "Procrustes"
    note = f"1 - distance, {group} group; {examples} examples"
    return Finding(name, sum(found) / len(found), "1", "higher", (0.0, 1.0), layers, note)


class _Side:
    """One network and the places that are looked at."""

    def __init__(self, program: Program, weights: Weights, wanted: Sequence[Place]):
        self.program, self.weights = program, placed(program, weights, None)
        self.axes = {place.value: place.axis for place in wanted}
        self.run = program.compile(sinks(program, self.axes), taps=self.axes)

    def look(self, batch: Batch) -> dict[str, Float[Tensor, "examples channels *positions"]]:
        """The activations of a batch, float64."""
        found: dict[str, Tensor] = {}
        here = batch.to(*home(self.weights))

        def show(name: str, value: Tensor) -> None:
            dim = batch_dim(self.program, name)
            assert dim is not None, "places have one"
            found[name] = value.double().movedim((dim, self.axes[name]), (0, 1))

        with torch.no_grad(), explained(self.program, here, "Procrustes"):
            self.run(self.weights, here, tap=show)
        return found


def _flat(value: Float[Tensor, "examples n *_"]) -> Float[Tensor, "examples n positions"]:
    return value.reshape(*value.shape[:2], -1)


# One function per number of dimensions; torch types each in another way.
_POOLS: dict[int, Callable[..., Tensor]] = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}


def _overlaid(
    a: Float[Tensor, "examples n *_"], b: Float[Tensor, "examples m *_"]
) -> tuple[Float[Tensor, "examples n *_"], Float[Tensor, "examples m *_"]]:
    """Two maps, enlarged by their nearest values unless the positions of one are whole multiples of the other's."""
    sizes = [tuple(t.shape[2:]) for t in (a, b)]
    if len(sizes[0]) != len(sizes[1]):
        raise DataError(f"activations of {sizes[0]} and {sizes[1]} positions cannot be laid over each other")
    pairs = list(zip(*sizes, strict=True))
    whole = all(large % small == 0 for small, large in map(sorted, pairs))
    if whole and any(all(pair[i] == min(pair) for pair in pairs) for i in (0, 1)):
        return a, b
    large = [max(pair) for pair in pairs]
    first, second = (functional.interpolate(t, size=large, mode="nearest") for t in (a, b))
    return first, second


def _product(a: Float[Tensor, "examples n *_"], b: Float[Tensor, "examples m *_"]) -> Float[Tensor, "n m"]:
    """Sum over examples, mean over positions, of every channel of one times every channel of the other."""
    sizes = [tuple(t.shape[2:]) for t in (a, b)]
    if sizes[0] != sizes[1]:
        # A product with nearest values is the product with means over the places that share them.
        small = [min(pair) for pair in zip(*sizes, strict=True)]
        a, b = (_POOLS[len(small)](t, small) for t in (a, b))
    first, second = _flat(a), _flat(b)
    return torch.einsum("ncp,nkp->ck", first, second) / first.shape[2]


def _similarity(
    product: Float[Tensor, "n m"], own: Float[Tensor, " n"], other: Float[Tensor, " m"], group: Group
) -> float:
    if group == "orthogonal":
        scale = float((own.sum() * other.sum()).sqrt())
        nuclear = float(torch.linalg.matrix_norm(product, "nuc")) / scale if scale else 0.0
        return 1 - max(0.0, 2 - 2 * nuclear) ** 0.5 / 2
    norms = torch.outer(own, other).sqrt()
    cosines = torch.where(norms > 0, product / norms, 0.0).cpu().numpy()
    matched = float(cosines[linear_sum_assignment(cosines, maximize=True)].sum())
    # A unit that is never active has no length, and is as far from any other as that one is long.
    living = int((own > 0).sum()) + int((other > 0).sum())
    return 1 - (max(0.0, living - 2 * matched) / (2 * living)) ** 0.5 if living else float("nan")
