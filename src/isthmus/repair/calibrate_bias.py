"""Bias calibration: biases that shrink with depth as fast as what the input induces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.features import placed
from isthmus.program import Program
from isthmus.repair.affine import from_weights
from isthmus.repair.homogeneity import degrees
from isthmus.repair.result import Change, Repaired
from isthmus.repair.shares import check_shares
from isthmus.repair.table import REPAIRS
from isthmus.repair.writers import biases, kept_apart


@REPAIRS.register(
    "calibrate-bias",
    needs=("terms",),
    claims=("idempotent", "seeded"),
    costs="a read of the parents' biases",
    source="Qu and Horváth 2025 (arXiv:2402.05966)",
)
def calibrate_bias(
    program: Program,
    weights: Mapping[str, Tensor],
    *,
    terms: Sequence[Mapping[str, Tensor]],
    shares: Sequence[float],
) -> Repaired:
    """Average biases as b_l = sum_i w_i^l b_i,l, l the layer's depth, where weights are averaged as ever.

    With weights multiplied by w, a network computes at depth l what it did, multiplied by w^l, if its biases are
    multiplied by w^l too: so each model comes into the merge as itself, scaled. The average of N models at equal
    shares has its biases multiplied by N^(1-l). That holds for plain networks of positively homogeneous activations
    (ReLU, max pooling) and for nothing else; others are refused. Merging a model with itself changes it.

    Args:
        program: of the merged model. Layers that are kept apart count as depth and keep their biases.
        weights: its state dict; it is not changed.
        terms: the models in common coordinates, whose average with these shares the merged model is.
        shares: how much each counts in the merged model; not negative, with sum 1.

    Returns:
        The new weights, and what was done.

    Raises:
        InputError: shares that are none, or a network that has no such depths: norms, paths of different depth
            that are added up, activations that do not scale. All places are named.
        MismatchError: weights that do not fit the program.

    Source: Qu and Horváth 2025 (arXiv:2402.05966), section 5.3, after Wang et al. Their code counts keys that hold
        "weight" where the depth here is that of the graph: the same for plain networks, whose norms and shortcuts
        it would count and which are refused here.

    Examples:
        >>> import torch
        >>> from isthmus.program import export
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
        >>> own = {key: torch.ones_like(value) for key, value in net.state_dict().items()}
        >>> found = calibrate_bias(export(net, torch.ones(2, 2)), own, terms=[own, own], shares=[0.5, 0.5])
        >>> found.weights["0.bias"], found.weights["2.bias"]
        (tensor([1., 1.]), tensor([0.5000, 0.5000]))
    """
    check_shares(shares, terms)
    depth, obstacles = degrees(program)
    if obstacles:
        raise InputError(
            "biases cannot be calibrated: the network does not scale along with its weights",
            obstacles,
            hint="'rescale' and 'repair' take any network, 'reset' one with batch norms",
        )
    work = placed(program, weights, None)
    changes: list[Change] = []
    skipped: dict[str, str] = {}
    for value, key in biases(program).items():
        if kept_apart(value):
            skipped[value] = "it is kept apart, not merged"
            continue
        parts = [(w ** depth[value], term[key].double()) for w, term in zip(shares, terms, strict=True)]
        before = work[key].double().norm().item()
        work[key] = sum((w * part for w, part in parts), torch.zeros_like(parts[0][1])).to(work[key])
        gain = work[key].double().norm().item() / before if before else 1.0
        changes.append(Change(value, program.module_of(value), "bias", (gain, gain, gain), 0, (key,)))
    return from_weights("calibrate-bias", program, weights, work, changes, skipped)
