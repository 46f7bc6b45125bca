"""What is left of soups and ensembles when weights are multiplied by 10 to 110, and why.

With L weight layers and ReLU, weights times c make logits about c^L times as large, and a bias of layer l counts
c^(1 - l) as much: far enough out, the network is the one whose biases behind the first layer are gone. Logits of ten,
19 layers and c = 94 leave float32. So everything is measured in float32 and in float64, with the share of answers that
are not finite, and beside the network without those biases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import averaging
import torch
from averaging import Bench, headed, scaled_copy, score
from torch import Tensor

import isthmus
from isthmus.measure import magnified, not_finite, output_bound, spread, variance_bound

State = dict[str, Tensor]
FACTORS = (1.0, 10.0, 50.0, 90.0, 95.0, 100.0, 110.0)
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def without_biases(state: Mapping[str, Tensor]) -> State:
    """No bias but the first layer's."""
    biases = [k for k in state if k.endswith("bias")]
    return {k: torch.zeros_like(v) if k in biases[1:] else v for k, v in state.items()}


def swept(
    bench: Bench,
    states: Sequence[State],
    greedy: Sequence[int],
    limit: int,
    factors: Sequence[float] = FACTORS,
) -> dict[str, Any]:
    """Scores and shares of answers that are not finite: scope -> precision -> factor -> way."""
    images, targets = bench.inputs("test", limit)
    found: dict[str, Any] = {"examples": len(targets), "chance": bench.task.chance}
    for scope in ("everything", "weights"):
        for precision, dtype in DTYPES.items():
            for factor in factors:
                own = [magnified(scaled_copy(s, dtype), factor, scope) for s in states]
                at = found.setdefault(scope, {}).setdefault(precision, {})
                at[f"{factor:g}"] = _ways(bench, own, greedy, images, targets)
    if not any(key.endswith("running_var") for key in states[0]):  # a norm's shift is more than a bias
        bare = [scaled_copy(without_biases(s), torch.float64) for s in states]
        found["without biases"] = _ways(bench, bare, greedy, images, targets)
    return found


def _ways(
    bench: Bench, states: Sequence[State], greedy: Sequence[int], images: Tensor, targets: Tensor
) -> dict[str, Any]:
    rows = [bench.features(s, images) for s in states]
    singles = [headed(r, [s]) for r, s in zip(rows, states, strict=True)]
    soup, chosen = isthmus.combine(_finite(states)), isthmus.combine(_finite([states[i] for i in greedy]))
    mean = torch.stack(rows).mean(0)
    answers = {
        "uniform": bench.logits(soup, images),
        "greedy": bench.logits(chosen, images),
        "logits": torch.stack(singles).mean(0),
        "features": headed(mean, states),
        "features, head 1": headed(mean, states[:1]),
    }
    found: dict[str, Any] = {
        way: {"score": score(bench.task, a, targets), "not finite": not_finite(a)}
        for way, a in answers.items()
    }
    found["single"] = {
        "score": sum(score(bench.task, s, targets) for s in singles) / len(singles),
        "not finite": sum(map(not_finite, singles)) / len(singles),
    }
    found["scatter"] = averaging.per_batch(bench.task, answers["uniform"], answers["logits"], targets)
    return found


def _finite(states: Sequence[State]) -> Sequence[State]:
    """Counters that were multiplied are no counters: the first model's stand for all."""
    return [{k: v if v.is_floating_point() else states[0][k] for k, v in s.items()} for s in states]


def bounds(states: Sequence[State], image: Tensor) -> dict[str, Any]:
    """Magnitude and variance of averaged weights, and what the paper's bounds say of outputs; logarithms to base 10.

    Args:
        states: models of a plain network.
        image: one input, for its length.
    """
    ten = torch.log(torch.tensor(10.0)).item()
    keys = [k for k, v in states[0].items() if v.ndim > 1]
    spreads = {k: vars(spread([s[k] for s in states])) for k in keys}
    soup = isthmus.combine(states)
    told: dict[str, Any] = {}
    for name, state in (("first model", states[0]), ("uniform soup", soup)):
        for factor in (1.0, 10.0, 100.0):
            layers = [factor * state[k] for k in keys]
            biases = [factor * state[k.removesuffix("weight") + "bias"] for k in keys]
            output = output_bound(layers)
            deviations = [
                (w.std(correction=0).item(), b.std(correction=0).item())
                for w, b in zip(layers, biases, strict=True)
            ]
            widths = [len(w) for w in layers]
            loose, tight = (
                variance_bound(deviations, widths, image.norm().item(), own_widths=own)
                for own in (False, True)
            )
            told[f"{name} x{factor:g}"] = {
                "property 1": output.property_1 / ten,
                "spectral": output.spectral / ten,
                "theorem 1": {
                    "input": loose.input / ten,
                    "biases": loose.biases / ten,
                    "last bias": loose.last / ten,
                    "total": loose.total / ten,
                    "total, own widths": tight.total / ten,
                },
            }
    return {"layers": spreads, "outputs": told}
