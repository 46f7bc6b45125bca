"""From a user's model to a program, by `torch.export`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from isthmus.errors import ExportError
from isthmus.program.batches import Batch, Inputs, example_of, home
from isthmus.program.evaluating import evaluating
from isthmus.program.functional import copy_into, functionalise, restore_batch_norms, restride
from isthmus.program.program import Program

#: Checks that export leaves in the graph; they bake in dtypes and devices and compute nothing.
_ASSERTIONS = (
    "_assert_tensor_metadata",
    "_assert_scalar",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
)


def _at_least_two(batch: Batch) -> Batch:
    """A batch of one is repeated: export would take its size for a constant."""
    leaves = [v for v in pytree.tree_leaves((batch.args, batch.kwargs)) if isinstance(v, Tensor) and v.ndim]
    if not leaves or any(leaf.shape[0] != 1 for leaf in leaves):
        return batch

    def double(value: object) -> object:
        return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim else value

    args, kwargs = pytree.tree_map(double, (batch.args, batch.kwargs))
    return Batch(args, kwargs)


def export(model: nn.Module, example: Inputs) -> Program:
    """Read a model as a program. The batch dimension (dimension 0 of every input) stays free.

    The model is exported in eval mode and left as it was found. It may live on the meta device.

    Args:
        model: any module that `torch.export` takes.
        example: one tensor, a tuple of positional inputs, or a mapping of keyword inputs.

    Raises:
        ExportError: `torch.export` could not; the message says where and what to change.
    """
    batch = _at_least_two(example_of(example)).to(*home(model.state_dict()))
    try:
        bound = inspect.signature(model.forward).bind(*batch.args, **batch.kwargs).arguments
    except TypeError as error:
        raise ExportError(
            f"{type(model).__name__} does not take the example's inputs", [str(error)]
        ) from error
    shapes = pytree.tree_map(
        lambda v: {0: Dim.AUTO} if isinstance(v, Tensor) and v.ndim else None, dict(bound)
    )
    try:
        # Without gradients there is no `with torch.no_grad()` sub-graph to look into.
        with evaluating(model), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(model, batch.args, batch.kwargs, dynamic_shapes=shapes)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(
            f"{type(model).__name__} cannot be exported to a graph",
            [
                *(f"{type(error).__name__}: {line}" if i == 0 else line for i, line in enumerate(reason[:6])),
                f"the example is {', '.join(_described(batch))}",
            ],
            hint="check that the example (or the data's first batch) fits it; make its forward free of branches on "
            "tensor values, of printing and of caches (for transformers: model.config.use_cache = False)",
        ) from error
    return _program(model, exported)


def _described(batch: Batch) -> Iterator[str]:
    for value in pytree.tree_leaves((batch.args, batch.kwargs)):
        if isinstance(value, Tensor):
            yield f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        else:
            yield repr(value)


def _program(
    model: nn.Module, exported: torch.export.ExportedProgram, *, decomposed: bool = False
) -> Program:
    signature = exported.graph_signature
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    if unknown := copy_into(graph, exported.graph_module, copies, without=_ASSERTIONS):
        raise ExportError(
            f"{type(model).__name__} uses a higher-order operation",
            [f"{user.name}: {user.target}" for node in unknown for user in node.users],
            hint="control flow such as torch.cond, or a checkpointed block, is not supported",
        )
    restore_batch_norms(graph)
    if left := functionalise(graph):
        if not decomposed:
            # Torch knows how to write assignments to slices as functions; it renames more than we need.
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _program(model, exported.run_decompositions({}), decomposed=True)
        raise ExportError(
            f"{type(model).__name__} overwrites values in a way that cannot be written as a function",
            [f"{node.name}: {node.target}" for node in left],
        )

    restride(graph)

    # A graph of ours renames what would shadow a builtin ("input" becomes "input_1").
    ours = {node.name: copy.name for node, copy in copies.items()}
    state = dict(model.state_dict(keep_vars=True))
    weights: dict[str, str] = {}
    buffers: set[str] = set()
    constants: dict[str, Tensor] = {}
    inputs: list[str] = []
    for entry in signature.input_specs:
        name = ours[entry.arg.name]
        if entry.kind is InputKind.USER_INPUT:
            inputs.append(name)
        elif entry.target in state:
            weights[name] = str(entry.target)
            if entry.kind is InputKind.BUFFER:
                buffers.add(str(entry.target))
        else:
            value = exported.constants.get(str(entry.target))
            if isinstance(value, Tensor):
                constants[name] = value.detach()
    outputs = [
        ours[entry.arg.name] if isinstance(entry.arg, TensorArgument) else None
        for entry in signature.output_specs
        if entry.kind is OutputKind.USER_OUTPUT
    ]
    tied = _tie(state, graph, weights)
    spec = exported.call_spec
    assert spec.in_spec is not None and spec.out_spec is not None
    return Program(
        graph=graph,
        weights=weights,
        buffers=frozenset(buffers),
        constants=constants,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        in_spec=spec.in_spec,
        out_spec=spec.out_spec,
        tied=tied,
        shapes={key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)},
    )


def _tie(state: dict[str, Tensor], graph: fx.Graph, weights: dict[str, str]) -> dict[str, str]:
    """Find keys that are one tensor, and let the graph read it under one of them."""
    first: dict[int, str] = {}
    used = {name for name in weights if any(n.name == name and n.users for n in graph.nodes)}
    used_keys = {weights[name] for name in used}
    tied: dict[str, str] = {}
    for key in sorted(state, key=lambda k: k not in used_keys):
        first_key = first.setdefault(id(state[key]), key)
        if first_key != key:
            tied[key] = first_key
    if tied:
        by_key = {weights[n.name]: n for n in graph.nodes if n.name in weights}
        for alias, key in tied.items():
            if alias in by_key and key in by_key:
                by_key[alias].replace_all_uses_with(by_key[key])
                graph.erase_node(by_key[alias])
                del weights[by_key[alias].name]
    return tied
