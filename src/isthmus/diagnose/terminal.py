"""A diagnosis for a terminal; it reads the same without colour."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from isthmus.diagnose.diagnosis import Diagnosis
from isthmus.diagnose.rules import Cause


def shown(found: Diagnosis) -> Group:
    """Relation, causes, layers and the best recipe of each size; the commands are too long for a line of it."""
    parts: list[Text | Table | Padding] = [Text(found.summary), Text()]
    parts += _said(found.relation)
    for cause in found.causes:
        parts += _said(cause)
    if found.disagreeing:
        parts += [Text("where the layers disagree", style="bold")]
        parts += [Padding(Text(line), (0, 0, 0, 2), expand=False) for line in found.disagreeing]
        parts.append(Text())
    parts.append(_recipes(found))
    return Group(*parts)


def _said(cause: Cause) -> list[Text | Table | Padding]:
    lines = (cause.found, cause.means, cause.advice)
    said = [Padding(Text(line), (0, 0, 0, 2), expand=False) for line in lines]
    return [Text(cause.rule, style="bold"), *said, Text()]


def _recipes(found: Diagnosis) -> Table:
    made = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 0, 0, 1),
        header_style="bold",
        caption_justify="left",
    )
    made.add_column("parameters\nat most", justify="right", no_wrap=True)
    made.add_column("best recipe", overflow="fold")
    for heading in ("parameters", "accuracy %", "vs parents"):
        made.add_column(heading, justify="right", no_wrap=True)
    mean = sum(found.parents) / len(found.parents)

    def row(budget: str, name: str, size: float, accuracy: float) -> None:
        made.add_row(budget, name, f"{size:.2f}x", f"{100 * accuracy:.2f}", f"{100 * (accuracy - mean):+.2f}")

    for name, accuracy in zip(found.names, found.parents, strict=True):
        row("", name, 1.0, accuracy)
    for budget, attempt in found.best.items():
        row(f"{budget:g}x", str(attempt.recipe), attempt.parameters or 1.0, attempt.score)
    row("", "ensemble", float(len(found.names)), found.ensemble)
    refused = [a for a in found.attempts if a.refused]
    tried = f"{len(found.attempts) - len(refused)} recipes tried, {len(refused)} refused"
    tried += f", {found.left} not tried" if found.left else ""
    made.caption = Text(
        f"validation: {found.examples} examples, chance {100 * found.chance:.4g}%; {tried}", style="dim"
    )
    return made
