"""The table of searches, and what each of them is given."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.program import Program, Runner, batches, export
from isthmus.registry import Registry
from isthmus.repair import reset
from isthmus.search.members import Members
from isthmus.search.result import Searched, Step
from isthmus.search.scores import Scores

#: A batch's source, read again and again.
Data = Iterable[object]


@dataclass(eq=False)
class Search:
    """One search while it runs: what it is asked, and its steps so far.

    Attributes:
        members: the models.
        scores: their score; None where the search takes none.
        model: the architecture, where it is known.
        data: batches; which split they are of is the caller's to choose.
        calibration: inputs that BatchNorm statistics of mixtures are re-estimated from; None leaves their mean.
        seed: of what is drawn.
        folder: where an optimisation keeps how far it is; None keeps nothing.
        steps: what was tried.
    """

    members: Members
    scores: Scores | None = None
    model: nn.Module | Program | None = None
    data: Data | None = None
    calibration: Data | None = None
    seed: int = 0
    folder: str | os.PathLike[str] | None = None
    steps: list[Step] = field(default_factory=list)

    @cached_property
    def program(self) -> Program:
        """The architecture as a graph, in eval mode.

        Raises:
            InputError: it is not known.
        """
        if isinstance(self.model, Program):
            return self.model
        if self.model is None:
            raise InputError("the architecture is needed", hint="pass model=, a module or a program (--arch)")
        for data in (self.calibration, self.data):
            if data is not None:
                return export(self.model, next(batches(data)))
        raise InputError("an example input is needed", hint="pass data=, or a program as model=")

    @cached_property
    def run(self) -> Runner:
        """The architecture as a function of weights and a batch; gradients flow to the weights."""
        return self.program.compile()

    def ask(
        self,
        label: str,
        candidate: Mapping[str, object],
        what: Mapping[str, object],
        make: Callable[[], dict[str, Tensor]],
        *,
        mixture: bool = True,
    ) -> float | None:
        """Score a candidate and note the step.

        Args:
            label: what people call it.
            candidate: what it consists of, by name.
            what: plain data that says all that its weights depend on.
            make: its weights.
            mixture: whether it is made of more than one model.

        Returns:
            The score, or None where it was skipped.
        """
        assert self.scores is not None, "the table says which searches need a score"
        anew = {"reset": True} if self._resets(mixture) else {}
        scored = self.scores.of({**what, **anew}, lambda: self.finished(make(), mixture=mixture), label)
        self.steps.append(
            Step(
                label, dict(candidate), scored.value, False, None, scored.cached, scored.seconds, scored.note
            )
        )
        return scored.value

    def several(self) -> None:
        """Refuse a search over one model alone.

        Raises:
            InputError: it is one.
        """
        if len(self.members) < 2:
            raise InputError(f"a soup takes two or more models, got {len(self.members)}")

    def accept(self, index: int = -1) -> None:
        """The search goes on from a step: the last one, or the one of that number."""
        self.steps[index] = replace(self.steps[index], accepted=True)

    def finished(self, weights: dict[str, Tensor], *, mixture: bool = True) -> dict[str, Tensor]:
        """A candidate as it is scored and returned: with statistics taken anew where that was asked."""
        if not self._resets(mixture):
            return weights
        assert self.calibration is not None
        return dict(reset(self.program, weights, self.calibration).weights)

    def found(
        self,
        kind: str,
        weights: dict[str, Tensor],
        score: float | None,
        chosen: Mapping[str, object],
        settings: Mapping[str, object],
        *,
        notes: Sequence[str] = (),
        coefficients: Mapping[str, Mapping[str, float]] | None = None,
        extra: Mapping[str, object] | None = None,
        by: str = "",
        mixture: bool = True,
    ) -> Searched:
        """The result, with what a reader must know of it.

        Args:
            kind: the search's name.
            weights: the best weights.
            score: theirs.
            chosen: what they consist of.
            settings: the search's options.
            notes: what only the search knows.
            coefficients: name of a tensor or layer -> part of each model.
            extra: what only this kind of search finds.
            by: what the score is, where it is not the caller's.
            mixture: whether the weights are made of more than one model.
        """
        if mixture and self.members.statistics and self.calibration is None:
            told = f"{len(self.members.statistics)} BatchNorm statistics are means of the models'"
            notes = [*notes, f"{told}: re-estimate them with calibration=, training data"]
        if skipped := [step for step in self.steps if step.score is None]:
            told = "; ".join(f"{step.label} ({step.note})" for step in skipped[:4])
            notes = [*notes, f"{len(skipped)} candidates have no score and were skipped: {told}"]
        best: float | None = None
        steps: list[Step] = []
        for step in self.steps:
            best = step.score if step.accepted else best
            steps.append(replace(step, best=best))
        return Searched(
            kind=kind,
            weights=weights,
            score=score,
            chosen=dict(chosen),
            steps=tuple(steps),
            members=self.members.names,
            settings={**settings, "seed": self.seed, "reset": self.calibration is not None},
            notes=tuple(notes),
            coefficients=dict(coefficients or {}),
            extra=dict(extra or {}),
            by=by or ("" if self.scores is None else self.scores.called),
        )

    def mean(self, counts: Sequence[int]) -> dict[str, object]:
        """What the mean of so many times each model depends on; the same for equal parts."""
        divisor = math.gcd(*counts)
        parts: Counter[str] = Counter()
        for digest, count in zip(self.members.digests, counts, strict=True):
            parts[digest] += count // divisor
        return {"mean": sorted((digest, count) for digest, count in parts.items() if count)}

    def _resets(self, mixture: bool) -> bool:
        return mixture and self.calibration is not None and bool(self.members.statistics)


#: A search: (what it is asked, its options) -> what it found.
Searching = Callable[..., Searched]

SEARCHES: Registry[Searching] = Registry("search", package="isthmus.search")
