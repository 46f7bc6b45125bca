"""Accuracy along the segment between two networks, with every repair, after weight matching and after ZipIt!."""

from __future__ import annotations

from common.bench import Results
from pairs import Merge, Pair

ALPHAS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
METHODS = ("weight-matching", "zipit")
#: How many layers lose their biases in the comparison of both ends.
REMOVED = (0, 1, 2, 4, 5, 6, 8, 10, 12, 14)


def measure(pair: Pair, results: Results) -> None:
    """Test accuracy by method, repair and alpha, and what bias removal chose."""
    for method in METHODS:
        for repair in ("none", "repair", "rescale", "remove-bias", "calibrate-bias"):
            for alpha in ALPHAS:
                results.once(
                    f"{method} {repair} {alpha}",
                    lambda m=method, r=repair, a=alpha: at(pair, m, r, a, results),
                )
        for end in ("last", "first"):
            for count in REMOVED:
                results.once(
                    f"{method} {end} {count}",
                    lambda m=method, e=end, c=count: without_biases(pair, m, e, c),
                )


def at(pair: Pair, method: str, repair: str, alpha: float, results: Results) -> float:
    """Test accuracy at alpha, the share of the second network."""
    shares = (1 - alpha, alpha)
    merge = pair.merge(method, shares=shares)
    if repair == "remove-bias":
        key = f"{method} chosen"
        count = results.once(key, lambda: chosen(pair, method))
        merge = removed(pair, merge, method, "last", count)
    elif repair != "none":
        merge = pair.repair(merge, method, repair, shares)
    return pair.answers(merge, pair.splits.test).accuracy


def chosen(pair: Pair, method: str) -> int:
    """How many last layers are best without biases, on validation images at the midpoint."""
    found = pair.repair(pair.merge(method), method, {"method": "remove-bias", "last": "best"})
    assert found.repaired is not None
    return int(str(found.repaired.settings["last"]))


def without_biases(pair: Pair, method: str, end: str, count: int) -> float:
    """Test accuracy at the midpoint with the biases of the first or the last layers gone."""
    merge = pair.merge(method)
    merge = removed(pair, merge, method, end, count) if count else merge
    return pair.answers(merge, pair.splits.test).accuracy


def removed(pair: Pair, merge: Merge, method: str, end: str, count: int) -> Merge:
    """A merge whose first or last so many layers have no bias."""
    return pair.repair(merge, method, {"method": "remove-bias", end: count})
