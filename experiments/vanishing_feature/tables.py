"""Methods x repairs x depth of preservation, at the midpoint: tables 1 and 3 to 11 of the paper."""

from __future__ import annotations

from typing import Any

from common.bench import Results
from nets import FAMILIES
from pairs import Merge, Pair

import isthmus
from isthmus.errors import IsthmusError


def score(pair: Pair, merge: Merge) -> dict[str, float]:
    """Test accuracy and loss."""
    found = pair.answers(merge, pair.splits.test)
    return {"accuracy": found.accuracy, "loss": found.loss}


def measure(pair: Pair, results: Results) -> None:
    """Every cell of a pair; what a method or a repair refuses is kept with its reason."""
    family = FAMILIES[pair.family]
    results.once("parents", pair.parents)
    results.once("ensemble", pair.together)
    for depth in family.kept:
        for method in family.methods:
            if depth and method.startswith("weight-matching"):
                continue  # the paper keeps layers apart with activation matching, ZipIt! and CCA
            cut = pair.kept(depth)
            wanted = ["none", *family.repairs] if method != "direct" else ["none"]
            if (depth or pair.index > 1) and method != "activation-matching" and "least-squares" in wanted:
                wanted.remove("least-squares")  # it takes ten times as long as the others
            keys = {repair: f"{method} {depth} {repair}" for repair in wanted}
            if all(key in results.found for key in keys.values()):
                continue
            try:
                merge = pair.merge(method, cut)
            except IsthmusError as error:
                for key in keys.values():
                    results.once(key, lambda said=str(error): {"refused": said})
                continue
            for repair, key in keys.items():
                results.once(
                    key, lambda repair=repair, method=method, merge=merge: cell(pair, merge, method, repair)
                )
            results.once(f"cost {depth}", lambda cut=cut: ratios(pair, cut))


def cell(pair: Pair, merge: Merge, method: str, repair: str) -> dict[str, float | str]:
    """One merge, repaired and scored."""
    try:
        return dict(score(pair, merge if repair == "none" else pair.repair(merge, method, repair)))
    except IsthmusError as error:
        return {"refused": str(error)}


def ratios(pair: Pair, cut: dict[str, Any]) -> list[float]:
    """Parameters and FLOPs of the result, as multiples of one network's."""
    if not cut:
        return [1.0, 1.0]
    return [finding.value for finding in isthmus.merge(pair.states, graph=pair.graph, **cut).ratios]
