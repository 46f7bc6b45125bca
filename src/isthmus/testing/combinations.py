"""The laws of combinations."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
from torch import Tensor

from isthmus.combine import Block, BlockRule, Rule, Terms, cut, places, terms_of
from isthmus.testing.calls import TOLERANCE, Call, R, close, same_bytes, short, with_generator

_SHAPES = ((), (5,), (4, 3), (2, 3, 3, 3))
_SHARES = ((1.0,), (0.5, 0.5), (0.1, 0.9), (0.7, 0.2, 0.1), (0.25, 0.25, 0.25, 0.25))


def _random(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _known(call: Call, tensors: Sequence[Tensor], numbers: Sequence[int]) -> list[Tensor]:
    """Statistics that a rule may read, one per model: of each element, or a Gram matrix of its inputs."""
    shape = tuple(tensors[0].shape)
    terms = _terms(call)
    if terms.statistics == "no":
        return []
    made = terms.build(tuple(1 / len(tensors) for _ in tensors), **call.options) if terms.build else None
    if made is None or made.statistics == "elements":
        return [_random(shape, 50 + n).abs() + 0.1 for n in numbers]
    if len(shape) < 2:
        return []
    inputs = [_random((2 * math.prod(shape[1:]), math.prod(shape[1:])), 50 + n) for n in numbers]
    return [x.T @ x / len(x) for x in inputs]


def _offered(
    call: Call, tensors: Sequence[Tensor], shares: Sequence[float], numbers: Sequence[int]
) -> _Given:
    base = _random(tuple(tensors[0].shape), 99, tensors[0].dtype)
    return {
        "weights": tuple(shares),
        "base": base,
        "statistics": _known(call, tensors, numbers),
        "key": "layer.weight",
        "seed": 0,
    }


_Given = dict[str, Any]


def _combine(
    call: Call, tensors: Sequence[Tensor], shares: Sequence[float], numbers: Sequence[int] | None = None
) -> Tensor:
    """Combine tensors; `numbers` says which model is which where their order is not the usual one."""
    numbers = range(len(tensors)) if numbers is None else numbers
    found = call(list(tensors), **_offered(call, tensors, shares, numbers))
    assert isinstance(found, Tensor), f"it returns a {type(found).__name__}, no tensor"
    return found


def _terms(call: Call) -> Terms:
    return terms_of(cast("Rule", call.function))


def _shares(call: Call) -> list[tuple[float, ...]]:
    """Weights for numbers of models that the rule merges."""
    terms = _terms(call)
    return [s for s in _SHARES if terms.least <= len(s) <= (terms.most or len(s))]


def copies_give_the_model(call: Call) -> None:
    """Copies of a tensor are merged to it, in its dtype."""
    for dtype, shape, shares in itertools.product(TOLERANCE, _SHAPES, _shares(call)):
        tensor = _random(shape, 0, dtype)
        found = _combine(call, [tensor.clone() for _ in shares], shares)
        what = f"{short(dtype)}, {len(shares)} copies of shape {shape} weighted {shares}: the result"
        close(found, tensor, what, TOLERANCE[dtype])
        assert found.dtype == dtype, f"{what} is {short(found.dtype)}"


def order_free(call: Call) -> None:
    """The order of the models does not matter."""
    for dtype, shape in itertools.product(TOLERANCE, _SHAPES):
        shares = next(s for s in ((0.6, 0.3, 0.1), (0.7, 0.3)) if _merges(call, len(s)))
        tensors = [_random(shape, seed, dtype) for seed in range(len(shares))]
        first = _combine(call, tensors, shares)
        for order in itertools.permutations(range(len(shares))):
            found = _combine(call, [tensors[i] for i in order], [shares[i] for i in order], order)
            close(
                found,
                first,
                f"{short(dtype)}, shape {shape}, in order {order}: the result",
                TOLERANCE[dtype],
            )


def _merges(call: Call, models: int) -> bool:
    terms = _terms(call)
    return terms.least <= models <= (terms.most or models)


def _some(call: Call) -> tuple[float, ...]:
    return next(s for s in ((0.5, 0.3, 0.2), (0.7, 0.3), (1.0,)) if _merges(call, len(s)))


def seeded(call: Call) -> None:
    """The same seed gives the same bytes, whatever torch's own generator holds."""
    shares = _some(call)
    tensors = [_random((8, 6), seed) for seed in range(len(shares))]
    once, again = (with_generator(s, lambda: _combine(call, tensors, shares)) for s in (1, 2))
    same_bytes(again, once, "a second time")


def streams(call: Call) -> None:
    """Block by block, on several threads, in any order: the same bytes."""
    shares = _some(call)
    build = _terms(call).build
    for dtype in TOLERANCE:
        # Enough elements for several blocks, and for torch to give several threads a share.
        made = None if build is None else build(shares, **call.options)
        shape = (70, 8000) if made is not None and made.layout != "whole" else (350, 100)
        tensors = [_random(shape, seed, dtype) for seed in range(len(shares))]
        whole = _combine(call, tensors, shares)
        if build is None:
            for rows in (1, 7, 32):
                blocks = zip(*(t.split(rows) for t in tensors), strict=True)
                found = torch.cat([_combine(call, block, shares) for block in blocks])
                same_bytes(found, whole, f"{short(dtype)}, in blocks of {rows} of 350 rows")
        else:
            found = _streamed(
                build(shares, **call.options), _offered(call, tensors, shares, range(len(shares))), tensors
            )
            same_bytes(found, whole, f"{short(dtype)}, streamed by three threads, last block first")
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(3 if threads != 3 else 2)
            found = _combine(call, tensors, shares)
        finally:
            torch.set_num_threads(threads)
        same_bytes(found, whole, f"{short(dtype)}, with another number of threads")


def _streamed(rule: BlockRule, given: _Given, tensors: Sequence[Tensor]) -> Tensor:
    """Merge as an engine may: blocks from anywhere, on several threads, in another order than they lie."""
    out = torch.empty_like(tensors[0])
    blocks = [
        Block(
            tuple(cut(t, rule.layout, place).clone() for t in tensors),
            place,
            cut(given["base"], rule.layout, place).clone(),
            tuple(
                cut(t, rule.layout, place) if rule.statistics == "elements" else t
                for t in given["statistics"]
            ),
        )
        for place in places(rule.layout, tuple(out.shape), key=given["key"], seed=given["seed"])
    ]
    with ThreadPoolExecutor(3) as pool:

        def backwards(do: Callable[[Block], R]) -> list[R]:
            return list(pool.map(do, reversed(blocks)))[::-1]

        for index in range(rule.passes):
            rule.reduce(index, backwards(functools.partial(rule.measure, index)))

        def write(block: Block) -> None:
            cut(out, rule.layout, block.place).copy_(rule.write(block))

        backwards(write)
    return out
