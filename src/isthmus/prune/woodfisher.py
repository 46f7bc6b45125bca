"""WoodFisher: what changes the loss least goes, by a quadratic model in blocks; what stays makes up for it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus.errors import DataError, InputError
from isthmus.features import placed
from isthmus.program import Program
from isthmus.prune.gradients import mean_gradients
from isthmus.prune.layers import Layer
from isthmus.prune.selection import Scope, keep_largest
from isthmus.prune.table import PRUNERS, Choice

#: How the weights that stay make up for those that go.
Update = Literal["exact", "independent", "none"]

#: Elements of gradients that are held at a time: 256 MiB of float32.
ELEMENTS = 2**26


@PRUNERS.register(
    "woodfisher",
    needs=("data", "targets"),
    claims=("sparsity-exact", "unpruned-is-identity", "pruned-stays-pruned", "batching-free", "seeded"),
    costs="`gradients` gradients, which are kept, and their square times the weights",
    source="Singh and Alistarh 2020 (arXiv:2004.14340)",
)
def woodfisher(
    program: Program,
    weights: Mapping[str, Tensor],
    layers: Sequence[Layer],
    *,
    sparsity: float,
    data: Iterable[object],
    scope: Scope = "global",
    block: int | None = 1000,
    damping: float = 1e-5,
    gradients: int = 400,
    minibatch: int = 1,
    update: Update = "exact",
    likelihood: str = "categorical",
    axis: int = -1,
) -> Choice:
    """Prune the weights of the smallest w^2 / [F^-1], and change the others so that the loss rises least.

    F = damping + mean of g g^T over gradients g, in blocks of each layer's flattened weight. It is inverted through
    the gradients (the matrix inversion lemma), so that a block takes gradients x block numbers and never block^2.

    Args:
        program: the graph.
        weights: its state dict; it is not changed.
        layers: what to prune.
        sparsity: share of the weights to prune, 0 to 1.
        data: an iterable of (inputs, targets); the first gradients x minibatch examples are read, once or twice for
            every `ELEMENTS` gradients' elements.
        scope: compared over all layers ("global", the source's joint mode), within each ("layer"), or within each
            output unit ("row").
        block: weights of a layer that see each other; None for all of a layer's.
        damping: added to the diagonal of F.
        gradients: how many F is the mean of.
        minibatch: examples that a gradient is the mean of.
        update: "exact": what stays minimises the quadratic model given all that goes. "independent": the sum of the
            optimal updates for each pruned weight alone, as in the source; on validation images worse, see
            experiments/pruning. "none".
        likelihood: "categorical", "bernoulli" or "gaussian"; see `isthmus.fisher_information`.
        axis: of the classes in the model's outputs.

    Raises:
        InputError: options out of range.
        DataError: data that does not fit or has no targets, or gradients that are not finite.

    Source: Singh and Alistarh 2020 (arXiv:2004.14340), equations 3, 9 and 10. They run a recursion over the gradients,
        whose result is the same inverse. Their scripts take a damping of 1e-5, 400 gradients of minibatches of 400
        on CIFAR, and blocks of a layer, or of 1000 to 2000 weights; the default of 1 example per gradient is the
        empirical Fisher information itself.
    """
    _check(block, damping, gradients, minibatch)
    own = placed(program, weights, None)
    blocks = [
        _Block(layer.key, slice(start, min(start + size, count)))
        for layer in layers
        for count in [own[layer.key].numel()]
        for size in [block or count]
        for start in range(0, count, size)
    ]
    groups = list(_groups(blocks, max(1, ELEMENTS // gradients)))

    @functools.lru_cache(maxsize=1)  # where all fit, the second round computes none again
    def gathered(index: int) -> list[Tensor]:
        parts = [(b.key, b.place) for b in groups[index]]
        return mean_gradients(program, own, parts, data, gradients, minibatch, likelihood, axis)

    scores = {layer.key: torch.zeros(own[layer.key].numel(), dtype=torch.float64) for layer in layers}
    for index, group in enumerate(groups):
        for here, found in zip(group, gathered(index), strict=True):
            inverse = Inverse(found.double(), damping)
            values = own[here.key].flatten()[here.place].double()
            scores[here.key][here.place] = (values.square() / inverse.diagonal).cpu()
    shaped = {layer.key: scores[layer.key].view(layer.shape).to(own[layer.key].device) for layer in layers}
    keep = keep_largest(shaped, own, layers, sparsity, scope)
    new = {layer.key: own[layer.key].flatten().to(torch.float64, copy=True) for layer in layers}
    for index in reversed(range(len(groups))) if update != "none" else ():
        for here, found in zip(groups[index], gathered(index), strict=True):
            inverse = Inverse(found.double(), damping)
            goes = ~keep[here.key].flatten()[here.place]
            values = new[here.key][here.place]
            change = inverse.exact if update == "exact" else inverse.independent
            new[here.key][here.place] = values + change(values, goes)
    seen = len(gathered(0)[0])
    return Choice(
        keep,
        {
            key: torch.where(keep[key], value.view(keep[key].shape), 0.0).to(weights[key])
            for key, value in new.items()
        },
        notes={"gradients": seen, "blocks": len(blocks)},
    )


class Inverse:
    """F^-1 of one block, for F = damping I + G^T G / m, through its m gradients.

    F^-1 = (I - G^T (m damping I + G G^T)^-1 G) / damping.

    Args:
        gradients: G, one per row, float64.
        damping: positive.
    """

    def __init__(self, gradients: Float[Tensor, "m block"], damping: float):
        self.gradients, self.damping = gradients, damping

    @functools.cached_property
    def _z(self) -> Float[Tensor, "m block"]:
        """L^-1 G, so that F^-1 = (I - Z^T Z) / damping."""
        return torch.linalg.solve_triangular(self._factor(self.gradients), self.gradients, upper=False)

    def _factor(self, gradients: Tensor) -> Tensor:
        gram = gradients @ gradients.T
        gram.diagonal().add_(len(gradients) * self.damping)
        root, failed = torch.linalg.cholesky_ex(gram)
        if int(failed):
            raise DataError(
                "the Fisher information of the gradients cannot be inverted",
                [
                    f"gradients of length up to {float(gradients.norm(dim=1).max()):.1e}, damping {self.damping}"
                ],
                hint="raise damping",
            )
        return root

    @property
    def diagonal(self) -> Float[Tensor, " block"]:
        """Of F^-1; positive."""
        least = torch.finfo(torch.float64).eps
        return (1 - self._z.square().sum(0)).clamp(min=least) / self.damping

    def times(self, vector: Float[Tensor, " block"]) -> Float[Tensor, " block"]:
        """F^-1 times a vector."""
        return (vector - self._z.T @ (self._z @ vector)) / self.damping

    def independent(
        self, values: Float[Tensor, " block"], goes: Bool[Tensor, " block"]
    ) -> Float[Tensor, " block"]:
        """The sum of the changes that are best for each pruned weight alone; pruned ones become zero."""
        change = -self.times(torch.where(goes, values / self.diagonal, 0.0))
        return torch.where(goes, -values, change)

    def exact(self, values: Float[Tensor, " block"], goes: Bool[Tensor, " block"]) -> Float[Tensor, " block"]:
        """The change d that minimises d^T F d given that pruned weights become zero."""
        stays = torch.where(goes, 0.0, self.gradients)
        root = self._factor(stays)
        pull = self.gradients @ torch.where(goes, values, 0.0)
        return torch.where(goes, -values, stays.T @ torch.cholesky_solve(pull.unsqueeze(1), root).squeeze(1))


@dataclass(frozen=True)
class _Block:
    """A part of a layer's flattened weight."""

    key: str
    place: slice

    @property
    def size(self) -> int:
        return self.place.stop - self.place.start


def _groups(blocks: Sequence[_Block], most: int) -> Iterator[list[_Block]]:
    """Blocks whose gradients are gathered together: one, or as many as `most` weights hold."""
    group: list[_Block] = []
    for here in blocks:
        if group and sum(b.size for b in group) + here.size > most:
            yield group
            group = []
        group.append(here)
    yield group


def _check(block: int | None, damping: float, gradients: int, minibatch: int) -> None:
    problems = [
        f"{name}={value} is not at least 1"
        for name, value in (("block", block), ("gradients", gradients), ("minibatch", minibatch))
        if value is not None and value < 1
    ]
    if not damping > 0:
        problems.append(f"damping={damping} is not positive")
    if problems:
        raise InputError("options of woodfisher are out of range", problems)
