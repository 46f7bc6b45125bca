"""What a model costs to store and to run."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from isthmus.measure.answers import answering
from isthmus.measure.finding import Finding
from isthmus.program import Batch, Inputs, Program, example_of


@dataclass(frozen=True)
class Cost:
    """Size and work of a program.

    Attributes:
        parameters: numbers in the parameters that the program uses, tied ones once, buffers not.
        flops: floating-point operations for one example, counted in matrix products, convolutions and
            attention; a multiplication and an addition are two.
    """

    parameters: int
    flops: int

    def over(self, reference: Cost) -> tuple[Finding, Finding]:
        """How many times the reference: parameters, then FLOPs."""
        return (
            Finding("parameter ratio", self.parameters / reference.parameters, "1", "lower", (0.0, None)),
            Finding("FLOP ratio", self.flops / reference.flops, "1", "lower", (0.0, None)),
        )


def cost(model: Program | nn.Module, example: Inputs | Batch) -> Cost:
    """Count parameters and FLOPs: of a program on the meta device, where nothing is computed.

    Args:
        model: any program, also one with parts kept apart; or a module, which is run on one example as it is.
        example: inputs of the size that the program is for; one example of them is counted.

    Returns:
        The counts; `cost(kept, x).over(cost(program, x))` are the ratios of the literature.

    Examples:
        >>> from isthmus.program import export
        >>> x = torch.zeros(2, 5)
        >>> cost(export(torch.nn.Linear(5, 3), x), x)
        Cost(parameters=18, flops=30)
    """
    batch = example if isinstance(example, Batch) else example_of(example)

    def one(value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return value
        return torch.empty_like(value[:1] if value.ndim else value, device="meta")

    if isinstance(model, nn.Module):
        return _of_module(model, batch)
    program = model
    args, kwargs = pytree.tree_map(one, (tuple(batch.args), dict(batch.kwargs)))
    meta = program.to("meta")
    weights = {
        key: torch.empty(program.shapes[key], dtype=program.value(name).dtype, device="meta")
        for name, key in program.weights.items()
    }
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        meta.compile()(weights, Batch(args, kwargs))
    used = [key for name, key in program.weights.items() if program.nodes[name].users]
    parameters = sum(prod(program.shapes[key]) for key in used if key not in program.buffers)
    return Cost(parameters, int(counter.get_total_flops()))


def _of_module(model: nn.Module, batch: Batch) -> Cost:
    def one(value: object) -> object:
        return value[:1] if isinstance(value, torch.Tensor) and value.ndim else value

    args, kwargs = pytree.tree_map(one, (tuple(batch.args), dict(batch.kwargs)))
    counter = FlopCounterMode(display=False)
    # Fused attention has no count on every device; written out it is two matrix products.
    with answering(model) as ask, sdpa_kernel(SDPBackend.MATH), counter:
        ask(Batch(args, kwargs))
    return Cost(sum(p.numel() for p in model.parameters()), int(counter.get_total_flops()))
