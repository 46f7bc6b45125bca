"""Whose coordinates N models are brought to: those of one of them, or of their mean."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from isthmus.align.alignment import Alignment, Cost
from isthmus.errors import InputError
from isthmus.maps import Transport
from isthmus.progress import task
from isthmus.symmetry import Element, SymmetryGraph

#: A model's index, or how it is chosen.
Reference = int | Literal["first", "best", "medoid", "universe"]

Weights = Mapping[str, Tensor]

#: Higher is better; what `isthmus.score` makes.
Score = Callable[[Weights], float]

#: A method with all of its options: (models, index of the one that stays) -> Alignment.
Aligned = Callable[[Sequence[Weights], int], Alignment]

#: Rounds after which the search for a universe is given up.
ROUNDS = 100


def by_reference(
    reference: str, run: Aligned, models: Sequence[Weights], score: Score | None, seed: int = 0
) -> Alignment:
    """Align models to a reference that is chosen, or to each other's mean.

    Args:
        reference: "first"; "best", by `score`; "medoid", which the others agree with most once they are aligned to it;
            "universe", see `universe`.
        run: the method.
        models: state dicts.
        score: higher is better.
        seed: of the order in which models visit the universe.

    Raises:
        InputError: no such choice, or "best" without a score.
    """
    if reference == "first":
        return run(models, 0)
    if reference == "universe":
        return universe(run, models, seed)
    if reference == "best":
        if score is None:
            raise InputError(
                "the best model is not known without a score",
                hint="pass score=, a function of weights such as isthmus.score(model, validation data)",
            )
        scores = [score(model) for model in models]
        chosen = max(range(len(models)), key=scores.__getitem__)
        return _noted(run(models, chosen), f"reference {chosen}: the best, of {_listed(scores)}")
    if reference == "medoid":
        found = [run(models, index) for index in range(len(models))]
        agreements = [_agreement(alignment) for alignment in found]
        chosen = max(range(len(models)), key=agreements.__getitem__)
        return _noted(found[chosen], f"reference {chosen}: the medoid, agreements {_listed(agreements)}")
    raise InputError(
        f"reference = {reference!r} is no model",
        hint="an index, or 'first', 'best' (with a score), 'medoid' or 'universe'",
    )


def universe(run: Aligned, models: Sequence[Weights], seed: int = 0, max_rounds: int = ROUNDS) -> Alignment:
    """Align every model to the mean of the others, in turn, until none comes closer: MergeMany, by any method.

    The maps are then turned together so that the first model's is the identity.

    Args:
        run: the method.
        models: state dicts.
        seed: of the order of models in a round.
        max_rounds: give up after so many.

    Raises:
        InputError: the method's maps do not keep each model's function, so that they cannot follow each other.

    Source: Ainsworth et al., Git Re-Basin, arXiv:2209.04836, algorithm 3.
    """
    generator = torch.Generator().manual_seed(seed)
    moved = [dict(model) for model in models]
    count = len(models)
    transports: list[Transport | None] = [None] * count
    costs: dict[tuple[int, str], Cost] = {}
    rounds, moving, last = 0, True, None
    with task("universe", unit="rounds") as advance:
        while moving and rounds < max_rounds:
            rounds += 1
            moving = False
            for index in torch.randperm(count, generator=generator).tolist():
                mean = _mean([m for i, m in enumerate(moved) if i != index])
                last = run([mean, moved[index]], 0)
                if not last.keeps_functions:
                    raise InputError(
                        f"{last.method} mixes units: its maps cannot follow each other to a universe",
                        hint="choose a model as the reference",
                    )
                after = last.transports[1].apply(moved[index])
                silent = last.graph.program.buffers
                before = _distance(mean, moved[index], silent)
                for cost in last.costs:
                    first = costs.get((index, cost.space), cost)
                    costs[index, cost.space] = Cost(index, cost.space, first.before, cost.after, cost.unit)
                if _distance(mean, after, silent) >= before * (1 - 1e-12):
                    continue
                moving = True
                moved[index] = after
                own = transports[index]
                transports[index] = last.transports[1] if own is None else own.then(last.transports[1])
            advance(1)
    assert last is not None
    graph = last.graph
    placed = [Transport(graph, {}) if own is None else own for own in transports]
    back = placed[0].inverse()
    turned = [Transport(graph, {}), *(own.then(back) for own in placed[1:])]
    notes = [f"universe: {rounds} rounds"]
    if all(own is None for own in transports):
        notes.append("no model came closer to the mean of the others as they are: none was moved")
    return replace(
        last,
        transports=tuple(turned),
        reference=0,
        costs=tuple(cost for (index, _), cost in sorted(costs.items()) if index),
        settings={**last.settings, "reference": "universe"},
        notes=tuple(notes),
        status=f"stopped after {max_rounds} rounds" if moving else "converged",
    )


def starting_at(
    start: Alignment | str | Path | None, graph: SymmetryGraph, count: int, reference: int
) -> list[Element | None]:
    """Where each model begins: an alignment made before, seen from the reference.

    Args:
        start: an alignment, or the file that one was saved to.
        graph: the symmetries.
        count: number of models.
        reference: the model that stays.

    Raises:
        InputError: it is of another number of models, or mixes units.
    """
    if start is None:
        return [None] * count
    known = start if isinstance(start, Alignment) else Alignment.load(start, graph)
    if len(known.transports) != count:
        raise InputError(f"{count} models cannot begin at an alignment of {len(known.transports)}")
    if len(known.transports[0].orders) < len(known.transports[0].maps) or not known.keeps_functions:
        raise InputError(f"an alignment by {known.method} mixes units: matching cannot begin there")
    back = known.transports[reference].element.inverse(graph)
    return [transport.element.then(back, graph) for transport in known.transports]


def _mean(models: Sequence[Weights]) -> dict[str, Tensor]:
    return {
        key: torch.stack([model[key] for model in models]).mean(0) if first.is_floating_point() else first
        for key, first in models[0].items()
    }


def _distance(ours: Weights, theirs: Weights, silent: Collection[str]) -> float:
    """The squared distance of two models' parameters."""
    return sum(
        float((weight.double() - theirs[key].double()).square().sum())
        for key, weight in ours.items()
        if weight.is_floating_point() and key not in silent
    )


def _agreement(alignment: Alignment) -> float:
    return sum(cost.after for cost in alignment.costs) / max(len(alignment.costs), 1)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _noted(alignment: Alignment, note: str) -> Alignment:
    return replace(alignment, notes=(*alignment.notes, note))
