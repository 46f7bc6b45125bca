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
from isthmus.repair.blocks import place_of
from isthmus.repair.selection import repairable
from isthmus.repair.shares import check_shares
from isthmus.statistics.grams import request_of


@dataclass(frozen=True)
class Goal:
    """Mean and standard deviation that each channel of a value should have.

    Attributes:
        mean: per channel.
        std: per channel, not negative.
        reads: what its layer reads in the models, where that was measured as well.
        examples: how many were measured.
    """

    mean: Float[Tensor, " channels"]
    std: Float[Tensor, " channels"]
    reads: Reads | None = None
    examples: int = 0


@dataclass(frozen=True)
class Reads:
    """What a layer reads, in the average of N models: x = sum_i w_i x_i, from their joint moments.

    Attributes:
        value: the value that is read, as models call it.
        patches: whether it is read in the windows of a convolution; a window's channels x kernel are then what follows.
        mean: of x.
        covariance: of x: sum_ij w_i w_j cov(x_i, x_j).
        std: sum_i w_i std(x_i): what the standard deviation of x would be if the models agreed.
    """

    value: str
    patches: bool
    mean: Float[Tensor, " width"]
    covariance: Float[Tensor, "width width"]
    std: Float[Tensor, " width"]


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
    reads: bool = False,
) -> dict[str, Goal]:
    """Measure the models and average their statistics.

    Args:
        program: of one model.
        models: state dicts, already in common coordinates (aligned).
        shares: how much each counts in the merged model; not negative, with sum 1.
        data: calibration data; see `isthmus.program.batches`.
        values: outputs of linear and conv operations, or of residual blocks; None for all that are repaired by default.
        device: where to run; None for where model 0 is.
        limit: number of examples after which to stop.
        transports: where units are mixed, moved models are no networks that could be measured. With the models'
            transports, `models` are those of `Transport.own`, and what is measured of them is moved.
        reads: measure what layers read as well, all models jointly: for `mode="closed-form"`. It holds
            (N width)^2 numbers of each layer, where a convolution's width is its input channels x kernel.

    Returns:
        A goal for each value.

    Raises:
        InputError: shares that are none, a value that no weight makes, or `reads` where units are mixed.
        DataError: the data is empty or does not fit, or a model's activations are not finite.

    Source: Jordan et al. 2023 (arXiv:2211.08403): mean* = sum_i w_i mean_i, std* = sum_i w_i std_i, the
        average of standard deviations, not of variances. Statistics are pooled over the data, where
        their code averages those of batches.
    """
    names = list(repairable(program) if values is None else values)
    found = moments(
        program, models, data, names, device=device, limit=limit, transports=transports, reads=reads
    )
    by_value = goals_of(found, shares)
    read = {name: _reads(program, found, name, shares) if reads else None for name in names}
    return {name: replace(by_value[name], reads=read[name]) for name in names}


class Measured:
    """Goals of the same models, each measured once, however many repairs ask for it.

    Args:
        program: of one model.
        models: see `goals`, as the rest.
        shares: how much each counts.
        data: calibration data.
        transports: where units are mixed.
    """

    def __init__(
        self,
        program: Program,
        models: Sequence[Mapping[str, Tensor]],
        shares: Sequence[float],
        data: Iterable[object],
        transports: Sequence[Transport] | None = None,
    ):
        self._of = program, models, shares, data
        self._transports = transports
        # What is measured depends on where, on how many examples, and on whether inputs of layers are looked at.
        self._found: dict[tuple[str, int | None, bool], dict[str, Goal]] = {}

    def __call__(
        self,
        values: Iterable[str] | None = None,
        *,
        device: torch.device | str | None = None,
        limit: int | None = None,
        reads: bool = False,
    ) -> dict[str, Goal]:
        """A goal for each value; those that are not known yet are measured, in one pass.

        Args, Raises: see `goals`.
        """
        names = list(repairable(self._of[0]) if values is None else values)
        known = self._found.setdefault((str(device), limit, reads), {})
        if missing := [name for name in names if name not in known]:
            known |= goals(
                *self._of, missing, device=device, limit=limit, transports=self._transports, reads=reads
            )
        return {name: known[name] for name in names}


def _reads(program: Program, features: Features, value: str, shares: Sequence[float]) -> Reads | None:
    """What the layer that makes a value reads; None where it is no product of a stored matrix with what it reads."""
    request = reading(program, value)
    if request is None:
        return None
    stats = features.moments[request.place]
    pairs = [(i, j) for i in range(len(shares)) for j in range(len(shares))]
    return Reads(
        value=request.value,
        patches=request.patches is not None,
        mean=_average(stats.mean, shares),
        covariance=_average(
            [stats.covariance(i, j) for i, j in pairs], [shares[i] * shares[j] for i, j in pairs]
        ),
        std=_average(stats.std, shares),
    )


def reading(program: Program, value: str) -> Request | None:
    """The request of what a layer reads; None where it is no product of a stored matrix with what it reads."""
    writer = place_of(program, value)
    if writer is None or not writer.weight:
        return None
    found = request_of(program, program.nodes[value], program.nodes[writer.weight])
    return found if isinstance(found, Request) else None


def moments(
    program: Program,
    models: Sequence[Mapping[str, Tensor]],
    data: Iterable[object],
    values: Iterable[str] | None = None,
    *,
    device: torch.device | str | None = None,
    limit: int | None = None,
    transports: Sequence[Transport] | None = None,
    reads: bool = False,
) -> Features:
    """The models' own statistics, from which the goals of any shares follow (a sweep measures once).

    Args, Raises: see `goals`.
    """
    requests: list[Request] = []
    wrong: list[str] = []
    for value in repairable(program) if values is None else values:
        writer = place_of(program, value) if value in program.nodes else None
        if writer is None:
            wrong.append(value)
        else:
            requests.append(Request(value, writer.axis))
    if wrong:
        raise InputError(f"{len(wrong)} values are no outputs of a linear or conv operation", wrong)
    if reads and transports is not None:
        raise InputError(
            "where an alignment mixes units, what layers read has no closed form", hint='mode="joint"'
        )
    if reads:
        inputs = [reading(program, request.value) for request in requests]
        requests += [request for request in inputs if request is not None]
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
    for stats in features.moments.values():
        check_shares(shares, stats.mean)
    return {
        stats.request.value: Goal(
            _average(stats.mean, shares), _average(stats.std, shares), None, features.examples
        )
        for stats in features.moments.values()
        if stats.request.patches is None
    }


def _average(parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    return sum((w * part for w, part in zip(shares, parts, strict=True)), torch.zeros_like(parts[0]))
