"""One call: measure models that shall be merged, try a few recipes, and say what is wrong and what to do."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import isthmus
from isthmus import progress
from isthmus.align import Alignment, align
from isthmus.diagnose import BUDGETS, CAUSES, RELATIONS, Attempt, Diagnosis, Recipe, gather, holding
from isthmus.diagnose.grid import affordable, best_within, finalists, first_round, second_round, third_round
from isthmus.diagnose.subsets import halves, take
from isthmus.errors import InputError
from isthmus.measure import Cost, Finding, cost, ensemble, evaluate
from isthmus.merging import Mergeable, merge, state_of
from isthmus.program import first_example
from isthmus.report.profiles import Profile
from isthmus.report.results import Provenance, Results, Row
from isthmus.symmetry import SymmetryGraph, trace, verified


def diagnose(
    models: Sequence[Mergeable],
    data: Iterable[object],
    *,
    validation: Iterable[object] | None = None,
    model: nn.Module | None = None,
    names: Sequence[str] | None = None,
    budgets: Sequence[float] = BUDGETS,
    subset: int = 500,
    recipes: int = 60,
    seconds: float | None = None,
    seed: int = 0,
    program: Sequence[str] = (),
) -> Diagnosis:
    """Say how models are related, what stands in the way of merging them, and which recipe is best at what size.

    First the cheap measures, on a small part of the data: of the weights, of each model (inputs, statistics, names of
    classes, dead units), of their alignment, and of the aligned average. Rules of stated limits turn them into causes.
    Then a short grid, alignments x repairs at one parent's size and the best of them with the first layers apart; what
    is best at each size is measured again on all of the data.

    Args:
        models: two or more modules, state dicts or files of one architecture.
        data: calibration data, yields (inputs, targets); targets are used only where there is no `validation`.
        validation: (inputs, targets) that every accuracy is of and every choice is made on; without it, every other
            batch of `data`, which is then read into memory.
        model: the architecture, where `models` are state dicts or files.
        names: what the models are called.
        budgets: largest numbers of parameters, relative to one parent.
        subset: examples of either split for the measures and the grid; the best are measured on all of them.
        recipes: try at most so many.
        seconds: try no further recipe after so many seconds; the best are then chosen of what was tried.
        seed: for methods that draw.
        program: how a command line that merges these models begins, for the advice.

    Returns:
        The diagnosis. It is the same whenever the inputs are the same, unless `seconds` cut it short.

    Raises:
        InputError: fewer than two models, no architecture, or an option out of range.
        MismatchError, WeightsError, ExportError, DataError: as `isthmus.merge`.

    Examples:
        >>> import torch, isthmus
        >>> from isthmus import zoo
        >>> data = zoo.digits().split()
        >>> nets = [zoo.init(zoo.mlp(d_in=64, widths=[8]), seed) for seed in (1, 2)]
        >>> loader, held = data.loader("train", limit=100), data.loader("validation", limit=100)
        >>> found = isthmus.diagnose(nets, loader, validation=held, recipes=2)
        >>> found.relation.rule
        'strangers'
    """
    start = time.monotonic()
    _check(models, budgets, subset, recipes, seconds, names)
    calibration, held = (data, validation) if validation is not None else halves(data)
    # The plain average checks the models against each other and reads the architecture once.
    plain = merge(models, model=model, data=calibration, align=None, preserve_last=0)
    module = model if model is not None else plain.model
    if module is None:
        raise InputError("the architecture is needed to diagnose models", hint="pass modules, or model=")
    called = list(names or (f"model {i}" for i in range(len(models))))
    states = [state_of(m) for m in models]
    example = first_example(calibration)
    graph, _ = verified(trace(module, example), example, weights=states[0], seed=seed)
    small = take(calibration, subset), take(held, subset)
    gathered = gather(graph, states, called, *small)
    relation = holding(RELATIONS, gathered.findings)[0]
    bench = _Bench(graph, module, states, cost(graph.program, example), seed)
    tried, left = _tried(
        bench, small, relation.rule, budgets, recipes, lambda: _late(start, seconds), gathered.alignment
    )
    whole = _measured(bench, tried, (calibration, held), budgets)
    scored = [evaluate(graph.program, held, state, split="validation") for state in states]
    best = best_within(whole, budgets)
    findings = dict(gathered.findings)
    mean = sum(s.accuracy for s in scored) / len(scored)
    if best and min(best) <= 1:
        lost = 100 * (mean - best[min(best)].score)
        name = "accuracy lost by the best merge of one size"
        findings[name] = Finding(
            name, lost, "points", "lower", (-100.0, 100.0), note="against the parents' mean"
        )
    return Diagnosis(
        names=tuple(called),
        relation=relation,
        causes=holding(CAUSES, findings),
        findings=findings,
        attempts=tuple(whole),
        best=best,
        ensemble=ensemble(graph.program, states, held).accuracy,
        parents=tuple(s.accuracy for s in scored),
        chance=scored[0].chance,
        examples=scored[0].examples,
        left=left,
        settings={
            "subset": subset,
            "recipes": recipes,
            "seconds": seconds,
            "seed": seed,
            "budgets": list(budgets),
        },
        program=tuple(program),
    )


def results(found: Diagnosis, *, command: str = "") -> Results:
    """The diagnosis as the schema of `results.json`, which the report page is made of: its table and its profiles.

    Args:
        found: the diagnosis.
        command: the command line that made it, for the record.
    """
    chosen = {attempt.recipe: attempt for attempt in found.best.values()}
    rows = [
        Row(name=name, kind="edge", accuracy=accuracy, validation=accuracy, parameters=1.0, flops=1.0)
        for name, accuracy in zip(found.names, found.parents, strict=True)
    ]
    count = float(len(found.names))
    rows.append(
        Row(
            name="ensemble",
            kind="ensemble",
            accuracy=found.ensemble,
            validation=found.ensemble,
            parameters=count,
            flops=count,
        )
    )
    for recipe, attempt in chosen.items():
        kind = "kept-apart" if recipe.preserve_first else "merged"
        accuracy = attempt.score
        rows.append(
            Row(
                name=str(recipe),
                kind=kind,
                accuracy=accuracy,
                validation=accuracy,
                parameters=attempt.parameters,
            )
        )
    profiles: list[Profile] = []
    for name, make in (("vanishing features", Profile.vanishing), ("variance ratio", Profile.variance)):
        if name in found.findings:
            finding = found.findings[name]
            profiles.append(
                make(
                    list(finding.layers),
                    {"aligned average": list(finding.layers.values())},
                    note=finding.note,
                )
            )
    return Results(
        title=f"Diagnosis of {' and '.join(found.names)}",
        verdict=found.summary,
        rows=rows,
        profiles=profiles,
        provenance=Provenance(
            isthmus=isthmus.__version__,
            torch=torch.__version__,
            python=platform.python_version(),
            command=command,
            seeds={"diagnosis": int(str(found.settings.get("seed", 0)))},
            splits={"validation": found.examples},
            evaluated="validation",
            chance=found.chance,
        ),
    )


@dataclass(frozen=True)
class _Bench:
    """What every attempt has in common."""

    graph: SymmetryGraph
    module: nn.Module
    states: Sequence[dict[str, Tensor]]
    unit: Cost
    seed: int

    def attempt(
        self, recipe: Recipe, by: Alignment | None, calibration: Iterable[object], held: Iterable[object]
    ) -> Attempt:
        """Merge and evaluate. What a method refuses is a result too."""
        try:
            merged = merge(
                self.states,
                model=self.module,
                graph=self.graph,
                align=by,
                repair=recipe.repair,
                data=calibration,
                preserve_first=recipe.preserve_first,
                seed=self.seed,
                verify=False,
            )
        except InputError as error:
            return Attempt(recipe, refused=error.what)
        program = merged.program or self.graph.program
        measured = evaluate(program, held, merged.weights)
        size = merged.ratios[0].value if recipe.preserve_first else 1.0
        return Attempt(recipe, size, measured.accuracy)

    def align(self, by: str, calibration: Iterable[object]) -> Alignment:
        return align(self.graph, self.states, by, data=calibration)


def _tried(
    bench: _Bench,
    small: tuple[list[object], list[object]],
    relation: str,
    budgets: Sequence[float],
    most: int,
    late: Callable[[], bool],
    known: Alignment,
) -> tuple[list[Attempt], int]:
    """The rounds of the grid, and how many recipes time left untried."""
    maps: dict[str, Alignment] = {known.method: known}
    found: list[Attempt] = []
    left = 0
    with progress.task("recipes", unit="recipes") as advance:

        def run(recipe: Recipe) -> None:
            nonlocal left
            if len(found) >= most or (found and late()):
                left += 1
                return
            if recipe.align is not None and recipe.align not in maps:
                maps[recipe.align] = bench.align(recipe.align, small[0])
            by = None if recipe.align is None else maps[recipe.align]
            found.append(bench.attempt(recipe, by, *small))
            advance(1)

        related = relation in ("copies", "siblings")
        for recipe in first_round(related):
            run(recipe)
        for recipe in list(second_round(related, found)):
            run(recipe)
        depths = affordable(bench.graph.program, len(bench.states), [b for b in budgets if b > 1])
        for recipe in list(third_round(found, depths)):
            run(recipe)
    return found, left


def _measured(
    bench: _Bench,
    tried: Sequence[Attempt],
    whole: tuple[Iterable[object], Iterable[object]],
    budgets: Sequence[float],
) -> list[Attempt]:
    """The attempts, those that are best at some size with their accuracy on all of the data."""
    chosen = {attempt.recipe for attempt in finalists(tried, budgets)}
    maps = {by: bench.align(by, whole[0]) for by in {r.align for r in chosen if r.align is not None}}
    done: list[Attempt] = []
    for attempt in tried:
        if attempt.recipe in chosen:
            by = None if attempt.recipe.align is None else maps[attempt.recipe.align]
            again = bench.attempt(attempt.recipe, by, *whole)
            attempt = replace(attempt, whole=again.accuracy, refused=again.refused)
        done.append(attempt)
    return done


def _late(start: float, seconds: float | None) -> bool:
    return seconds is not None and time.monotonic() - start > seconds


def _check(
    models: Sequence[Mergeable],
    budgets: Sequence[float],
    subset: int,
    recipes: int,
    seconds: float | None,
    names: Sequence[str] | None,
) -> None:
    """Say everything that is wrong with the call at once."""
    wrong = [f"{len(models)} models: two or more are merged"] if len(models) < 2 else []
    wrong += [f"names: {len(names)} for {len(models)} models"] if names and len(names) != len(models) else []
    wrong += [f"budgets: {b} parents; one is the least" for b in budgets if not b >= 1]
    wrong += ["budgets: none"] if not budgets else []
    wrong += [
        f"{what} = {value}: at least 1"
        for what, value in (("subset", subset), ("recipes", recipes))
        if value < 1
    ]
    wrong += [f"seconds = {seconds}: more than 0"] if seconds is not None and seconds <= 0 else []
    if wrong:
        raise InputError("the models cannot be diagnosed so", wrong)
