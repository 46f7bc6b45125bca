"""Statistics of a merged layer without running the merged model: from what the models' layers read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.program import Program
from isthmus.repair.explicit import explicit_names
from isthmus.repair.result import Change
from isthmus.repair.sites import AffineSite, NormSite


def closed_form(
    program: Program, weights: dict[str, Tensor], sites: Sequence[AffineSite], norms: Sequence[NormSite]
) -> tuple[list[Change], dict[str, str]]:
    """Repair layer after layer, each by the mean W m + b and the covariance W C W^T of its output.

    m and C are those of what the repaired network is taken to read. Where a layer reads another's repaired output
    as it is, they are known exactly, so that in a linear network nothing is approximated. Elsewhere it is taken
    to read the average of what the models read, x = sum_i w_i x_i, each channel with the models' average
    standard deviation: what it has once everything before it is repaired. Where branches that are kept apart
    meet, it reads that average itself.

    Args:
        program: of the merged model.
        weights: its weights, changed.
        sites: what is repaired, in order of execution, with goals that know what the models read.
        norms: batch norms behind them; those right behind a repaired layer get its statistics.

    Returns:
        What was done, and what could not be, with the reason.

    Raises:
        InputError: no goal knows what the models read.

    Source: the variance of matched activations in the code of Jordan et al. 2023 (arXiv:2211.08403), a^2 var_0 +
        b^2 var_1 + 2ab cov, is that of the average of the models' *outputs*, which is the merged layer's own
        only where both models read the same. Here it is the merged layer's of the average of what they *read*.
    """
    if sites and all(site.goal.reads is None for site in sites):
        raise InputError(
            'the goals do not say what layers read, which mode="closed-form" computes with',
            hint="measure them with isthmus.repair.goals(..., reads=True)",
        )
    known: dict[str, tuple[Tensor, Tensor]] = {}
    changes: list[Change] = []
    left: dict[str, str] = {}
    for site in sites:
        writer, reads = site.writer, site.goal.reads
        node = program.nodes[writer.value]
        if reads is None:
            left[writer.value] = (
                "it has no closed form: it is no product of a stored matrix with what it reads"
            )
            continue
        source = node.all_input_nodes[0].name
        mean, covariance = known.get(source, (reads.mean, reads.covariance))
        if source not in known and source == reads.value:
            std = covariance.diagonal().clamp(min=0).sqrt()
            # A channel in which the models cancel out is not blown up: no gain of a repair would be.
            ratio = torch.where(std > 0, reads.std / std, 1.0).clamp(max=site.max_gain)
            covariance = covariance * torch.outer(ratio, ratio)
        matrix = weights[program.weights[writer.weight]].to(mean).flatten(1)
        mean, covariance = matrix @ mean, matrix @ covariance @ matrix.T
        if writer.bias is not None:
            mean = mean + weights[program.weights[writer.bias]].to(mean)
        variance = covariance.diagonal().clamp(min=0)
        gain, shift, _ = site.affine(mean, variance)
        changes.append(site.fold(weights, mean, variance))
        after = gain * mean + shift, covariance * torch.outer(gain, gain)
        known |= dict.fromkeys(explicit_names(program, writer.value), after)
    for norm in norms:
        sources = [value for _, value, _ in norm.events]
        if len(sources) == 1 and sources[0] in known:
            mean, covariance = known[sources[0]]
            changes.append(norm.replace(weights, mean, covariance.diagonal().clamp(min=0)))
        else:
            left[norm.calls[0]] = "its statistics have no closed form: it does not read one repaired layer"
    return changes, left
