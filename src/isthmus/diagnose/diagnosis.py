"""What a diagnosis says: how models are related, what is wrong, and what to do, in words with numbers."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from isthmus.diagnose.grid import Attempt
from isthmus.diagnose.rules import Cause
from isthmus.diagnose.table import COPIES, POINTS
from isthmus.measure import Finding


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What was found about models that shall be merged.

    Attributes:
        names: what the models are called.
        relation: copies, reordered copies, rescaled copies, siblings or strangers, with the numbers.
        causes: the rules that hold, most basic first; none for a pair that merges well.
        findings: everything that was measured, by name.
        attempts: the recipes that were tried, in order.
        best: largest number of parameters, relative to one parent -> the best attempt.
        ensemble: accuracy of the mean of the models' logits, on all of the validation data, a fraction.
        parents: accuracy of each model there.
        chance: accuracy of the best constant answer there.
        examples: size of that split.
        left: recipes that were not tried, as `recipes` or `seconds` allowed no more.
        settings: what was asked for, defaults included.
        program: the beginning of a command line that merges these models ("isthmus", "merge", files, ...); empty where
            they came from Python.
    """

    names: tuple[str, ...]
    relation: Cause
    causes: tuple[Cause, ...]
    findings: Mapping[str, Finding]
    attempts: tuple[Attempt, ...]
    best: Mapping[float, Attempt]
    ensemble: float
    parents: tuple[float, ...]
    chance: float
    examples: int
    left: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)
    program: tuple[str, ...] = ()

    def command(self, attempt: Attempt) -> str:
        """What makes a merge: a command line where the models are files, else a call."""
        if self.program:
            return shlex.join([*self.program, *attempt.recipe.flags])
        given = [f"{name}={value!r}" for name, value in attempt.recipe.options.items()]
        data = ["data=data"] if attempt.recipe.align or attempt.recipe.repair else []
        return f"isthmus.merge(models, {', '.join([*given, *data])})" if given else "isthmus.merge(models)"

    @property
    def commands(self) -> list[tuple[str, str]]:
        """(sizes, command) of each recipe that is best at some size, once."""
        sizes: dict[str, list[str]] = {}
        for budget, attempt in self.best.items():
            sizes.setdefault(self.command(attempt), []).append(f"{budget:g}x")
        return [(", ".join(budgets), line) for line, budgets in sizes.items()]

    @property
    def disagreeing(self) -> list[str]:
        """The three layers whose units correlate least, and the three that cost most when merged alone.

        None of copies, which disagree nowhere, and no layer that costs nothing.
        """
        if self.relation.rule in COPIES:
            return []
        lines: list[str] = []
        for name, low, words in (
            ("matched correlation", True, "matched units correlate least in"),
            ("partial accuracy barrier, one layer", False, "merged alone, most accuracy is lost by"),
        ):
            finding = self.findings.get(name)
            if finding is None or not finding.layers:
                continue
            counted = [(layer, value) for layer, value in finding.layers.items() if low or value > 0]
            if not counted:
                continue
            worst = sorted(counted, key=lambda item: item[1], reverse=not low)[:3]
            unit = " points" if finding.unit == "%" else ""
            shown = ", ".join(f"{layer} ({value:.2f}{unit})" for layer, value in worst)
            lines.append(f"{words} {shown}")
        return lines

    @property
    def summary(self) -> str:
        """The diagnosis in two sentences, and a third where no merge comes near to the best model."""
        mean = sum(self.parents) / len(self.parents)
        small = self.best.get(min(self.best)) if self.best else None
        names = " and ".join((", ".join(self.names[:-1]), self.names[-1]))
        text = f"{names} are {self.relation.rule}, {100 * mean:.2f}% right on average on validation"
        if small is not None:
            text += (
                f"; the best merge of one parent's size, {small.recipe}, is {100 * small.score:.2f}% right"
            )
        found = ", ".join(cause.rule for cause in self.causes)
        text = f"{text}. {'Causes found: ' + found if found else 'Nothing is wrong with them'}."
        top = max(self.parents)
        if self.best and 100 * (top - max(attempt.score for attempt in self.best.values())) >= POINTS:
            alone = self.names[self.parents.index(top)]
            text += f" No merge that was tried comes near to {alone} alone, {100 * top:.2f}% right."
        return text

    def to_dict(self) -> dict[str, object]:
        """Plain data, as JSON holds it: numbers that are not finite are the strings "NaN", "Infinity", "-Infinity"."""
        said = {"rule": self.relation.rule, **_cause(self.relation)}
        made = {
            "format": "isthmus-diagnosis/1",
            "models": list(self.names),
            "summary": self.summary,
            "relation": said,
            "causes": [{"rule": cause.rule, **_cause(cause)} for cause in self.causes],
            "layers": self.disagreeing,
            "findings": [_finding(finding) for finding in self.findings.values()],
            "grid": [self._attempt(attempt) for attempt in self.attempts],
            "best": [
                {"budget": budget, **self._attempt(a), "command": self.command(a)}
                for budget, a in self.best.items()
            ],
            "parents": dict(zip(self.names, self.parents, strict=True)),
            "ensemble": self.ensemble,
            "chance": self.chance,
            "examples": self.examples,
            "not tried": self.left,
            "settings": dict(self.settings),
        }
        plain = _plain(made)
        assert isinstance(plain, dict)
        return plain

    def _attempt(self, attempt: Attempt) -> dict[str, object]:
        return {
            "recipe": str(attempt.recipe),
            "options": attempt.recipe.options,
            "parameters": attempt.parameters,
            "accuracy": attempt.accuracy,
            "whole": attempt.whole,
            "refused": attempt.refused,
        }

    def __str__(self) -> str:
        lines = [self.summary, "", f"{self.relation.rule}: {self.relation.found}", f"  {self.relation.means}"]
        lines.append(f"  {self.relation.advice}")
        for cause in self.causes:
            lines += ["", f"{cause.rule}: {cause.found}", f"  {cause.means}", f"  {cause.advice}"]
        if self.disagreeing:
            lines += ["", "where the layers disagree", *(f"  {line}" for line in self.disagreeing)]
        lines += ["", f"best on validation ({self.examples} examples)"]
        for budget, attempt in self.best.items():
            lines.append(f"  {budget:g}x  {100 * attempt.score:6.2f}%  {attempt.recipe}")
        lines.append(f"  ensemble, {len(self.names)}x  {100 * self.ensemble:.2f}%")
        if self.left:
            lines.append(f"  {self.left} recipes were not tried: `recipes` or `seconds` allowed no more")
        return "\n".join([*lines, "", "commands", *(f"  {size}  {line}" for size, line in self.commands)])


def _cause(cause: Cause) -> dict[str, object]:
    return {
        "found": cause.found,
        "means": cause.means,
        "advice": cause.advice,
        "conditions": list(cause.conditions),
        "source": cause.source,
    }


def _finding(finding: Finding) -> dict[str, object]:
    return {
        "name": finding.name,
        "value": finding.value,
        "unit": finding.unit,
        "better": finding.better,
        "bounds": list(finding.bounds),
        "layers": dict(finding.layers),
        "note": finding.note,
    }


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
