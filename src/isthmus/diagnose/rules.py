"""What a rule is: conditions on findings, what they mean, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Literal

from isthmus.measure import Finding

Evidence = Mapping[str, Finding]


@dataclass(frozen=True)
class Bound:
    """A condition on one finding; a finding that was not measured fulfils none.

    Attributes:
        finding: its name.
        side: on which side of the limit the value has to lie.
        limit: in the finding's unit; the limit itself is on both sides.
    """

    finding: str
    side: Literal["at least", "at most"]
    limit: float

    def holds(self, evidence: Evidence) -> bool:
        """Whether the evidence fulfils it."""
        if self.finding not in evidence:
            return False
        value = evidence[self.finding].value
        return value >= self.limit if self.side == "at least" else value <= self.limit

    def __str__(self) -> str:
        return f"{self.finding} {self.side} {self.limit:g}"


@dataclass(frozen=True)
class Rule:
    """One cause of trouble, or one way in which models are related.

    Attributes:
        name: of what it recognises, hyphenated.
        when: all of these must hold.
        found: what was measured; `{name of a finding:.2f}` is its value, `{where}` the places at which the first
            condition holds most, `{note}` the note of that condition's finding.
        means: what that means.
        advice: what to do.
        source: where limits and advice come from.
        unless: rules that explain the same numbers by something more basic; where one of them holds, this one
            is not said.
        also: said after what was found, where all the findings in it were measured.
    """

    name: str
    when: tuple[Bound, ...]
    found: str
    means: str
    advice: str
    source: str
    unless: tuple[str, ...] = ()
    also: str = ""


@dataclass(frozen=True)
class Cause:
    """A rule that holds, in words with numbers.

    Attributes:
        rule: its name.
        found, means, advice, source: as the rule's.
        conditions: what the rule asks of which finding, and its value.
    """

    rule: str
    found: str
    means: str
    advice: str
    source: str
    conditions: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.rule}: {self.found} {self.means} {self.advice}"


def holding(rules: Iterable[Rule], evidence: Evidence) -> tuple[Cause, ...]:
    """The rules that hold, in their order, without those that another one explains."""
    fulfilled = {rule.name: rule for rule in rules if all(bound.holds(evidence) for bound in rule.when)}
    return tuple(
        _said(rule, evidence)
        for rule in fulfilled.values()
        if not any(other in fulfilled for other in rule.unless)
    )


def _said(rule: Rule, evidence: Evidence) -> Cause:
    values: dict[str, object] = {name: finding.value for name, finding in evidence.items()}
    first = evidence[rule.when[0].finding]
    values |= {"where": _where(rule.when[0], first), "note": first.note}
    told = _Words()
    asked = {name for _, name, _, _ in told.parse(rule.also) if name}
    also = f" {told.vformat(rule.also, (), values)}" if rule.also and asked <= values.keys() else ""
    return Cause(
        rule=rule.name,
        found=told.vformat(rule.found, (), values) + also,
        means=told.vformat(rule.means, (), values),
        advice=told.vformat(rule.advice, (), values),
        source=rule.source,
        conditions=tuple(f"{bound} (measured: {evidence[bound.finding].value:.4g})" for bound in rule.when),
    )


class _Words(Formatter):
    """Numbers in sentences: what is shown as zero has no sign."""

    def format_field(self, value: object, format_spec: str) -> str:
        told = super().format_field(value, format_spec)
        number = isinstance(value, float) and not any(digit in told for digit in "123456789")
        return told.removeprefix("-") if number else told


def _where(bound: Bound, finding: Finding, most: int = 3) -> str:
    """The places at which a condition holds, worst first."""
    low = bound.side == "at most"
    places = sorted(finding.layers.items(), key=lambda item: item[1], reverse=not low)
    shown = [name for name, value in places if (value <= bound.limit if low else value >= bound.limit)]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more
