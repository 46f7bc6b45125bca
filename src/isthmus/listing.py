"""What methods there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from isthmus.align import ALIGNMENTS
from isthmus.combine import COMBINATIONS
from isthmus.errors import InputError
from isthmus.prune import PRUNERS
from isthmus.registry import Method
from isthmus.repair import REPAIRS
from isthmus.search import SEARCHES

#: One row: each table knows what its own functions take.
Row = Method[Callable[..., object]]


class Methods(tuple[Row, ...]):
    """Rows of a table that prints itself."""

    def __str__(self) -> str:
        width = max(len(row.name) for row in self)
        needs = [f"needs {', '.join(row.needs)}" if row.needs else "" for row in self]
        wide = max(map(len, needs))
        return "\n".join(
            f"{row.kind:<12}  {row.name:<{width}}  {need:<{wide}}  {row.summary}"
            for row, need in zip(self, needs, strict=True)
        )


def methods(kind: str | None = None) -> Methods:
    """Every registered method, or those of one kind ("alignment", "combination", "repair", "pruner", "search").

    Returns:
        Rows with name, kind, needs, claims, source and the function itself; printed, a table.

    Examples:
        >>> import isthmus
        >>> [row.name for row in isthmus.methods("combination") if "seed" in row.needs]
        ['dare-linear', 'dare-ties', 'della', 'della-linear']
    """
    kinds = ("alignment", "combination", "repair", "pruner", "search")
    if kind is not None and kind not in kinds:
        raise InputError(f"there is no kind of method {kind!r}", hint=f"kinds are {', '.join(kinds)}")
    rows: list[Row] = []
    for table in (ALIGNMENTS, COMBINATIONS, REPAIRS, PRUNERS, SEARCHES):
        rows += cast("tuple[Row, ...]", table.rows())
    return Methods(row for row in rows if kind in (None, row.kind))
