"""Where two networks cannot be merged: the barrier of merging some layers only, with tails of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from isthmus.errors import InputError
from isthmus.measure.answers import Weights
from isthmus.measure.barrier import Norms, check_calibration, keeps_statistics
from isthmus.measure.evaluation import Evaluation, evaluate
from isthmus.measure.finding import Finding
from isthmus.measure.layers import depth_of_keys
from isthmus.measure.score import reusable
from isthmus.paths import Path
from isthmus.program import Program

#: Ranges of depth, inclusive, counted from 1; or a family of them.
Ranges = Literal["first", "single", "last"] | Sequence[tuple[int, int]]


@dataclass(frozen=True)
class PartialBarrier:
    """The barrier of each range of layers.

    Attributes:
        ranges: (first, last) depth of each, inclusive.
        labels: the layers of each range in words ("1..4 features.0 to features.7").
        loss: barrier of the loss of each, in nats.
        accuracy: barrier of the accuracy of each, a fraction.
        points: places on the path, its ends included.
        examples: size of the split.
        split: the caller's name for the data.
    """

    ranges: tuple[tuple[int, int], ...]
    labels: tuple[str, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    points: int
    examples: int
    split: str = "data"

    @property
    def findings(self) -> tuple[Finding, Finding]:
        """Accuracy (points, %) and loss (nats); the value of each is that of the worst range."""
        note = f"equation 24; {self.split}: {self.examples} examples, {self.points} points"
        lost = [100 * value for value in self.accuracy]
        return (
            Finding(
                "partial accuracy barrier", max(lost), "%", "lower", (None, 100.0),
                dict(zip(self.labels, lost, strict=True)), note,
            ),
            Finding(
                "partial loss barrier", max(self.loss), "nats", "lower", (None, None),
                dict(zip(self.labels, self.loss, strict=True)), note,
            ),
        )  # fmt: skip


def partial_barrier(
    program: Program,
    path: Path,
    data: Iterable[object],
    *,
    ranges: Ranges = "first",
    points: int = 3,
    norms: Norms = "reset",
    calibration: Iterable[object] | None = None,
    split: str = "data",
) -> PartialBarrier:
    """The barrier of interpolating some layers while each network keeps the others for itself.

    max over t of (1 - t) (L(A with its layers in the range from the path) - L(A)) + t (the same of B), 0 at both ends.

    Args:
        program: the architecture.
        path: from one model's weights (t = 0) to the other's (t = 1), aligned beforehand.
        data: yields (inputs, targets): the evaluation split.
        ranges: "first": layers 1..i for every i, which shows where merging has to stop; "single": each layer alone;
            "last": layers i..L for every i, which shows where it may begin; or ranges of depth. Depth counts
            linear and conv operations, and a norm or a bias belongs to the layer in front of it.
        points: places on the path, odd; 3 evaluate the midpoint.
        norms: BatchNorm statistics of partly merged networks: see `isthmus.barrier`. "reset-inside" is "reset" here,
            for the ends are the networks themselves.
        calibration: inputs to re-estimate them from; training data.
        split: what the data is, for the notes.

    Raises:
        InputError: an even number of points, a range outside the program, or nothing to reset statistics from.

    Source: equation 24 of Stoica's survey "On Model Merging" (2023), with ranges j..i as it suggests; "first" with
        i = L is the barrier of equation 7. There t counts from the other end.

    Examples:
        >>> import torch
        >>> from isthmus.paths import Segment
        >>> from isthmus.program import export
        >>> a, b, x = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2), torch.randn(8, 3)
        >>> segment = Segment(a.state_dict(), b.state_dict())
        >>> partial_barrier(export(a, x), segment, [(x, a(x).argmax(1))]).ranges
        ((1, 1),)
    """
    if points < 3 or points % 2 == 0:
        raise InputError(
            f"points = {points} do not hold both ends and the midpoint", hint="use an odd number from 3"
        )
    reusable(data)
    resetting = norms != "keep" and keeps_statistics(program)
    if resetting:
        check_calibration(data, calibration)
    asked = _ranges(ranges, program.layers)
    depths = depth_of_keys(program)
    ends = [path.at(0.0), path.at(1.0)]
    run = program.compile()

    def measured(weights: Weights, mixed: bool) -> Evaluation:
        if resetting and (mixed or norms == "reset"):
            from isthmus.repair import reset

            assert calibration is not None
            weights = reset(program, weights, calibration).weights
        return evaluate(run, data, weights)

    alone = [measured(end, False) for end in ends]
    loss: list[float] = []
    accuracy: list[float] = []
    inside = [step / (points - 1) for step in range(1, points - 1)]
    for low, high in asked:
        rises: list[tuple[float, float]] = [(0.0, 0.0)]
        for t in inside:
            between = path.at(t)
            chosen = {k: v for k, v in between.items() if low <= depths.get(k, 0) <= high}
            both = [measured({**end, **chosen}, True) for end in ends]
            parts = list(zip((1 - t, t), both, alone, strict=True))
            rises.append(
                (
                    sum(w * (m.loss - a.loss) for w, m, a in parts),
                    sum(w * (a.accuracy - m.accuracy) for w, m, a in parts),
                )
            )
        loss.append(max(r for r, _ in rises))
        accuracy.append(max(r for _, r in rises))
    return PartialBarrier(
        ranges=tuple(asked),
        labels=tuple(_label(program, low, high) for low, high in asked),
        loss=tuple(loss),
        accuracy=tuple(accuracy),
        points=points,
        examples=alone[0].examples,
        split=split,
    )


def _ranges(asked: Ranges, layers: int) -> list[tuple[int, int]]:
    every = range(1, layers + 1)
    if asked == "first":
        return [(1, i) for i in every]
    if asked == "single":
        return [(i, i) for i in every]
    if asked == "last":
        return [(i, layers) for i in every]
    if isinstance(asked, str):
        raise InputError(f"ranges = {asked!r} is none of 'first', 'single' and 'last'")
    wrong = [f"{low}..{high}" for low, high in asked if not 1 <= low <= high <= layers]
    if wrong or not asked:
        raise InputError(f"ranges of depth lie within the model's layers 1..{layers}", wrong)
    return list(asked)


def _label(program: Program, low: int, high: int) -> str:
    names = {depth: module_at(program, depth) for depth in (low, high)}
    return f"{low} {names[low]}" if low == high else f"{low}..{high} {names[low]} to {names[high]}"


def module_at(program: Program, depth: int) -> str:
    """The module of the first linear or conv operation of a depth."""
    node = next(
        n
        for n in program.graph.nodes
        if n.name in program.dynamic and program.applies_weight(n) and program.depth[n.name] == depth
    )
    return program.module_of(node.name) or node.name
