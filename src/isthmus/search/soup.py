"""One door to all searches over the weights of several models."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args, get_origin, get_type_hints

from torch import nn

from isthmus import weights as files
from isthmus.errors import InputError
from isthmus.measure import reusable
from isthmus.measure import score as score_by
from isthmus.program import Program
from isthmus.registry import Method, numbers
from isthmus.search.members import Source, gather
from isthmus.search.result import Searched
from isthmus.search.scores import OnError, Scores, Scoring
from isthmus.search.table import SEARCHES, Data, Search, Searching


def soup(
    models: Sequence[Source],
    score: Scoring | None = None,
    kind: str = "greedy",
    *,
    model: nn.Module | Program | None = None,
    data: Data | None = None,
    base: Source | None = None,
    calibration: Data | None = None,
    folder: str | os.PathLike[str] | None = None,
    score_name: str | None = None,
    on_error: OnError = "raise",
    names: Sequence[str] | None = None,
    seed: int = 0,
    **options: object,
) -> Searched:
    """Choose how to average models by a score.

    Models are averaged as they are: fine-tunings of one network, or networks aligned before. Files are mapped, so that
    one model at a time is in memory beside the running mean.

    Args:
        models: modules, state dicts or files of weights.
        score: a function of weights (name -> tensor), higher is better. `isthmus.score(model, data)` makes one;
            where `model` and `data` are given, that is the default.
        kind: the search: "greedy", "iterated", "with-replacement", "random", "uniform", "learned", "grid",
            "optuna", "wise-ft", "adamerging"; `isthmus.methods("search")` lists them.
        model: the architecture, where a search runs the model itself, or statistics are re-estimated. Files are then
            read in its dtypes.
        data: held-out batches of (inputs, targets): choices belong on a validation split, never on the test split.
            Only "adamerging" reads test inputs, and says so.
        base: what the models were trained from, for "wise-ft", "adamerging" and rules of task vectors.
        calibration: training inputs to re-estimate the BatchNorm statistics of every mixture from; without it
            statistics are averaged like weights, which is noted.
        folder: where scores are kept, and how far "learned" and "adamerging" are: a search that is called again
            after a kill evaluates nothing twice, and goes on where it stood. What the data holds cannot be seen: with
            other data, take another folder.
        score_name: what the score is called there; by default its name and a digest of its code. With other data,
            take another folder or another name.
        on_error: what to do with a candidate whose score raises or is not a number: "raise", or "skip", which
            counts it and goes on.
        names: what the models are called; by default files by their names, others by number.
        seed: for searches that draw.
        options: of the search; see `isthmus.search`.

    Returns:
        The weights, their score, and every step.

    Raises:
        InputError: a missing argument or a wrong option, all at once; or a candidate without a score.
        MismatchError: models that do not fit each other, all differences at once.
        WeightsError: a file cannot be read, or holds numbers that are not finite.

    Source: Wortsman et al. 2022 (arXiv:2203.05482); each search has its own.

    Examples:
        >>> import torch, isthmus
        >>> models = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}, {"w": 3 * torch.ones(2)}]
        >>> found = isthmus.soup(models, lambda weights: -float((weights["w"] - 0.5).square().sum()))
        >>> found.chosen, [step.label for step in found.steps if step.accepted]
        ({'models[0]': 0.5, 'models[1]': 0.5}, ['models[0]', '+ models[1]'])
    """
    chosen = SEARCHES.get(kind)
    settings = checked(
        chosen, options, score=score, model=model, data=data, base=base, calibration=calibration
    )
    members = gather(models, base=base, names=names, model=model, apart=_apart(models, options))
    scores = None
    if "score" in chosen.needs:
        if score is None:
            assert model is not None and data is not None, "checked above"
            score = score_by(model, data)
        scores = Scores(score, folder=folder, called=score_name, on_error=on_error)
    search = Search(members, scores, model, data, calibration, seed, folder)
    return chosen.function(search, **settings)


def checked(
    chosen: Method[Searching],
    options: dict[str, object],
    *,
    score: Scoring | None = None,
    model: nn.Module | Program | None = None,
    data: Data | None = None,
    base: Source | None = None,
    calibration: Data | None = None,
) -> dict[str, object]:
    """The options, after saying all that is missing or wrong.

    Raises:
        InputError: anything is.
    """
    known = inspect.signature(chosen.function).parameters
    taken = chosen.options
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
    problems: list[str] = []
    if unknown := [name for name in options if name not in taken and not open_ended]:
        problems.append(
            f"it has no option {', '.join(map(repr, unknown))}; it takes {', '.join(taken) or 'none'}"
        )
    hints = get_type_hints(chosen.function)
    for name, value in options.items():
        choices = get_args(hints.get(name)) if get_origin(hints.get(name)) is Literal else ()
        if choices and value not in choices:
            problems.append(f"{name} = {value!r} is none of {', '.join(map(repr, choices))}")
    offered = {"model": model, "data": data, "base": base}
    problems += [_MISSING[need] for need in chosen.needs if need in offered and offered[need] is None]
    if "score" in chosen.needs and score is None and (model is None or data is None):
        problems.append("it needs a score (score=f), or a model and data to make one from (model=, data=)")
    if calibration is not None and model is None:
        problems.append(
            "statistics are re-estimated by running the model: it needs model= beside calibration="
        )
    if problems:
        raise InputError(f"{chosen.name} cannot search like this", list(dict.fromkeys(problems)))
    for given in (data, calibration):
        if given is not None:
            reusable(given)
    return numbers(chosen.function, options)


_MISSING = {
    "model": "it needs the architecture: model=",
    "data": "it needs data: data=, an iterable of batches",
    "base": "it needs a base model: the one that these were trained from (base=)",
}


def _apart(models: Sequence[Source], options: dict[str, object]) -> list[str]:
    """Keys of heads that need not fit each other, where a search keeps them apart."""
    globs = options.get("heads", ())
    if not isinstance(globs, (tuple, list)) or not globs:
        return []
    keys: dict[str, None] = {}
    for source in models:
        named = source.state_dict() if isinstance(source, nn.Module) else source
        keys |= dict.fromkeys(files.open(named) if isinstance(named, (str, os.PathLike)) else named)
    return [key for key in keys if any(fnmatchcase(key, str(glob)) for glob in globs)]
