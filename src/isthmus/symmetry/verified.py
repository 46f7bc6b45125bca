"""A graph that verifies: what fails is found, fixed, and named with the operation that did not follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from isthmus.program import Inputs, Program
from isthmus.symmetry import verify as checks
from isthmus.symmetry.elements import random_element
from isthmus.symmetry.gather import reorder
from isthmus.symmetry.graph import SymmetryGraph
from isthmus.symmetry.redraw import redraw
from isthmus.symmetry.trace import trace
from isthmus.symmetry.verify import Verification

#: Rounds of checking and fixing; one is enough unless a fault hides another.
ROUNDS = 8


def verified(
    model: nn.Module | Program | SymmetryGraph,
    example: Inputs | None = None,
    *,
    weights: nn.Module | Mapping[str, Tensor] | None = None,
    small: tuple[nn.Module, Inputs] | None = None,
    seed: int = 0,
) -> tuple[SymmetryGraph, Verification]:
    """Read the symmetries of a model and keep those that hold: the others are fixed, and named.

    Args:
        model: a module or a program as for `trace`, or a graph that was traced.
        example: inputs as for `trace`.
        weights: whose own weights are checked too; by default the model's, if it is a module.
        small: for a model that is too large to be run, as one on the meta device: a narrower one of the same
            class and depth, and its inputs. What holds there, with the same structure, holds here.
        seed: of the weights and elements drawn.

    Returns:
        The graph and its verification, whose `frozen` names the spaces that failed and where.

    Raises:
        VerificationError: the graph does not verify even so.

    Examples:
        >>> import torch, isthmus
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> graph, found = isthmus.verified(model, torch.randn(2, 4))
        >>> found.ok, found.frozen
        (True, {})
    """
    if small is not None:
        from isthmus.symmetry.stand_in import verified_by  # it verifies the small one by this function

        return verified_by(model, example, *small, seed=seed)
    graph = model if isinstance(model, SymmetryGraph) else trace(model, example)
    own = model if weights is None and isinstance(model, nn.Module) else weights
    frozen: dict[str, str] = {}
    found = graph.verify(own, example, seed=seed)
    for _ in range(ROUNDS):
        if found.ok or math.isnan(found.error) or not found.failed:
            break
        gauges = {name: f"relative error {e:.1e}" for name, e in found.failed.items() if name in graph.gauges}
        places = {
            name: culprit(graph, name, own, example, seed=seed) for name in found.failed if name not in gauges
        }
        frozen |= places | gauges
        graph = graph.frozen({name: f"fails verification at {where}" for name, where in places.items()})
        graph = replace(graph, refused={**graph.refused, **gauges})
        found = graph.verify(own, example, seed=seed)
    if not math.isnan(found.error):
        found.require()
    return graph, replace(found, frozen=frozen)


def culprit(
    graph: SymmetryGraph,
    space: str,
    model: nn.Module | Mapping[str, Tensor] | None = None,
    example: Inputs | None = None,
    *,
    seed: int = 0,
) -> str:
    """The operation at which a space that fails goes wrong.

    The graph says how every value moves along with the space. From an output that does not, go back through
    values that do not either: the last of them is computed from values that all moved as they should.

    Returns:
        The module and operation; "output" where nothing is at fault alone.
    """
    weights = dict(model.state_dict() if isinstance(model, nn.Module) else model or {})
    program = graph.program.to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(seed)
    batch = checks.batch_for(program, example, seed)
    redrawn = redraw(graph, program, weights, batch, generator)
    element = {space: random_element(graph, generator).orders[space]}
    names = [n.name for n in program.graph.nodes if n.op == "call_function" and program.is_tensor(n.name)]
    run = program.compile(taps=names)
    before: dict[str, Tensor] = {}
    wrong: set[str] = set()

    def keep(name: str, value: Tensor) -> None:
        before[name] = value

    def compare(name: str, value: Tensor) -> None:
        expected = before[name]
        if len(graph.values[name]) == expected.ndim:
            expected = reorder(expected, graph.values[name], element, graph.spaces)
        scale = expected.abs().max().item() if expected.numel() and expected.is_floating_point() else 1.0
        difference = (value.double() - expected.double()).abs().nan_to_num(0.0)
        if difference.numel() and difference.max().item() > checks.BOUND * (scale or 1.0):
            wrong.add(name)

    with torch.no_grad():
        run(redrawn, batch, tap=keep)
        run(checks.moved(graph, redrawn, element), batch, tap=compare)
    for name in graph.program.outputs:
        node = graph.program.nodes[name] if name in wrong else None
        while node is not None:
            before_it = _first(node, wrong)
            if before_it is None:
                return graph.program.origin[node.name]
            node = before_it
    return "output"


def _first(node: fx.Node, wrong: set[str]) -> fx.Node | None:
    """A value that a node is computed from and that is wrong, looking through results of several tensors."""
    for argument in node.all_input_nodes:
        if argument.name in wrong:
            return argument
        if not isinstance(argument.meta.get("val"), Tensor):
            found = _first(argument, wrong)
            if found is not None:
                return found
    return None
