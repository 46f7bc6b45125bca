"""A rule's arithmetic on one tensor, block by block: the same in memory and in a stream.

A tensor that does not fit in memory is still merged by the rule that merges a small one, because no rule
ever sees more than a block of it. A rule runs in passes: it may *measure* every block (norms, counts), it
*reduces* what was measured, in the order of the blocks, to a few numbers, and then it *writes* every block.

    for index in range(rule.passes):
        if not rule.skips(index):
            rule.reduce(index, (rule.measure(index, block) for block in blocks))
    for block in blocks:
        out[block.place.start : block.place.stop] = rule.write(block)

Where the blocks begin is fixed by the tensor's shape alone (`places`), so that neither the number of threads
nor the shards of a file show in a single bit. `measure` and `write` are pure and may run on any thread, in any
order; `reduce` runs alone. One object serves one tensor; if its `scope` is "model", one object serves all of
them, and a pass runs over the blocks of all tensors (in the order of the model's keys) before the next begins.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor

from isthmus.errors import InputError

#: Elements of a block. A few float32 blocks fit in a core's own cache, and what is done with one takes ten times
#: as long as calling it.
BLOCK = 1 << 17

#: Version of the arithmetic of all rules, the law of their random numbers included. Raised when any rule's result
#: changes in one bit for the same input, so that no run goes on where an older one stopped.
ARITHMETIC = 3

#: How a tensor is cut: runs of elements; whole rows of the last axis; whole filters (all but the first
#: axis); not at all.
Layout = Literal["elements", "rows", "filters", "whole"]

#: What a rule reads beside the models: nothing, one number per element, or tensors of a shape of their own.
Statistics = Literal["none", "elements", "whole"]

#: What a rule measures before it writes: the tensor alone, or all tensors of the models.
Scope = Literal["tensor", "model"]


@dataclass(frozen=True)
class Place:
    """Where a block lies.

    Attributes:
        key: the tensor's name; random numbers are drawn from (seed, key, element).
        shape: of the whole tensor.
        start: first element of the block in the flattened (row major) tensor.
        stop: one past its last element.
        seed: of the merge.
    """

    key: str
    shape: tuple[int, ...]
    start: int
    stop: int
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Block:
    """One block of every model, as stored.

    `elements` blocks are flat, `rows` and `filters` blocks are (rows, length of a row), `whole` blocks have
    the tensor's own shape.

    Attributes:
        models: one tensor per model, in whatever dtypes they are stored.
        place: where the block lies.
        base: of the base model, where the rule takes one.
        statistics: one tensor per model, where the rule takes them: cut like the models if the rule's
            `statistics` are "elements", uncut if they are "whole".
    """

    models: tuple[Tensor, ...]
    place: Place
    base: Tensor | None = None
    statistics: tuple[Tensor, ...] = ()


class BlockRule:
    """The arithmetic of one rule on one tensor.

    Attributes:
        layout: how the tensor is cut.
        scope: whether a pass runs over one tensor or over all of the models' (see above).
        passes: how many measuring passes come before the writing one; none for linear rules.
        statistics: what the rule reads beside models and base.
        complex: whether complex tensors can be merged.
        shows: whether a result is finite only where all models and the base are, so that none of them need be
            looked at.
        held: bytes that it may remember from one pass to the next.
    """

    layout: Layout = "elements"
    scope: Scope = "tensor"
    passes: int = 0
    statistics: Statistics = "none"
    complex: bool = False
    shows: bool = False
    held: int = 0

    def skips(self, index: int) -> bool:
        """Whether pass `index` is not needed, after what the passes before it have found.

        To run it all the same changes nothing.
        """
        del index
        return False

    def measure(self, index: int, block: Block) -> object:
        """What pass `index` wants to know of a block. Pure, on any thread."""
        raise NotImplementedError(f"{type(self).__name__} has no pass {index}")

    def reduce(self, index: int, partials: Iterable[object]) -> None:
        """Take in what pass `index` measured: all partials, in the order of the blocks, each once.

        The partials may be a generator: they need not all be in memory.
        """
        raise NotImplementedError(f"{type(self).__name__} has no pass {index}")

    def write(self, block: Block) -> Tensor:
        """The merged block, of the shape of the model's block, in the dtype of the arithmetic.

        Pure, on any thread. The result may be scratch memory of the calling thread: copy it out before
        the next call on the same thread.
        """
        raise NotImplementedError


def row_length(layout: Layout, shape: tuple[int, ...]) -> int:
    """Elements that may not be cut apart: 1 for elements, a row, a filter, or the whole tensor."""
    if layout == "whole":
        return max(math.prod(shape), 1)
    if layout == "rows":
        return max(shape[-1], 1) if shape else 1
    if layout == "filters":
        return max(math.prod(shape[1:]), 1) if len(shape) > 1 else max(math.prod(shape), 1)
    return 1


def places(
    layout: Layout, shape: tuple[int, ...], *, key: str = "", seed: int = 0, block: int = BLOCK
) -> tuple[Place, ...]:
    """The blocks of a tensor, in order; none for a tensor without elements.

    Args:
        layout: of the rule.
        shape: of the tensor.
        key: the tensor's name.
        seed: of the merge.
        block: elements that a block should have; a row longer than that is a block of its own. The
            results of rules that measure depend on it in the last bit, so that all engines keep to `BLOCK`.

    Examples:
        >>> [(p.start, p.stop) for p in places("rows", (5, 3), block=7)]
        [(0, 6), (6, 12), (12, 15)]
    """
    count = math.prod(shape)
    length = row_length(layout, shape)
    step = max(block // length, 1) * length
    return tuple(
        Place(key, tuple(shape), start, min(start + step, count), seed) for start in range(0, count, step)
    )


def cut(tensor: Tensor, layout: Layout, place: Place) -> Tensor:
    """The part of a tensor that lies at a place, in the shape that rules of the layout read."""
    if layout == "whole":
        return tensor
    flat = tensor.reshape(-1)[place.start : place.stop]
    return flat if layout == "elements" else flat.view(-1, row_length(layout, place.shape))


@dataclass(frozen=True, eq=False)
class Job:
    """One tensor of every model, in memory.

    Attributes:
        key: the tensor's name.
        models: one tensor per model, all of one shape.
        base: of the base model, where the rule takes one.
        statistics: one tensor per model, for rules that take them.
    """

    key: str
    models: Sequence[Tensor]
    base: Tensor | None = None
    statistics: Sequence[Tensor] = ()

    def blocks(self, rule: BlockRule, seed: int) -> Iterator[Block]:
        models = [t.detach().contiguous() for t in self.models]
        base = None if self.base is None else self.base.detach().contiguous()
        extra = [t.detach().contiguous() for t in self.statistics]
        for place in places(rule.layout, tuple(models[0].shape), key=self.key, seed=seed):
            yield Block(
                tuple(cut(t, rule.layout, place) for t in models),
                place,
                None if base is None else cut(base, rule.layout, place),
                tuple(cut(t, rule.layout, place) if rule.statistics == "elements" else t for t in extra),
            )


def measure(rule: BlockRule, jobs: Sequence[Job], seed: int = 0) -> None:
    """Run a rule's measuring passes: over one tensor, or over all of them if its scope is "model"."""
    with torch.no_grad():
        for index in range(rule.passes):
            if rule.skips(index):
                continue
            blocks = (block for job in jobs for block in job.blocks(rule, seed))
            rule.reduce(index, (rule.measure(index, block) for block in blocks))


