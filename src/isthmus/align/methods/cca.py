"""CCA merging: the directions in which two models' units agree most, not the units themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.align.alignment import ALIGNMENTS, Alignment, Cost
from isthmus.align.mixed.joint import Joint, joint, mixable, orders_of_the_rest
from isthmus.align.observe import Where
from isthmus.align.orders.assignment import best_order
from isthmus.errors import DataError, InputError
from isthmus.maps import Dense, Shift, Transport
from isthmus.maps.affine import places
from isthmus.symmetry import SymmetryGraph

#: The smallest eigenvalue of a covariance, beside its largest, that is no rounding of float32 products.
LEAST = 1e-7

#: How much the best assignment of units counts, beside the largest canonical correlation.
GUESS = 1e-6


@ALIGNMENTS.register(
    "cca",
    needs=("data",),
    claims=("planted-exact", "batching-free", "seeded"),
    costs="one pass over the data, eigenvectors of a d x d matrix per space of d units",
    source="Horoi et al., Harmony in Diversity: Merging Neural Networks with CCA, arXiv:2407.05385",
)
def cca(
    graph: SymmetryGraph,
    models: Sequence[Mapping[str, Tensor]],
    *,
    data: Iterable[object] | None = None,
    reference: int = 0,
    gamma: float = 0.1,
    relative: bool = True,
    affine: bool = False,
    at: Where = "post-activation",
    stream: Literal["last", "pooled"] = "last",
    limit: int | None = None,
) -> Alignment:
    """Match the directions in which models vary together, by canonical correlation analysis.

    For each space, with x the reference's units and y the model's: whiten y, turn it onto the whitened x, colour it
    with the covariance of x. M = Sxx^1/2 Q Syy^-1/2, with Q the rotation nearest to Sxx^-1/2 Sxy Syy^-1/2; M y then
    has the covariance of x, and readers take M^-1. M mixes units, so it does not commute with activations: every layer
    is an approximation.

    Args:
        graph: the symmetries.
        models: state dicts; each is matched to the reference on its own.
        data: calibration data; labels are not used.
        reference: index of the model that stays.
        gamma: ridge added to both covariances, not negative. Between CCA (0) and orthogonal Procrustes (infinity).
        relative: gamma is in parts of each covariance's mean variance; else absolute, as published (where it is 0.1).
        affine: match means too, where a bias or a norm can take up the shift.
        at: which value represents a space; see `activation-matching`.
        stream: where several values carry a space, only the "last", or all "pooled".
        limit: use at most this many examples.

    Raises:
        InputError: a bad option.
        DataError: a covariance is singular and there is no ridge; all such spaces are listed, with their samples.

    Source: section 4. Directions in which nothing is seen to agree (dead units, the mean that a layer norm takes off)
        leave the rotation open; there it follows the best assignment of units.
    """
    if data is None:
        raise InputError("cca needs calibration data", hint="pass data=")
    if not gamma >= 0:
        raise InputError(f"gamma = {gamma} is negative")
    spaces = mixable(graph)
    found, seen = joint([graph] * len(models), models, data, spaces, at=at, stream=stream, limit=limit)
    maps, notes = orders_of_the_rest([graph] * len(models), models, spaces, data, reference, limit)
    shifts: list[dict[str, Shift]] = [{} for _ in models]
    shiftable = places(graph) if affine else {}
    costs: list[Cost] = []
    _check(found, gamma, relative, len(models))
    for name, statistics in found.items():
        dead = statistics.dead
        few = statistics.samples < 2 * graph.spaces[name].size
        if few:
            notes.append(f"{name}: {statistics.samples} samples of {graph.spaces[name].size} units are few")
        whitened = [_whitened(statistics.block(i, i), gamma, relative) for i in range(len(models))]
        for index in range(len(models)):
            if index == reference:
                eye = torch.eye(graph.spaces[name].size, dtype=torch.float64)
                maps[index][name] = Dense(eye, eye)
                continue
            cross = statistics.block(reference, index)
            there, back = _matched(cross, whitened[reference], whitened[index])
            maps[index][name] = Dense(there, back)
            costs.append(
                Cost(index, name, *_agreement(statistics, reference, index, there), "mean correlation")
            )
            if dead[reference] or dead[index]:
                notes.append(
                    f"{name}: {dead[reference]} dead units (no variance) in the reference, "
                    f"{dead[index]} in model {index}"
                )
            if name in shiftable:
                ours, theirs = (statistics.mean[statistics.rows(i)] for i in (reference, index))
                shifts[index][name] = Shift(ours - there @ theirs, theirs - back @ ours)
    if affine and len(shiftable) < len(found):
        notes.append(
            f"shifted {len(shiftable.keys() & found.keys())} of {len(found)} spaces: elsewhere nothing can take it"
        )
    unseen = [name for name in spaces if name not in found]
    if unseen:
        notes.append(f"no value shows {', '.join(unseen)}: left in place")
    settings = {
        "gamma": gamma,
        "relative": relative,
        "affine": affine,
        "at": at,
        "stream": stream,
        "limit": limit,
        "examples": seen.examples,
    }
    transports = tuple(Transport(graph, own, shifts=shift) for own, shift in zip(maps, shifts, strict=True))
    return Alignment("cca", graph, transports, reference, tuple(costs), settings, tuple(notes))


@dataclass(frozen=True, eq=False)
class _Whitened:
    """Square roots of a covariance with its ridge, and which units do not vary."""

    root: Float[Tensor, "units units"]
    inverse: Float[Tensor, "units units"]
    dead: Tensor


def _whitened(covariance: Tensor, gamma: float, relative: bool) -> _Whitened:
    ridged, dead = _ridged(covariance, gamma, relative)
    values, vectors = torch.linalg.eigh(ridged)
    values = values.clamp(min=torch.finfo(torch.float64).tiny)
    root = (vectors * values.sqrt()) @ vectors.mT
    return _Whitened(root, (vectors / values.sqrt()) @ vectors.mT, dead)


def _ridged(covariance: Tensor, gamma: float, relative: bool) -> tuple[Tensor, Tensor]:
    """The covariance with its ridge, and the units that do not vary, which get a variance of their own."""
    variance = covariance.diagonal().double()
    dead = variance <= 0
    mean = variance[~dead].mean() if bool((~dead).any()) else variance.new_ones(())
    ridge = gamma * mean if relative else torch.as_tensor(gamma, dtype=torch.float64)
    ridged = covariance.double() + ridge * torch.eye(len(covariance), dtype=torch.float64)
    ridged.diagonal()[dead] = mean + ridge
    return ridged, dead


def _check(found: Mapping[str, Joint], gamma: float, relative: bool, models: int) -> None:
    """Refuse what cannot be whitened.

    Raises:
        DataError: a covariance is singular; all such spaces are listed.
    """
    problems: list[str] = []
    for name, statistics in found.items():
        for index in range(models):
            values = torch.linalg.eigvalsh(_ridged(statistics.block(index, index), gamma, relative)[0])
            flat = int((values <= LEAST * values[-1]).sum())
            if flat:
                problems.append(
                    f"{name}, model {index}: {flat} of {len(values)} directions do not vary "
                    f"({statistics.samples} samples)"
                )
    if problems:
        raise DataError(
            f"{len(problems)} covariances are singular, so they cannot be whitened",
            problems,
            hint="pass more calibration data, or a larger ridge: gamma=0.1",
        )


def _matched(cross: Tensor, ours: _Whitened, theirs: _Whitened) -> tuple[Tensor, Tensor]:
    """M and its inverse."""
    whitened = ours.inverse @ cross.double() @ theirs.inverse
    scale = torch.outer(ours.root.square().sum(1), theirs.root.square().sum(1)).sqrt()
    order = best_order(cross.double() / scale + torch.outer(ours.dead.double(), theirs.dead.double()))
    largest = torch.linalg.matrix_norm(whitened, 2).clamp(min=torch.finfo(torch.float64).tiny)
    whitened[torch.arange(len(order)), order] += GUESS * largest
    left, _, right = torch.linalg.svd(whitened)
    rotation = left @ right
    return ours.root @ rotation @ theirs.inverse, theirs.root @ rotation.mT @ ours.inverse


def _agreement(statistics: Joint, reference: int, index: int, there: Tensor) -> tuple[float, float]:
    """Mean correlation of the reference's units with the model's, as they are and moved."""
    ours, theirs = (statistics.block(i, i).double() for i in (reference, index))
    cross = statistics.block(reference, index).double()

    def mean(cross: Tensor, theirs: Tensor) -> float:
        scale = (ours.diagonal() * theirs.diagonal()).clamp(min=0).sqrt()
        return torch.where(scale > 0, cross.diagonal() / scale, 0.0).mean().item()

    return mean(cross, theirs), mean(cross @ there.mT, there @ theirs @ there.mT)
