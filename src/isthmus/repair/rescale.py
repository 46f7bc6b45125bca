"""RESCALE: the standard deviation of every layer's channels brought back, the mean along with it."""

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
    "rescale",
    needs=("data", "goals"),
    claims=("unmerged-is-identity", "fused-equals-unfused", "idempotent", "seeded"),
    costs="a pass over the data through each parent, and, unless in closed form, one through the merged network",
    source="Qu and Horváth 2025 (arXiv:2402.05966)",
)
def rescale(
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
    """Bring the standard deviation of every layer's channels to the average of the merged models'.

    y -> gain y, gain = std* / std with the ordinary (centred) standard deviations; weights and biases
    are multiplied by it. The mean is multiplied along and is not brought to anything.

    Args:
        program: as in `repair`.
        weights: as in `repair`.
        data: as in `repair`.
        goals: as in `repair`; their means are not used.
        layers: as in `repair`.
        mode: as in `repair`.
        norms: as in `repair`.
        max_gain: as in `repair`.
        eps: as in `repair`.
        allow_new_parameters: as in `repair`; only tied weights need any.
        device: as in `repair`.
        limit: as in `repair`.

    Returns:
        The new weights, and what was done.

    Raises:
        InputError, MismatchError, DataError: as in `repair`.

    Source: Qu and Horváth 2025 (arXiv:2402.05966), section 5.3 ("BatchScale" in their code). The
        differences are those of `repair`.
    """
    return affine_repair(
        "rescale",
        program,
        weights,
        data,
        goals,
        shifts=False,
        layers=layers,
        mode=mode,
        norms=norms,
        max_gain=max_gain,
        eps=eps,
        allow_new_parameters=allow_new_parameters,
        device=device,
        limit=limit,
    )
