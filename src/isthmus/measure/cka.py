"""Centred kernel alignment: how alike two networks see the same examples, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.errors import DataError, InputError
from isthmus.features import Request, collect, explained, feed, placed, sinks, working_dtype
from isthmus.measure.answers import Weights
from isthmus.measure.finding import Finding
from isthmus.measure.layers import batch_dim
from isthmus.measure.places import At, Place, pairs_of
from isthmus.program import Batch, Program, home

#: What of two examples is multiplied: their features as they are; each channel centred and of unit norm; of those the
#: channel in which they agree most (G_ReLU-CKA), or the median channel.
Kernel = Literal["linear", "normalised", "relu", "relu-median"]

#: Channels whose kernels are held at a time.
CHANNELS = 16


@dataclass(frozen=True)
class Similarity:
    """How alike each of some places of one network is to each of some places of another.

    Attributes:
        name: of the measure.
        rows, columns: labels of the places; row i and column i were asked for as a pair.
        matrix: by row and column; 1 is alike. NaN where a place does not vary at all.
        examples: how many were looked at.
        note: how it was measured.
        depths: of the rows, in the first network.
    """

    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    examples: int
    note: str
    depths: tuple[int, ...]

    @property
    def diagonal(self) -> dict[str, float]:
        """Label of a pair's first place -> its similarity."""
        return {label: self.matrix[i][i] for i, label in enumerate(self.rows)}

    @property
    def by_depth(self) -> dict[int, float]:
        """The diagonal by depth, the mean where there are several: what `isthmus.measure.when_to_stop` takes.

        Left out is what does not vary, and what no linear or conv operation has made (embeddings).
        """
        found: dict[int, list[float]] = {}
        for i, depth in enumerate(self.depths):
            if depth and not isnan(self.matrix[i][i]):
                found.setdefault(depth, []).append(self.matrix[i][i])
        return {depth: sum(values) / len(values) for depth, values in found.items()}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The diagonal; its value is the mean."""
        found = self.diagonal
        mean = sum(found.values()) / len(found)
        return (Finding(self.name, mean, "1", "higher", (None, 1.0), found, self.note),)


def cka(
    a: Program,
    weights_a: Weights,
    b: Program,
    weights_b: Weights,
    data: Iterable[object],
    *,
    at: Sequence[At | tuple[At, At]] | None = None,
    kernel: Kernel = "linear",
    biased: bool = False,
    limit: int | None = None,
) -> Similarity:
    """Centred kernel alignment of the activations of two networks on the same examples.

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), K and L being the examples' kernels in the two networks. All
    channels and positions of an example are its features.

    Args:
        a: the program of one network.
        weights_a: its weights.
        b: that of the other one, perhaps of another architecture.
        weights_b: its weights.
        data: inputs, or (inputs, targets), in batches of at least 4; read twice for all kernels but "linear".
        at: places to compare; see `isthmus.measure.places.pairs_of`.
        kernel: "linear": inner products of features. It does not see rotations of all features. "relu" (G_ReLU-CKA):
            each channel is centred over examples and positions and scaled to unit norm; of two examples, the largest
            channel's inner product over positions. It does not see what ReLU lets through, orders and positive scales
            of channels, and sees rotations. "relu-median" takes the median channel. "normalised", their control, adds
            the normalised channels up.
        biased: all examples as one batch (they are then held in memory) and the biased estimate, which is larger where
            there are many features for few examples. By default the unbiased estimate of each batch, averaged over
            batches before the quotient is taken; it may fall below 0.
        limit: number of examples after which to stop.

    Raises:
        InputError: places that are not there, an unknown kernel.
        DataError: data that is empty or does not fit, a batch of fewer than 4 examples, or values that are not finite.

    Source: Kornblith et al. 2019 (arXiv:1905.00414) for linear CKA; Song et al. 2012, equation 5, for the unbiased
        estimate and Nguyen et al. 2021 (arXiv:2010.15327), equations 3 to 5, for its average over batches; Godfrey et
        al. 2022 (arXiv:2205.14258), section 5, for G_ReLU-CKA. There all examples are one batch; here the
        kernels of a batch, with the normalisation of all the data.

    Examples:
        >>> import torch
        >>> from isthmus.program import export
        >>> from isthmus.zoo import MLP
        >>> net, x = MLP(d_in=3, widths=(5, 4), num_classes=2), torch.randn(32, 3)
        >>> program, weights = export(net, x), net.state_dict()
        >>> round(cka(program, weights, program, weights, [x]).findings[0].value, 6)
        1.0
    """
    if kernel not in ("linear", "normalised", "relu", "relu-median"):
        raise InputError(f"kernel={kernel!r} is none of linear, normalised, relu, relu-median")
    pairs = pairs_of(a, b, at)
    sides = [
        _Side(program, weights, tuple(dict.fromkeys(pair[i] for pair in pairs)), kernel)
        for i, (program, weights) in enumerate(((a, weights_a), (b, weights_b)))
    ]
    if kernel != "linear":
        for side in sides:
            side.normalise(data, limit)
    cross = torch.zeros(len(sides[0].places), len(sides[1].places), dtype=torch.float64)
    own = [torch.zeros(len(side.places), dtype=torch.float64) for side in sides]
    examples = 0
    for here in _whole(data, limit) if biased else feed(data, "CKA", limit):
        if here.size < 4:
            raise DataError(
                f"a batch of {here.size} examples has no unbiased estimate", hint="at least 4 in each"
            )
        first, second = (_centred(side.kernels(here), biased) for side in sides)
        cross += first @ second.T
        own = [o + k.square().sum(1) for o, k in zip(own, (first, second), strict=True)]
        examples += here.size
    scale = (own[0].unsqueeze(1) * own[1]).sqrt()
    found = torch.where(scale > 0, cross / scale, torch.nan)
    index = [{place: i for i, place in enumerate(side.places)} for side in sides]
    kept = found[[index[0][p] for p, _ in pairs]][:, [index[1][q] for _, q in pairs]]
    name = {"relu": "G_ReLU-CKA", "linear": "CKA"}.get(kernel, f"CKA ({kernel})")
    how = "biased" if biased else "unbiased, averaged over batches"
    return Similarity(
        name,
        tuple(p.label for p, _ in pairs),
        tuple(q.label for _, q in pairs),
        tuple(map(tuple, kept.tolist())),
        examples,
        f"{kernel} kernel, {how}; {examples} examples",
        tuple(p.depth for p, _ in pairs),
    )


def _whole(data: Iterable[object], limit: int | None) -> Iterator[Batch]:
    """All examples as one batch."""
    parts = list(feed(data, "CKA", limit))
    if any(part.kwargs or len(part.args) != 1 or not isinstance(part.args[0], Tensor) for part in parts):
        raise DataError("the biased estimate takes networks of one input", hint="biased=False takes any")
    yield Batch((torch.cat([part.args[0] for part in parts if isinstance(part.args[0], Tensor)]),), {})


class _Side:
    """One network: its places, and how kernels of them are made."""

    def __init__(self, program: Program, weights: Weights, chosen: tuple[Place, ...], kernel: Kernel):
        self.program, self.places, self.kernel = program, chosen, kernel
        self.weights = placed(program, weights, None)
        self.values = {place.value: i for i, place in enumerate(chosen)}
        self.run = program.compile(sinks(program, self.values), taps=self.values)
        self.mean: dict[str, Tensor] = {}
        self.norm: dict[str, Tensor] = {}

    def normalise(self, data: Iterable[object], limit: int | None) -> None:
        """Learn each channel's mean and norm over all examples and positions."""
        requests = [Request(place.value, place.axis) for place in self.places]
        found = collect(self.program, [self.weights], data, requests, limit=limit)
        for place in self.places:
            moments = found[place.value, place.axis]
            self.mean[place.value] = moments.mean[0]
            # Only ratios count: a channel's mean square stands for its norm.
            self.norm[place.value] = moments.variance[0].sqrt()

    def kernels(self, batch: Batch) -> Float[Tensor, "places n n"]:
        """The kernel of a batch's examples at each place, float64."""
        found = torch.zeros(len(self.places), batch.size, batch.size, dtype=torch.float64)
        here = batch.to(*home(self.weights))

        def look(name: str, value: Tensor) -> None:
            found[self.values[name]] = self._kernel(name, value).double().cpu()

        with torch.no_grad(), explained(self.program, here, "CKA"):
            self.run(self.weights, here, tap=look)
        if not bool(found.isfinite().all()):
            bad = [p.label for p, k in zip(self.places, found, strict=True) if not bool(k.isfinite().all())]
            raise DataError("activations are not finite", bad)
        return found

    def _kernel(self, name: str, value: Tensor) -> Float[Tensor, "n n"]:
        place = self.places[self.values[name]]
        batch = batch_dim(self.program, name)
        assert batch is not None, "places have one"
        wide = value.to(working_dtype(value.dtype)).movedim((batch, place.axis), (0, 1))
        channels = wide.reshape(*wide.shape[:2], -1)
        if self.kernel == "linear":
            flat = channels.flatten(1)
            # Neither estimate sees a shift, but rounding does.
            flat = flat - flat.mean(0)
            return flat @ flat.T
        mean, norm = (of[name].to(wide).view(1, -1, 1) for of in (self.mean, self.norm))
        # A channel that does not vary is zero.
        unit = torch.where(norm > 0, (channels - mean) / norm, 0.0)
        if self.kernel == "normalised":
            return unit.flatten(1) @ unit.flatten(1).T
        each = unit.transpose(0, 1)
        if self.kernel == "relu-median":
            return (each @ each.transpose(1, 2)).median(0).values
        few = [(part @ part.transpose(1, 2)).amax(0) for part in each.split(CHANNELS)]
        return torch.stack(few).amax(0)


def _centred(kernels: Float[Tensor, "places n n"], biased: bool) -> Float[Tensor, "places rest"]:
    """Kernels in rows whose products are HSIC up to one factor.

    Unbiased, with zero diagonals: U-centred kernels, whose products are those of equation 5 of Song et al. (Szekely and
    Rizzo 2014, proposition 1).
    """
    n = kernels.shape[-1]
    if biased:
        centred = kernels - kernels.mean(1, keepdim=True)
        return (centred - centred.mean(2, keepdim=True)).flatten(1)
    eye = torch.eye(n, dtype=torch.bool)
    bare = kernels.masked_fill(eye, 0.0)
    rows = bare.sum(2, keepdim=True) / (n - 2)
    whole = bare.sum((1, 2), keepdim=True) / ((n - 1) * (n - 2))
    return (bare - rows - rows.transpose(1, 2) + whole).masked_fill(eye, 0.0).flatten(1) / (
        n * (n - 3)
    ) ** 0.5
