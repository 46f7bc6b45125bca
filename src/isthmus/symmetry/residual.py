"""Residual streams: the spaces on which the outputs of several layers are added up."""

from __future__ import annotations

import torch
from torch import fx

from isthmus.program import LINEAR, Program
from isthmus.symmetry.axes import leaves
from isthmus.symmetry.graph import SymmetryGraph
from isthmus.symmetry.saved import SavedProgram


def residual_streams(graph: SymmetryGraph) -> tuple[str, ...]:
    """Spaces on which activations that come from different layers are added to each other.

    The two halves that a rotary embedding adds come from the same layer: heads are no stream.

    Args:
        graph: traced, or read from a file.

    Examples:
        >>> import torch, isthmus
        >>> from isthmus.symmetry.residual import residual_streams
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.first, self.up = torch.nn.Linear(4, 8), torch.nn.Linear(8, 16)
        ...         self.down, self.last = torch.nn.Linear(16, 8), torch.nn.Linear(8, 2)
        ...     def forward(self, x):
        ...         x = self.first(x)
        ...         return self.last(x + self.down(self.up(x).relu()))
        >>> residual_streams(isthmus.trace(Block(), torch.randn(3, 4)))
        ('first',)
    """
    program = graph.program
    if isinstance(program, SavedProgram):
        return tuple(name for name in program.residual if name in graph.spaces)
    found: dict[str, None] = {}
    makers: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in program.graph.nodes:
        if getattr(node.target, "overloadpacket", None) is not torch.ops.aten.add:
            continue
        added = [a for a in node.all_input_nodes if a.name in program.dynamic and a.name in program.learned]
        if len(added) == 2 and _makers(added[0], program, makers) != _makers(added[1], program, makers):
            for axis in graph.values.get(node.name, ()):
                found |= dict.fromkeys(leaf.space for leaf in leaves(axis) if leaf.space is not None)
    return tuple(found)


def _makers(node: fx.Node, program: Program, known: dict[fx.Node, frozenset[fx.Node]]) -> frozenset[fx.Node]:
    """The layers that a value comes from, looking through whatever applies no matrix."""
    todo = [node]
    while todo:
        at = todo[-1]
        before = [a for a in at.all_input_nodes if a.name in program.dynamic]
        if at.target in LINEAR or not before:
            known[at] = frozenset([at])
        elif left := [a for a in before if a not in known]:
            todo += left
            continue
        else:
            known[at] = frozenset().union(*(known[a] for a in before))
        todo.pop()
    return known[node]
