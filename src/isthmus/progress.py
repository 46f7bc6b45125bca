"""Progress of whatever takes over two seconds: bars on a terminal, plain lines elsewhere, on stderr.

A library stays silent; the command line calls `enable()`. Long loops say what they do either way:

    for batch in progress.track(loader, "statistics", unit="batches"):
        ...

    with progress.task("writing", total=size, unit="bytes") as advance:
        advance(len(block))
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import TypeVar

from rich.filesize import decimal

T = TypeVar("T")
Advance = Callable[[int], None]

PATIENCE = 2.0  # seconds before a task is worth a word (style rule 12)
INTERVAL = 10.0  # seconds between two plain lines of one task: a log is read, not watched

#: Held while something is shown: threads report, and a terminal has one live region.
lock = threading.RLock()

_enabled = False


def enable() -> None:
    """Show progress from now on (the command line does; a library does not)."""
    global _enabled
    _enabled = True


def disable() -> None:
    """Show nothing from now on, which is the default."""
    global _enabled
    _enabled = False


def track(items: Iterable[T], label: str, *, total: int | None = None, unit: str = "steps") -> Iterator[T]:
    """Iterate over `items`, one step each.

    Args:
        items: anything iterable.
        label: what is being done, in two or three words.
        total: number of items; by default `len(items)` where that exists.
        unit: plural noun of what is counted.

    Yields:
        The items, unchanged.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with task(label, total=total, unit=unit) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def task(
    label: str,
    *,
    total: int | Callable[[], int] | None = None,
    unit: str = "steps",
    note: Callable[[], str] | None = None,
) -> Iterator[Advance]:
    """A stretch of work that reports how much of it is done; any thread may report.

    Args:
        label: what is being done, in two or three words.
        total: how much there is to do, where known; a function where that may turn out to be less.
        unit: plural noun of what is counted; "bytes" are shown as kB, MB, ...
        note: what else to say (what is at hand, memory held), asked for each time something is shown.

    Yields:
        A function that takes the amount just done.
    """
    if not _enabled:
        yield lambda _: None
        return
    meter = Meter(label, total, unit, note)
    with _display()(meter) as show:

        def advance(amount: int) -> None:
            with lock:
                meter.done += amount
                if meter.seconds >= PATIENCE:
                    show()

        yield advance


def _display() -> Callable[[Meter], AbstractContextManager[Callable[[], None]]]:
    if not sys.stderr.isatty():
        return _lines
    from isthmus.bars import bars  # half of what this library takes to import, beside torch

    return bars


class Meter:
    """What both displays say: how much, how fast, how much longer."""

    def __init__(
        self,
        label: str,
        total: int | Callable[[], int] | None,
        unit: str,
        note: Callable[[], str] | None = None,
    ):
        self.label, self._total, self.unit, self._note = label, total, unit, note
        self.done = 0
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def total(self) -> int | None:
        return self._total() if callable(self._total) else self._total

    def status(self) -> str:
        amount = decimal if self.unit == "bytes" else str
        rate = self.done / self.seconds
        done = amount(self.done) if self.total is None else f"{amount(self.done)}/{amount(self.total)}"
        speed = decimal(int(rate)) if self.unit == "bytes" else f"{rate:.3g}"
        words = [done if self.unit == "bytes" else f"{done} {self.unit}", f"{speed}/s"]
        if self.total is not None and 0 < self.done < self.total:
            words.append(f"{_clock((self.total - self.done) / rate)} left")
            if self._note is not None:
                words.append(self._note())
        return ", ".join(words)


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else str(timedelta(seconds=round(seconds)))


@contextmanager
def _lines(meter: Meter) -> Iterator[Callable[[], None]]:
    """One line now and then, and a last one."""
    said = float("-inf")

    def show() -> None:
        nonlocal said
        if meter.seconds - said >= INTERVAL:
            said = meter.seconds
            sys.stderr.write(f"{meter.label}: {meter.status()}\n")
            sys.stderr.flush()

    yield show
    if meter.seconds >= PATIENCE:
        sys.stderr.write(f"{meter.label}: {meter.status()}, took {_clock(meter.seconds)}\n")
