"""Merging by Fisher information and by Gram matrices beside the plain average, and a donor of another task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from averaging import Bench, score
from torch import Tensor

import isthmus

State = dict[str, Tensor]


def rows(bench: Bench, states: Sequence[State], examples: int) -> dict[str, tuple[float, float]]:
    """Scores of single models, of their average, of Fisher merging by each variant and floor, and of RegMean.

    Returns:
        Way -> per cent on validation, on test.
    """
    sets = [bench.inputs(split) for split in ("validation", "test")]
    x, y = (t[:examples] for t in bench.inputs("train"))
    data = list(zip(x.split(100), y.split(100), strict=True))
    net = bench.net(states[0], False)

    def answered(weights: Mapping[str, Tensor]) -> tuple[float, float]:
        first, second = (score(bench.task, bench.logits(weights, i), t) for i, t in sets)
        return first, second

    def measured(weights: Mapping[str, Tensor]) -> tuple[float, float]:
        return answered(bench.reset(dict(weights)))

    found = {
        "best single": max(answered(s) for s in states),
        "isotropic": measured(isthmus.combine(states)),
    }
    likelihood = "bernoulli" if bench.task.many else "categorical"
    for variant in ("exact", "sampled", "empirical"):
        known = [
            isthmus.fisher_information(net, data, weights=s, variant=variant, likelihood=likelihood)
            for s in states
        ]
        for floor, favor in ((1e-6, True), (1e-6, False), (1e-4, False), (0.0, False)):
            how = {"favor_target": favor, "floor": floor}
            told = f"fisher, {variant}, floor {floor:g}{' for the first' if favor else ''}"
            found[told] = measured(isthmus.combine(states, "fisher", statistics=known, options=how))
    grams = [isthmus.gram_matrices(net, data, weights=s) for s in states]
    for alpha in (1.0, 0.9, 0.1):
        # Units that are silent leave a Gram matrix without a rank: a little is added to its diagonal.
        how = {"alpha": alpha, "ridge": 1e-6}
        found[f"reg-mean, alpha {alpha:g}"] = measured(
            isthmus.combine(states, "reg-mean", statistics=grams, options=how)
        )
    return found


def donated(bench: Bench, target: State, donor: State, donor_bench: Bench, examples: int) -> dict[str, Any]:
    """The target's body merged with a donor's of another task, the target's head kept, over the donor's share.

    Fisher information is each model's own, on its own task's data. The share is chosen on validation.
    """
    known = []
    for own, state in ((bench, target), (donor_bench, donor)):
        x, y = (t[:examples] for t in own.inputs("train"))
        net = own.net(state, False)
        likelihood = "bernoulli" if own.task.many else "categorical"
        pairs = list(zip(x.split(100), y.split(100), strict=True))
        known.append(
            isthmus.fisher_information(net, pairs, variant="sampled", likelihood=likelihood, skip=["head.*"])
        )
    found: dict[str, Any] = {}
    for method, statistics in (("isotropic", None), ("fisher", known)):
        curve: dict[str, list[float]] = {}
        for share in (0.0, 0.05, 0.1, 0.2, 0.3, 0.5):
            if share == 0.0:
                weights: Mapping[str, Tensor] = target
            else:
                weights = isthmus.merge(
                    [target, donor],
                    combine=method,
                    statistics=statistics,
                    weights=[1 - share, share],
                    skip=["head.*"],
                ).weights
            repaired = bench.reset(dict(weights))
            told = []
            for split in ("validation", "test"):
                images, targets = bench.inputs(split)
                told.append(score(bench.task, bench.logits(repaired, images), targets))
            curve[f"{share:g}"] = told
        best = max(curve, key=lambda s: curve[s][0])
        found[method] = {"validation and test by share": curve, "chosen": best, "test": curve[best][1]}
    return found
