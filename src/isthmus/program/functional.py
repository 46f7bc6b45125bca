"""In-place operations, made ordinary: a watched value must still be what was computed."""

from __future__ import annotations

import torch
from torch import fx
from torch._ops import OpOverload  # what a node's target is; torch has no public name for it

aten = torch.ops.aten

# In eval mode dropout hands its input through, though its schema does not say so.
_HANDS_THROUGH = frozenset({aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default})


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
