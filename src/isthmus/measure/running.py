"""BatchNorm's running statistics beside the activations that they stand for."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.errors import InputError
from isthmus.features import Request, collect
from isthmus.measure.answers import Weights
from isthmus.measure.finding import Finding
from isthmus.measure.layers import batch_norms, readable
from isthmus.program import Program


def running_gap(
    program: Program, weights: Weights, data: Iterable[object], *, split: str = "data"
) -> tuple[Finding, Finding]:
    """How far stored statistics are from those of the activations, norm by norm, in eval mode.

    A norm is seen behind the norms before it as they are: where an early one is stale, later ones are measured on
    what it makes.

    Args:
        program: with batch norms that keep running statistics.
        weights: its state dict.
        data: yields inputs, or (inputs, targets). Targets are not used.
        split: what the data is, for the notes.

    Returns:
        "running mean gap": |stored - actual mean| in actual standard deviations, the root mean square over channels.
        "running deviation ratio": stored over actual standard deviation, the geometric mean over channels, 1 where
        they fit. The value of each is that of the worst norm; channels that do not vary are left out.

    Raises:
        InputError: the program has no such norm.

    Source: Jordan et al. 2023 (arXiv:2211.08403), why merged batch norms are reset.

    Examples:
        >>> from isthmus.program import export
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)), torch.randn(64, 3)
        >>> means, deviations = running_gap(export(net.eval(), x), net.state_dict(), [x])
        >>> list(means.layers)
        ['1']
    """
    norms = _norms(program)
    requests = {name: Request(read, 1) for name, (read, *_) in norms.items()}
    features = collect(program, [weights], data, requests.values())
    shift: dict[str, float] = {}
    ratio: dict[str, float] = {}
    labels = readable(program, list(norms))
    for name, (_, mean, variance, eps) in norms.items():
        seen = features[requests[name].place]
        deviation = (seen.variance[0] + eps).sqrt()
        stored = (weights[variance].double() + eps).sqrt()
        alive = seen.variance[0] > 0
        off = ((weights[mean].double() - seen.mean[0]) / deviation)[alive]
        shift[labels[name]] = float(off.square().mean().sqrt()) if alive.any() else 0.0
        ratio[labels[name]] = float((stored / deviation)[alive].log().mean().exp()) if alive.any() else 1.0
    note = f"in eval mode; {split}: {features.examples} examples"
    worst = max(ratio.values(), key=lambda r: abs(torch.tensor(r).log().item()))
    return (
        Finding("running mean gap", max(shift.values()), "std", "lower", (0.0, None), shift, note),
        Finding("running deviation ratio", worst, "1", None, (0.0, None), ratio, note),
    )


def running_change(program: Program, before: Weights, after: Weights) -> tuple[Finding, Finding]:
    """What became of stored statistics, as by a RESET, norm by norm.

    Args:
        program: with batch norms that keep running statistics.
        before: a state dict of it.
        after: another.

    Returns:
        "running mean change": length of the difference over the length before. "running deviation change": mean
        over channels of the standard deviation after over that before. The value of each is the mean over norms.

    Raises:
        InputError: the program has no such norm.

    Source: Qu and Horváth 2025 (arXiv:2402.05966), figure 3 (C): RESET makes the deviations of a merged network
        much smaller, and leaves the means much as they are.
    """
    norms = _norms(program)
    labels = readable(program, list(norms))
    means: dict[str, float] = {}
    deviations: dict[str, float] = {}
    for name, (_, mean, variance, eps) in norms.items():
        old, new = before[mean].double(), after[mean].double()
        means[labels[name]] = float((new - old).norm() / old.norm().clamp(min=torch.finfo(old.dtype).tiny))
        deviations[labels[name]] = float((_std(after[variance], eps) / _std(before[variance], eps)).mean())
    return (
        _mean("running mean change", means, "over the length before"),
        _mean("running deviation change", deviations, "after over before"),
    )


def _mean(name: str, layers: dict[str, float], note: str) -> Finding:
    return Finding(name, sum(layers.values()) / len(layers), "1", None, (0.0, None), layers, note)


def _std(variance: Float[Tensor, " channels"], eps: float) -> Float[Tensor, " channels"]:
    return (variance.double() + eps).sqrt()


def _norms(program: Program) -> dict[str, tuple[str, str, str, float]]:
    norms = batch_norms(program)
    if not norms:
        raise InputError("the model has no batch norm with running statistics")
    return norms
