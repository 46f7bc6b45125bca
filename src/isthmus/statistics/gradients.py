"""Sums over examples of squared gradients: each example's own, never a batch's mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from isthmus.features import explained, part
from isthmus.program import Batch, Program, Runner, logits_of

#: Of one example: its outputs, as a batch of one, and its labels -> the vectors v_k, of the outputs' shape.
Vectors = Callable[[Tensor, Mapping[str, Tensor]], Iterator[Tensor]]

#: Elements of all gradients that are alive at a time, by default: 64 MiB of float32, twice.
ELEMENTS = 2**24


def squared_gradients(
    runner: Runner,
    weights: Mapping[str, Tensor],
    keys: tuple[str, ...],
    batch: Batch,
    labels: Mapping[str, Tensor],
    vectors: Vectors,
    *,
    vectorised: bool = True,
) -> dict[str, Tensor]:
    """sum over examples and k of (d <v_k, outputs> / d weight)^2, element by element.

    Args:
        runner: of the whole program.
        weights: a state dict.
        keys: of the weights to differentiate by.
        batch: some examples, where the weights are.
        labels: what `vectors` needs of each example, examples first.
        vectors: of one example, from its outputs as rows of classes.
        vectorised: by `torch.func.vmap`; otherwise example by example.

    Raises:
        RuntimeError: an operation of the program has no rule to be vectorised by.
        DataError: example by example, the program cannot be run on the batch.
    """
    moved = {key: weights[key].detach() for key in keys}
    leaves, spec = pytree.tree_flatten((batch.args, batch.kwargs))
    own = [i for i, v in enumerate(leaves) if isinstance(v, Tensor) and v.shape[:1] == (batch.size,)]

    def of_one(rows: list[Tensor], known: dict[str, Tensor]) -> dict[str, Tensor]:
        def outputs(given: dict[str, Tensor]) -> Tensor:
            filled = list(leaves)
            for i, row in zip(own, rows, strict=True):
                filled[i] = row.unsqueeze(0)
            args, kwargs = pytree.tree_unflatten(filled, spec)
            return logits_of(runner({**weights, **given}, Batch(args, kwargs)))

        found, pull, *_ = torch.func.vjp(outputs, moved)
        total = {key: torch.zeros_like(value) for key, value in moved.items()}
        for vector in vectors(found.detach(), known):
            (gradient,) = pull(vector)
            total = {key: total[key] + gradient[key].square() for key in total}
        return total

    rows = [leaves[i] for i in own]
    # Fused attention has no rule to be vectorised by: it would run example by example, and say so each time.
    if vectorised:
        with sdpa_kernel(SDPBackend.MATH):
            each = torch.func.vmap(of_one, in_dims=(0, 0), randomness="error")(rows, dict(labels))
        return {key: value.sum(0) for key, value in each.items()}
    found = {key: torch.zeros_like(value) for key, value in moved.items()}
    with explained(runner.program, batch, "one example"):
        for index in range(batch.size):
            one = of_one([row[index] for row in rows], {name: v[index] for name, v in labels.items()})
            found = {key: found[key] + one[key] for key in found}
    return found


def pieces(batch: Batch, size: int) -> Iterator[tuple[slice, Batch]]:
    """A batch in parts of at most `size` examples."""
    for start in range(0, batch.size, size):
        stop = min(start + size, batch.size)
        yield slice(start, stop), part(batch, start, stop)


def fitting(program: Program, keys: tuple[str, ...]) -> int:
    """How many examples' gradients are held at a time."""
    size = sum(torch.Size(program.shapes[key]).numel() for key in keys)
    return max(1, min(64, ELEMENTS // max(size, 1)))
