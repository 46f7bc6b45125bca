"""Threads over the blocks of many tensors, in order where order matters."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch

T = TypeVar("T")
R = TypeVar("R")

#: Seconds between two looks of the thread that waits.
TICK = 0.5


class Stopped(Exception):  # noqa: N818 - not an error: how a thread is told that another one failed
    """Another thread has failed, or the user has interrupted."""


class Phase(Generic[T, R]):
    """Some items that any thread may do, whose results one thread takes in order."""

    def __init__(self, items: Sequence[T], do: Callable[[T], R], ahead: int):
        self.items, self.do, self.ahead = items, do, ahead
        self.next = self.taken = 0
        self.results: dict[int, R] = {}

    def claim(self) -> int | None:
        """An item to do, unless too many results wait to be taken."""
        if self.next >= len(self.items) or self.next >= self.taken + self.ahead:
            return None
        self.next += 1
        return self.next - 1


@runtime_checkable
class Task(Protocol):
    """Something made of phases."""

    @property
    def cost(self) -> int:
        """Bytes of memory that it takes beyond what every thread holds."""
        ...

    def run(self, pool: Pool) -> None:
        """Do it, on one thread of the pool; the others help with its phases."""
        ...


class Pool:
    """A number of threads, each with one thread of torch.

    They help with the phases that are open before they begin another task, so that what is read lies
    together, and only as many tasks are open as there are threads.

    Args:
        threads: how many.
        memory: bytes that open tasks may take together; one task alone is always begun.
    """

    def __init__(self, threads: int, memory: int):
        self.threads = threads
        self._memory = memory
        self._used = 0
        self._open: list[Phase[object, object]] = []
        self._change = threading.Condition()
        self._error: BaseException | None = None
        self._running = 0

    def run(self, tasks: Sequence[Task], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Do all tasks, begun in the order given.

        Args:
            tasks: what to do.
            meanwhile: called by this thread about twice a second.

        Raises:
            BaseException: what the first task to fail has raised.
        """
        waiting = iter(tasks)
        upcoming = next(waiting, None)

        def begin() -> Task | None:
            nonlocal upcoming
            task = upcoming
            if task is None or (self._used and self._used + task.cost > self._memory):
                return None
            self._used += task.cost
            self._running += 1
            upcoming = next(waiting, None)
            return task

        def work() -> None:
            torch.set_num_threads(1)
            with torch.no_grad():
                try:
                    while (todo := self._find(begin, lambda: upcoming is None)) is not None:
                        todo()
                except Stopped:
                    pass
                except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
                    self._fail(error)

        before = torch.get_num_threads()
        threads = [
            threading.Thread(target=work, name=f"isthmus-{n}", daemon=True) for n in range(self.threads)
        ]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(TICK / len(threads))
                meanwhile()
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            for thread in threads:
                thread.join()
            torch.set_num_threads(before)
        if self._error is not None:
            raise self._error

    def ordered(self, items: Sequence[T], do: Callable[[T], R], ahead: int | None = None) -> Iterator[R]:
        """Results of `do` for every item, in order, done by this thread and any other that is free.

        Args:
            items: of one task.
            do: what is done with one.
            ahead: how many results may wait to be taken; by default a few per thread.
        """
        phase = Phase(items, do, ahead or 4 * self.threads)
        with self._change:
            self._open.append(phase)  # type: ignore[arg-type]
            self._change.notify_all()
        try:
            for index in range(len(items)):
                while (todo := self._next_of(phase, index)) is not None:
                    self._do(phase, todo)
                with self._change:
                    result = phase.results.pop(index)
                    phase.taken = index + 1
                    self._change.notify_all()
                yield result
        finally:
            with self._change:
                self._open.remove(phase)  # type: ignore[arg-type]

    def _next_of(self, phase: Phase[T, R], index: int) -> int | None:
        """Another item to do until the result of `index` is there."""
        with self._change:
            while True:
                self._check()
                if index in phase.results:
                    return None
                claimed = phase.claim()
                if claimed is not None:
                    return claimed
                self._change.wait()

    def _do(self, phase: Phase[T, R], index: int) -> None:
        result = phase.do(phase.items[index])
        with self._change:
            phase.results[index] = result
            self._change.notify_all()

    def _find(self, begin: Callable[[], Task | None], done: Callable[[], bool]) -> Callable[[], None] | None:
        """What a free thread does next; None when all is done."""
        with self._change:
            while True:
                self._check()
                for phase in self._open:
                    claimed = phase.claim()
                    if claimed is not None:
                        return lambda: self._do(phase, claimed)
                task = begin()
                if task is not None:
                    return lambda: self._whole(task)
                if done() and not self._running:
                    return None
                self._change.wait()

    def _whole(self, task: Task) -> None:
        task.run(self)
        with self._change:
            self._used -= task.cost
            self._running -= 1
            self._change.notify_all()

    def _check(self) -> None:
        if self._error is not None:
            raise Stopped

    def _fail(self, error: BaseException) -> None:
        with self._change:
            if self._error is None:
                self._error = error
            self._change.notify_all()
