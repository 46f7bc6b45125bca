"""The table of ways to merge, for a terminal; it reads the same without colour."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from isthmus.report import text
from isthmus.report.results import Results
from isthmus.report.ways import columns, groups, ways


def table(results: Results) -> Table:
    """The ways to merge, one row each, as a rich renderable.

    Groups (parents, ensemble, merged, kept apart) are set apart by a rule; a way that fell to
    chance says so in words. Sources of published numbers and unfinite ones are below the table.
    """
    shown = columns(results)
    made = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 0, 0, 1),
        header_style="bold",
        caption_justify="left",
    )
    made.add_column("way", overflow="fold", vertical="top")
    for column in shown:
        made.add_column(column.heading.replace(" ", "\n"), justify="right", no_wrap=True)
    rows = ways(results)
    for run in groups(results):
        for way in run:
            label = Text(way.name, style="bold" if way.kind not in ("edge", "ensemble") else "")
            if way.remarks:
                label.append(f" ({'; '.join(way.remarks)})", style="italic not bold")
            made.add_row(label, *(Text(way.cells[c.key]) for c in shown), end_section=way is run[-1])
    notes = [""] + [f"published: {source}" for source in dict.fromkeys(w.source for w in rows if w.source)]
    if broken := results.not_finite():
        notes.append(
            f"n/a: measured, but not a finite number ({len(broken)}): {text.name('; '.join(broken))}"
        )
    if len(notes) > 1:
        made.caption = Text("\n".join(notes), style="dim")
    return made
