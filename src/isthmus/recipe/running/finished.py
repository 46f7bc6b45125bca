"""What came of repairing and measuring a merged model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from isthmus.measure import Evaluation
from isthmus.repair import Repaired

#: How the merge is called beside its parents.
MERGED = "merged"


@dataclass(frozen=True)
class Finished:
    """What came of repairing and measuring.

    Args:
        changed: tensors that the repair changed, as they shall be written; none where it was not kept.
        scores: on the test split, by name: the parents, the merge as it came, the merge repaired.
        validation: the merge on the validation split, before and after the repair.
        chosen: the name of what is written.
        repaired: what the repair did, if there was one.
        sizes: examples of each split.
        text: whether the examples are windows of a text, whose tokens are foretold: losses say perplexities.
    """

    changed: Mapping[str, Tensor]
    scores: Mapping[str, Evaluation]
    validation: Mapping[str, Evaluation]
    chosen: str
    repaired: Repaired | None
    sizes: Mapping[str, int]
    text: bool = False

    @property
    def told(self) -> tuple[str, ...]:
        """What happened, a line each."""
        lines: list[str] = []
        if self.repaired is not None:
            before, after = self.validation.values()
            kept = "kept" if self.chosen != MERGED else "not kept"
            lines.append(
                f"{self.repaired.method} {kept}: validation {self._brief(before)} -> {self._brief(after)}"
            )
        if self.chosen in self.scores:
            lines += [f"test {self._brief(score)}  {name}" for name, score in self.scores.items()]
            lines.append(f"chance is {100 * self.scores[self.chosen].chance:.4g}%{self._collapse()}")
        return tuple(lines)

    def _brief(self, score: Evaluation) -> str:
        told = f"accuracy {100 * score.accuracy:.2f}%, loss {score.loss:.4g}"
        return f"{told}, perplexity {_perplexity(score):.4g}" if self.text else told

    def _numbers(self, score: Evaluation) -> dict[str, float | str]:
        found = {"accuracy": score.accuracy, "loss": score.loss}
        if self.text:
            found["perplexity"] = _perplexity(score)
        return {k: round(v, 6) if math.isfinite(v) else str(v) for k, v in found.items()}

    def _collapse(self) -> str:
        """Said where the merge is as good as guessing while its parents are not."""
        parents = [score.accuracy for name, score in self.scores.items() if not name.startswith(MERGED)]
        chosen = self.scores[self.chosen]
        best = max(parents, default=chosen.chance)
        if best <= chosen.chance or chosen.accuracy >= chosen.chance + 0.1 * (best - chosen.chance):
            return ""
        return (
            ", and the merge is hardly better: align the models (align: weight-matching), or repair the merge"
        )

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "repair": None if self.repaired is None else self.repaired.method,
            "chosen": self.chosen,
            "validation": {name: self._numbers(score) for name, score in self.validation.items()},
            "test": {name: self._numbers(score) for name, score in self.scores.items()},
            "examples": dict(self.sizes),
        }

    def provenance(self) -> dict[str, str]:
        """What the header of each file says of it."""
        return {"isthmus.afterwards": json.dumps(self.as_dict(), sort_keys=True)}


def _perplexity(score: Evaluation) -> float:
    """Of a token; infinite where no float holds it."""
    return math.exp(score.loss) if score.loss < 700 else math.inf
