"""A program and its weights as an ordinary module."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from isthmus.program.batches import Batch
from isthmus.program.program import Program


class ProgramModule(nn.Module):
    """A program as an `nn.Module`: its state dict has the program's keys, and it exports again.

    It computes what the program computes, which is the model in eval mode: `train()` changes
    neither normalisation nor dropout.

    Args:
        program: the graph.
        weights: a tensor for each key of the program.
    """

    def __init__(self, program: Program, weights: Mapping[str, Tensor]):
        super().__init__()
        # The user's modules keep their names here, so ours must be none that they would choose.
        self._isthmus_run = program.compile()
        for name, tensor in program.lookup(weights).items():
            key = program.weights[name]
            owner: nn.Module = self
            *path, leaf = key.split(".")
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            if key in program.buffers or not tensor.is_floating_point():
                owner.register_buffer(leaf, tensor.detach().clone())
            else:
                owner.register_parameter(leaf, nn.Parameter(tensor.detach().clone()))
        self.eval()

    def forward(self, *args: object, **kwargs: object) -> object:
        """What the program returns on these inputs."""
        weights = {key: self._isthmus_tensor(key) for key in self._isthmus_run.program.weights.values()}
        return self._isthmus_run(weights, Batch(args, kwargs))

    def _isthmus_tensor(self, key: str) -> Tensor:
        path, _, leaf = key.rpartition(".")
        tensor = getattr(self.get_submodule(path), leaf)
        if not isinstance(tensor, torch.Tensor):
            raise AttributeError(f"{key} is not a tensor of this module")
        return tensor


def completed(state: dict[str, Tensor], module: nn.Module | None) -> dict[str, Tensor]:
    """A state dict with the names of tied weights that its file left out (as safetensors files do).

    Args:
        state: named tensors.
        module: the architecture, which says what is tied; None leaves the state as it is.
    """
    if module is None:
        return state
    first: dict[int, str] = {}
    for key, tensor in module.state_dict(keep_vars=True).items():
        other = first.setdefault(id(tensor), key)
        if other != key and (key in state) != (other in state):
            missing, there = (key, other) if other in state else (other, key)
            state = {**state, missing: state[there]}
    return state
