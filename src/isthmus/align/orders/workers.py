"""Work shared among threads, each of which computes by itself: the bits do not depend on how many there are.

A matrix product that several threads share is rounded as they share it. So the work is cut into tasks that do
not depend on the number of threads, each task runs on one, and results come in the order of the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from isthmus.errors import InputError

A = TypeVar("A")
B = TypeVar("B")


class Workers:
    """Threads for tasks that do not depend on each other."""

    def __init__(self, pool: ThreadPoolExecutor):
        self._pool = pool

    def map(self, function: Callable[[A], B], items: Iterable[A]) -> list[B]:
        """The results of a function on every item, in their order."""
        futures = [self._pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def workers(threads: int | None = None) -> Iterator[Workers]:
    """Threads that each compute alone, for the time of a `with` block.

    Args:
        threads: how many; None for as many as torch uses.

    Raises:
        InputError: fewer than one.
    """
    before = torch.get_num_threads()
    count = before if threads is None else threads
    if count < 1:
        raise InputError(f"threads = {count} must be at least 1")
    pool = ThreadPoolExecutor(count, "isthmus", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield Workers(pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        # Each worker set its own count, and what later threads begin with: put that back.
        torch.set_num_threads(before)
