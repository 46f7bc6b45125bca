"""The barrier between two networks: how much worse the models on a path are than its ends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from isthmus.errors import InputError
from isthmus.measure.answers import Weights
from isthmus.measure.evaluation import evaluate
from isthmus.measure.finding import Finding
from isthmus.measure.score import reusable
from isthmus.paths import Path
from isthmus.program import Program, batches, export

Norms = Literal["reset", "reset-inside", "keep"]
Against = Literal["interpolation", "mean", "midpoint"]

_NAMES: dict[Against, tuple[str, str]] = {
    "interpolation": ("barrier", "how far the worst point falls behind the ends, interpolated"),
    "mean": ("barrier over the mean", "how far the worst point falls behind the mean of the ends"),
    "midpoint": ("midpoint barrier", "how far the midpoint falls behind the mean of the ends"),
}


@dataclass(frozen=True)
class Barrier:
    """Loss and accuracy along a path, and how far they fall behind its ends.

    Attributes:
        t: places on the path, from 0 to 1; the middle one is 0.5.
        loss: mean cross-entropy at each, in nats.
        accuracy: fraction of right answers at each, 0 to 1.
        examples: size of the split.
        chance: accuracy of the best constant answer, 0 to 1.
        norms: what was done about BatchNorm statistics; "none" where the model keeps none.
        split: the caller's name for the data.
    """

    t: tuple[float, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    examples: int
    chance: float
    norms: str
    split: str = "data"

    def height(self, of: Literal["loss", "accuracy"] = "loss", against: Against = "interpolation") -> float:
        """The barrier, positive where the path is worse than its ends.

        The field has three definitions, equal at the midpoint where the ends are equally good. With m the
        loss (for the accuracy, which falls, every difference has its sign flipped):

        - "interpolation": max over t of m(t) - [(1 - t) m(0) + t m(1)]; never negative;
        - "mean": max over t of m(t) - [m(0) + m(1)] / 2; never negative;
        - "midpoint": m(1/2) - [m(0) + m(1)] / 2; negative where the midpoint is better.

        Args:
            of: "loss" (nats) or "accuracy" (fraction).
            against: the definition.

        Source: "interpolation": Entezari et al. 2022 (arXiv:2110.06296), Eq. 7 of Stoica's survey; "mean":
            Frankle et al. 2020 (arXiv:1912.05671), Eq. 2 of the survey; "midpoint": what most tables print.
            Here t is the weight of the second end; the survey's Eq. 6 counts from the other.
        """
        values = self.loss if of == "loss" else tuple(-a for a in self.accuracy)
        first, last, mean = values[0], values[-1], (values[0] + values[-1]) / 2
        if against == "midpoint":
            return values[len(values) // 2] - mean
        if against == "mean":
            return max(values) - mean
        # Written from the first end, so that equal ends give their own value and no rounding of it.
        return max(value - (first + t * (last - first)) for t, value in zip(self.t, values, strict=True))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All three definitions, for the accuracy (in points, %) and the loss (in nats)."""
        found: list[Finding] = []
        split = f"{self.split}: {self.examples} examples, chance {100 * self.chance:.4g}%"
        for against, (name, meaning) in _NAMES.items():
            note = f"{meaning}; {split}, {len(self.t)} points, BatchNorm statistics: {self.norms}"
            lost, risen = 100 * self.height("accuracy", against), self.height("loss", against)
            low = None if against == "midpoint" else 0.0
            found.append(Finding(f"accuracy {name}", lost, "%", "lower", (low, 100.0), note=note))
            found.append(Finding(f"loss {name}", risen, "nats", "lower", (low, None), note=note))
        return tuple(found)


