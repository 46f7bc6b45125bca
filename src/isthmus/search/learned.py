"""The learned soup: coefficients by gradient descent on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from isthmus import progress
from isthmus.errors import DataError, InputError
from isthmus.measure import logits_of
from isthmus.program import batches, home
from isthmus.search.mixing import By, Mixture, parameters_of
from isthmus.search.result import Searched
from isthmus.search.scores import identity
from isthmus.search.standing import Standing, moments, restore
from isthmus.search.table import SEARCHES, Search

# Any: what a user's loss returns is a tensor to them, a number or a tensor to a type checker.
Loss = Callable[[Tensor, Tensor], Any]


@SEARCHES.register(
    "learned",
    needs=("score", "model", "data"),
    claims=("copies-give-the-model", "seeded"),
    costs="`epochs` passes over the data with gradients, and an evaluation after each",
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
    best score, the uniform soup included. In a folder, every epoch is kept: killed and called again it goes on
    behind the last one, to the same numbers if the data comes in the same order each time.

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
    criterion = loss or torch.nn.functional.cross_entropy
    settings = {"by": by, "simplex": simplex, "temperature": temperature, "lr": lr}
    settings |= {"weight_decay": weight_decay, "loss": getattr(criterion, "__name__", str(criterion))}
    asked = {**settings, "rows": mixture.rows, "loss": identity(criterion)}
    standing = Standing(search.folder, "learned", lambda: {**asked, "models": list(members.digests)})
    course = _Course(mixture, simplex, temperature, lr, weight_decay)
    course.load(standing.read())
    best: tuple[float, Tensor, float] | None = None
    for epoch in range(epochs + 1):
        if epoch > len(course.losses):
            course.add(_epoch(search, mixture, course, criterion))
            standing.keep(course.tensors())
        now = course.passed[epoch]
        score = _ask(search, mixture, now, epoch)
        if score is not None and (best is None or score > best[0]):
            best = score, now, course.factors[epoch]
            search.accept()
    if best is None:
        raise InputError("no epoch has a score", [f"{s.label}: {s.note}" for s in search.steps])
    score, coefficients, factor = best
    return search.found(
        "learned",
        search.finished(mixture.stored(coefficients)),
        score,
        dict(zip(members.names, coefficients.mean(0).tolist(), strict=True)),
        {**settings, "epochs": epochs},
        coefficients=mixture.table(coefficients),
        extra={"temperature": factor, "losses": course.losses[:epochs]},
    )


class _Course:
    """Coefficients on their way, and where they were after every epoch.

    Attributes:
        beta: what logits are multiplied by.
        optimizer: of both.
        passed: the coefficients at the start and after each epoch.
        factors: what logits were multiplied by then.
        losses: of each epoch, the mean.
    """

    def __init__(self, mixture: Mixture, simplex: bool, temperature: bool, lr: float, weight_decay: float):
        shape = (len(mixture.rows), mixture.models)
        start = torch.zeros(shape) if simplex else torch.full(shape, 1 / mixture.models)
        self._simplex = simplex
        self._raw = start.double().requires_grad_()
        self.beta = torch.ones((), dtype=torch.float64, requires_grad=temperature)
        trained = [self._raw, self.beta] if temperature else [self._raw]
        self.optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)
        self.passed = [self.coefficients().detach().clone()]  # the optimiser writes in place
        self.factors = [1.0]
        self.losses: list[float] = []

    def coefficients(self) -> Tensor:
        return self._raw.softmax(1) if self._simplex else self._raw

    def add(self, loss: float) -> None:
        """An epoch is over."""
        self.passed.append(self.coefficients().detach().clone())
        self.factors.append(float(self.beta.detach()))
        self.losses.append(loss)

    def tensors(self) -> dict[str, Tensor]:
        told = {"factors": self.factors, "losses": self.losses}
        return {
            "raw": self._raw.detach(),
            "passed": torch.stack(self.passed),
            **{name: torch.tensor(values, dtype=torch.float64) for name, values in told.items()},
            **moments(self.optimizer),
        }

    def load(self, tensors: Mapping[str, Tensor] | None) -> None:
        """Go on from what `tensors` gave."""
        if tensors is None:
            return
        self.passed = list(tensors["passed"])
        self.factors, self.losses = tensors["factors"].tolist(), tensors["losses"].tolist()
        with torch.no_grad():
            self._raw.copy_(tensors["raw"])
            self.beta.fill_(self.factors[-1])
        restore(self.optimizer, tensors)


def _epoch(search: Search, mixture: Mixture, course: _Course, loss: Loss) -> float:
    """One pass over the data; the mean of the batches' losses."""
    total, count = 0.0, 0
    assert search.data is not None
    for batch in batches(progress.track(search.data, "learned soup", unit="batches")):
        if batch.targets is None:
            raise DataError("the data has no targets to learn from", hint="yield (inputs, targets)")
        weights = mixture(course.coefficients())
        logits = logits_of(search.run(weights, batch.to(*home(weights))))
        value = loss(logits * course.beta.to(logits.dtype), batch.targets.to(logits.device))
        if not math.isfinite(float(value.detach())):
            raise InputError(
                f"the loss of a learned soup is {float(value.detach())}", hint="take a smaller lr"
            )
        course.optimizer.zero_grad()
        value.backward()
        course.optimizer.step()
        total, count = total + float(value.detach()) * batch.size, count + batch.size
    return total / count


def _ask(search: Search, mixture: Mixture, coefficients: Tensor, epoch: int) -> float | None:
    members = search.members
    what = {"models": list(members.digests), "rows": mixture.rows, "coefficients": coefficients.tolist()}
    shown = dict(zip(members.names, coefficients.mean(0).tolist(), strict=True))
    label = f"epoch {epoch}" if epoch else "uniform"
    return search.ask(label, shown, what, lambda: mixture.stored(coefficients))
