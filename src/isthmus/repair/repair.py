"""REPAIR: mean and standard deviation of every layer's channels brought back to the models' average."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from isthmus.program import Program
from isthmus.repair.affine import Norms, affine_repair
from isthmus.repair.goals import Goal
from isthmus.repair.result import AffineMode, Repaired
from isthmus.repair.selection import Outputs
from isthmus.repair.sites import EPS, MAX_GAIN
from isthmus.repair.table import REPAIRS


@REPAIRS.register(
    "repair",
    needs=("data", "goals"),
    claims=("unmerged-is-identity", "fused-equals-unfused", "idempotent", "seeded"),
    costs="a pass over the data through each parent, and, unless in closed form, one through the merged network",
    source="Jordan et al. 2023 (arXiv:2211.08403)",
)
def repair(
    program: Program,
    weights: Mapping[str, Tensor],
    data: Iterable[object],
    *,
    goals: Mapping[str, Goal],
    layers: Outputs = "all",
    mode: AffineMode = "joint",
    norms: Norms = "refresh",
    max_gain: float = MAX_GAIN,
    eps: float = EPS,
    allow_new_parameters: bool = False,
    device: torch.device | str | None = None,
    limit: int | None = None,
) -> Repaired:
    """Bring mean and standard deviation of every layer's channels to the average of the merged models'.

    y -> gain (y - mean) + mean*, gain = std* / std, at the output of linear and conv operations, folded
    into their weights and biases. A layer without bias is scaled only (and counted), unless a batch norm
    is its only reader, whose running mean then takes the shift.

    Args:
        program: of the merged model; where parts are kept apart, only merged layers are repaired.
        weights: its state dict; it is not changed.
        data: calibration data, read twice if there are batch norms (in "sequential" mode as often as
            it takes): a DataLoader or a list. A closed form does not read it: its goals have.
        goals: what each layer should have; see `isthmus.repair.goals`. Layers without one are skipped.
        layers: "all" but the model's outputs; "branches": those on the branches of residual blocks (as Qu and
            Horváth); "blocks": "all" and the outputs of residual blocks (as Jordan et al. for residual networks),
            which nothing can take up but new parameters; or names of values, or globs of module names.
        mode: "joint": one pass in which each batch is normalised by its own statistics on the way;
            as in the source, and dependent on the batch size. "sequential": each layer by the
            statistics of all the data, everything before it being finished: slower by about two,
            independent of the batch size. "closed-form": from the moments of what the models' layers read
            (`goals(..., reads=True)`), without running the merged model; exact in linear networks.
        norms: batch norms with running statistics behind repaired layers: "refresh" takes their
            statistics anew, as RESET does ("joint" in a second pass), since a merged model's are of no
            model. What reads a value only through such a norm is then as after RESET. "keep" takes
            them for constants.
        max_gain: a channel's gain is at most this; clamped ones are counted. 100 by default. A channel that is constant
            (counted too) has none.
        eps: added to both variances below the root, relative to the mean of the goal's variances.
        allow_new_parameters: give values whose weights cannot take all of it (no bias, tied weights)
            parameters of their own; the result then has a new program.
        device: where to run; None for where the weights are.
        limit: number of examples after which to stop.

    Returns:
        The new weights, and what was done.

    Raises:
        InputError: no goals, a layer that does not exist, an option out of range.
        MismatchError: goals or weights that do not fit the program.
        DataError: data that is empty or does not fit, or activations that are not finite.

    Source: Jordan et al. 2023 (arXiv:2211.08403) and their code. Differences: statistics are pooled over the
        data where theirs are averages of the batches' (which lose the variance between batches);
        dropout is off; eps is relative and in both variances, so that an unmerged model is left alone
        (theirs is 1e-5 in the denominator); gains are clamped. Their closed form is another one, see
        `isthmus.repair.closed_form`.
    """
    return affine_repair(
        "repair",
        program,
        weights,
        data,
        goals,
        layers=layers,
        mode=mode,
        norms=norms,
        max_gain=max_gain,
        eps=eps,
        allow_new_parameters=allow_new_parameters,
        device=device,
        limit=limit,
    )
