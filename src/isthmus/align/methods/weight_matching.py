"""Weight matching: one space at a time, the assignment that brings the weights closest."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from isthmus.align.alignment import ALIGNMENTS, Alignment, Cost, permutations
from isthmus.align.choices import check_choice
from isthmus.align.orders.full_groups import Groups, Residual, check_choices, match
from isthmus.align.orders.matching import Matching
from isthmus.align.references import starting_at
from isthmus.errors import InputError
from isthmus.maps import Permutation, Transport
from isthmus.symmetry import Element, SymmetryGraph
from isthmus.symmetry.residual import residual_streams

#: From this part of all squared weights on, biases that vote are noted.
_LOUD = 0.25


@ALIGNMENTS.register(
    "weight-matching",
    needs=(),
    claims=("function-kept", "planted-found", "planted-exact", "seeded"),
    costs="an assignment per space and sweep, for each restart; seconds",
    source="Ainsworth et al., Git Re-Basin, arXiv:2209.04836, section 3.2",
)
def weight_matching(
    graph: SymmetryGraph,
    models: Sequence[Mapping[str, Tensor]],
    *,
    reference: int = 0,
    seed: int = 0,
    restarts: int = 1,
    max_sweeps: int = 100,
    memory: float = 1.0,
    threads: int | None = None,
    groups: Groups = "permutation",
    residual: Residual = "match",
    biases: Literal["vote", "follow"] = "vote",
    start: Alignment | str | Path | None = None,
) -> Alignment:
    """Match units by their weights: coordinate ascent of the inner product of all parameters.

    For one space after another, in a fresh random order each sweep, the assignment that maximises
    the summed inner product of the reference's and the model's weights, all other spaces held where they are;
    until a sweep changes nothing. A local search: with several restarts the best is kept.

    Running statistics move with their channels but do not vote: they are no parameters, and their
    scale would drown the others. A space of heads or groups is matched together with what is
    inside each (the best order inside for every pair of heads).

    A space is solved again only when something that it shares a weight with has moved, and what it knows is
    then corrected where that moved. Products are taken in float32 (float64 for models in float64); a new
    order is kept only if it is better in float64, so that no step loses. Spaces that share no weight are
    solved side by side. The result is that of one after another, for any number of threads.

    Args:
        graph: the symmetries; also one that was loaded from a file.
        models: state dicts; each is matched to the reference on its own. Half precision is widened a weight at
            a time, and checkpoints of `isthmus.weights.open` are read as they are needed.
        reference: index of the model that stays.
        seed: of the order in which spaces are visited.
        restarts: number of seeds to try, seed, seed + 1, ...; the best objective wins.
        max_sweeps: give up after this many sweeps.
        memory: GiB of evidence that may be kept from sweep to sweep.
        threads: how many to use; None for as many as torch does.
        groups: "permutation" for the order of units alone; "full" for all that each space's group holds: scales
            are balanced first, then orders, signs, rotations and rotary planes are matched together (see
            `isthmus.align.orders.full_groups`), in float64.
        residual: "identity" leaves residual streams as they are: moving them ties them to the embeddings, which
            often costs more than it gains.
        biases: "vote" as every other parameter does, or "follow" the units. A bias has one weight's vote whatever its
            size: where they are large, as in plain networks that norms were folded into, they outvote the
            weights, and the alignment's notes say so.
        start: where to begin: an alignment of these models that was made before, or the file it was saved to; None
            for the order that the models have.

    Source: Git Re-Basin, algorithm 1; we differ in leaving running statistics out (as the
        paper does and some ports do not), and in matching two levels at once.
    """
    if restarts < 1 or max_sweeps < 1:
        raise InputError(f"restarts = {restarts} and max_sweeps = {max_sweeps} must be at least 1")
    if memory < 0:
        raise InputError(f"memory = {memory} is negative")
    check_choices(groups, residual)
    check_choice("biases", biases, ("vote", "follow"))
    settings: dict[str, object] = {"seed": seed, "restarts": restarts, "max_sweeps": max_sweeps}
    settings |= {"groups": groups, "residual": residual, "biases": biases}
    if biases == "follow":
        models = [_without(weights, graph.program.biases) for weights in models]
    held = residual_streams(graph) if residual == "identity" else ()
    starts = starting_at(start, graph, len(models), reference)
    if start is not None:
        settings["start"] = f"an alignment by {start.method}" if isinstance(start, Alignment) else str(start)
    if groups == "full":
        return _in_full_groups(graph, models, reference, held, settings, starts)
    moving = graph.frozen(dict.fromkeys(held, "residual: identity")) if held else graph
    transports, costs, notes = [], [], []
    late = 0
    for index, weights in enumerate(models):
        if index == reference:
            transports.append(permutations(graph, {}))
            continue
        begun = starts[index]
        options: dict[str, Any] = {"memory": memory, "threads": threads}
        options["start"] = None if begun is None else {n: o for n, o in begun.orders.items() if n not in held}
        runs = [
            Matching(moving, models[reference], weights, seed + restart, **options).run(max_sweeps)
            for restart in range(restarts)
        ]
        chosen = max(runs, key=lambda run: run.objective)
        late += not chosen.converged
        notes.append(
            f"model {index}: {chosen.sweeps} sweeps, objective {chosen.start:.6g} -> {chosen.objective:.6g}"
        )
        if (share := chosen.share(graph.program.biases)) > _LOUD:
            notes.append(
                f'model {index}: biases are {share:.0%} of the squared weights and may outvote them: biases="follow" '
                "leaves them out"
            )
        transports.append(permutations(graph, chosen.orders))
        costs += [Cost(index, *row, "mean cosine") for row in chosen.costs()]
    settings |= {"memory": memory}
    status = _status(late, max_sweeps, notes)
    return Alignment(
        "weight-matching", graph, tuple(transports), reference, tuple(costs), settings, tuple(notes), status
    )


def _in_full_groups(
    graph: SymmetryGraph,
    models: Sequence[Mapping[str, Tensor]],
    reference: int,
    held: Collection[str],
    settings: Mapping[str, object],
    starts: Sequence[Element | None],
) -> Alignment:
    """Weight matching with signs, rotations and rotary planes, of balanced models."""
    transports, costs, notes, late = [], [], [], 0
    seed, restarts, max_sweeps = (int(str(settings[name])) for name in ("seed", "restarts", "max_sweeps"))
    for index, weights in enumerate(models):
        if index == reference:
            transports.append(Transport(graph, {}))
            continue
        runs = [
            match(
                graph,
                models[reference],
                weights,
                held=held,
                seed=seed + restart,
                max_sweeps=max_sweeps,
                start=starts[index],
            )
            for restart in range(restarts)
        ]
        element, chosen = max(runs, key=lambda run: run[1].objective)
        late += not chosen.converged
        notes.append(
            f"model {index}: {chosen.sweeps} sweeps, objective {chosen.start:.6g} -> {chosen.objective:.6g}"
        )
        maps = {name: Permutation(order) for name, order in element.orders.items()}
        transports.append(Transport(graph, maps, element.values))
        costs += [Cost(index, *row, "mean cosine of balanced weights") for row in chosen.costs()]
    status = _status(late, max_sweeps, notes)
    return Alignment(
        "weight-matching", graph, tuple(transports), reference, tuple(costs), settings, tuple(notes), status
    )


def _without(weights: Mapping[str, Tensor], keys: Collection[str]) -> Mapping[str, Tensor]:
    """The same weights with zeros at some keys; the others are not read."""
    return ChainMap({key: torch.zeros_like(weights[key]) for key in keys if key in weights}, weights)  # pyright: ignore[reportArgumentType]  # never written


def _status(late: int, max_sweeps: int, notes: list[str]) -> str:
    """Whether all models came to an end; how many did not is noted."""
    if not late:
        return "converged"
    notes.append(f"{late} models did not converge in {max_sweeps} sweeps")
    return f"stopped after {max_sweeps} sweeps"
