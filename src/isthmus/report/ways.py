"""The table of ways to merge, as text: the one source of the page's and the terminal's."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

from isthmus.report import text
from isthmus.report.results import Kind, Results


@dataclass(frozen=True)
class Column:
    """A column: its key in `Way.cells`, its heading, and what the heading means."""

    key: Literal["accuracy", "difference", "validation", "loss", "parameters", "flops", "published"]
    heading: str
    meaning: str


@dataclass(frozen=True)
class Way:
    """One row.

    Attributes:
        name: of the way, printable.
        kind: as in `Row`.
        cells: text by column key.
        fraction: the accuracy in [0, 1] to draw a bar of, or None.
        collapsed: whether it fell to chance.
        note: the row's own.
        source: where the published number stands.
    """

    name: str
    kind: Kind
    cells: dict[str, str]
    fraction: float | None
    collapsed: bool
    note: str
    source: str

    @property
    def remarks(self) -> list[str]:
        """What must be said about it: that it fell to chance first, and its note."""
        return ["near chance"] * self.collapsed + [self.note] * bool(self.note)


COLUMNS = (
    Column("accuracy", "accuracy %", "share of the examples answered right; ± one standard deviation"),
    Column("difference", "vs parents", "accuracy minus the mean of the parents', in percentage points"),
    Column("validation", "valid. %", "accuracy on the validation split, on which every choice is made"),
    Column("loss", "loss", "cross-entropy, in nats"),
    Column("parameters", "params", "parameters, relative to one parent"),
    Column("flops", "FLOPs", "operations of one forward pass, relative to one parent"),
    Column("published", "published %", "the accuracy that the paper reports for the same way"),
)


#: Of a model that was pruned, what the same numbers are.
_PRUNED = {
    "difference": Column(
        "difference", "vs unpruned", "accuracy minus the unpruned model's, in percentage points"
    ),
    "parameters": Column(
        "parameters", "nonzero", "parameters that are not zero, relative to the unpruned model"
    ),
}


def columns(results: Results) -> list[Column]:
    """The columns that have something to say: one that no row fills is left out."""
    rows = ways(results)
    named = [_PRUNED.get(c.key, c) if results.pruning else c for c in COLUMNS]
    return [c for c in named if c.key == "accuracy" or any(w.cells[c.key] != text.NOT_MEASURED for w in rows)]


def groups(results: Results) -> list[list[Way]]:
    """The rows in runs of one kind: parents, ensemble, merged, kept apart, in the order given."""
    return [list(run) for _, run in itertools.groupby(ways(results), key=lambda way: way.kind)]


def ways(results: Results) -> list[Way]:
    """Every row of the results, formatted."""
    parents = results.parents("accuracy")
    made: list[Way] = []
    for row in results.rows:
        difference = None
        if row.accuracy is not None and parents is not None and row.kind != "edge":
            difference = 100 * (row.accuracy - parents)
        collapsed = results.near_chance(row)
        published = row.published
        made.append(
            Way(
                name=text.name(row.name),
                kind=row.kind,
                cells={
                    "accuracy": text.percent(row.accuracy, row.accuracy_spread),
                    "difference": text.fixed(difference, sign=True),
                    "validation": text.percent(row.validation),
                    "loss": text.loss(row.loss),
                    "parameters": text.times(row.parameters),
                    "flops": text.times(row.flops),
                    "published": text.percent(published.accuracy, published.spread)
                    if published
                    else text.NOT_MEASURED,
                },
                fraction=row.accuracy if row.accuracy is not None and math.isfinite(row.accuracy) else None,
                collapsed=collapsed,
                note=text.name(row.note),
                source=text.name(published.source) if published else "",
            )
        )
    return made
