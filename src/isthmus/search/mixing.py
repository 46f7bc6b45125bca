"""Weights as a function of coefficients through which gradients flow."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.program import Program
from isthmus.search.members import Members, Weights

#: What has coefficients of its own: the model as a whole, each layer (the tensors of one module), each tensor.
By = Literal["model", "layer", "tensor"]


class Mixture:
    """sum_i c_i W_i for coefficients c, which may differ by layer or tensor.

    Running statistics and other buffers pass no gradient: they take the mean of the coefficients of their
    module's parameters, or of all where it has none.

    Args:
        members: the models.
        by: what has coefficients of its own.
        parameters: keys that the coefficients are for; other floating tensors are buffers.
        base: where given, the coefficients are of the differences from it.
        apart: keys that are not mixed.
        moved: what is mixed in the models' place, such as models whose differences from the base were trimmed.

    Attributes:
        rows: what has coefficients of its own.
        models: how many there are.
    """

    def __init__(
        self,
        members: Members,
        by: By,
        parameters: Sequence[str],
        base: Weights | None = None,
        apart: Sequence[str] = (),
        moved: Sequence[Weights] = (),
    ):
        self._members = members
        self._states = tuple(moved) or members.states
        self.models = len(members)
        self._base = base
        self._keys = [key for key in members.learned if key not in set(apart)]
        self._own = frozenset(parameters)
        named = {key: _row(key, by) for key in self._keys if key in self._own}
        self.rows = tuple(dict.fromkeys(named.values()))
        index = {row: n for n, row in enumerate(self.rows)}
        beside: dict[str, list[int]] = {}
        for key, row in named.items():
            beside.setdefault(_row(key, "layer"), []).append(index[row])
        everything = list(range(len(self.rows)))
        self._rows = {
            key: [index[named[key]]] if key in named else beside.get(_row(key, "layer"), everything)
            for key in self._keys
        }

    def __call__(self, coefficients: Float[Tensor, "rows models"]) -> dict[str, Tensor]:
        """The mixed weights in float32 (float64 for models in it), integers as the first model has them.

        Args:
            coefficients: one row for each of `rows`, one column for each model.
        """
        made: dict[str, Tensor] = {}
        for key in self._keys:
            through = coefficients if key in self._own else coefficients.detach()
            chosen = through[self._rows[key]].mean(0)
            if self._base is not None:
                chosen = torch.cat([chosen, (1 - chosen.sum()).reshape(1)])
            made[key] = _Sum.apply(chosen, functools.partial(self._read, key))
        return self._members.whole(made)

    def _read(self, key: str) -> Iterator[Tensor]:
        """A tensor of one model after another, and of the base, wide enough to be summed."""
        wide = torch.promote_types(self._members.dtypes[key], torch.float32)
        for state in (*self._states, *(() if self._base is None else (self._base,))):
            yield state[key].detach().to(wide)

    def stored(self, coefficients: Float[Tensor, "rows models"]) -> dict[str, Tensor]:
        """The mixed weights in the models' dtypes, without gradients."""
        with torch.no_grad():
            made = self(coefficients)
        cast = {key: made[key].to(self._members.dtypes[key]) for key in self._keys}
        return self._members.whole(cast)

    def table(self, coefficients: Float[Tensor, "rows models"]) -> dict[str, dict[str, float]]:
        """Row -> part of each model."""
        names = self._members.names
        return {
            row: dict(zip(names, values, strict=True))
            for row, values in zip(self.rows, coefficients.tolist(), strict=True)
        }


def parameters_of(members: Members, program: Program) -> list[str]:
    """Keys of the tensors that a program learns: it reads them, and they are no buffers."""
    read = {program.tied.get(key, key): key for key in members.learned}
    return [key for name, key in read.items() if name in program.keys and name not in program.buffers]


class _Sum(torch.autograd.Function):
    """sum_i c_i W_i that holds no W_i: each is read once forth, and once more on the way back."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, read: Callable[[], Iterator[Tensor]]) -> Tensor:
        ctx.read, ctx.like = read, (coefficients.device, coefficients.dtype)
        total: Tensor | None = None
        for value, tensor in zip(coefficients.tolist(), read(), strict=True):
            total = tensor * value if total is None else total.add_(tensor, alpha=value)
        assert total is not None  # a mixture has members
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        wide = torch.promote_types(gradient.dtype, torch.float64)
        flat = gradient.to(wide).reshape(-1)
        inner = [torch.vdot(flat, tensor.to(wide).reshape(-1)).real for tensor in ctx.read()]
        return torch.stack(inner).to(*ctx.like), None  # coefficients need not lie where the weights do


def _row(key: str, by: By) -> str:
    return {"model": "all", "layer": key.rpartition(".")[0] or key, "tensor": key}[by]
