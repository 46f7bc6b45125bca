"""Diagonal-Fisher pruning: what changes the loss least goes, by a diagonal quadratic model of it."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from isthmus.program import Program
from isthmus.prune.layers import Layer
from isthmus.prune.selection import Scope, keep_largest
from isthmus.prune.table import PRUNERS, Choice
from isthmus.statistics import Loss, Variant, fisher_information


@PRUNERS.register(
    "diagonal-fisher",
    needs=("data", "targets"),
    claims=("sparsity-exact", "unpruned-is-identity", "pruned-stays-pruned", "batching-free", "seeded"),
    costs="a gradient per example",
    source="Theis et al. 2018 (arXiv:1801.05787)",
)
def diagonal_fisher(
    program: Program,
    weights: Mapping[str, Tensor],
    layers: Sequence[Layer],
    *,
    sparsity: float,
    data: Iterable[object],
    scope: Scope = "layer",
    variant: Variant = "empirical",
    likelihood: str | Loss = "categorical",
    axis: int = -1,
    limit: int | None = 4096,
    seed: int = 0,
) -> Choice:
    """Prune the weights of the smallest F w^2, where F is the diagonal of the Fisher information.

    F w^2 / 2 is what the loss would rise by if its curvature were F and no weight saw another.

    Args:
        program: the graph.
        weights: its state dict; it is not changed.
        layers: what to prune.
        sparsity: share of the weights to prune, 0 to 1.
        data: an iterable of (inputs, targets); of inputs for a variant that does not read targets.
        scope: compared over all layers ("global"), within each ("layer"), or within each output unit ("row").
        variant: of `isthmus.fisher_information`: "empirical" (the data's targets), "exact" or "sampled".
        likelihood: likewise.
        axis: of the classes in the model's outputs.
        limit: number of examples.
        seed: of targets that are drawn ("sampled").

    Raises:
        DataError: data that does not fit.

    Source: Theis et al. 2018 (arXiv:1801.05787), equation 6, without its cost term. The code of Qu and Horváth
        2025 (arXiv:2402.05966) takes 4096 examples and compares within layers, as here; it has no global mode.
    """
    wanted = {layer.key for layer in layers}
    taken = {key for key in program.shapes if key in wanted or program.tied.get(key) in wanted}
    found = fisher_information(
        program,
        data,
        weights=weights,
        variant=variant,
        likelihood=likelihood,
        skip=[glob.escape(key) for key in program.shapes if key not in taken and key not in program.buffers],
        axis=axis,
        limit=limit,
        seed=seed,
    )
    scores = {key: found[key] * weights[key].double().square() for key in (layer.key for layer in layers)}
    return Choice(keep_largest(scores, weights, layers, sparsity, scope), notes=dict(found.settings))
