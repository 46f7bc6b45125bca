"""What goes into a job, read block by block: as it is stored, or with its rows in another order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isthmus.engine.jobs import Adapter, Source
from isthmus.engine.reordered import Reordered, reordered
from isthmus.errors import MismatchError, WeightsError
from isthmus.weights import Stored, stored


def reader(source: Source, checkpoints: Sequence[Mapping[str, Tensor]]) -> Stored:
    """What reads a source.

    Args:
        source: of a job.
        checkpoints: opened, in the order of the work.

    Raises:
        MismatchError: there is no such tensor, or its shape does not fit its rows or adapters.
        WeightsError: an adapter holds numbers that are not finite.
    """
    lies: Stored | Reordered = _find(checkpoints, source.checkpoint, source.name)
    if source.orders:
        if source.adapters:
            raise MismatchError(f"{source.name} in {lies.file} is reordered, and adapters are not")
        lies = reordered(lies, source.orders, checkpoints)
    if replace(source, orders=()).plain:
        return lies
    shape = lies.shape if source.rows is None else (len(source.rows), *lies.shape[1:])
    if source.rows is not None and not lies.shape:
        raise MismatchError(f"{source.name} in {lies.file} is one number and has no rows")
    if source.rows is not None and (worst := max((*source.rows, -1))) >= lies.shape[0]:
        raise MismatchError(
            f"{source.name} in {lies.file} has {lies.shape[0]} rows, and row {worst} is asked for"
        )
    low_rank = tuple(_low_rank(a, lies, source.name, checkpoints) for a in source.adapters)
    fill = tuple(_filler(f, shape, checkpoints) for f in source.fill)
    return Changed(source, lies, shape, low_rank, fill)


def _find(checkpoints: Sequence[Mapping[str, Tensor]], index: int, name: str) -> Stored:
    if not 0 <= index < len(checkpoints) or name not in checkpoints[index]:
        raise MismatchError(f"there is no {name} in checkpoint {index}")
    return stored(checkpoints[index], name)


@dataclass(frozen=True)
class Changed:
    """A stored tensor with rows taken, low-rank additions, a factor or another dtype."""

    source: Source
    lies: Stored | Reordered
    shape: tuple[int, ...]
    low_rank: tuple[_LowRank, ...]
    fill: tuple[Changed, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype or self._natural

    @property
    def _natural(self) -> torch.dtype:
        """Of values to which something was added, or that were multiplied: not rounded again."""
        if self.low_rank or self.source.scale is not None or self.fill:
            return _wide(self.lies.dtype)
        return self.lies.dtype

    @property
    def file(self) -> str:
        return self.lies.file

    @property
    def uncast(self) -> Changed:
        """The same without the conversion at its end."""
        return replace(self, source=replace(self.source, dtype=None))

    def elements(self, start: int, stop: int) -> Tensor:
        if self.source.rows is None and not self.low_rank:
            found = self.lies.elements(start, stop).to(self._natural)
        else:
            width = math.prod(self.shape[1:])
            first, last = start // width, -(-stop // width)
            found = self._rows(first, last).reshape(-1)[start - first * width : stop - first * width]
        if self.source.scale is not None:
            found = found * self.source.scale
        return found.to(self.dtype)

    def expect(self, start: int, stop: int) -> None:
        if self.source.rows is None:
            self.lies.expect(start, stop)

    def drop(self, start: int, stop: int) -> None:
        if self.source.rows is None:
            self.lies.drop(start, stop)
            return
        width = math.prod(self.shape[1:])
        rows = [row for row in self.source.rows[start // width : -(-stop // width)] if row >= 0]
        if rows:
            self.lies.drop(min(rows) * width, (max(rows) + 1) * width)

    def _rows(self, first: int, last: int) -> Tensor:
        """Rows of the job, unscaled."""
        out = torch.zeros((last - first, math.prod(self.shape[1:])), dtype=self._natural)
        for begin, row, count in _runs(self.source.rows, first, last):
            if row >= 0:
                out[begin - first : begin - first + count] = self.stored_rows(row, row + count)
            elif self.fill:
                for index in range(begin, begin + count):
                    out[index - first] = self._filled(index)
        return out

    def stored_rows(self, first: int, last: int) -> Tensor:
        """Rows as they are stored, with the low-rank additions."""
        width = math.prod(self.lies.shape[1:])
        rows = self.lies.elements(first * width, last * width).view(last - first, width)
        for addition in self.low_rank:
            rows = rows.to(self._natural) + addition.rows(first, last)
        return rows

    def _filled(self, index: int) -> Tensor:
        """The mean of the same row of those that have it."""
        found = [other.row(index) for other in self.fill]
        there = [row for row in found if row is not None]
        if not there:
            return torch.zeros(math.prod(self.shape[1:]), dtype=self._natural)
        return torch.stack(there).mean(0).to(self._natural)

    def row(self, index: int) -> Tensor | None:
        """One row of the job in wide numbers, None where the stored tensor has it not."""
        row = index if self.source.rows is None else self.source.rows[index]
        if row < 0:
            return None
        found = self.stored_rows(row, row + 1)[0].to(_wide(self.lies.dtype))
        return found if self.source.scale is None else found * self.source.scale


@dataclass(frozen=True)
class _LowRank:
    """scale * up @ down, any rows of it."""

    up: Tensor
    down: Tensor
    scale: float

    def rows(self, first: int, last: int) -> Tensor:
        return (self.up[first:last] @ self.down).mul_(self.scale)


def _low_rank(
    adapter: Adapter, lies: Stored, name: str, checkpoints: Sequence[Mapping[str, Tensor]]
) -> _LowRank:
    found = [_find(checkpoints, adapter.checkpoint, part) for part in (adapter.up, adapter.down)]
    wide = _wide(lies.dtype)
    up, down = (part.elements(0, math.prod(part.shape)).view(part.shape).to(wide) for part in found)
    wrong = [part for part, held in ((adapter.up, up), (adapter.down, down)) if not held.isfinite().all()]
    if wrong:
        raise WeightsError(f"{found[0].file} holds numbers that are not finite", wrong)
    if adapter.transposed:
        up, down = down.T.contiguous(), up.T.contiguous()
    if (
        len(lies.shape) != 2
        or up.dim() != 2
        or down.dim() != 2
        or up.shape[1] != down.shape[0]
        or (up.shape[0], down.shape[1]) != lies.shape
    ):
        raise MismatchError(
            f"an adapter does not fit {name}",
            [
                f"{name}    {lies.shape}",
                f"{adapter.up}    {found[0].shape}",
                f"{adapter.down}    {found[1].shape}",
            ],
            hint="it was trained on another model",
        )
    return _LowRank(up, down, adapter.scale)


def _filler(source: Source, shape: tuple[int, ...], checkpoints: Sequence[Mapping[str, Tensor]]) -> Changed:
    lies = _find(checkpoints, source.checkpoint, source.name)
    rows = lies.shape[:1] if source.rows is None else (len(source.rows),)
    if (*rows, *lies.shape[1:]) != shape:
        raise MismatchError(f"{source.name} in {lies.file} cannot fill rows of a tensor of shape {shape}")
    low_rank = tuple(_low_rank(a, lies, source.name, checkpoints) for a in source.adapters)
    return Changed(source, lies, shape, low_rank, ())


def _runs(rows: range | tuple[int, ...] | None, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """Stretches of rows that follow each other in the stored tensor: (row of the job, stored row, count)."""
    if rows is None:
        yield first, first, last - first
        return
    begin = first
    for index in range(first + 1, last + 1):
        goes_on = index < last and (
            rows[index] == rows[index - 1] + 1
            if rows[begin] >= 0 and rows[index] >= 0
            else rows[index] == rows[begin]
        )
        if not goes_on:
            yield begin, rows[begin], index - begin
            begin = index


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.itemsize >= 4 else torch.float32
