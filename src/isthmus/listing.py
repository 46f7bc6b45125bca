"""What methods there are."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable
from typing import cast

from isthmus.align import ALIGNMENTS
from isthmus.combine import COMBINATIONS
from isthmus.describing import BROUGHT, Description, described
from isthmus.errors import InputError
from isthmus.prune import PRUNERS
from isthmus.registry import Method
from isthmus.repair import REPAIRS
from isthmus.search import SEARCHES

#: One row: each table knows what its own functions take.
Row = Method[Callable[..., object]]

KINDS = ("alignment", "combination", "repair", "pruner", "search")


class Methods(tuple[Row, ...]):
    """Rows of a table that prints itself, as wide as the terminal (80 columns where there is none)."""

    def __str__(self) -> str:
        width = max((len(row.name) for row in self), default=0)
        needs = {row: ", ".join(need for need in row.needs if need in BROUGHT) for row in self}
        wide = max(map(len, needs.values()), default=0)
        room = max(shutil.get_terminal_size().columns - (2 + width + 2 + wide + 2), 20)
        lines: list[str] = []
        for kind in dict.fromkeys(row.kind for row in self):
            lines += ["", f"{kind:<{width + 2}}  {'needs':<{wide}}".rstrip()]
            lines += [
                f"  {row.name:<{width}}  {needs[row]:<{wide}}  {_cut(row.summary, room)}"
                for row in self
                if row.kind == kind
            ]
        return "\n".join(lines[1:])


def _cut(text: str, room: int) -> str:
    """A sentence, cut after the last word that fits."""
    return (
        text
        if len(text) <= room
        else f"{text[: room - 1].rsplit(' ', 1)[0].rstrip(':;, ')}\N{HORIZONTAL ELLIPSIS}"
    )


def methods(kind: str | None = None) -> Methods:
    """Every registered method, or those of one kind ("alignment", "combination", "repair", "pruner", "search").

    Returns:
        Rows with name, kind, needs, claims, costs, source and the function itself; printed, a table. One of them
        whole is `isthmus.method(name)`.

    Examples:
        >>> import isthmus
        >>> [row.name for row in isthmus.methods("combination") if "seed" in row.needs]
        ['dare-linear', 'dare-ties', 'della', 'della-linear']
    """
    if kind is not None and kind not in KINDS:
        raise InputError(f"there is no kind of method {kind!r}", hint=f"kinds are {', '.join(KINDS)}")
    rows: list[Row] = []
    for table in (ALIGNMENTS, COMBINATIONS, REPAIRS, PRUNERS, SEARCHES):
        rows += cast("tuple[Row, ...]", table.rows())
    return Methods(row for row in rows if kind in (None, row.kind))


def method(name: str, kind: str | None = None) -> Description:
    r"""One method whole: what it needs, claims and costs, its options and what they mean, examples of its use.

    Args:
        name: hyphenated, as it is listed.
        kind: where methods of two kinds have one name.

    Raises:
        InputError: there is no such kind, or no such method; the hint names the nearest ones.

    Examples:
        >>> import isthmus
        >>> print(isthmus.method("average").command)
        isthmus merge a.safetensors b.safetensors --method average \
            --option accumulate=auto
    """
    rows = methods(kind)
    found = [row for row in rows if row.name == name]
    if len(found) == 1:
        return described(found[0])
    if found:
        kinds = [row.kind for row in found]
        raise InputError(
            f"{name} is the name of methods of several kinds", kinds, f"name one: {kinds[0]} {name}"
        )
    plain = name.strip().lower().replace("_", "-").replace(" ", "-")
    near = difflib.get_close_matches(plain, dict.fromkeys((*(row.name for row in rows), *KINDS)), n=3)
    what = (
        f"no {kind} is called {name!r}" if kind else f"no method, and no kind of methods, is called {name!r}"
    )
    listed = "isthmus methods lists them all" if kind is None else f"isthmus methods {kind} lists them"
    raise InputError(what, hint=f"did you mean {' or '.join(near)}?" if near else listed)
