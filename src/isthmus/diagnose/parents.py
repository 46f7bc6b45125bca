"""Experiments on the models themselves: would they answer better with other inputs, statistics or class names?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import combinations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from isthmus.diagnose.subsets import Item, moments, standardised
from isthmus.measure import Finding, answering, dead_units, evaluate, logits_of, running_gap
from isthmus.measure.barrier import keeps_statistics
from isthmus.program import Program, batches
from isthmus.repair import reset

State = Mapping[str, Tensor]


def examine(
    program: Program,
    states: Sequence[State],
    names: Sequence[str],
    calibration: Sequence[Item],
    validation: Sequence[Item],
) -> list[Finding]:
    """What can be said of models before anything is merged.

    Args:
        program: the architecture.
        states: the models.
        names: what they are called.
        calibration: inputs to take statistics from.
        validation: (inputs, targets) that accuracies are of.

    Returns:
        Findings whose layers are the models, or the layers of models.
    """
    scored = [evaluate(program, validation, state) for state in states]
    accuracy = [100 * s.accuracy for s in scored]
    examples, chance = scored[0].examples, 100 * scored[0].chance
    note = f"validation: {examples} examples, chance {chance:.3g}%"
    found = [
        Finding(
            "parents' accuracy", _mean(accuracy), "%", "higher", (0.0, 100.0), _by(names, accuracy), note
        ),
        Finding(
            "accuracy between the parents", max(accuracy) - min(accuracy), "points", "lower", (0.0, 100.0)
        ),
        _answer_distance(program, states, validation),
        _dead(program, states, names, calibration),
    ]
    found += _standardised(program, states, names, calibration, validation, accuracy)
    found += _renamed(program, states, names, validation, accuracy)
    if keeps_statistics(program):
        fresh = [reset(program, state, calibration).weights for state in states]
        gains = [
            100 * evaluate(program, validation, w).accuracy - a for w, a in zip(fresh, accuracy, strict=True)
        ]
        found.append(_gain("fresh statistics", max(gains), _by(names, gains), "the model that gains most"))
        worst = states[gains.index(max(gains))]
        found += running_gap(
            program, worst, calibration, split=f"{names[gains.index(max(gains))]}, calibration"
        )
    return found


def _standardised(
    program: Program,
    states: Sequence[State],
    names: Sequence[str],
    calibration: Sequence[Item],
    validation: Sequence[Item],
    accuracy: Sequence[float],
) -> list[Finding]:
    seen = moments(calibration)
    if seen is None:
        return []
    mean, deviation = seen
    other = standardised(validation, mean, deviation)
    gains = [
        100 * evaluate(program, other, state).accuracy - a for state, a in zip(states, accuracy, strict=True)
    ]
    return [
        Finding("input mean", float(mean.mean()), note="of the first input, over its channels"),
        Finding("input deviation", float(deviation.mean()), note="likewise"),
        _gain("standardised inputs", min(gains), _by(names, gains), "the model that gains least"),
    ]


def _renamed(
    program: Program,
    states: Sequence[State],
    names: Sequence[str],
    validation: Sequence[Item],
    accuracy: Sequence[float],
) -> list[Finding]:
    """The accuracy under the best assignment of the model's classes to those of the labels."""
    gains: list[float] = []
    removed: list[float] = []
    orders: list[str] = []
    for name, state, now in zip(names, states, accuracy, strict=True):
        confusion = _confusion(program, state, validation)
        if confusion is None:
            return []
        rows, columns = linear_sum_assignment(confusion.numpy(), maximize=True)
        best = 100 * float(confusion[rows, columns].sum() / confusion.sum())
        gains.append(best - now)
        removed.append((best - now) / (100 - now) if now < 100 else 0.0)
        moved = [f"{a} is {b}" for a, b in zip(rows, columns, strict=True) if a != b]
        orders.append(f"{name}: its {', '.join(moved[:10])}" if moved and best - now > 1 else "")
    note = "; ".join(filter(None, orders)) or "no model"
    return [
        _gain("renaming classes", max(gains), _by(names, gains), note),
        Finding(
            "errors that renaming classes removes",
            max(removed),
            "1",
            "lower",
            (0.0, 1.0),
            _by(names, removed),
        ),
    ]


def _confusion(program: Program, state: State, validation: Sequence[Item]) -> Tensor | None:
    """(answer, target) counts; None where there is not one row of logits per target."""
    pairs: list[tuple[Tensor, Tensor]] = []
    classes = 0
    with answering(program, state) as ask:
        for batch in batches(validation):
            logits = logits_of(ask(batch))
            if logits.ndim != 2 or batch.targets is None or batch.targets.shape != logits.shape[:1]:
                return None
            classes = logits.shape[1]
            pairs.append((logits.argmax(1).cpu(), batch.targets.cpu()))
    counts = torch.zeros(classes, classes, dtype=torch.float64)
    for answers, targets in pairs:
        kept = (targets >= 0) & (targets < classes)
        ones = torch.ones(int(kept.sum()), dtype=torch.float64)
        counts.index_put_((answers[kept], targets[kept].long()), ones, accumulate=True)
    return counts


def _answer_distance(program: Program, states: Sequence[State], validation: Sequence[Item]) -> Finding:
    """Root mean square difference of two models' logits over that of the logits themselves, centred over classes."""
    pairs = list(combinations(range(len(states)), 2))
    apart, size = dict.fromkeys(pairs, 0.0), [0.0] * len(states)
    with ExitStack() as stack:
        asks = [stack.enter_context(answering(program, state)) for state in states]
        for batch in batches(validation):
            rows = [logits_of(ask(batch)).double() for ask in asks]
            rows = [logits - logits.mean(-1, keepdim=True) for logits in rows]
            size = [s + float(logits.square().sum()) for s, logits in zip(size, rows, strict=True)]
            for i, j in pairs:
                apart[i, j] += float((rows[i] - rows[j]).square().sum())
    found = [(apart[i, j] / ((size[i] + size[j]) / 2)) ** 0.5 if apart[i, j] else 0.0 for i, j in pairs]
    note = "of logits, relative to their size; the mean over the pairs of models"
    return Finding("answer distance", _mean(found), "1", "lower", (0.0, 2.0), note=note)


def _dead(
    program: Program, states: Sequence[State], names: Sequence[str], calibration: Sequence[Item]
) -> Finding:
    layers: dict[str, float] = {}
    for name, state in zip(names, states, strict=True):
        found = dead_units(program, state, calibration, split="calibration")
        layers |= {f"{layer} of {name}": share for layer, share in found.layers.items()}
    note = "share of units that do not vary, where a layer reads them"
    return Finding("dead units", max(layers.values(), default=0.0), "1", "lower", (0.0, 1.0), layers, note)


def _gain(how: str, value: float, models: dict[str, float], note: str) -> Finding:
    return Finding(f"accuracy gained by {how}", value, "points", None, (-100.0, 100.0), models, note)


def _by(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return dict(zip(names, values, strict=True))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
