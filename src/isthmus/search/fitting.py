"""Weights as an architecture takes them: its dtypes, and its names for tied tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from isthmus.program import Program


class Fitted(Mapping[str, Tensor]):
    """A checkpoint in the dtypes of an architecture, cast tensor by tensor as it is read.

    Files may be stored narrower than the model computes, and leave out all but one name of a tied tensor.

    Args:
        state: the checkpoint, of a file or in memory.
        model: the architecture.

    Attributes:
        tied: key -> another key of the same tensor, as the architecture has them.
    """

    def __init__(self, state: Mapping[str, Tensor], model: nn.Module | Program):
        self._state = state
        self._dtypes, tied = _of_program(model) if isinstance(model, Program) else _of_module(model)
        self._stored = {key: key for key in state}
        for key, other in tied.items():
            if key not in state and other in state:
                self._stored[key] = other
            elif other not in state and key in state:
                self._stored[other] = key
        self.tied = {key: other for key, other in tied.items() if key in self._stored}

    def __getitem__(self, key: str) -> Tensor:
        tensor = self._state[self._stored[key]]
        dtype = self._dtypes.get(key, tensor.dtype)
        return tensor.to(dtype) if tensor.is_floating_point() and dtype.is_floating_point else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def ghost(model: nn.Module | Program) -> dict[str, Tensor]:
    """Names and shapes of an architecture, on the meta device."""
    if isinstance(model, Program):
        return {key: torch.empty(shape, device="meta") for key, shape in model.shapes.items()}
    return {key: torch.empty(t.shape, device="meta") for key, t in _tensors(model).items()}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict(keep_vars=True).items() if isinstance(v, torch.Tensor)}


def _of_module(model: nn.Module) -> tuple[dict[str, torch.dtype], dict[str, str]]:
    first: dict[int, str] = {}
    tensors = _tensors(model)
    tied = {key: first[id(t)] for key, t in tensors.items() if first.setdefault(id(t), key) != key}
    return {key: tensor.dtype for key, tensor in tensors.items()}, tied


def _of_program(program: Program) -> tuple[dict[str, torch.dtype], dict[str, str]]:
    dtypes = {key: program.value(name).dtype for name, key in program.weights.items()}
    return {**dtypes, **{k: dtypes[v] for k, v in program.tied.items() if v in dtypes}}, dict(program.tied)
