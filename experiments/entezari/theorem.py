"""How fast two random networks of one hidden layer come together as it grows, beside the theorem's rate.

Theorem 3.1 of Entezari et al.: rows of U uniform in [-1/sqrt(d), 1/sqrt(d)]^d, v uniform in [-1/sqrt(h), 1/sqrt(h)]^h,
f(x) = v relu(U x). With a suitable order of the second network's units, on almost all points of the unit sphere, the
interpolated network differs from the interpolated outputs by no more than O(h^(-1/(2d + 4))), up to logarithms. The
survey's figure 7 draws that power: 0.7278 at d = 10, h = 2048.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean

import torch
from torch import Tensor

import isthmus
from isthmus import zoo
from isthmus.paths import Segment

POINTS = 2048
PLACES = (0.25, 0.5, 0.75)


def drawn(d: int, h: int, seed: int) -> dict[str, Tensor]:
    """A network of the theorem as a state dict of `zoo.MLP`, whose biases are zero."""
    draw = torch.Generator().manual_seed(seed)
    u = (2 * torch.rand(h, d, generator=draw, dtype=torch.float64) - 1) / math.sqrt(d)
    v = (2 * torch.rand(1, h, generator=draw, dtype=torch.float64) - 1) / math.sqrt(h)
    zeros = [torch.zeros(n, dtype=torch.float64) for n in (h, 1)]
    return {
        "layers.0.weight": u,
        "layers.0.bias": zeros[0],
        "layers.1.weight": v,
        "layers.1.bias": zeros[1],
    }


def output(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    return (x @ weights["layers.0.weight"].T).relu() @ weights["layers.1.weight"][0]


def deviation(first: dict[str, Tensor], second: dict[str, Tensor], x: Tensor) -> dict[str, float]:
    """How far interpolated networks are from interpolated outputs: largest and root mean square.

    Beside the root mean square of the outputs themselves, which does not depend on the width.
    """
    one, two = output(first, x), output(second, x)
    gaps = torch.stack([output(Segment(first, second).at(t), x) - ((1 - t) * one + t * two) for t in PLACES])
    scale = float(torch.cat([one, two]).square().mean().sqrt())
    return {
        "largest": float(gaps.abs().max()),
        "root mean square": float(gaps[1].square().mean().sqrt()),
        "outputs": scale,
    }


def measured(d: int, h: int, seed: int) -> dict[str, dict[str, float]]:
    """One pair of networks as they are, in the order of weight matching, and of matching with v at the size of U.

    With one hidden layer weight matching is one assignment, so its optimum is found. v shrinks with the width and U
    does not: by plain weights the order soon follows U alone. Multiplied by sqrt(h / d) both have entries of one size.
    """
    states = [drawn(d, h, 2 * seed), drawn(d, h, 2 * seed + 1)]
    x = torch.randn(POINTS, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x / x.norm(dim=1, keepdim=True)
    graph = isthmus.trace(zoo.MLP(d_in=d, widths=(h,), num_classes=1), x[:2].float())
    even = [{**w, "layers.1.weight": math.sqrt(h / d) * w["layers.1.weight"]} for w in states]
    found = {"direct": deviation(states[0], states[1], x)}
    for way, seen in (("weight matching", states), ("weight matching, v and U of one size", even)):
        moved = isthmus.align(graph, seen, "weight-matching").apply(states)
        found[way] = deviation(moved[0], moved[1], x)
    return found


def rate(values: dict[int, Sequence[float]]) -> dict[str, float]:
    """The power of h that fits means over seeds best, by least squares of logarithms, and the fit's r^2."""
    x = torch.tensor([math.log(h) for h in values], dtype=torch.float64)
    y = torch.tensor([math.log(mean(found)) for found in values.values()], dtype=torch.float64)
    dx, dy = x - x.mean(), y - y.mean()
    slope = float((dx * dy).sum() / dx.square().sum())
    return {"exponent": slope, "r2": float((dx * dy).sum() ** 2 / (dx.square().sum() * dy.square().sum()))}


def published(d: int, h: int | None = None) -> float:
    """The theorem's exponent, or its power at a width."""
    exponent = -1 / (2 * d + 4)
    return exponent if h is None else h**exponent
