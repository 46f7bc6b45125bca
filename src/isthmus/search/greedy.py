"""Greedy soups: models are averaged one by one for as long as the score does not fall."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.search.mean import Mean
from isthmus.search.result import Searched
from isthmus.search.table import SEARCHES, Search

#: Whether a candidate must be better than what there is ("gt"), or at least as good ("ge").
Accept = Literal["gt", "ge"]
#: Which models are tried again in the next pass.
Again = Literal["never", "rejected", "all"]

_SOURCE = "Wortsman et al. 2022 (arXiv:2203.05482), Recipe 1"
_ALONE = (
    "one model alone was kept: the others may lie in another basin (large learning rates, other "
    "initialisations); align them, or compare with the ensemble"
)


@SEARCHES.register(
    "uniform",
    needs=("score",),
    claims=("copies-give-the-model", "order-free"),
    costs="N + 1 evaluations of N models",
    source=_SOURCE,
)
def uniform(search: Search) -> Searched:
    """The mean of all models; each model is scored beside it."""
    search.several()
    mean = Mean(search.members)
    for index in range(len(search.members)):
        _alone(search, index)
        mean.add(index)
    label = f"mean of {len(search.members)}"
    score = search.ask(label, mean.shares(), search.mean(mean.counts), mean.weights)
    search.accept()
    return search.found("uniform", search.finished(mean.weights()), score, mean.shares(), {})


@SEARCHES.register(
    "greedy",
    needs=("score",),
    claims=("copies-give-the-model",),
    costs="2N - 1 evaluations of N models",
    source=_SOURCE,
)
def greedy(search: Search, *, accept: Accept = "gt") -> Searched:
    """Models from best to worst; each stays in the mean if the score does not fall.

    Equally good models are tried in the order given.

    Args:
        search: what is asked.
        accept: "gt" if the score must rise (the authors' code), "ge" if it may stay (their pseudo-code).

    Raises:
        InputError: one model only, or none that has a score.
    """
    return _from_the_best(search, "greedy", accept, "never", 1, {"accept": accept})


@SEARCHES.register(
    "iterated",
    needs=("score",),
    claims=("copies-give-the-model",),
    costs="greedy's evaluations, and at most one pass more per accepted model",
    source=_SOURCE,
)
def iterated(search: Search, *, accept: Accept = "gt", max_passes: int | None = None) -> Searched:
    """Greedy, and what was rejected is tried again until a pass accepts nothing.

    Never below greedy on the data of the score: its first pass is greedy's, and no pass lowers the score.

    Args:
        search: what is asked.
        accept: as for greedy.
        max_passes: at most so many; None goes on until nothing changes.

    Raises:
        InputError: as for greedy.
    """
    settings = {"accept": accept, "max_passes": max_passes}
    return _from_the_best(search, "iterated", accept, "rejected", max_passes, settings)


@SEARCHES.register(
    "with-replacement",
    needs=("score",),
    claims=("copies-give-the-model",),
    costs="greedy's evaluations, and one pass more per accepted model",
    source=_SOURCE,
)
def with_replacement(search: Search, *, accept: Accept = "gt", max_passes: int | None = None) -> Searched:
    """Iterated greedy in which a model may go in several times: its part becomes larger.

    Args:
        search: what is asked.
        accept: as for greedy; "ge" needs `max_passes`, or one model could be added for ever.
        max_passes: at most so many passes over all models; None goes on until nothing changes.

    Raises:
        InputError: as for greedy.
    """
    settings = {"accept": accept, "max_passes": max_passes}
    if accept == "ge" and max_passes is None:
        raise InputError("accept='ge' with replacement need not end", hint="pass max_passes=")
    return _from_the_best(search, "with-replacement", accept, "all", max_passes, settings)


@SEARCHES.register(
    "random",
    needs=("score",),
    claims=("copies-give-the-model", "seeded"),
    costs="N evaluations of N models per order",
    source=_SOURCE,
)
def random(
    search: Search, *, accept: Accept = "gt", orders: int = 3, start: Literal["first", "best"] = "first"
) -> Searched:
    """Greedy in random order; the best of several orders, with their mean and spread.

    Args:
        search: what is asked.
        accept: as for greedy.
        orders: how many are drawn.
        start: "first" begins with whichever model is drawn first, so that the result may be worse than the best
            single model; "best" begins with that one, and draws the order of the rest.

    Raises:
        InputError: as for greedy, or no order.
    """
    search.several()
    if orders < 1:
        raise InputError(f"random order takes one order or more, got {orders}")
    generator = torch.Generator().manual_seed(search.seed)
    found: list[tuple[float, dict[str, Tensor], dict[str, float]]] = []
    lead = _order_by_score(search)[:1] if start == "best" else []
    for _ in range(orders):
        drawn: list[int] = torch.randperm(len(search.members), generator=generator).tolist()
        queue = [*lead, *(i for i in drawn if i not in lead)]
        mean, score = _greedily(search, queue, accept, "never", 1, since=len(search.steps))
        found.append((score, mean.weights(), mean.shares()))
    scores = [score for score, _, _ in found]
    score, weights, shares = max(found, key=lambda f: f[0])
    notes = (
        [] if start == "best" else ["the order does not begin with the best model: it may be better alone"]
    )
    spread = statistics.stdev(scores) if orders > 1 else None
    extra = {"scores of orders": scores, "mean": statistics.fmean(scores), "standard deviation": spread}
    settings = {"accept": accept, "orders": orders, "start": start}
    done = search.finished(weights, mixture=len(shares) > 1)
    return search.found("random", done, score, shares, settings, notes=notes, extra=extra)


def _from_the_best(
    search: Search,
    kind: str,
    accept: Accept,
    again: Again,
    max_passes: int | None,
    settings: Mapping[str, object],
) -> Searched:
    search.several()
    mean, score = _greedily(search, _order_by_score(search), accept, again, max_passes)
    shares = mean.shares()
    weights = search.finished(mean.weights(), mixture=len(shares) > 1)
    counts = {name: n for name, n in zip(search.members.names, mean.counts, strict=True) if n}
    notes = [_ALONE] if len(shares) == 1 else []
    mixture = len(shares) > 1
    return search.found(
        kind, weights, score, shares, settings, notes=notes, extra={"counts": counts}, mixture=mixture
    )


def _order_by_score(search: Search) -> list[int]:
    """The models from best to worst, those without a score left out."""
    scores = {index: _alone(search, index) for index in range(len(search.members))}
    known = {index: score for index, score in scores.items() if score is not None}
    if not known:
        raise InputError(
            "no model has a score",
            [f"{step.label}: {step.note}" for step in search.steps if step.score is None],
        )
    return sorted(known, key=lambda index: -known[index])  # sorted is stable: ties stay in order


def _alone(search: Search, index: int) -> float | None:
    members = search.members
    counts = [int(i == index) for i in range(len(members))]
    return search.ask(
        members.names[index],
        {members.names[index]: 1.0},
        search.mean(counts),
        lambda: Mean(members).candidate(index),
        mixture=False,
    )


def _greedily(
    search: Search, queue: Sequence[int], accept: Accept, again: Again, max_passes: int | None, since: int = 0
) -> tuple[Mean, float]:
    """The mean that greedy acceptance comes to, and its score; it begins among the steps from `since` on."""
    if max_passes is not None and max_passes < 1:
        raise InputError(f"max_passes = {max_passes} is no pass at all")
    mean, best = _begin(search, queue, since)
    queue = [i for i in queue if again == "all" or not mean.counts[i]]
    passes = 0
    while queue and (max_passes is None or passes < max_passes):
        before = len(mean)
        rejected: list[int] = []
        for index in queue:
            label = f"+ {search.members.names[index]}"
            counts = [n + (i == index) for i, n in enumerate(mean.counts)]
            score = search.ask(
                label,
                mean.shares(index),
                search.mean(counts),
                lambda index=index: mean.candidate(index),
                mixture=sum(map(bool, counts)) > 1,
            )
            if score is not None and (score > best or (accept == "ge" and score == best)):
                best = score
                mean.add(index)
                search.accept()
            else:
                rejected.append(index)
        passes += 1
        if again == "never" or len(mean) == before:
            break
        queue = rejected if again == "rejected" else queue
    return mean, best


def _begin(search: Search, queue: Sequence[int], since: int) -> tuple[Mean, float]:
    """The mean of the first model in the queue that has a score."""
    for index in queue:
        name = search.members.names[index]
        at = next((n for n, s in enumerate(search.steps) if n >= since and s.label == name), None)
        score = _alone(search, index) if at is None else search.steps[at].score
        if score is not None:
            search.accept(-1 if at is None else at)
            mean = Mean(search.members)
            mean.add(index)
            return mean, score
    raise InputError(
        "no model has a score", [f"{s.label}: {s.note}" for s in search.steps if s.score is None]
    )
