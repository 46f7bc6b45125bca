"""Progress as bars on a terminal: all of them on one board, since a terminal has one live region."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from isthmus.progress import Meter, lock


class _Status(ProgressColumn):
    """A meter's own words, so that bars and lines say the same."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["meter"].status())


_board: Progress | None = None
_open = 0


@contextmanager
def bars(meter: Meter) -> Iterator[Callable[[], None]]:
    """A bar on the shared board, from its first showing until the board closes with the last bar.

    Args:
        meter: what the bar says.

    Yields:
        A function that shows the meter as it is now; called with the lock held.
    """
    global _board, _open
    bar: TaskID | None = None

    def show() -> None:
        nonlocal bar
        global _board, _open
        if _board is None:
            _board = Progress(
                TextColumn("{task.description}"), BarColumn(), _Status(), console=Console(stderr=True)
            )
            _board.start()
        if bar is None:
            bar = _board.add_task(meter.label, total=meter.total, meter=meter)
            _open += 1
        _board.update(bar, completed=meter.done, total=meter.total)

    try:
        yield show
    finally:
        with lock:
            if _board is not None and bar is not None:
                _board.stop_task(bar)
                _open -= 1
                if not _open:
                    _board.stop()
                    _board = None
