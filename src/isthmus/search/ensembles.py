"""Greedy ensembles: which models' answers to average, chosen as a soup's members are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from isthmus import progress
from isthmus.errors import DataError, InputError
from isthmus.measure import Tally, answering, logits_of, reusable
from isthmus.program import Batch, Program, batches
from isthmus.search.members import Source, gather
from isthmus.search.result import Searched
from isthmus.search.scores import Scores
from isthmus.search.soup import checked
from isthmus.search.table import SEARCHES, Search


def greedy_ensemble(
    models: Sequence[Source],
    model: nn.Module | Program,
    data: Iterable[object],
    kind: str = "greedy",
    *,
    of: Literal["logits", "probabilities"] = "logits",
    metric: Literal["accuracy", "loss"] = "accuracy",
    names: Sequence[str] | None = None,
    seed: int = 0,
    **options: object,
) -> Searched:
    """Choose members of an ensemble as greedy soups choose theirs, with answers in place of weights.

    Each model is run once; what is averaged and searched over are its answers.

    Args:
        models: modules, state dicts or files of weights.
        model: the architecture.
        data: held-out batches of (inputs, class indices).
        kind: "greedy", "iterated", "with-replacement", "random" or "uniform".
        of: average un-normalised logits, or probabilities.
        metric: what acceptance goes by: accuracy (0 to 1), or minus the mean loss in nats.
        names: what the models are called.
        seed: for random orders.
        options: of the search.

    Returns:
        What was found: `chosen` are the shares for `isthmus.Ensemble`; `weights["answers"]` its answers.

    Raises:
        InputError: another kind, or wrong options.
        DataError: data without targets, or read only once.

    Source: Wortsman et al. 2022 (arXiv:2203.05482), appendix: "greedy ensemble".
    """
    kinds = ("greedy", "iterated", "with-replacement", "random", "uniform")
    if kind not in kinds or of not in ("logits", "probabilities") or metric not in ("accuracy", "loss"):
        raise InputError(
            f"no such greedy ensemble: {kind}, {of}, {metric}", hint=f"kinds are {', '.join(kinds)}"
        )
    reusable(data)
    if len(models) < 2:
        raise InputError(f"an ensemble takes two or more models, got {len(models)}")
    members = gather(models, names=names, model=model)
    run = model.compile() if isinstance(model, Program) else model
    answers: list[dict[str, Tensor]] = []
    targets: Tensor | None = None
    for name, state in zip(members.names, members.states, strict=True):
        found: list[Tensor] = []
        wanted: list[Tensor] = []
        with answering(run, state) as ask:
            for batch in batches(progress.track(data, f"answers of {name}", unit="batches")):
                if batch.targets is None:
                    raise DataError("the data has no targets to compare with", hint="yield (inputs, targets)")
                logits = logits_of(ask(batch)).float().cpu()
                found.append(logits if of == "logits" else logits.softmax(-1))
                wanted.append(batch.targets.cpu())
        answers.append({"answers": torch.cat(found)})
        targets = torch.cat(wanted)

    def score(averaged: Mapping[str, Tensor]) -> float:
        tally = Tally()
        given = averaged["answers"]
        tally.add(given if of == "logits" else given.log(), Batch((), {}, targets))
        result = tally.result("validation")
        return result.accuracy if metric == "accuracy" else -result.loss

    chosen = SEARCHES.get(kind)
    settings = checked(chosen, options, score=score)
    scores = Scores(score, called=f"{metric} of the mean {of}")
    return chosen.function(Search(gather(answers, names=members.names), scores, seed=seed), **settings)
