"""Run a program, or part of it, on any weights, with values watched or replaced on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from isthmus.errors import DataError
from isthmus.program.batches import Batch
from isthmus.program.program import Program

aten = torch.ops.aten

#: Called with a value's name and tensor; a returned tensor takes the value's place.
Tap = Callable[[str, Tensor], Tensor | None]


def _show(tap: Tap | None, name: str, value: Tensor) -> Tensor:
    replacement = tap(name, value) if tap is not None else None
    return value if replacement is None else replacement


def _batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return torch.nn.functional.batch_norm(x, None, None, weight, bias, True, 0.0, eps)


@dataclass
class Runner:
    """A compiled part of a program: a function of weights and inputs.

    Attributes:
        program: where it was cut from.
        outputs: the values it computes; None for what the model returns.
        given: values the caller supplies.
        taps: values shown to the caller's tap.
    """

    program: Program
    outputs: tuple[str, ...] | None
    given: tuple[str, ...]
    taps: tuple[str, ...]
    _module: fx.GraphModule
    _needed: tuple[str, ...]
    _wants_tap: bool
    _batch_statistics: frozenset[str]
    _moved: dict[torch.device, Runner] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, object]) -> Runner:
        return self  # a function: the copy of a module calls the same one

    def __call__(
        self,
        weights: Mapping[str, Tensor],
        batch: Batch,
        *,
        given: Mapping[str, Tensor] | None = None,
        tap: Tap | None = None,
    ) -> object:
        """Run on one batch.

        Args:
            weights: a state dict of the program (extra keys are ignored).
            batch: the inputs, on the device of the weights.
            given: a tensor for each value named in `given`.
            tap: called on each value named in `taps`.

        Returns:
            What the model returns, or a dict of the `outputs` that were asked for.
        """
        program = self.program
        placed = program.lookup(weights)
        device = next(iter(placed.values())).device if placed else torch.device("cpu")
        if program.device is not None and program.device != device and device.type != "meta":
            if device not in self._moved:
                self._moved[device] = build(
                    program.to(device), self.outputs, self.given, self.taps, self._batch_statistics
                )
            return self._moved[device](weights, batch, given=given, tap=tap)
        flat = _flat(program, batch)
        feed: dict[str, object] = dict(placed)
        feed.update(program.constants)
        feed.update(zip(program.inputs, flat, strict=True))
        feed.update(given or {})
        arguments = [feed[name] for name in self._needed]
        results = self._module(*([tap] if self._wants_tap else []), *arguments)
        if self.outputs is not None:
            return dict(zip(self.outputs, results, strict=True))
        return pytree.tree_unflatten(list(results), program.out_spec)


def _flat(program: Program, batch: Batch) -> list[object]:
    """The inputs in the order they were traced in; mappings are read by their keys, not their order."""
    nested = (tuple(batch.args), dict(batch.kwargs))
    leaves = pytree.tree_leaves(nested)
    if len(leaves) != len(program.inputs):
        raise DataError(
            f"the model takes {len(program.inputs)} inputs, the data gives {len(leaves)}",
            hint=f"it was traced with {_signature(program.in_spec)}",
        )
    if len(leaves) == 1:
        return leaves  # by position or by name: there is nothing to confuse it with
    try:
        return program.in_spec.flatten_up_to(nested)
    except (ValueError, KeyError) as error:
        raise DataError(
            "the data gives other inputs than the model was traced with",
            [f"given {_signature(pytree.tree_structure(nested))}", f"traced {_signature(program.in_spec)}"],
        ) from error


def _signature(spec: pytree.TreeSpec) -> str:
    """How inputs nest, with a * for each: (*, *), {'mask': *}."""
    args, kwargs = pytree.tree_unflatten([_STAR] * spec.num_leaves, spec)
    return ", ".join(str(part) for part in (args, kwargs) if part) or "none"


class _Star:
    def __repr__(self) -> str:
        return "*"


_STAR = _Star()


def build(
    program: Program,
    outputs: Iterable[str] | None,
    given: tuple[str, ...],
    taps: tuple[str, ...],
    batch_statistics: frozenset[str],
) -> Runner:
    """Cut the ancestors of `outputs` out of the graph, stopping at `given`; see `Program.compile`."""
    names = None if outputs is None else tuple(outputs)
    for name in (*(names or ()), *given, *taps, *batch_statistics):
        if name not in program.nodes:
            raise KeyError(f"the program has no value {name!r}")
    wanted = program.outputs if names is None else names
    targets = [name for name in wanted if name is not None]
    needed = _ancestors(program, targets, frozenset(given))

    graph = fx.Graph()
    placeholders: list[str] = []
    copies: dict[fx.Node, fx.Node] = {}
    tap_node: fx.Node | None = None
    if any(name in needed for name in taps):
        tap_node = graph.placeholder("tap")
    for node in program.graph.nodes:
        if node.name in needed and (node.op == "placeholder" or node.name in given):
            copies[node] = graph.placeholder(node.name)
            placeholders.append(node.name)
    order = set(taps)
    for node in program.graph.nodes:
        if node.name not in needed or node.op == "output":
            continue
        if node in copies:
            value = copies[node]
        elif node.name in batch_statistics:
            x, weight, bias, *_ = node.args
            eps = node.args[7]
            moved = fx.map_arg((x, weight, bias, eps), copies.__getitem__)
            value = graph.call_function(_batch_norm, moved)
        else:
            value = graph.node_copy(node, copies.__getitem__)
        if tap_node is not None and node.name in order:
            value = graph.call_function(_show, (tap_node, node.name, value))
        copies[node] = value
    results = [copies[program.nodes[name]] if name is not None else None for name in wanted]
    graph.output(results)
    module = fx.GraphModule(torch.nn.Module(), graph)
    return Runner(
        program, names, given, taps, module, tuple(placeholders), tap_node is not None, batch_statistics
    )


def _ancestors(program: Program, targets: Iterable[str], given: frozenset[str]) -> frozenset[str]:
    needed: set[str] = set()
    stack = [program.nodes[name] for name in targets]
    while stack:
        node = stack.pop()
        if node.name in needed:
            continue
        needed.add(node.name)
        if node.name not in given:
            stack.extend(node.all_input_nodes)
    return frozenset(needed)
