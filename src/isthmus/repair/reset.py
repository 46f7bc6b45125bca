"""RESET: the running statistics of batch norms taken anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.features import placed
from isthmus.program import Program
from isthmus.repair.affine import in_order, written
from isthmus.repair.passes import run
from isthmus.repair.result import Mode, Repaired
from isthmus.repair.selection import Layers, matching, norms_of
from isthmus.repair.sites import norm_sites
from isthmus.repair.table import REPAIRS
from isthmus.repair.writers import kept_apart


@REPAIRS.register(
    "reset",
    needs=("data",),
    claims=("idempotent", "seeded"),
    costs="one pass over the data through the merged network",
    source="Jordan et al. 2023 (arXiv:2211.08403)",
)
def reset(
    program: Program,
    weights: Mapping[str, Tensor],
    data: Iterable[object],
    *,
    layers: Layers = "all",
    mode: Mode = "joint",
    device: torch.device | str | None = None,
    limit: int | None = None,
) -> Repaired:
    """Take the running statistics of the batch norms anew.

    Weights, biases and `num_batches_tracked` stay. What a norm puts out then has the mean and standard
    deviation of its merged bias and weight.

    Args:
        program: of the merged model; where parts are kept apart, only merged norms are reset.
        weights: its state dict; it is not changed.
        data: calibration data; see `isthmus.program.batches`.
        layers: "all", or names of batch-norm values, or globs of module names.
        mode: "joint": one pass, norms upstream normalising each batch by its own statistics, as in
            training and in the source. "sequential": norm after norm, everything before it being
            finished; independent of the batch size.
        device: where to run; None for where the weights are.
        limit: number of examples after which to stop.

    Returns:
        The new weights, and what was done.

    Raises:
        InputError: the model has no batch norm with running statistics.
        MismatchError: weights that do not fit the program.
        DataError: data that is empty or does not fit, or activations that are not finite.

    Source: Jordan et al. 2023 (arXiv:2211.08403). Their code (torch's train mode with momentum=None) averages
        the batches' means and unbiased variances. Here both are those of all samples pooled, which
        adds the variance between batches: the same for one batch, larger by that for several.
    """
    norms = norms_of(program)
    if not norms:
        raise InputError(
            "the model has no batch normalisation whose statistics could be reset",
            hint="'rescale' and 'repair' work on any model with linear or conv layers",
        )
    taken = matching(program, norms, layers)
    skipped = {name: "it is kept apart, not merged" for name in taken if kept_apart(name)}
    merged = tuple(name for name in taken if name not in skipped)
    work = placed(program, weights, device)
    changes, seen = run(program, work, norm_sites(program, merged), merged, data, mode, limit)
    return Repaired(
        method="reset",
        weights=written(program, weights, work, changes, {}),
        program=program,
        changed=in_order(program, changes),
        scale_only=(),
        skipped=skipped,
        mode=mode,
        examples=seen.examples,
        batch_size=seen.batch_size,
    )
