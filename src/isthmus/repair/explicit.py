"""New parameters in a program: a gain and a shift of their own for values whose weights cannot take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from isthmus.errors import InputError
from isthmus.program import Program

aten = torch.ops.aten


@dataclass(frozen=True)
class Explicit:
    """What a value gets.

    Attributes:
        axis: the value's channel axis.
        gain: whether a factor per channel is added.
        shift: whether a summand per channel is added.
    """

    axis: int
    gain: bool
    shift: bool


def explicit_keys(value: str) -> tuple[str, str]:
    """Keys of the gain and the shift of a value."""
    return f"repair.{value}.gain", f"repair.{value}.shift"


def explicit_names(program: Program, value: str) -> tuple[str, ...]:
    """A value and what is read in its place, if it was given parameters."""
    return tuple(n for n in (value, f"{value}_scaled", f"{value}_shifted") if n in program.nodes)


def with_parameters(program: Program, wanted: Mapping[str, Explicit]) -> tuple[Program, dict[str, Tensor]]:
    """Put a gain and a shift behind values; all that read a value then read it scaled and shifted.

    Args:
        program: the graph; it is not changed.
        wanted: what each value gets.

    Returns:
        The new program, in which values keep their names (what is read instead of `value` is
        `value_scaled` and `value_shifted`), and the new weights: ones and zeros that broadcast with it.

    Raises:
        InputError: the program has such parameters already.
    """
    added: dict[str, Tensor] = {}
    for value, kinds in wanted.items():
        size, fake = program.size(value), program.value(value)
        shape = (size[kinds.axis], *[1] * (len(size) - 1 - kinds.axis))
        for key, use, make in zip(
            explicit_keys(value), (kinds.gain, kinds.shift), (torch.ones, torch.zeros), strict=True
        ):
            if use:
                added[key] = make(shape, dtype=fake.dtype)
    if taken := sorted(added.keys() & program.shapes.keys()):
        raise InputError("the program has repair parameters already", taken)

    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    keys: dict[str, fx.Node] = {}
    for value, kinds in wanted.items():
        fake = program.value(value)
        for key in explicit_keys(value):
            if key in added:
                keys[key] = graph.placeholder(key.replace(".", "_"))
                with fake.fake_mode:  # pyright: ignore[reportAttributeAccessIssue]  # a FakeTensor has one
                    keys[key].meta["val"] = torch.empty(
                        added[key].shape, dtype=fake.dtype, device=fake.device
                    )
        assert kinds.gain or kinds.shift, f"{value} gets neither gain nor shift"
    for node in program.graph.nodes:
        copy = graph.node_copy(node, copies.__getitem__)
        assert copy.name == node.name, "values keep their names"
        steps = ((aten.mul.Tensor, "scaled"), (aten.add.Tensor, "shifted"))
        for key, (target, done) in zip(explicit_keys(node.name), steps, strict=True):
            if key in keys:
                name = f"{node.name}_{done}"
                copy = graph.create_node("call_function", target, (copy, keys[key]), name=name)
                copy.meta = dict(node.meta)
        copies[node] = copy
    outputs = tuple(name if name is None else copies[program.nodes[name]].name for name in program.outputs)
    new = replace(
        program,
        graph=graph,
        weights={**program.weights, **{node.name: key for key, node in keys.items()}},
        outputs=outputs,
        shapes={**program.shapes, **{key: tuple(tensor.shape) for key, tensor in added.items()}},
    )
    return new, added
