"""Scaled dot-product attention: queries meet keys, values pass, heads stay together."""

from __future__ import annotations

from torch import fx, ops

from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, rule
from isthmus.symmetry.rules.pointwise import broadcast
from isthmus.symmetry.terms import Product, size

aten = ops.aten


@rule(aten.scaled_dot_product_attention.default)
def attention(trace: Reading, node: fx.Node) -> Axes:
    """softmax(q k^T + mask) v over (..., heads, tokens, width)."""
    query, key, value = (trace.axes(n) for n in node.args[:3])
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    if len(query) > 2 and size(query[-3]) != size(key[-3]):
        # Grouped queries: query heads are key heads x queries per key.
        copies = trace.alike(size(query[-3]) // size(key[-3]))
        key = [*key[:-3], Product((key[-3], copies)), *key[-2:]]
        value = [*value[:-3], Product((value[-3], copies)), *value[-2:]]
    batch = broadcast(trace, query[:-2], key[:-2], value[:-2])
    trace.unify(query[-1], key[-1])
    trace.unify(key[-2], value[-2])
    if mask is not None:
        broadcast(trace, [*batch, query[-2], key[-2]], trace.axes(mask))
    return [*batch, query[-2], value[-1]]
