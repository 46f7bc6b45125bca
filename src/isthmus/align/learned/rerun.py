"""Running a network again after some of its weights have changed: only what depends on them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from isthmus.program import Batch, Program, Runner

#: The values that are kept of one batch.
Kept = dict[str, Tensor]


class Rerun:
    """A network on fixed batches whose activations are kept where later runs may begin.

    Args:
        program: the network.
        batches: what it is run on.
        parts: name -> the weights that change together.
        norms: batch norms that look at the batch.
    """

    def __init__(
        self,
        program: Program,
        batches: Sequence[Batch],
        parts: Mapping[str, Collection[str]],
        norms: Iterable[str],
    ):
        self.program, self.batches, self.norms = program, batches, tuple(norms)
        self.changed = {name: _descendants(program, keys) for name, keys in parts.items()}
        self.edges = {name: _edge(program, nodes) for name, nodes in self.changed.items()}
        #: The values that some later run begins at.
        self.kept = tuple(dict.fromkeys(value for edge in self.edges.values() for value in edge))
        self._runners: dict[str | None, tuple[Runner, tuple[str, ...]]] = {}

    def __call__(
        self,
        weights: Mapping[str, Tensor],
        judge: Callable[[object, Batch], Tensor],
        part: str | None = None,
        before: Sequence[Kept] | None = None,
    ) -> tuple[float, list[Kept]]:
        """The mean over all examples of what is thought of the outputs.

        Args:
            weights: of the network.
            judge: from what the model returns and a batch to a mean over that batch.
            part: which weights differ from those that `before` was kept of; None for a whole run.
            before: what the last run kept, batch by batch.

        Returns:
            The mean, and what is to be kept if these weights stay.
        """
        runner, again = self._runner(part)
        total, examples = 0.0, 0
        after: list[Kept] = []
        with torch.no_grad():
            for index, batch in enumerate(self.batches):
                known = dict(before[index]) if part is not None and before is not None else {}
                edge = self.edges[part] if part is not None else ()
                found = runner(weights, batch, given={name: known[name] for name in edge})
                assert isinstance(found, dict)
                outputs = [None if name is None else found[name] for name in self.program.outputs]
                total += (
                    float(judge(pytree.tree_unflatten(outputs, self.program.out_spec), batch)) * batch.size
                )
                examples += batch.size
                after.append({**known, **{name: found[name] for name in again}})
        return total / examples, after

    def _runner(self, part: str | None) -> tuple[Runner, tuple[str, ...]]:
        """What computes the outputs from where a part begins, and which kept values it finds on the way."""
        if part not in self._runners:
            again = self.kept if part is None else tuple(n for n in self.kept if n in self.changed[part])
            wanted = dict.fromkeys([*(name for name in self.program.outputs if name is not None), *again])
            given = () if part is None else self.edges[part]
            runner = self.program.compile(list(wanted), given=given, batch_statistics=self.norms)
            self._runners[part] = runner, again
        return self._runners[part]


def _descendants(program: Program, keys: Collection[str]) -> frozenset[str]:
    """The values that depend on some weights."""
    found: set[str] = {program.keys[key] for key in keys if key in program.keys}
    for node in program.graph.nodes:
        if any(argument.name in found for argument in node.all_input_nodes):
            found.add(node.name)
    return frozenset(found)


def _edge(program: Program, changed: Collection[str]) -> tuple[str, ...]:
    """The activations next to what changes: all that has to be known of the rest."""
    found: dict[str, None] = {}
    seen: set[str] = set()
    stack: list[fx.Node] = [program.nodes[name] for name in changed]
    while stack:
        for argument in stack.pop().all_input_nodes:
            name = argument.name
            if name in changed or name in seen or name not in program.dynamic or name in program.inputs:
                continue
            seen.add(name)
            if program.is_tensor(name):
                found[name] = None
            else:
                stack.append(argument)  # a size: computed again from what it is the size of
    return tuple(name for name in program.nodes if name in found)
