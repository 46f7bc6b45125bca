"""The logit ensemble: the upper reference of every merge."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from isthmus import progress
from isthmus.errors import InputError
from isthmus.measure.answers import Model, Weights, answering, logits_of
from isthmus.measure.evaluation import Evaluation, Tally
from isthmus.program import Program, batches


def ensemble(
    model: Model,
    weights: Sequence[Weights],
    data: Iterable[object],
    *,
    shares: Sequence[float] | None = None,
    split: str = "data",
) -> Evaluation:
    """Accuracy and loss of the weighted mean of N models' logits. No model is copied.

    Args:
        model: the architecture that all share: a module, a program or a compiled program.
        weights: a state dict of each model.
        data: yields (inputs, targets).
        shares: each model's part, summing to 1; equal by default.
        split: what the data is, for the notes.

    Raises:
        InputError: no model, or shares that are not one each and do not sum to 1.

    Source: Wortsman et al. 2022 (arXiv:2203.05482): the un-normalised logits are averaged, not the
        probabilities.

    Examples:
        >>> a, b, x = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2), torch.randn(8, 3)
        >>> mean = (a(x) + b(x)) / 2
        >>> ensemble(a, [a.state_dict(), b.state_dict()], [(x, mean.argmax(1))]).accuracy
        1.0
    """
    parts = even(len(weights)) if shares is None else tuple(float(share) for share in shares)
    check_shares(parts, len(weights))
    run = model.compile() if isinstance(model, Program) else model
    tally = Tally()
    with ExitStack() as stack:
        asks = [stack.enter_context(answering(run, one)) for one in weights]
        for batch in batches(progress.track(data, "ensemble", unit="batches")):
            total: Tensor | None = None
            for share, ask in zip(parts, asks, strict=True):
                logits = logits_of(ask(batch)).to(torch.float64) * share
                total = logits if total is None else total + logits.to(total.device)
            assert total is not None  # at least one model, checked above
            tally.add(total, batch)
    return tally.result(split)


def even(count: int) -> tuple[float, ...]:
    """Equal shares."""
    return (1.0 / count,) * count if count else ()


def check_shares(shares: Sequence[float], count: int) -> None:
    """Refuse shares that are not one each, finite and summing to 1.

    Raises:
        InputError: they are not.
    """
    if not count:
        raise InputError("there is no model")
    if len(shares) != count or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise InputError(
            f"{len(shares)} shares that sum to {sum(shares):.6g} are given for {count} models",
            hint="give one share per model, summing to 1",
        )
