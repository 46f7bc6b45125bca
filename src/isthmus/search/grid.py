"""Coefficients and options of a rule, chosen by a score: all points of a grid, or those that Optuna asks for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from isthmus import progress
from isthmus.combine import check_asked, combine, options_of, terms_of
from isthmus.errors import InputError, IsthmusError, MissingExtraError
from isthmus.search.result import Searched, plain
from isthmus.search.table import SEARCHES, Search

if TYPE_CHECKING:
    from optuna.trial import Trial

#: More points than this are a mistake, not a search.
MOST = 100_000

Point = Mapping[str, object]


@SEARCHES.register(
    "grid",
    needs=("score",),
    claims=("copies-give-the-model",),
    costs="an evaluation per point of the grid",
    source="the usual choice of coefficients on validation data; Matena & Raffel 2022 (arXiv:2111.09832), section 3",
)
def grid(
    search: Search,
    *,
    method: str = "average",
    over: Mapping[str, Sequence[object]] | None = None,
    resolution: int = 10,
    **options: object,
) -> Searched:
    """Every point of a grid over a rule's options and the models' weights; the first best one wins.

    Args:
        search: what is asked; with a base where the rule needs one.
        method: the rule, where `over` does not vary it.
        over: values to try: of "method", of "weights" (one sequence per value), of any option of the rule. Where
            a rule does not have an option, it is left out for that rule.
        resolution: without `over`: how many parts of a whole the models' weights are dealt out in: 50 are the 51
            pairs of two models in the Fisher paper.
        options: of the rule, the same at every point.

    Raises:
        InputError: a point that cannot be; all of them are named before any is evaluated.
    """
    if over is None:
        axes: dict[str, list[object]] = {"weights": list(simplex(len(search.members), resolution))}
    else:
        axes = {name: list(values) for name, values in over.items()}
        if empty := [name for name, values in axes.items() if not values]:
            raise InputError("a grid needs values to try", [f"{name} has none" for name in empty])
        if math.prod(map(len, axes.values())) > MOST:
            raise InputError(f"a grid of more than {MOST:,} points is none that can be searched")
    product = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    points = [{"method": method, **options, **point} for point in product]
    _check(search, points)
    varied = tuple(axes)
    best: tuple[float, Point] | None = None
    for point in progress.track(points, "grid", unit="merges"):
        score = _ask(search, point, varied)
        if score is not None and (best is None or score > best[0]):
            best = score, point
            search.accept()
    settings = {"method": method, **options, "over": axes if over is not None else None}
    settings |= {"resolution": resolution} if over is None else {}
    return _found(search, "grid", best, varied, settings)


@SEARCHES.register(
    "optuna",
    needs=("score",),
    claims=("copies-give-the-model", "seeded"),
    costs="an evaluation per trial",
    source="Akiba et al. 2019 (arXiv:1907.10902); the sampler is its TPE",
)
def optuna(
    search: Search,
    *,
    method: str | Sequence[str] = "average",
    space: Mapping[str, object] | None = None,
    trials: int = 50,
    **options: object,
) -> Searched:
    """Optuna chooses the models' weights and a rule's options, each trial by what the trials before it scored.

    Needs the extra `search`. Called again with a folder, the trials come out the same and cost nothing.

    Args:
        search: what is asked; with a base where the rule needs one.
        method: the rule, or several to choose from.
        space: what to choose: name of an option -> (least, most), of integers for an integer, or a list of
            choices; "weights" -> (least, most) of each model's weight. Without it, the weights alone: parts of a
            whole for rules of shares, -1 to 2 for rules of coefficients.
        trials: how many, at most.
        options: of the rule, the same in every trial.

    Raises:
        InputError: no such rule or option, or no trial has a score.
        MissingExtraError: Optuna is not installed.
    """
    try:
        import optuna as library
    except ImportError as error:
        raise MissingExtraError("this search needs optuna", hint="pip install 'isthmus[search]'") from error
    rules = [method] if isinstance(method, str) else list(method)
    wanted = {"weights": None} if space is None else dict(space)
    if trials < 1:
        raise InputError(f"trials = {trials} is no trial at all")
    library.logging.set_verbosity(library.logging.WARNING)
    study = library.create_study(direction="maximize", sampler=library.samplers.TPESampler(seed=search.seed))
    varied = (*(["method"] if len(rules) > 1 else []), *wanted)
    best: tuple[float, Point] | None = None
    for _ in range(trials):
        trial = study.ask()
        rule = rules[0] if len(rules) == 1 else str(trial.suggest_categorical("method", rules))
        point: dict[str, object] = {"method": rule, **options}
        for name, bounds in wanted.items():
            point[name] = (
                _weights(trial, rule, len(search.members), bounds)
                if name == "weights"
                else _suggest(trial, name, bounds)
            )
        _check(search, [point])
        score = _ask(search, point, varied)
        if score is None or not math.isfinite(score):
            study.tell(trial, state=library.trial.TrialState.FAIL)
        else:
            study.tell(trial, score)
        if score is not None and (best is None or score > best[0]):
            best = score, point
            search.accept()
    settings = {"method": method, **options, "space": dict(wanted), "trials": trials}
    return _found(search, "optuna", best, varied, settings)


def simplex(count: int, resolution: int) -> Iterator[tuple[float, ...]]:
    """Every way to deal a whole out to so many models in equal pieces.

    Args:
        count: of models.
        resolution: of pieces.

    Raises:
        InputError: none, or more than can be searched.

    Examples:
        >>> list(simplex(2, 2))
        [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    """
    if resolution < 1:
        raise InputError(f"resolution = {resolution} deals out nothing")
    if math.comb(resolution + count - 1, count - 1) > MOST:
        raise InputError(
            f"a whole in {resolution} pieces for {count} models is more than {MOST:,} points",
            hint="a smaller resolution, or kind='optuna'",
        )
    # Bars among stars, from the right, so that the first models come first.
    for bars in itertools.combinations(range(resolution + count - 1), count - 1):
        ends = (-1, *bars, resolution + count - 1)
        pieces = [after - before - 1 for before, after in itertools.pairwise(ends)]
        yield tuple(piece / resolution for piece in reversed(pieces))


def _ask(search: Search, point: Point, varied: Sequence[str]) -> float | None:
    members = search.members
    what = {
        "models": list(members.digests),
        "base": members.base_digest if terms_of(str(point["method"])).base != "no" else None,
        "point": plain(_asked(point)),
        "seed": search.seed,
    }
    shown = {name: plain(point[name]) for name in varied if name in point}
    label = ", ".join(f"{name}={_short(value)}" for name, value in shown.items()) or str(point["method"])
    return search.ask(label, shown, what, lambda: _made(search, point))


def _made(search: Search, point: Point) -> dict[str, Tensor]:
    method, weights, options = _asked(point)
    needs_base = terms_of(method).base != "no"
    return combine(
        search.members.states,
        method,
        base=search.members.base if needs_base else None,
        weights=weights,
        seed=search.seed,
        names=search.members.names,
        options=options,
    )


def _asked(point: Point) -> tuple[str, Sequence[float] | None, dict[str, object]]:
    """A point as a call of its rule: options that the rule does not have are those of another rule."""
    method = str(point["method"])
    weights: Any = point.get("weights")
    known = options_of(method)
    return method, weights, {name: value for name, value in point.items() if name in known}


def _check(search: Search, points: Sequence[Point]) -> None:
    """Say what is wrong with any of the points, each thing once."""
    wrong: dict[str, None] = {}
    hint: str | None = None
    named = {name for point in points for name in point} - {"method", "weights"}
    used: set[str] = set()
    for point in points:
        try:
            method, weights, options = _asked(point)
            used |= set(options)
            terms = terms_of(method)
            base = search.members.base is not None and terms.base != "no"
            check_asked(method, terms, len(search.members), weights, options, base, False)
        except IsthmusError as error:
            lines = [error.what, *(f"  {line}" for line in error.where)]
            wrong |= dict.fromkeys(lines)
            hint = hint or error.hint
    if not wrong and (unused := sorted(named - used)):
        rules = sorted({str(point["method"]) for point in points})
        wrong = {f"{', '.join(rules)}: no option {', '.join(map(repr, unused))}": None}
        hint = "; ".join(f"{rule} takes {', '.join(options_of(rule)) or 'none'}" for rule in rules)
    if wrong:
        raise InputError("these cannot be searched", list(wrong), hint=hint)


def _found(
    search: Search,
    kind: str,
    best: tuple[float, Point] | None,
    varied: Sequence[str],
    settings: Mapping[str, object],
) -> Searched:
    if best is None:
        raise InputError("no candidate has a score", [f"{step.label}: {step.note}" for step in search.steps])
    score, point = best
    chosen = {name: plain(point[name]) for name in varied if name in point}
    return search.found(kind, search.finished(_made(search, point)), score, chosen, settings)


def _weights(trial: Trial, rule: str, count: int, bounds: object) -> tuple[float, ...]:
    low, high = _pair("weights", bounds) if bounds is not None else (-1.0, 2.0)
    if terms_of(rule).weighing == "coefficients":
        return tuple(trial.suggest_float(f"weight {i}", low, high) for i in range(count))
    # Exponential numbers over their sum are uniform on the simplex.
    drawn = [-math.log(trial.suggest_float(f"share {i}", 1e-6, 1 - 1e-6)) for i in range(count)]
    return tuple(value / sum(drawn) for value in drawn)


def _suggest(trial: Trial, name: str, bounds: object) -> object:
    if isinstance(bounds, list):
        return trial.suggest_categorical(name, bounds)
    low, high = _pair(name, bounds)
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high)
    return trial.suggest_float(name, low, high)


def _pair(name: str, bounds: object) -> tuple[float, float]:
    numbers = (
        isinstance(bounds, tuple) and len(bounds) == 2 and all(isinstance(b, (int, float)) for b in bounds)
    )
    if not numbers or not bounds[0] < bounds[1]:  # type: ignore[index]
        raise InputError(
            f"the space of {name} is {bounds!r}",
            hint="write (least, most) for numbers, or a list of choices",
        )
    return bounds  # type: ignore[return-value]


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return "/".join(_short(item) for item in value)
    return str(value)
