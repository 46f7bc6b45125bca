"""Scaled dot-product attention: queries meet keys, values pass, heads stay together."""

from __future__ import annotations

from torch import Tensor, fx, ops

from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, every, given, rule
from isthmus.symmetry.rules.pointwise import broadcast
from isthmus.symmetry.terms import Product, size

aten = ops.aten


@rule(aten.scaled_dot_product_attention.default)
def attention(trace: Reading, node: fx.Node) -> Axes:
    """softmax(q k^T + mask) v over (..., heads, tokens, width)."""
    return _attended(trace, node, given(node, "attn_mask"))


def _attended(trace: Reading, node: fx.Node, mask: object) -> Axes:
    query, key, value = (trace.axes(n) for n in node.args[:3])
    if len(query) > 2 and size(query[-3]) != size(key[-3]):
        # Grouped queries: query heads are key heads x queries per key.
        copies = trace.alike(size(query[-3]) // size(key[-3]))
        key = [*key[:-3], Product((key[-3], copies)), *key[-2:]]
        value = [*value[:-3], Product((value[-3], copies)), *value[-2:]]
    batch = broadcast(trace, query[:-2], key[:-2], value[:-2])
    trace.unify(query[-1], key[-1])
    trace.unify(key[-2], value[-2])
    trace.mix(query, [-1])
    trace.mix(key, [-1])
    trace.mix(value, [-2])
    if isinstance(mask, fx.Node):
        broadcast(trace, [*batch, query[-2], key[-2]], trace.axes(mask))
    if given(node, "is_causal"):
        # Each token sees those before it: their order matters, also where tokens are weights.
        trace.freeze([query[-2], key[-2]])
    return [*batch, query[-2], value[-1]]


@rule(
    *every(
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
        "_scaled_dot_product_attention_math",
    )
)
def kernel(trace: Reading, node: fx.Node) -> list[Axes]:
    """One of the kernels behind it: the result, then what only a backward pass reads."""
    mask = given(node, "attn_mask") or given(node, "attn_bias")
    axes = _attended(trace, node, mask)
    rest: list[Axes] = [
        [trace.fixed(int(n)) for n in value.shape] if isinstance(value, Tensor) else []
        for value in node.meta["val"][1:]
    ]
    return [axes, *rest]
