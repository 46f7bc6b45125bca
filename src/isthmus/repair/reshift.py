"""Re-shift: the mean of every layer's channels brought back, the standard deviation left as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from isthmus.program import Program
from isthmus.repair.affine import Norms, affine_repair
from isthmus.repair.goals import Goal
from isthmus.repair.result import AffineMode, Repaired
from isthmus.repair.selection import Outputs
from isthmus.repair.table import REPAIRS


@REPAIRS.register(
    "reshift",
    needs=("data", "goals"),
    claims=("unmerged-is-identity", "fused-equals-unfused", "idempotent", "seeded"),
    costs="a pass over the data through each parent, and, unless in closed form, one through the merged network",
    source="code of Qu and Horváth 2025 (arXiv:2402.05966)",
)
def reshift(
    program: Program,
    weights: Mapping[str, Tensor],
    data: Iterable[object],
    *,
    goals: Mapping[str, Goal],
    layers: Outputs = "all",
    mode: AffineMode = "joint",
    norms: Norms = "refresh",
    allow_new_parameters: bool = False,
    device: torch.device | str | None = None,
    limit: int | None = None,
) -> Repaired:
    """Bring the mean of every layer's channels to the average of the merged models'.

    y -> y - mean + mean*, into biases alone: what REPAIR does and RESCALE does not. It tells apart which of
    the two a merge lacks.

    Args:
        program: as in `repair`.
        weights: as in `repair`.
        data: as in `repair`.
        goals: as in `repair`; their standard deviations are not used.
        layers: as in `repair`. A layer without a bias is left out, unless a batch norm is its only reader.
        mode: as in `repair`.
        norms: as in `repair`; a shift in front of a norm with fresh statistics is taken off again.
        allow_new_parameters: as in `repair`.
        device: as in `repair`.
        limit: as in `repair`.

    Returns:
        The new weights, and what was done.

    Raises:
        InputError, MismatchError, DataError: as in `repair`.

    Source: the code of Qu and Horváth 2025 (arXiv:2402.05966), which has it beside RESCALE; the paper does not
        report it. The differences are those of `repair`.
    """
    return affine_repair(
        "reshift",
        program,
        weights,
        data,
        goals,
        scales=False,
        layers=layers,
        mode=mode,
        norms=norms,
        allow_new_parameters=allow_new_parameters,
        device=device,
        limit=limit,
    )
