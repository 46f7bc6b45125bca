"""Rescaled parameters: every layer's weights given back the magnitude that they had in the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.features import placed
from isthmus.program import Program
from isthmus.repair.affine import from_weights
from isthmus.repair.result import Change, Repaired
from isthmus.repair.selection import Outputs, select
from isthmus.repair.shares import check_shares
from isthmus.repair.sites import MAX_GAIN
from isthmus.repair.table import REPAIRS
from isthmus.repair.writers import writer_of


@REPAIRS.register(
    "rescale-parameters",
    needs=("parents",),
    claims=("unmerged-is-identity", "idempotent", "seeded"),
    costs="a read of the parents' weights",
    source="Qu and Horváth 2025 (arXiv:2402.05966)",
)
def rescale_parameters(
    program: Program,
    weights: Mapping[str, Tensor],
    *,
    parents: Sequence[Mapping[str, Tensor]],
    shares: Sequence[float],
    layers: Outputs = "all",
    max_gain: float = MAX_GAIN,
) -> Repaired:
    """Multiply each layer's weights by the ratio of mean magnitudes, the models' to the merged model's.

    W -> s W with s = sum_i w_i mean|W_i| / mean|W|, and the bias by a ratio of its own. Averages of weights
    that disagree are smaller than what they are averages of, by 1/sqrt(N) where they are independent. One factor
    for a whole layer: it needs no data, and cannot tell the channels that faded from those that did not.

    Args:
        program: of the merged model; where parts are kept apart, only merged layers are rescaled.
        weights: its state dict; it is not changed.
        parents: the merged models, in any coordinates: magnitudes do not depend on the order of units.
        shares: how much each counts in the merged model; not negative, with sum 1.
        layers: as in `isthmus.repair.repair`; "all" leaves out the model's outputs.
        max_gain: a factor is at most this; clamped ones are counted. 100 by default.

    Returns:
        The new weights, and what was done.

    Raises:
        InputError: shares that are none, a layer that does not exist, an option out of range.
        MismatchError: weights that do not fit the program.

    Source: Qu and Horváth 2025 (arXiv:2402.05966), appendix A.5 and the right of their figure on linear networks,
        where "all parameters were rescaled". The formula is in their code. They do it to linear networks.
    """
    check_shares(shares, parents)
    if max_gain <= 0:
        raise InputError(f"max_gain={max_gain} is not positive")
    chosen, skipped = select(program, layers)
    work = placed(program, weights, None)
    changes: list[Change] = []
    for value in chosen:
        writer = writer_of(program, value)
        if writer is None or writer.obstacle:
            skipped[value] = writer.obstacle if writer is not None else "it has no weights of its own"
            continue
        into = [program.weights[name] for name in (writer.weight, writer.bias) if name is not None]
        factors = [_ratio(work[key], [parent[key] for parent in parents], shares) for key in into]
        clamped = sum(factor > max_gain for factor in factors)
        for key, factor in zip(into, factors, strict=True):
            work[key] = (work[key].double() * min(factor, max_gain)).to(work[key])
        gain = min(factors[0], max_gain)
        module = program.module_of(value)
        changes.append(Change(value, module, "weight", (gain, gain, gain), clamped, tuple(into)))
    return from_weights("rescale-parameters", program, weights, work, changes, skipped)


def _ratio(merged: Tensor, parents: Sequence[Tensor], shares: Sequence[float]) -> float:
    """The models' mean magnitude over the merged one; 1 where there is nothing to multiply."""
    own = merged.double().abs().mean().item()
    goal = sum(w * parent.double().abs().mean().item() for w, parent in zip(shares, parents, strict=True))
    return goal / own if own > torch.finfo(torch.float64).tiny and goal > 0 else 1.0
