"""A stored tensor whose positions along some dimensions are in another order: gathered as it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from isthmus.engine.jobs import Order
from isthmus.errors import MismatchError
from isthmus.weights import Stored, stored
from isthmus.weights.bytes import LocalBytes
from isthmus.weights.stored import InFile, InMemory


@dataclass(frozen=True)
class Reordered:
    """A stored tensor in another order.

    Args:
        lies: as it is stored.
        rows: old position of each new one along dimension 0; None where they stay.
        others: the same along later dimensions.
    """

    lies: Stored
    rows: Tensor | None
    others: Mapping[int, Tensor]

    @property
    def dtype(self) -> torch.dtype:
        return self.lies.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.lies.shape

    @property
    def file(self) -> str:
        return self.lies.file

    @cached_property
    def _width(self) -> int:
        return max(math.prod(self.shape[1:]), 1)

    def elements(self, start: int, stop: int) -> Tensor:
        first, last = start // self._width, -(-stop // self._width)
        taken = self._taken(first, last).view(last - first, *self.shape[1:])
        for dim, index in self.others.items():
            taken = taken.index_select(dim, index)
        return taken.reshape(-1)[start - first * self._width : stop - first * self._width]

    def _taken(self, first: int, last: int) -> Tensor:
        """Some new rows, the rest of each in its old order."""
        width = self._width
        if self.rows is None:
            return self.lies.elements(first * width, last * width)
        rows = self.rows[first:last]
        low, high = int(rows.min()), int(rows.max()) + 1
        if _mapped(self.lies):  # what is not taken is not read
            return self.lies.elements(low * width, high * width).view(-1, width).index_select(0, rows - low)
        return torch.cat([self.lies.elements(r * width, (r + 1) * width) for r in rows.tolist()])

    def expect(self, start: int, stop: int) -> None:
        if self.rows is None:
            self.lies.expect(start, stop)

    def drop(self, start: int, stop: int) -> None:
        if self.rows is None:
            width = self._width
            self.lies.drop(start // width * width, -(-stop // width) * width)
        elif stop == math.prod(self.shape):  # rows before may be anywhere, so none goes before the last
            self.lies.drop(0, stop)


def _mapped(lies: Stored) -> bool:
    return isinstance(lies, InMemory) or (isinstance(lies, InFile) and isinstance(lies.bytes, LocalBytes))


def reordered(
    lies: Stored, orders: Sequence[Order], checkpoints: Sequence[Mapping[str, Tensor]]
) -> Reordered:
    """A stored tensor in the orders of a source.

    Args:
        lies: as it is stored.
        orders: of the source.
        checkpoints: opened, in the order of the work.

    Raises:
        MismatchError: an order is not there, or is none of that dimension.
    """
    found: dict[int, Tensor] = {}
    for order in orders:
        if not 0 <= order.checkpoint < len(checkpoints) or order.name not in checkpoints[order.checkpoint]:
            raise MismatchError(f"there is no {order.name} in checkpoint {order.checkpoint}")
        index = stored(checkpoints[order.checkpoint], order.name)
        size = lies.shape[order.dim] if 0 <= order.dim < len(lies.shape) else -1
        values = index.elements(0, math.prod(index.shape)).long()
        if index.shape != (size,) or not torch.equal(values.sort().values, torch.arange(size)):
            raise MismatchError(
                f"{order.name} is no order of dimension {order.dim} of a tensor of shape {lies.shape}"
            )
        found[order.dim] = values
    return Reordered(lies, found.pop(0, None), found)