def barrier(
    model: nn.Module | Program,
    path: Path,
    data: Iterable[object],
    *,
    points: int = 11,
    norms: Norms = "reset",
    calibration: Iterable[object] | None = None,
    split: str = "data",
) -> Barrier:
    """Walk along a path and evaluate each model on it.

    Args:
        model: the architecture, a module or a program; a module's own weights are not used.
        path: from one model's weights (t = 0) to the other's (t = 1), aligned beforehand.
        data: yields (inputs, targets): the evaluation split.
        points: places on the path, evenly spaced, odd so that the midpoint is one. Published curves
            use 11 to 25; 3 give the ends and the midpoint.
        norms: BatchNorm statistics of a mixed network are no mixture of the networks' statistics.
            "reset": re-estimate them at every point, the ends too, so that all points are measured
            alike; "reset-inside": at every point but the ends, which stay the models as they are given;
            "keep": use what the path says. Models without such statistics need none of it.
        calibration: inputs to re-estimate them from: training data, never the evaluation split.
        split: what the data is, for the notes.

    Raises:
        InputError: too few or an even number of points, or statistics to reset and nothing to do it from.
        DataError: data that can be read only once.

    Source: see `Barrier.height`. Statistics are re-estimated as in Jordan et al. 2023 (arXiv:2211.08403).

    Examples:
        >>> import torch
        >>> from isthmus.paths import Segment
        >>> a, b, x = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2), torch.randn(8, 3)
        >>> found = barrier(a, Segment(a.state_dict(), b.state_dict()), [(x, a(x).argmax(1))])
        >>> found.height("loss") < 1e-6  # the loss of a linear classifier is convex
        True
    """
    if points < 3 or points % 2 == 0:
        raise InputError(
            f"points = {points} do not hold both ends and the midpoint", hint="use an odd number from 3"
        )
    if norms not in ("reset", "reset-inside", "keep"):
        raise InputError(f"norms {norms!r} is none of 'reset', 'reset-inside' and 'keep'")
    reusable(data)
    has_statistics = keeps_statistics(model)
    resetting = has_statistics and norms != "keep"
    if resetting:
        check_calibration(data, calibration)
    if resetting and isinstance(model, nn.Module):
        model = export(model, next(iter(batches(data))))
    runner = model.compile() if isinstance(model, Program) else model
    places = tuple(step / (points - 1) for step in range(points))
    results = []
    for t in places:
        weights: Weights = path.at(t)
        if resetting and (norms == "reset" or 0 < t < 1):
            assert isinstance(model, Program)  # made one above
            assert calibration is not None
            weights = _reset(model, weights, calibration)
        results.append(evaluate(runner, data, weights))
    return Barrier(
        t=places,
        loss=tuple(r.loss for r in results),
        accuracy=tuple(r.accuracy for r in results),
        examples=results[0].examples,
        chance=results[0].chance,
        norms=norms if has_statistics else "none",
        split=split,
    )


def keeps_statistics(model: nn.Module | Program) -> bool:
    """Whether some normalisation keeps running statistics."""
    if isinstance(model, Program):
        norms = (node for node in model.graph.nodes if "batch_norm" in str(node.target))
        return any(model.weights.get(a.name) in model.buffers for node in norms for a in node.all_input_nodes)
    return any(getattr(module, "running_mean", None) is not None for module in model.modules())


def check_calibration(data: Iterable[object], calibration: Iterable[object] | None) -> None:
    """Refuse to re-estimate statistics from nothing, or from the evaluation split."""
    if calibration is None:
        raise InputError(
            "the model keeps BatchNorm statistics, and there is no calibration data to re-estimate them from",
            hint='pass calibration=, training data; or norms="keep" for the statistics that the path gives',
        )
    reusable(calibration)
    # Two loaders over one data set may well draw from different parts of it, so only this is certain.
    if calibration is data:
        raise InputError(
            "the calibration data is the evaluation split", hint="re-estimate statistics from training data"
        )


def _reset(program: Program, weights: Weights, calibration: Iterable[object]) -> Weights:
    from isthmus.repair import reset

    return reset(program, weights, calibration).weights
