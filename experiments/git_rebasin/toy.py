"""Two networks that compute the same answers and that no order of units joins, and trained ones that an order does.

The two are those of Git Re-Basin's counter-example, (x1, x2) -> -(a + b) with two hidden layers of two units. A point
belongs to the class where the output is 0: x1 <= 0 and x2 >= 0. They are weights that nobody would find by training.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

import isthmus
from isthmus import zoo
from isthmus.maps import Permutation, Transport
from isthmus.measure import barrier
from isthmus.paths import Segment

POINTS = 21
#: The class is where the output is above this; points are kept a tenth away from its border.
THRESHOLD = -0.05
HIDDEN = 32

Data = list[tuple[Tensor, Tensor]]


def points(count: int, seed: int) -> Data:
    """Points of the square [-1, 1]^2, none closer than 0.1 to an axis, and whether they are in the class."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 2, generator=draw) * 2 - 1
    x = x.sign() * (0.1 + 0.9 * x.abs())
    return [(x, ((x[:, 0] <= 0) & (x[:, 1] >= 0)).long())]


class Signed(nn.Module):
    """An MLP with one output as a classifier: the logits of "no" and "yes"."""

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        self.net = zoo.MLP(d_in=2, widths=widths, num_classes=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        return torch.cat([out * 0 + THRESHOLD, out], 1)


def two() -> list[dict[str, Tensor]]:
    """The weights of the two networks."""
    rows = [
        ([[-1, 0], [0, -1]], [1, 0], [[-1, 0], [0, 1]], [1, 0]),
        ([[1, 0], [0, 1]], [0, 1], [[1, 0], [0, -1]], [0, 1]),
    ]
    return [
        {
            "net.layers.0.weight": torch.tensor(w1, dtype=torch.float32),
            "net.layers.0.bias": torch.tensor(b1, dtype=torch.float32),
            "net.layers.1.weight": torch.tensor(w2, dtype=torch.float32),
            "net.layers.1.bias": torch.tensor(b2, dtype=torch.float32),
            "net.layers.2.weight": torch.tensor([[-1.0, -1.0]]),
            "net.layers.2.bias": torch.zeros(1),
        }
        for w1, b1, w2, b2 in rows
    ]


def planted() -> dict[str, Any]:
    """Every order of the second network's units: two spaces of two units have four."""
    model, states, data = Signed((2, 2)).eval(), two(), points(4000, 0)
    graph = isthmus.trace(model, data[0][0][:2])
    swaps = [torch.tensor(order) for order in itertools.permutations(range(2))]
    found = {}
    for orders in itertools.product(swaps, repeat=len(graph.spaces)):
        maps = {name: Permutation(order) for name, order in zip(graph.spaces, orders, strict=True)}
        moved = Transport(graph, maps).apply(states[1])
        curve = barrier(graph.program, Segment(states[0], moved), data, points=POINTS)
        found[", ".join(str(order.tolist()) for order in orders)] = _told(curve)
    methods = {
        name: isthmus.align(graph, states, by, data=data).apply(states)
        for name, by in (
            ("weight-matching", {"method": "weight-matching"}),
            ("activation-matching", {"method": "activation-matching"}),
            ("weight-matching, scales too", {"method": "weight-matching", "groups": "full"}),
        )
    }
    chosen = {
        name: _told(barrier(graph.program, Segment(*moved), data, points=POINTS))
        for name, moved in methods.items()
    }
    return {"orders": found, "methods": chosen, "examples": len(data[0][1])}


def trained_toy(first: int, second: int) -> dict[str, Any]:
    """Two networks of the same task that were trained, and are wider."""
    data, test = points(4000, 1), points(4000, 0)
    batches = [(x, y) for x, y in zip(data[0][0].split(100), data[0][1].split(100), strict=True)]
    model = Signed((HIDDEN, HIDDEN))
    states = [
        zoo.train(zoo.init(model, seed), batches, epochs=20, lr=0.1, seed=seed, threads=1).model.state_dict()
        for seed in (first, second)
    ]
    graph = isthmus.trace(model.eval(), test[0][0][:2])
    moved = isthmus.align(graph, states, "weight-matching").apply(states)
    return {
        way: _told(barrier(graph.program, Segment(*pair), test, points=POINTS))
        for way, pair in (("direct", states), ("weight matching", moved))
    }


def _told(curve: Any) -> dict[str, Any]:
    return {
        "accuracy": list(curve.accuracy),
        "loss": list(curve.loss),
        "barrier": {"accuracy": curve.height("accuracy"), "loss": curve.height("loss")},
        "chance": curve.chance,
    }
