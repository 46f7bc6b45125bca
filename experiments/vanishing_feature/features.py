"""Where features vanish: bounds by layer, logits, statistics of batch norms, and how many images a repair needs."""

from __future__ import annotations

from typing import Any

from common.bench import Results
from nets import FAMILIES
from pairs import Merge, Pair
from torch import Tensor

import isthmus
from isthmus.measure.layers import batch_norms

METHOD = "activation-matching"
#: Shares of weights pruned, as in figure 5 of the paper.
SPARSITY = {"vgg16bn": 0.8, "resnet20": 0.85}
SAMPLES = (64, 128, 256)
LOOKED_AT = 2  # batches of test images for the bounds


def measure(pair: Pair, results: Results) -> None:
    """Everything above, of one pair."""
    family = FAMILIES[pair.family]
    usual, deep = family.repairs[0], family.kept[2]
    results.once("bounds", lambda: bounds(pair, (usual, *family.repairs[1:2]), deep))
    results.once("logits", lambda: logits(pair, usual))
    if usual == "reset":
        results.once("statistics", lambda: statistics(pair))
    for repair in family.repairs[:2]:
        if repair in ("reset", "repair", "rescale"):
            for size in (*SAMPLES, sum(len(y) for _, y in pair.splits.calibration)):
                results.once(
                    f"samples {repair} {size}", lambda repair=repair, size=size: few(pair, repair, size)
                )
    if pair.family in SPARSITY:
        results.once("pruned", lambda: pruned(pair, SPARSITY[pair.family]))


def bounds(pair: Pair, repairs: tuple[str, ...], deep: int) -> dict[str, Any]:
    """E_l and its bound at each layer, of merges along the paper's remedies."""
    direct, matched = pair.merge("direct"), pair.merge(METHOD)
    kept = pair.merge(METHOD, pair.kept(deep))
    merges = {"direct": direct, "aligned": matched}
    merges |= {f"aligned + {r}": pair.repair(matched, METHOD, r) for r in repairs if r != "least-squares"}
    merges |= {
        f"first {deep} kept": kept,
        f"first {deep} kept + {repairs[0]}": pair.repair(kept, METHOD, repairs[0]),
    }
    return {name: profile(pair, merge) for name, merge in merges.items()}


def profile(pair: Pair, merge: Merge, parents: list[Any] | None = None) -> dict[str, Any]:
    """The vanishing-feature profile of a merge beside its networks."""
    found = isthmus.vanishing(
        pair.graph.program,
        merge.weights,
        pair.states if parents is None else parents,
        pair.splits.test[:LOOKED_AT],
        merged_program=merge.program,
        split="test",
    )
    return {
        "layers": list(found.layers),
        "strength": list(found.strength),
        "bound": list(found.bound()),
        "offset": list(found.merged_offset),
        "features": list(found.merged),
    }


def logits(pair: Pair, repair: str) -> dict[str, Any]:
    """Mean and deviation over test images of every class's logit."""
    matched = pair.merge(METHOD)
    merges: dict[str, Any] = {"network 1": pair.states[0], "network 2": pair.states[1]}
    merges |= {"direct": pair.merge("direct"), "aligned": matched}
    merges |= {f"aligned + {repair}": pair.repair(matched, METHOD, repair)}
    return {name: spread(pair.logits(merge, pair.splits.test)) for name, merge in merges.items()}


def spread(answers: Tensor) -> dict[str, list[float]]:
    """Mean and deviation of each class's logit over the images."""
    return {"mean": answers.mean(0).tolist(), "std": answers.std(0).tolist()}


def statistics(pair: Pair) -> dict[str, list[float]]:
    """Running statistics of the merge before and after RESET: per norm, medians over channels.

    A mean's change is told in deviations after RESET, a deviation's as a ratio.
    """
    before = pair.merge(METHOD)
    after = pair.repair(before, METHOD, "reset")
    found: dict[str, list[float]] = {"std ratio": [], "mean shift": [], "mean size": []}
    for _, mean, variance, _ in batch_norms(before.program).values():
        old, new = before.weights, after.weights
        deviation = new[variance].sqrt()
        found["std ratio"].append((deviation / old[variance].sqrt()).median().item())
        found["mean shift"].append(((new[mean] - old[mean]).abs() / deviation).median().item())
        found["mean size"].append((old[mean].abs() / old[variance].sqrt()).median().item())
    return found


def few(pair: Pair, repair: str, size: int) -> float:
    """Test accuracy of the aligned midpoint where the repair sees so many images, goals included."""
    done = pair.repair(pair.merge(METHOD), METHOD, repair, data=first(pair, size))
    return pair.answers(done, pair.splits.test).accuracy


def pruned(pair: Pair, sparsity: float) -> dict[str, Any]:
    """The first network, pruned by magnitude: profile, logits and accuracy before and after RESET."""
    whole, program = pair.states[0], pair.graph.program
    found: dict[str, Any] = {"sparsity": sparsity, "whole": spread(pair.logits(whole, pair.splits.test))}
    for repair in (None, "reset"):
        done = isthmus.prune(
            program,
            "magnitude",
            sparsity=sparsity,
            weights=whole,
            data=pair.splits.calibration,
            repair=repair,
        )
        merge = Merge(program, done.weights)
        found[repair or "pruned"] = {
            "accuracy": pair.answers(merge, pair.splits.test).accuracy,
            "logits": spread(pair.logits(merge, pair.splits.test)),
            **profile(pair, merge, [whole]),
        }
    for size in SAMPLES:
        data = first(pair, size)
        done = isthmus.prune(
            program, "magnitude", sparsity=sparsity, weights=whole, data=data, repair="reset"
        )
        found[f"reset {size}"] = pair.answers(Merge(program, done.weights), pair.splits.test).accuracy
    return found


def first(pair: Pair, size: int) -> list[tuple[Tensor, Tensor]]:
    """The first so many calibration images."""
    found, left = [], size
    for x, y in pair.splits.calibration:
        if left > 0:
            found.append((x[:left], y[:left]))
            left -= len(found[-1][1])
    return found
