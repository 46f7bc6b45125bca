"""The README's section on every repair: accuracies, seconds, and how many images they need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.page import spread, table
from repairs import ASKED, DRAWS, FEW, SIZES

Found = dict[str, Any]


def section(_folder: Path, family: str, found: Sequence[Found]) -> list[str]:
    """Both tables of one family."""
    rows: list[list[str]] = []
    for name in ("none", *ASKED):
        cells = [pair[name] for pair in found if name in pair]
        if cells:
            took = spread([cell["seconds"] for cell in cells], 1, 2) if "seconds" in cells[0] else ""
            chosen = ", ".join(f"{cell['last']:.0f}" for cell in cells if "last" in cell)
            told = f"{name} ({chosen} of the last layers)" if chosen else name
            accuracies = [spread([cell[split] for cell in cells]) for split in ("validation", "test")]
            rows.append([told, *accuracies, took])
    return [
        f"## Every repair: {family}",
        "",
        f"Midpoints after activation matching, {len(found)} pair{'s' * (len(found) > 1)}. Seconds of one core on a",
        "busy machine, the networks' own statistics apart, which are measured once.",
        "",
        *table(["repair", "validation %", "test %", "CPU s"], rows),
        "",
        f"Where only so many images are seen ({DRAWS} draws of them for each pair): test accuracy, and the error of",
        "`calibration_error`, in standard deviations of the merged network, mean over layers and worst layer.",
        "",
        *table(["images", *FEW, "error, mean", "error, worst layer"], [_few(found, size) for size in SIZES]),
    ]


def _few(found: Sequence[Found], size: int) -> list[str]:
    def all_of(name: str) -> list[Any]:
        keys = [f"{name} {size} {draw}" for draw in range(DRAWS)]
        return [pair[key] for pair in found for key in keys if key in pair]

    errors = [spread([e[at] for e in all_of("error")], 1, 3) for at in (0, 1)]
    return [str(size), *(spread(all_of(name)) for name in FEW), *errors]
