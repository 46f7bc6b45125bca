"""Gram matrices of what linear maps and convolutions read."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from isthmus.errors import InputError
from isthmus.features import Request, collect, feed, windows
from isthmus.program import Inputs, Program
from isthmus.statistics.gathered import Gathered
from isthmus.statistics.gradients import pieces
from isthmus.statistics.reading import read

aten = torch.ops.aten


def gram_matrices(
    model: nn.Module | Program,
    data: Iterable[object],
    *,
    weights: Mapping[str, Tensor] | None = None,
    example: Inputs | None = None,
    skip: Sequence[str] = (),
    limit: int | None = None,
    microbatch: int = 32,
    device: torch.device | str | None = None,
) -> Gathered:
    """X^T X / n of the inputs of each linear map and convolution, for `reg-mean`.

    A row of X is what one output is computed from: an example's (or token's) features for a linear map, a patch,
    zero padding included, for a convolution. A map that is applied in several places pools what it reads in all.

    Args:
        model: a module, or a program with `weights`.
        data: an iterable of inputs or (inputs, targets); targets are not used.
        weights: a state dict to run the model with; a module's own where not given.
        example: inputs to read a module with; the first batch of `data` where not given.
        skip: patterns of weights to leave out.
        limit: number of examples after which to stop.
        microbatch: examples run at a time: a convolution's patches take up its input times the kernel's area.
        device: where to run; None for where the weights are.

    Returns:
        Weight -> Gram matrix, float64, (in, in) or (in * kernel, in * kernel). `left` says of each other matrix why it
        has none: grouped and transposed convolutions, weights that are also read by something else (an embedding),
        and those that are sliced or computed before they are applied.

    Raises:
        InputError: a pattern that no weight has, or no linear map at all.
        DataError: data that does not fit, or activations that are not finite.

    Source:
        Jin et al., arXiv:2212.09849, section 3.2, for linear layers; patches are the same for a convolution.

    Examples:
        >>> import torch, isthmus
        >>> x = torch.randn(8, 2)
        >>> known = isthmus.gram_matrices(torch.nn.Linear(2, 3), [x])
        >>> torch.allclose(known["weight"].float(), x.T @ x / 8, atol=1e-6)
        True
    """
    if microbatch < 1:
        raise InputError(f"microbatch={microbatch} is not at least 1")
    program, own, data = read(model, data, weights, example)
    unused = [p for p in skip if not any(fnmatch.fnmatchcase(key, p) for key in program.shapes)]
    if unused:
        raise InputError(
            f"no weight is called {', '.join(map(repr, unused))}", hint="skip= takes patterns of names"
        )
    readings, left = _readings(program, skip)
    if not readings:
        raise InputError(
            "no weight is applied as a linear map that RegMean knows", [f"{k}: {w}" for k, w in left.items()]
        )
    wanted = dict.fromkeys(request for requests in readings.values() for request in requests)
    small = (
        (piece.args, piece.kwargs)
        for batch in feed(data, "Gram matrices", limit)
        for _, piece in pieces(batch, microbatch)
    )
    found = collect(program, [own], _plain(small), wanted, device=device)
    grams: dict[str, Tensor] = {}
    for key, requests in readings.items():
        moments = [found[request.place] for request in requests]
        samples = sum(m.samples for m in moments)
        grams[key] = sum((m.second(0, 0) * (m.samples / samples) for m in moments), torch.zeros(()))
    grams |= {alias: grams[key] for alias, key in program.tied.items() if key in grams}
    return Gathered(grams, {"kind": "gram", "examples": found.examples}, left)


def _plain(parts: Iterable[tuple[tuple[object, ...], dict[str, object]]]) -> Iterator[object]:
    """Batches as a user would write them."""
    for args, kwargs in parts:
        yield kwargs if kwargs else (args, None)


def _readings(program: Program, skip: Sequence[str]) -> tuple[dict[str, tuple[Request, ...]], dict[str, str]]:
    """Weight -> what is read by the maps that it is applied by; and why a matrix has no such map."""
    found: dict[str, tuple[Request, ...]] = {}
    left: dict[str, str] = {}
    for name, key in program.weights.items():
        node = program.nodes[name]
        names = [key, *(alias for alias, first in program.tied.items() if first == key)]
        if key in program.buffers or len(program.shapes[key]) < 2 or not node.users:
            continue
        if any(fnmatch.fnmatchcase(n, pattern) for n in names for pattern in skip):
            left[key] = "left out (skip)"
            continue
        requests: list[Request] = []
        for user in node.users:
            request = request_of(program, user, node)
            if isinstance(request, str):
                left[key] = request
                break
            requests.append(request)
        else:
            found[key] = tuple(requests)
    return found, left


def request_of(program: Program, node: fx.Node, weight: fx.Node) -> Request | str:
    """What one operation reads beside its weight; a reason where there is no Gram matrix of it."""
    told = f"read by {program.origin[node.name]}"
    if len(node.args) < 2 or node.args[1] is not weight or not isinstance(node.args[0], fx.Node):
        return told
    source = node.args[0]
    if source.name not in program.dynamic:
        return f"{told}, of weights alone"
    if node.target is aten.linear.default:
        return Request(source.name, len(program.size(source.name)) - 1, "joint")
    if (shown := windows(program, node)) is None:
        return told
    patches, groups = shown
    return Request(source.name, 1, "joint", patches) if groups == 1 else f"{told} in {groups} groups"
