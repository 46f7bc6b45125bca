"""What a model costs to store and to run."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

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


def cost(program: Program, example: Inputs | Batch) -> Cost:
    """Count parameters and FLOPs on the meta device: nothing is computed, no weights are needed.

    Args:
        program: any program, also one with parts kept apart.
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
