"""Mean gradients of minibatches, for parts of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from isthmus.errors import DataError, InputError
from isthmus.features import explained, feed, part
from isthmus.program import Program, home, logits_of
from isthmus.program.outputs import IGNORED, check_classes
from isthmus.statistics import LIKELIHOODS


def mean_gradients(
    program: Program,
    weights: Mapping[str, Tensor],
    parts: Sequence[tuple[str, slice]],
    data: Iterable[object],
    count: int,
    minibatch: int,
    likelihood: str = "categorical",
    axis: int = -1,
) -> list[Tensor]:
    """The gradient of log p(targets | inputs), averaged over each of the first minibatches, in eval mode.

    Args:
        program: the graph.
        weights: a state dict of it.
        parts: (weight, part of it flattened).
        data: an iterable of (inputs, targets); minibatches do not depend on how it is batched.
        count: of minibatches; fewer where the data is shorter, the last of them then perhaps smaller.
        minibatch: examples of each.
        likelihood: "categorical", "bernoulli" or "gaussian".
        axis: of the classes in the model's outputs.

    Returns:
        (minibatches, size of the part) for each part, of its weight's dtype.

    Raises:
        InputError: another likelihood.
        DataError: data that does not fit or has no targets, or gradients that are not finite.
    """
    if likelihood not in LIKELIHOODS:
        raise InputError(f"likelihood={likelihood!r} is none of {', '.join(LIKELIHOODS)}")
    keys = list(dict.fromkeys(key for key, _ in parts))
    leaves = {key: weights[key].detach().clone().requires_grad_() for key in keys}
    own, runner = {**weights, **leaves}, program.compile()
    sums = {key: torch.zeros_like(leaf) for key, leaf in leaves.items()}
    rows: list[list[Tensor]] = [[] for _ in parts]
    seen = 0

    def close() -> None:
        examples = (seen - 1) % minibatch + 1
        for row, (key, place) in zip(rows, parts, strict=True):
            row.append(sums[key].flatten()[place] / examples)
        for total in sums.values():
            total.zero_()

    for batch in feed(data, "gradients", count * minibatch):
        if batch.targets is None:
            raise DataError("the gradient of a loss needs targets", hint="yield (inputs, targets)")
        here = batch.to(*home(weights))
        start = 0
        while start < here.size:
            step = min(minibatch - seen % minibatch, here.size - start)
            piece = part(here, start, start + step)
            with explained(program, piece, "these examples"):
                outputs = logits_of(runner(own, piece))
            assert piece.targets is not None
            scores = _scores(outputs.detach(), piece.targets, likelihood, axis)
            found = torch.autograd.grad(outputs, list(leaves.values()), scores, materialize_grads=True)
            for total, gradient in zip(sums.values(), found, strict=True):
                total += gradient
            seen, start = seen + step, start + step
            if seen % minibatch == 0:
                close()
    if seen % minibatch:
        close()
    gathered = [torch.stack(row) for row in rows]
    bad = sorted({key for (key, _), g in zip(parts, gathered, strict=True) if not bool(g.isfinite().all())})
    if bad:
        raise DataError(
            "gradients are not finite", bad, hint="the model overflows on this data, or it holds NaN"
        )
    return gathered


def _scores(outputs: Tensor, targets: Tensor, likelihood: str, axis: int) -> Tensor:
    """The gradient of log p(targets) by the outputs, of their shape; targets of -100 do not count."""
    moved = outputs.unsqueeze(-1) if outputs.ndim < 2 else outputs.movedim(axis, -1)
    rows = moved.reshape(-1, moved.shape[-1])
    categorical = likelihood == "categorical"
    if targets.numel() != (len(rows) if categorical else rows.numel()):
        raise DataError(
            "the targets do not fit the model's outputs",
            [f"outputs {tuple(outputs.shape)}, classes along {axis}", f"targets {tuple(targets.shape)}"],
        )
    if categorical:
        check_classes(targets, rows.shape[-1])
    scores = LIKELIHOODS[likelihood].observed(rows, targets)
    if categorical:
        scores = scores * (targets.reshape(-1, 1) != IGNORED)
    scores = scores.view(moved.shape)
    return scores.squeeze(-1) if outputs.ndim < 2 else scores.movedim(-1, axis)
