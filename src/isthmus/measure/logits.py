"""Logits averaged over the data: whether a network still answers the input, or always the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.errors import DataError
from isthmus.measure.answers import Model, Weights, answering, logits_of
from isthmus.measure.finding import Finding
from isthmus.program import batches


@dataclass(frozen=True)
class LogitProfile:
    """Mean and standard deviation of each class's logit over the examples.

    Attributes:
        mean: per class.
        std: per class, over the examples.
        answers: per class, the share of examples that are given it.
        examples: size of the split.
        split: the caller's name for the data.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    answers: tuple[float, ...]
    examples: int
    split: str = "data"

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Spread over the input, spread of the means over classes, their ratio, share of the commonest answer."""
        note = f"{self.split}: {self.examples} examples, {len(self.mean)} classes"
        own = (sum(s**2 for s in self.std) / len(self.std)) ** 0.5
        centre = sum(self.mean) / len(self.mean)
        between = (sum((m - centre) ** 2 for m in self.mean) / len(self.mean)) ** 0.5
        names = [str(index) for index in range(len(self.mean))]

        def classes(values: tuple[float, ...]) -> dict[str, float]:
            return dict(zip(names, values, strict=True))

        low = 1 / len(self.mean)
        return (
            Finding("logit spread over inputs", own, "1", "higher", (0.0, None), classes(self.std), note),
            Finding(
                "mean logit spread over classes", between, "1", None, (0.0, None), classes(self.mean), note
            ),
            Finding("constant share of logits", _share(between, own), "1", "lower", (0.0, 1.0), note=note),
            Finding(
                "commonest answer", max(self.answers), "1", "lower", (low, 1.0), classes(self.answers), note
            ),
        )


def logit_profile(
    model: Model, data: Iterable[object], weights: Weights | None = None, *, split: str = "data"
) -> LogitProfile:
    """Average the logits of a classifier over data, class by class.

    Where features have vanished the logits are those of the biases: their means differ between classes, and hardly
    anything of them depends on the input. The mean over classes is taken off each row first, since it answers nothing.

    Args:
        model: a module, a program, or a compiled program that returns one row of logits per example.
        data: yields inputs, or (inputs, targets). Targets are not used.
        weights: run the model with these instead; a program needs them.
        split: what the data is, for the notes.

    Raises:
        DataError: no data, or outputs that are no rows of two and more logits.

    Source: Qu and Horváth 2025 (arXiv:2402.05966), figure 3 (A), which shows mean and deviation of each class. The
        "constant share", between^2 / (between^2 + over inputs^2), is ours.

    Examples:
        >>> model = torch.nn.Linear(2, 2)
        >>> with torch.no_grad():
        ...     _ = model.weight.zero_(), model.bias.copy_(torch.tensor([1.0, -1.0]))
        >>> [f.value for f in logit_profile(model, [torch.randn(5, 2)]).findings]
        [0.0, 1.0, 1.0, 1.0]
    """
    examples, total, squares, answers = 0, 0.0, 0.0, 0.0
    with answering(model, weights) as ask:
        for batch in batches(data):
            rows = logits_of(ask(batch)).double()
            if rows.ndim != 2 or rows.shape[1] < 2:
                raise DataError(f"outputs {tuple(rows.shape)} are no rows of two and more logits")
            rows = rows - rows.mean(1, keepdim=True)
            examples += len(rows)
            total, squares = total + rows.sum(0), squares + rows.square().sum(0)
            answers = answers + torch.bincount(rows.argmax(1), minlength=rows.shape[1])
    assert isinstance(total, Tensor) and isinstance(squares, Tensor) and isinstance(answers, Tensor)
    mean = total / examples
    std = (squares / examples - mean.square()).clamp(min=0).sqrt()
    return LogitProfile(
        tuple(mean.tolist()), tuple(std.tolist()), tuple((answers / examples).tolist()), examples, split
    )


def _share(between: float, own: float) -> float:
    whole = between**2 + own**2
    return between**2 / whole if whole else 1.0
