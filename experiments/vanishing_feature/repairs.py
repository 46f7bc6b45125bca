"""Every repair and its options at the matched midpoint, and what the number of images does to them."""

from __future__ import annotations

import time
from typing import Any

import torch
from common.bench import Results
from pairs import Batches, Pair

import isthmus

METHOD = "activation-matching"
#: What is asked for, by its name on the page.
ASKED: dict[str, dict[str, object]] = {
    "`repair`": {"method": "repair"},
    "`repair`, sequential": {"method": "repair", "mode": "sequential"},
    "`repair`, closed form": {"method": "repair", "mode": "closed-form"},
    "`rescale`": {"method": "rescale"},
    "`rescale`, sequential": {"method": "rescale", "mode": "sequential"},
    "`reshift`": {"method": "reshift"},
    "`rescale-parameters`": {"method": "rescale-parameters"},
    "`remove-bias`, all": {"method": "remove-bias"},
    '`remove-bias`, `last="best"`': {"method": "remove-bias", "last": "best"},
    "`calibrate-bias`": {"method": "calibrate-bias"},
    "`least-squares`, gains and biases": {"method": "least-squares", "rank": 0},
    "`least-squares`": {"method": "least-squares"},
}
SIZES, DRAWS = (16, 64, 256, 1000), 2
FEW = ("repair", "rescale", "least-squares")


def measure(pair: Pair, results: Results) -> None:
    """Accuracies and seconds of each repair, and of some of them by number of images."""
    merge = pair.merge(METHOD)
    results.once("none", lambda: scores(pair, merge))
    for name, asked in ASKED.items():
        results.once(name, lambda asked=asked: repaired(pair, asked))
    for size in SIZES:
        for draw in range(DRAWS):
            data = drawn(pair, size, draw)
            for name in FEW:
                results.once(f"{name} {size} {draw}", lambda name=name, data=data: by(pair, name, data))
            results.once(f"error {size} {draw}", lambda data=data: error(pair, data))


def scores(pair: Pair, merge: Any) -> dict[str, float]:
    """Validation and test accuracy."""
    return {
        split: pair.answers(merge, getattr(pair.splits, split)).accuracy for split in ("validation", "test")
    }


def repaired(pair: Pair, asked: dict[str, object]) -> dict[str, float]:
    """Accuracies of a repair, and its processor seconds, the parents' statistics apart."""
    merge = pair.merge(METHOD)
    began = time.process_time()
    done = pair.repair(merge, METHOD, asked)
    seconds = time.process_time() - began
    found = scores(pair, done) | {"seconds": seconds}
    settings = {} if done.repaired is None else done.repaired.settings
    return found | ({"last": float(str(settings["last"]))} if asked.get("last") == "best" else {})


def by(pair: Pair, name: str, data: Batches) -> float:
    """Test accuracy where a repair sees these images, goals included."""
    return pair.answers(pair.repair(pair.merge(METHOD), METHOD, name, data=data), pair.splits.test).accuracy


def error(pair: Pair, data: Batches) -> list[float]:
    """Relative error of the merged network's standard deviations: mean over layers, and the worst layer."""
    merge = pair.merge(METHOD)
    found = isthmus.calibration_error(merge.program, merge.weights, [x for x, _ in data])
    return [sum(found.layers.values()) / len(found.layers), found.value]


def drawn(pair: Pair, size: int, seed: int) -> Batches:
    """So many of the calibration images, at random."""
    x = torch.cat([x for x, _ in pair.splits.calibration])
    y = torch.cat([y for _, y in pair.splits.calibration])
    index = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:size].to(y.device)
    return list(zip(x[index].split(250), y[index].split(250), strict=True))
