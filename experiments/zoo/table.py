"""results.csv as a page: a summary per source, the exceptions, and every architecture."""

from __future__ import annotations

import statistics
from pathlib import Path

Row = dict[str, str]


def write(rows: dict[str, Row], path: Path) -> None:
    path.write_text(page(list(rows.values())))


def page(rows: list[Row]) -> str:
    rows = sorted(rows, key=lambda row: (row["source"], row["architecture"]))
    lines = [
        "# The symmetry of everything",
        "",
        "Made by `experiments/zoo/run.py`. Each model is exported by `torch.export`, its symmetries are read off, and",
        "random elements without fixed points are applied to redrawn weights and to its own, in float64. *Error* is",
        "the largest relative change of an output; *moved* is the share of the parameters that lie in an axis that",
        "moves.",
        "",
        *_summary(rows),
        "",
        "## Exceptions",
        "",
        "What did not export, did not verify, or moves less than 97% of its parameters, and why.",
        "",
        *_table([row for row in rows if _exception(row)]),
        "",
        "## All",
        "",
        *_table(rows),
    ]
    return "\n".join(lines) + "\n"


def _share(row: Row) -> float:
    return float(row["moved"] or 0)


def _on_meta(row: Row) -> bool:
    return "meta device" in row["note"]


def _exception(row: Row) -> bool:
    unverified = row["verified"] != "True" and not _on_meta(row)
    return row["exported"] != "True" or unverified or _share(row) < 0.97


def _summary(rows: list[Row]) -> list[str]:
    lines = [
        "| source | tried | exported | verified | on meta | worst error | median moved | at least 97% moved |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups = {
        source: [r for r in rows if r["source"] == source] for source in sorted({r["source"] for r in rows})
    }
    for source, group in {**groups, "**all**": rows}.items():
        exported = [row for row in group if row["exported"] == "True"]
        verified = [row for row in exported if row["verified"] == "True"]
        shares = [_share(row) for row in exported]
        errors = [float(row["error"]) for row in verified]
        lines.append(
            f"| {source} | {len(group)} | {len(exported)} | {len(verified)} | {sum(map(_on_meta, exported))} "
            f"| {max(errors, default=0):.0e} | {statistics.median(shares) if shares else 0:.1%} "
            f"| {sum(s >= 0.97 for s in shares)} |"
        )
    return lines


def _table(rows: list[Row]) -> list[str]:
    lines = [
        "| architecture | source | parameters | exported | error | moved | spaces | s | what stays, and why | notes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        notes = [row["note"]]
        if row["unknown"]:
            notes.append(f"no rule: {row['unknown']}")
        if row["failed"]:
            notes.append(f"failed: {row['failed']}")
        exported = "yes" if row["exported"] == "True" else "no"
        moved = f"{_share(row):.1%}" if row["moved"] else ""
        parameters = f"{int(row['parameters']):,}" if row["parameters"] else ""
        cells = [
            row["architecture"],
            row["source"],
            parameters,
            exported,
            row["error"],
            moved,
            row["spaces"],
            row["seconds"],
            row["fixed"],
            "; ".join(filter(None, notes)),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return lines
