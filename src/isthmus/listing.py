"""What methods there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from isthmus.align import ALIGNMENTS
from isthmus.combine import COMBINATIONS
from isthmus.errors import InputError
from isthmus.registry import Method
from isthmus.repair import REPAIRS

#: One row: each table knows what its own functions take.
Row = Method[Callable[..., object]]


class Methods(tuple[Row, ...]):
    """Rows of a table that prints itself."""

    def __str__(self) -> str:
        width = max(len(row.name) for row in self)
        return "\n".join(
            f"{row.kind:<12}  {row.name:<{width}}  "
            + (f"needs {', '.join(row.needs):<8}" if row.needs else f"{'':<14}")
            + f"  {row.summary}"
            for row in self
        )


def methods(kind: str | None = None) -> Methods:
    """Every registered method, or those of one kind ("alignment", "combination", "repair").

    Returns:
        Rows with name, kind, needs, claims, source and the function itself; printed, a table.

    Examples:
        >>> import isthmus
        >>> [row.name for row in isthmus.methods("combination")]
        ['average']
    """
    kinds = ("alignment", "combination", "repair")
    if kind is not None and kind not in kinds:
        raise InputError(f"there is no kind of method {kind!r}", hint=f"kinds are {', '.join(kinds)}")
    rows: list[Row] = []
    for table in (ALIGNMENTS, COMBINATIONS, REPAIRS):
        rows += cast("tuple[Row, ...]", table.rows())
    return Methods(row for row in rows if kind in (None, row.kind))
