"""Drawing the parameters of a network anew."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from isthmus.errors import InputError

Model = TypeVar("Model", bound=nn.Module)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def init(model: Model, seed: int) -> Model:
    """A copy of the network with every parameter and buffer as freshly drawn, determined by the seed alone.

    Every module resets itself; convolutions then get Kaiming's normal weights for ReLU, by fan-out (by
    fan-in if grouped: the fan-out of a depthwise filter counts units that it does not feed), and zero biases.

    Args:
        model: left as it is.
        seed: of the draws; torch's own generator is left where it was.

    Raises:
        InputError: a module holds parameters and has no `reset_parameters`, so they could not be drawn.

    Source: He et al. 2015, equation 14; fan-out is what the papers' code has for VGG.
    """
    drawn = copy.deepcopy(model)
    stuck = [
        f"{name or 'the model itself'} ({type(module).__name__})"
        for name, module in drawn.named_modules()
        if next(module.parameters(recurse=False), None) is not None and _reset(module) is None
    ]
    if stuck:
        raise InputError("these modules have parameters and no reset_parameters()", where=stuck)
    devices = {p.device for p in drawn.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for module in drawn.modules():
            reset = _reset(module)
            if reset is not None:
                reset()
            if isinstance(module, CONVOLUTIONS):
                mode = "fan_out" if module.groups == 1 else "fan_in"
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return drawn


def _reset(module: nn.Module):
    """The module's own way to start afresh; MultiheadAttention's has an underscore."""
    return getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
