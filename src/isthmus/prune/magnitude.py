"""Magnitude pruning: the smallest weights go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from isthmus.program import Program
from isthmus.prune.layers import Layer
from isthmus.prune.selection import Scope, keep_largest, wide
from isthmus.prune.table import PRUNERS, Choice


@PRUNERS.register(
    "magnitude",
    claims=("sparsity-exact", "unpruned-is-identity", "pruned-stays-pruned", "seeded"),
    costs="a read of the weights",
    source="Han et al. 2015 (arXiv:1506.02626)",
)
def magnitude(
    program: Program,  # noqa: ARG001 - what all pruners are given
    weights: Mapping[str, Tensor],
    layers: Sequence[Layer],
    *,
    sparsity: float,
    scope: Scope = "global",
) -> Choice:
    """Prune the weights of the smallest absolute value.

    Args:
        program: the graph.
        weights: its state dict; it is not changed.
        layers: what to prune.
        sparsity: share of the weights to prune, 0 to 1.
        scope: compared over all layers ("global"), within each ("layer"), or within each output unit ("row").

    Source: Han et al. 2015 (arXiv:1506.02626), without their training afterwards. The code of Qu and Horváth
        2025 (arXiv:2402.05966) drops all weights that tie with the threshold; here exactly as many go as asked.
    """
    scores = {layer.key: wide(weights[layer.key]).abs() for layer in layers}
    return Choice(keep_largest(scores, weights, layers, sparsity, scope))
