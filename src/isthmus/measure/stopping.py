"""When to stop merging: up to which layer, or from which one on, two networks may become one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.stats import rankdata

from isthmus.errors import InputError
from isthmus.measure.barrier import Norms
from isthmus.measure.finding import Finding
from isthmus.measure.partial_barrier import PartialBarrier, partial_barrier
from isthmus.paths import Path
from isthmus.program import Program


@dataclass(frozen=True)
class Stopping:
    """How far merging from the input, and merging to the output, can go.

    Attributes:
        first: barriers of merging layers 1..i, each network with its own tail.
        last: barriers of merging layers i..L, each network with its own head.
        single: barriers of merging one layer alone; None where there is no similarity to compare them with.
        tolerance: what a barrier may be, a fraction of accuracy.
        stop: the deepest i up to which every barrier of `first` is within the tolerance; 0 where none is.
        start: the least i from which on every barrier of `last` is; L + 1 where none is.
        similarity: of each depth, as it was given; higher is more alike.
        rank_correlation: Spearman's, of (1 - similarity) and the barrier of each depth alone; None where there is
            no similarity. Near 1, the similarity says without labels where merging fails.
    """

    first: PartialBarrier
    last: PartialBarrier
    single: PartialBarrier | None
    tolerance: float
    stop: int
    start: int
    similarity: Mapping[int, float]
    rank_correlation: float | None

    @property
    def layers(self) -> int:
        return len(self.first.ranges)

    @property
    def preserve_last(self) -> int:
        """Layers to keep apart behind what may be merged from the input on (partial zipping)."""
        return self.layers - self.stop

    @property
    def preserve_first(self) -> int:
        """Layers to keep apart in front of what may be merged up to the output (Preserve-First Merging)."""
        return self.start - 1

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Where to stop and where to start, with the barriers that say so (%), and the similarity."""
        note = f"tolerance {100 * self.tolerance:.3g}%; {self.first.split}: {self.first.examples} examples"
        bounds = (0.0, float(self.layers + 1))
        rows = (
            ("stop merging at depth", self.stop, self.first),
            ("start merging at depth", self.start, self.last),
        )
        found = [
            Finding(name, float(depth), "layers", None, bounds, b.findings[0].layers, note)
            for name, depth, b in rows
        ]
        if self.similarity:
            by_depth = {str(depth): value for depth, value in self.similarity.items()}
            correlation = self.rank_correlation or 0.0
            found.append(
                Finding("similarity against barrier", correlation, "1", None, (-1.0, 1.0), by_depth, note)
            )
        return tuple(found)


def when_to_stop(
    program: Program,
    path: Path,
    data: Iterable[object],
    *,
    tolerance: float = 0.01,
    similarity: Mapping[int, float] | None = None,
    points: int = 3,
    norms: Norms = "reset",
    calibration: Iterable[object] | None = None,
    split: str = "data",
) -> Stopping:
    """Measure partly merged networks layer by layer, and say where merging should stop and where it may start.

    Evaluates 6 L partly merged networks at the midpoint (2 L from the input, 2 L to the output, and 2 L single layers
    where a similarity is to be compared with them).

    Args:
        program: the architecture.
        path: between the two networks, aligned beforehand.
        data: yields (inputs, targets): a validation split.
        tolerance: how much accuracy a partial merge may lose, a fraction.
        similarity: of the networks at each depth, 1 for alike, such as the correlation of matched units, or a CKA
            that the intertwiner group of the activation leaves alone: `isthmus.cka(..., kernel="relu").by_depth`.
        points: places on the path, odd.
        norms: what is done about BatchNorm statistics; see `isthmus.barrier`.
        calibration: inputs to re-estimate them from.
        split: what the data is, for the notes.

    Raises:
        InputError: a negative tolerance, a similarity of other depths, or as `partial_barrier`.

    Source: Stoica's survey "On Model Merging" (2023), section 6.3, which proposes equation 24 together with
        similarities under intertwiner groups (Godfrey et al. 2022, arXiv:2205.14258) and leaves it to future work. The
        rule, the deepest prefix and the longest suffix within a tolerance, is ours.
    """
    if tolerance < 0:
        raise InputError(f"tolerance = {tolerance} is negative")
    if wrong := [str(d) for d in similarity or () if not 1 <= d <= program.layers]:
        raise InputError(f"similarities are of depths 1..{program.layers}", wrong)

    def barriers(ranges: Literal["first", "single", "last"]) -> PartialBarrier:
        return partial_barrier(
            program, path, data, ranges=ranges, points=points, norms=norms, calibration=calibration, split=split
        )  # fmt: skip

    first, last = barriers("first"), barriers("last")
    stop = next((i for i, lost in enumerate(first.accuracy) if lost > tolerance), len(first.accuracy))
    late = [i for i, lost in enumerate(last.accuracy, start=1) if lost > tolerance]
    single, correlation = None, None
    if similarity:
        single = barriers("single")
        lost = [single.accuracy[depth - 1] for depth in similarity]
        correlation = _spearman([1 - value for value in similarity.values()], lost)
    start = late[-1] + 1 if late else 1
    return Stopping(first, last, single, tolerance, stop, start, dict(similarity or {}), correlation)


def _spearman(xs: list[float], ys: list[float]) -> float | None:
    """Rank correlation; None where a side is constant."""
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    ranks = torch.tensor([rankdata(xs).tolist(), rankdata(ys).tolist()], dtype=torch.float64)
    return float(torch.corrcoef(ranks)[0, 1])
