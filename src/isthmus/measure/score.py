"""A score: a function of weights, higher is better. What searches and choices are made by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from isthmus import progress
from isthmus.errors import DataError, InputError
from isthmus.measure.answers import Model, Weights, answering
from isthmus.measure.evaluation import evaluate
from isthmus.program import Program, batches

# Any: a user's metric is annotated with what their model returns, which only they know.
Metric = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Score:
    """A function of weights, higher is better; made by `score`.

    Attributes:
        metric: "accuracy" (0 to 1), "loss" (its negative), or the caller's function.
    """

    metric: str | Metric
    _model: Model = field(repr=False)
    _data: Iterable[object] = field(repr=False)

    def __call__(self, weights: Weights | None = None) -> float:
        """Score these weights; None for the module's own.

        Returns:
            The score; -inf where it is not a number, so that nothing broken is ever chosen.
        """
        if callable(self.metric):
            value = self._mean(self.metric, weights)
        else:
            result = evaluate(self._model, self._data, weights)
            value = result.accuracy if self.metric == "accuracy" else -result.loss
        return -math.inf if math.isnan(value) else value

    def _mean(self, metric: Metric, weights: Weights | None) -> float:
        total, examples = 0.0, 0
        with answering(self._model, weights) as ask:
            for batch in batches(progress.track(self._data, "scoring", unit="batches")):
                output = ask(batch)
                total += float(metric(output, batch.targets)) * batch.size
                examples += batch.size
        return total / examples


def score(model: Model, data: Iterable[object], metric: str | Metric = "accuracy") -> Score:
    """Make a function that says how good any weights of a model are, higher is better.

    The model is not touched: the weights are those of the call, run in eval mode.

    Args:
        model: a module, a program or a compiled program.
        data: yields (inputs, targets), each time it is iterated over: a DataLoader, a list. Choices
            belong on a validation split, never on the test split.
        metric: "accuracy" (fraction, 0 to 1), "loss" (minus the mean cross-entropy, in nats), or a
            function of what the model returns and the targets (None without) that gives the mean over
            a batch, higher is better; means are weighted by the size of the batches.

    Raises:
        InputError: an unknown metric.
        DataError: data that can be read only once.

    Examples:
        >>> import torch
        >>> from isthmus.measure import score
        >>> model, x = torch.nn.Linear(2, 2), torch.randn(8, 2)
        >>> accuracy = score(model, [(x, model(x).argmax(1))])
        >>> accuracy(model.state_dict())
        1.0
    """
    if not callable(metric) and metric not in ("accuracy", "loss"):
        raise InputError(
            f"no metric is called {metric!r}",
            hint='use "accuracy", "loss", or a function of (outputs, targets)',
        )
    reusable(data)
    return Score(metric, model.compile() if isinstance(model, Program) else model, data)


def reusable(data: Iterable[object]) -> None:
    """Refuse data that is gone once read.

    Raises:
        DataError: it is an iterator.
    """
    if isinstance(data, Iterator):
        raise DataError(
            f"the data is a {type(data).__name__}, which can be read only once",
            hint="pass a DataLoader or a list",
        )
