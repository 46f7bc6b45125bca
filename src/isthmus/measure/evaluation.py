"""Accuracy and loss of one set of weights on one split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isthmus import progress
from isthmus.errors import DataError
from isthmus.measure.answers import OWN_METRIC, Model, Weights, answering, logits_of
from isthmus.measure.finding import Finding
from isthmus.program import Batch, batches
from isthmus.program.outputs import IGNORED, check_classes


@dataclass(frozen=True)
class Evaluation:
    """How well a classifier answers.

    Attributes:
        accuracy: fraction of right answers, 0 to 1.
        loss: mean cross-entropy in nats; infinite as soon as one answer is not a number.
        examples: targets compared (for token classifiers: tokens).
        chance: what the best constant answer would score, 0 to 1: the share of the commonest target.
        not_a_number: answers that hold a NaN. They count as wrong.
        split: the caller's name for the data.
    """

    accuracy: float
    loss: float
    examples: int
    chance: float
    not_a_number: int = 0
    split: str = "data"

    @property
    def note(self) -> str:
        broken = f", {self.not_a_number} answers are not a number" if self.not_a_number else ""
        return f"{self.split}: {self.examples} examples, chance {100 * self.chance:.4g}%{broken}"

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Accuracy in per cent and loss in nats."""
        return (
            Finding("accuracy", 100 * self.accuracy, "%", "higher", (0.0, 100.0), note=self.note),
            Finding("loss", self.loss, "nats", "lower", (0.0, None), note=self.note),
        )

    def __str__(self) -> str:
        return f"accuracy {100 * self.accuracy:.2f}%, loss {self.loss:.4g} ({self.note})"


def evaluate(
    model: Model, data: Iterable[object], weights: Weights | None = None, *, split: str = "data"
) -> Evaluation:
    """Accuracy and cross-entropy of a classifier, in eval mode.

    The logits are the model's output, its `logits`, or the first tensor of it; classes are its last
    dimension, or dimension 1 as in torch's cross-entropy, whichever fits the targets. Targets are compared
    place by place (for a causal language model: shift them) and those that are -100 are left out.

    Args:
        model: a module (run as it is, and left so), a program, or a compiled program.
        data: yields (inputs, targets); targets are class indices.
        weights: run the model with these instead; a program needs them.
        split: what the data is ("validation", "test"), for the notes.

    Raises:
        DataError: no data, no targets, or targets that do not fit the output.
        MismatchError: the weights do not fit the model.

    Examples:
        >>> model, x = torch.nn.Linear(3, 2), torch.randn(8, 3)
        >>> evaluate(model, [(x, model(x).argmax(1))]).accuracy
        1.0
    """
    tally = Tally()
    with answering(model, weights) as ask:
        for batch in batches(progress.track(data, "evaluation", unit="batches")):
            tally.add(logits_of(ask(batch)), batch)
    return tally.result(split)


@dataclass
class Tally:
    """Sums over batches, so that the result does not depend on how the data is batched."""

    loss: float = 0.0
    right: int = 0
    examples: int = 0
    not_a_number: int = 0
    _seen: dict[int, int] = field(default_factory=dict)

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Count one batch of answers."""
        if batch.targets is None:
            raise DataError("the data has no targets to compare with", hint="yield (inputs, targets)")
        rows, targets = _rows(logits, batch.targets.to(logits.device))
        check_classes(targets, rows.shape[1])
        kept = targets != IGNORED
        rows, targets = rows[kept].double(), targets[kept].long()
        broken = rows.isnan().any(1)
        losses = torch.nn.functional.cross_entropy(rows, targets, reduction="none")
        self.loss += float(losses.masked_fill(broken | losses.isnan(), torch.inf).sum())
        # argmax calls a NaN the largest: an answer that is none would be right now and then.
        self.right += int(((rows.argmax(1) == targets) & ~broken).sum())
        self.not_a_number += int(broken.sum())
        self.examples += targets.numel()
        for target, count in zip(*(t.tolist() for t in targets.unique(return_counts=True)), strict=True):
            self._seen[target] = self._seen.get(target, 0) + count

    def result(self, split: str) -> Evaluation:
        """The means."""
        if not self.examples:
            raise DataError("the data has no target to compare with", hint=f"all of them are {IGNORED}")
        n = self.examples
        chance = max(self._seen.values()) / n
        return Evaluation(self.right / n, self.loss / n, n, chance, self.not_a_number, split)


def _rows(logits: Tensor, targets: Tensor) -> tuple[Float[Tensor, "n classes"], Int[Tensor, " n"]]:
    """One row of logits per target."""
    shapes = [f"outputs {tuple(logits.shape)}", f"targets {tuple(targets.shape)} {targets.dtype}"]
    if targets.is_floating_point() or targets.dtype == torch.bool or logits.ndim < 2:
        raise DataError("accuracy and loss need one class index per output", shapes, hint=OWN_METRIC)
    last = targets.shape == logits.shape[:-1]
    second = targets.shape == logits.shape[:1] + logits.shape[2:]
    if last and second and logits.ndim > 2:
        raise DataError("dimension 1 and the last one could both be the classes", shapes, hint=OWN_METRIC)
    if not last and not second:
        raise DataError("the targets do not fit the model's outputs", shapes)
    rows = logits if last else logits.movedim(1, -1)
    if rows.shape[-1] < 2:
        raise DataError("accuracy and loss need at least two classes", shapes, hint=OWN_METRIC)
    return rows.reshape(-1, rows.shape[-1]), targets.reshape(-1)