def write(rule: BlockRule, job: Job, seed: int = 0) -> Tensor:
    """Merge one tensor by a rule that has measured it, into the widest of the models' dtypes."""
    with torch.no_grad():
        out = torch.empty(job.models[0].shape, dtype=widest(job.models), device=job.models[0].device)
        for block in job.blocks(rule, seed):
            cut(out, rule.layout, block.place).copy_(rule.write(block))
        return out


def run(
    rule: BlockRule,
    tensors: Sequence[Shaped[Tensor, "..."]],
    *,
    base: Shaped[Tensor, "..."] | None = None,
    statistics: Sequence[Tensor] = (),
    key: str = "",
    seed: int = 0,
) -> Shaped[Tensor, "..."]:
    """Merge one tensor that is in memory.

    Args:
        rule: made for this tensor (see `isthmus.combine.blockwise`).
        tensors: one per model, all of one shape.
        base: of the base model.
        statistics: one tensor per model, for rules that take them.
        key: the tensor's name.
        seed: of the merge.

    Returns:
        A tensor in the widest of the models' dtypes, whatever their order; no gradient flows through it.
    """
    job = Job(key, tensors, base, statistics)
    if tensors[0].numel():
        measure(rule, [job], seed)
    return write(rule, job, seed)


# What rules do their arithmetic with.


