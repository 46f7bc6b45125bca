"""The statistics that a repaired layer should have: those of the models that were merged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.errors import InputError
from isthmus.features import Features, Moments, Request, collect
from isthmus.maps import Transport
from isthmus.program import Program
from isthmus.repair.selection import repairable
from isthmus.repair.writers import writer_of


@dataclass(frozen=True)
class Goal:
    """Mean and standard deviation that each channel of a value should have.

    Attributes:
        mean: per channel.
        std: per channel, not negative.
    """

    mean: Float[Tensor, " channels"]
    std: Float[Tensor, " channels"]


def goals(
    program: Program,
    models: Sequence[Mapping[str, Tensor]],
    shares: Sequence[float],
    data: Iterable[object],
    values: Iterable[str] | None = None,
    *,
    device: torch.device | str | None = None,
    limit: int | None = None,
    transports: Sequence[Transport] | None = None,
) -> dict[str, Goal]:
    """Measure the models and average their statistics.

    Args:
        program: of one model.
        models: state dicts, already in common coordinates (aligned).
        shares: how much each counts in the merged model; not negative, with sum 1.
        data: calibration data; see `isthmus.program.batches`.
        values: outputs of linear and conv operations; None for all that are repaired by default.
        device: where to run; None for where model 0 is.
        limit: number of examples after which to stop.
        transports: where units are mixed, moved models are no networks that could be measured. With the models'
            transports, `models` are those of `Transport.own`, and what is measured of them is moved.

    Returns:
        A goal for each value.

    Raises:
        InputError: shares that are none, a value that no weight makes.
        DataError: the data is empty or does not fit, or a model's activations are not finite.

    Source: Jordan et al. 2023 (arXiv:2211.08403): mean* = sum_i w_i mean_i, std* = sum_i w_i std_i, the
        average of standard deviations, not of variances. Statistics are pooled over the data, where
        their code averages those of batches.
    """
    wanted = moments(program, models, data, values, device=device, limit=limit, transports=transports)
    return goals_of(wanted, shares)


def moments(
    program: Program,
    models: Sequence[Mapping[str, Tensor]],
    data: Iterable[object],
    values: Iterable[str] | None = None,
    *,
    device: torch.device | str | None = None,
    limit: int | None = None,
    transports: Sequence[Transport] | None = None,
) -> Features:
    """The models' own statistics, from which the goals of any shares follow (a sweep measures once).

    Args, Raises: see `goals`.
    """
    requests: list[Request] = []
    wrong: list[str] = []
    for value in repairable(program) if values is None else values:
        writer = writer_of(program, value) if value in program.nodes else None
        if writer is None:
            wrong.append(value)
        else:
            requests.append(Request(value, writer.axis))
    if wrong:
        raise InputError(f"{len(wrong)} values are no outputs of a linear or conv operation", wrong)
    if transports is None:
        return collect(program, models, data, requests, device=device, limit=limit)
    programs = [transport.graph.program for transport in transports]
    found = collect(programs, models, data, requests, device=device, limit=limit)
    return replace(found, moments={key: _moved(m, transports) for key, m in found.moments.items()})


def _moved(stats: Moments, transports: Sequence[Transport]) -> Moments:
    value, axis = stats.request.value, stats.request.axis
    pairs = [
        transport.statistics(value, axis, mean.cpu(), variance.cpu())
        for transport, mean, variance in zip(transports, stats.mean, stats.variance, strict=True)
    ]
    device = stats.mean[0].device
    return replace(
        stats, mean=tuple(m.to(device) for m, _ in pairs), variance=tuple(v.to(device) for _, v in pairs)
    )


def goals_of(features: Features, shares: Sequence[float]) -> dict[str, Goal]:
    """Average the statistics of N models.

    Args:
        features: moments of the N models; see `moments`.
        shares: one each, not negative, with sum 1.

    Raises:
        InputError: other shares than that.
    """
    found: dict[str, Goal] = {}
    for stats in features.moments.values():
        if len(shares) != len(stats.mean) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise InputError(
                f"shares {tuple(shares)} do not weigh {len(stats.mean)} models",
                hint="one share per model, not negative, with sum 1",
            )
        mean = sum((w * m for w, m in zip(shares, stats.mean, strict=True)), torch.zeros_like(stats.mean[0]))
        std = sum((w * s for w, s in zip(shares, stats.std, strict=True)), torch.zeros_like(stats.std[0]))
        found[stats.request.value] = Goal(mean, std)
    return found
