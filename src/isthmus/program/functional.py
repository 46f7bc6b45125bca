"""In-place operations, made ordinary: a watched value must still be what was computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx
from torch._ops import OpOverload  # what a node's target is; torch has no public name for it

aten = torch.ops.aten

# In eval mode dropout hands its input through, though its schema does not say so.
_HANDS_THROUGH = frozenset({aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default})


def copy_into(
    graph: fx.Graph, module: fx.GraphModule, copies: dict[fx.Node, fx.Node], without: Sequence[str] = ()
) -> list[fx.Node]:
    """Copy a module's graph to the end of `graph`, with the blocks that only switch something off written inline.

    Args:
        graph: what to add to.
        module: where to copy from.
        copies: filled with node -> its copy. Placeholders that are in it already stand for what it says.
        without: parts of the names of operations to leave out.

    Returns:
        The sub-graph that could not be written inline, if one was met; the copy then is not whole.
    """
    for node in module.graph.nodes:
        target = str(node.target)
        if node in copies or (node.op == "call_function" and any(name in target for name in without)):
            continue
        if node.op == "get_attr" and isinstance(getattr(module, target, None), fx.GraphModule):
            if not all(map(_only_switches_off, node.users)):
                return [node]
        elif _only_switches_off(node):
            at = next(i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a.op == "get_attr")
            body = getattr(module, str(node.args[at].target))  # type: ignore[union-attr]
            own = [inner for inner in body.graph.nodes if inner.op == "placeholder"]
            end = next(inner for inner in body.graph.nodes if inner.op == "output")
            local = {inner: copies[outer] for inner, outer in zip(own, node.args[at + 1 :], strict=True)}  # type: ignore[index]
            local[end] = local[own[0]]  # the end of the block is no end here
            if left := copy_into(graph, body, local, without):
                return left
            for user in node.users:  # getitem: which of the block's results
                copies[user] = local[end.args[0][user.args[1]]]  # type: ignore[index]
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return []


def _only_switches_off(node: fx.Node) -> bool:
    """Whether a node runs a sub-graph with automatic casts, or gradients, off: as it would run by itself."""
    name = str(node.target)
    if node.op != "call_function" or "wrap_with" not in name:
        return False
    return "set_grad_enabled" in name or ("autocast" in name and node.args[2] is False)


def functionalise(graph: fx.Graph) -> list[fx.Node]:
    """Replace in-place operations (`relu_`) by their out-of-place form (`relu`), in this graph.

    Export keeps the user's in-place operations, with every later use of the overwritten tensor
    pointing at the in-place result. Run like that, the value from before is lost to whoever watches it.

    Returns:
        The operations that are still in place, because their effect is also seen through another
        name (a view made before and read after, an assignment to a slice).
    """
    position = {node: index for index, node in enumerate(graph.nodes)}
    family: dict[fx.Node, fx.Node] = {}  # node -> the oldest node whose memory it shares
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        source = _shares_memory_with(node)
        family[node] = node if source is None else family[source]
        members.setdefault(family[node], []).append(node)
    left: list[fx.Node] = []
    for node in graph.nodes:
        schema = _schema(node)
        if schema is None or not schema.is_mutable or node.target is aten.batch_norm.default:
            continue  # a batch norm is only mutable in training
        plain = _out_of_place(schema)
        # Only what is computed from this result may read the memory later on.
        own = {node}
        for member in members[family[node]]:
            if _shares_memory_with(member) in own:
                own.add(member)
        seen_elsewhere = any(
            position[user] > position[node] and user not in own
            for member in members[family[node]]
            if member not in own
            for user in member.users
        )
        if plain is None or seen_elsewhere:
            left.append(node)
        else:
            node.target = plain
    return left


def restore_batch_norms(graph: fx.Graph) -> None:
    """Write the batch norms of a decomposed graph as what the user's model calls, in this graph."""
    legit = aten._native_batch_norm_legit_no_training.default
    for node in [node for node in graph.nodes if node.target is legit]:
        x, weight, bias, mean, variance, momentum, eps = node.args
        with graph.inserting_before(node):
            arguments = (x, weight, bias, mean, variance, False, momentum, eps, False)
            norm = graph.create_node("call_function", aten.batch_norm.default, arguments, name="batch_norm")
        for result in list(node.users):  # a getitem of 0: the other two results are of training
            norm.meta = dict(result.meta)
            result.replace_all_uses_with(norm)
            graph.erase_node(result)
        graph.erase_node(node)


def restride(graph: fx.Graph) -> None:
    """Let nothing in this graph depend on how a tensor lies in memory, nor overwrite fresh memory.

    Kernels lay out their results by device and dtype: a view that was possible where the model was exported may
    not be where the program runs. And a copy into a tensor of which nothing is kept has no derivative.
    """
    for node in graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default
        elif node.target is aten.copy.default and len(node.args) == 2:
            into, source = (argument.meta["val"] for argument in node.args)
            if into.dtype == source.dtype and into.device == source.device:
                node.target, node.args = aten.expand_as.default, (node.args[1], node.args[0])


def _schema(node: fx.Node) -> torch.FunctionSchema | None:
    return node.target._schema if isinstance(node.target, OpOverload) else None  # pyright: ignore[reportPrivateUsage]


def _shares_memory_with(node: fx.Node) -> fx.Node | None:
    """The argument that a node's result is a view of, or overwrites."""
    schema = _schema(node)
    if schema is None:
        return node.args[0] if node.op == "call_function" and isinstance(node.args[0], fx.Node) else None
    shares = node.target in _HANDS_THROUGH or any(r.alias_info is not None for r in schema.returns)
    return node.args[0] if shares and node.args and isinstance(node.args[0], fx.Node) else None


def _out_of_place(schema: torch.FunctionSchema) -> OpOverload | None:
    namespace, _, name = schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    overload = schema.overload_name or "default"
    if not name.endswith("_") or packet is None or overload not in packet.overloads():
        return None
    return getattr(packet, overload)