def widest(tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype that holds what all of the tensors hold, whatever their order."""
    return functools.reduce(_wider, (t.dtype for t in tensors))


def _wider(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    if a == b:
        return a
    if a.itemsize == 1 or b.itemsize == 1:  # nothing promotes to or from float8
        wide = a if a.itemsize > b.itemsize else b
        return wide if wide.itemsize > 1 else torch.bfloat16
    return torch.promote_types(a, b)


def arithmetic(block: Block, least: torch.dtype = torch.float32) -> torch.dtype:
    """The dtype to compute a block in: the widest of models and base, and at least `least`."""
    stored = widest(block.models if block.base is None else (*block.models, block.base))
    return torch.promote_types(stored, least) if stored.itemsize > 1 else least


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.whole: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
        self.last: dict[tuple[str, torch.dtype], Tensor] = {}


_BUFFERS = _Buffers()


def scratch(name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialised memory of the calling thread, of a tensor's shape, the same for the same name.

    Fresh memory for each operation costs more in page faults than the arithmetic itself.
    """
    shape, device = like.shape, like.device
    found = _BUFFERS.last.get((name, dtype))
    if found is not None and found.shape == shape and found.device == device:
        return found  # blocks are of one shape but for the last: even a view costs microseconds
    count = like.numel()
    if count > BLOCK:  # a whole tensor or a long row: not worth holding on to
        return torch.empty(shape, dtype=dtype, device=device)
    buffer = _BUFFERS.whole.get((name, dtype, device))
    if buffer is None:
        buffer = _BUFFERS.whole[name, dtype, device] = torch.empty(BLOCK, dtype=dtype, device=device)
    found = _BUFFERS.last[name, dtype] = buffer[:count].view(shape)
    return found


def widened(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The tensor in a dtype: itself where it has it (do not write to it), else in scratch memory."""
    return tensor if tensor.dtype == dtype else scratch(name, tensor, dtype).copy_(tensor)


def task_vector(model: Tensor, base: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """model - base in a dtype, in scratch memory; the base is already in that dtype."""
    out = scratch(name, model, dtype)
    if model.dtype == dtype:
        return torch.sub(model, base, out=out)
    return out.copy_(model).sub_(base)


def positive(tensor: Tensor, out: Tensor) -> None:
    """Where a tensor is greater than zero, as ones and zeros in bytes."""
    if tensor.is_cpu:  # numpy's comparisons take a tenth of the time of torch's
        np.greater(tensor.numpy(), 0, out=out.numpy().view(np.bool_))
    else:
        torch.gt(tensor, 0, out=out)


def sign_bits(numbers: Tensor) -> Tensor:
    """Of each number, the bits of zero with its sign, as integers; the memory of the numbers is used for it."""
    bits = numbers.view(torch.int32 if numbers.dtype == torch.float32 else torch.int64)
    return bits.bitwise_and_(-(1 << 31) if numbers.dtype == torch.float32 else -(1 << 63))


def turn(numbers: Tensor, signs: Tensor) -> None:
    """Multiply by signs (`sign_bits`), in place: half the time of multiplying by plus and minus one."""
    bits = numbers.view(signs.dtype)
    if numbers.is_cpu:
        np.bitwise_xor(bits.numpy(), signs.numpy(), out=bits.numpy())
    else:
        bits.bitwise_xor_(signs)


#: A block's numbers are added up in so many lanes: each takes one number of so many, in their order.
LANES = 1024

# Lanes are added up in the same way, and what is left exactly.
_FEW = 32


def dot(a: Tensor, b: Tensor) -> float:
    """The inner product of two blocks of one dtype, the same for any number of threads."""
    product = torch.mul(a, b, out=scratch("dot", a, a.dtype)).reshape(-1)
    return total(product)


def total(values: Tensor) -> float:
    """The sum of a block, in an order of its own: the same for any number of threads and any processor."""
    flat = values.reshape(-1).numpy(force=True)
    whole = flat.size // LANES * LANES
    # Whoever looks at the result refuses what is not finite.
    with np.errstate(over="ignore", invalid="ignore"):
        lanes = np.add.reduce(flat[:whole].reshape(-1, LANES), axis=0)
        lanes[: flat.size - whole] += flat[whole:]
    return total_of_lanes(lanes)


def total_of_lanes(lanes: NDArray[np.floating]) -> float:
    """The sum of a block that was added up in `LANES` lanes."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.fsum(np.add.reduce(lanes.reshape(-1, _FEW), axis=0).tolist())


def per_model(value: float | Sequence[float], count: int, name: str) -> tuple[float, ...]:
    """One number for every model, from one for all or one for each.

    Raises:
        InputError: another number of values than models.
    """
    if isinstance(value, (int, float)):
        return (float(value),) * count
    values = tuple(float(v) for v in value)
    if len(values) != count:
        raise InputError(f"{name} has {len(values)} values for {count} models")
    return values
