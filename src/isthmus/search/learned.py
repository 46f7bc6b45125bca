"""The learned soup: coefficients by gradient descent on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from isthmus import progress
from isthmus.errors import DataError, InputError
from isthmus.measure import logits_of
from isthmus.program import batches, home
from isthmus.search.mixing import By, Mixture, parameters_of
from isthmus.search.result import Searched
from isthmus.search.table import SEARCHES, Search

# Any: what a user's loss returns is a tensor to them, a number or a tensor to a type checker.
Loss = Callable[[Tensor, Tensor], Any]


@SEARCHES.register(
    "learned",
    needs=("score", "model", "data"),
    claims=("copies-give-the-model", "seeded"),
    source="Wortsman et al. 2022 (arXiv:2203.05482), appendix I; Eq. 16 of Stoica's survey, with t_i >= 0",
)
def learned(
    search: Search,
    *,
    by: By = "model",
    simplex: bool = True,
    temperature: bool = True,
    loss: Loss | None = None,
    epochs: int = 3,
    lr: float = 0.1,
    weight_decay: float = 0.0,
) -> Searched:
    """Coefficients that minimise the loss on held-out data, from the uniform soup on.

    The gradient flows through the mean of the weights, one model read at a time. What is kept is the epoch with the
    best score, the uniform soup included.

    Args:
        search: what is asked: the architecture, held-out batches of (inputs, targets), which must not be those
            that the models were trained on, and a score.
        by: whether the coefficients are of the whole model, of each layer or of each tensor. The paper's "by
            layer" is our "tensor".
        simplex: coefficients are a softmax: none is negative, they sum to one. False leaves them free.
        temperature: learn a factor of the logits beside; it is reported, not folded into the weights.
        loss: of (logits, targets), a mean over the batch; by default cross-entropy in nats.
        epochs: passes over the data. The authors take 3 (5 by layer).
        lr: of AdamW, constant. The authors take 0.1 (0.05 by layer).
        weight_decay: of AdamW; it pulls a simplex towards uniform.

    Raises:
        InputError: wrong options, or the loss is not a number.
        DataError: no targets.
    """
    search.several()
    if epochs < 1 or lr <= 0:
        raise InputError(f"nothing is learned in {epochs} epochs at a rate of {lr:g}")
    members, program = search.members, search.program
    assert search.data is not None, "the table says that it is needed"
    parameters = parameters_of(members, program)
    mixture = Mixture(members, by, parameters)
    shape = (len(mixture.rows), len(members))
    start = torch.zeros(shape) if simplex else torch.full(shape, 1 / len(members))
    raw = start.double().requires_grad_()
    beta = torch.ones((), dtype=torch.float64, requires_grad=temperature)
    trained = [raw, beta] if temperature else [raw]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)
    best: tuple[float, Tensor, float] | None = None
    losses: list[float] = []
    criterion = loss or torch.nn.functional.cross_entropy
    for epoch in range(epochs + 1):
        if epoch:
            losses.append(_epoch(search, mixture, raw, beta, simplex, criterion, optimizer))
        now = _coefficients(raw, simplex).detach().clone()  # the optimiser writes in place
        score = _ask(search, mixture, now, epoch)
        if score is not None and (best is None or score > best[0]):
            best = score, now, float(beta.detach())
            search.accept()
    if best is None:
        raise InputError("no epoch has a score", [f"{s.label}: {s.note}" for s in search.steps])
    score, coefficients, factor = best
    settings = {"by": by, "simplex": simplex, "temperature": temperature, "epochs": epochs, "lr": lr}
    settings |= {"weight_decay": weight_decay, "loss": getattr(criterion, "__name__", str(criterion))}
    return search.found(
        "learned",
        search.finished(mixture.stored(coefficients)),
        score,
        dict(zip(members.names, coefficients.mean(0).tolist(), strict=True)),
        settings,
        coefficients=mixture.table(coefficients),
        extra={"temperature": factor, "losses": losses},
    )


def _epoch(
    search: Search,
    mixture: Mixture,
    raw: Tensor,
    beta: Tensor,
    simplex: bool,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
) -> float:
    """One pass over the data; the mean of the batches' losses."""
    total, count = 0.0, 0
    assert search.data is not None
    for batch in batches(progress.track(search.data, "learned soup", unit="batches")):
        if batch.targets is None:
            raise DataError("the data has no targets to learn from", hint="yield (inputs, targets)")
        weights = mixture(_coefficients(raw, simplex))
        logits = logits_of(search.run(weights, batch.to(*home(weights))))
        value = loss(logits * beta.to(logits.dtype), batch.targets.to(logits.device))
        if not math.isfinite(float(value.detach())):
            raise InputError(
                f"the loss of a learned soup is {float(value.detach())}", hint="take a smaller lr"
            )
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        total, count = total + float(value.detach()) * batch.size, count + batch.size
    return total / count


def _coefficients(raw: Tensor, simplex: bool) -> Tensor:
    return raw.softmax(1) if simplex else raw


def _ask(search: Search, mixture: Mixture, coefficients: Tensor, epoch: int) -> float | None:
    members = search.members
    what = {"models": list(members.digests), "rows": mixture.rows, "coefficients": coefficients.tolist()}
    shown = dict(zip(members.names, coefficients.mean(0).tolist(), strict=True))
    label = f"epoch {epoch}" if epoch else "uniform"
    return search.ask(label, shown, what, lambda: mixture.stored(coefficients))
