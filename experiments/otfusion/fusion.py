"""Networks of one structure carried to the units of one of them, in every way of OT fusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import torch
from common.bench import Batches, Images, State, best, together
from torch import Tensor, nn

import isthmus
from isthmus.measure import evaluate

POINTS = 11

#: Way -> options to choose among on validation images; None cuts off or pads, units left where they are.
WAYS: dict[str, list[dict[str, object] | None]] = {
    "direct": [None],
    "activations, exact": [{}, {"at": "post-activation"}],
    "activations, Sinkhorn": [
        {"solver": "sinkhorn", "regularization": 0.01},
        {"solver": "sinkhorn", "regularization": 0.05},
    ],
    "weights, exact": [{"by": "weights"}],
    "weights, Sinkhorn": [
        {"by": "weights", "solver": "sinkhorn", "regularization": 0.01},
        {"by": "weights", "solver": "sinkhorn", "regularization": 0.05},
    ],
}


class Fusion:
    """Networks of one structure, of one width or several.

    Args:
        models: the networks.
        images: to choose and to measure on.
        seen: images that units are compared on, and batch norms estimated from.
        repair: what gives activations their statistics back: "reset" where there are batch norms.
    """

    def __init__(self, models: Sequence[nn.Module], images: Images, seen: Batches, repair: str | None = None):
        self.models, self.images, self.seen, self.repair = list(models), images, seen, repair
        self.states: list[State] = [m.state_dict() for m in models]
        self.graphs = [
            isthmus.verified(isthmus.trace(m, seen[0][0][:2]), seen[0][0][:2], weights=s)[0]
            for m, s in zip(models, self.states, strict=True)
        ]

    def moved(self, by: Mapping[str, object] | None, anchor: int) -> list[State]:
        """Every network in the units of the anchor."""
        if by is None:
            return [fitted(state, self.states[anchor]) for state in self.states]
        how = {"method": "transport", **by}
        align = isthmus.align(self.graphs, self.states, how, data=self.seen, reference=anchor)
        return align.apply(self.states)

    def merged(self, moved: Sequence[State], anchor: int, weights: Sequence[float] | None = None) -> State:
        """The average of moved networks, repaired."""
        found = isthmus.merge(
            moved,
            model=self.models[anchor],
            graph=self.graphs[anchor],
            weights=weights,
            repair=self.repair,
            data=self.seen if self.repair else None,
        )
        return dict(found.weights)

    def score(self, state: Mapping[str, Tensor], anchor: int, split: str = "test") -> float:
        return evaluate(self.models[anchor], getattr(self.images, split), state).accuracy

    def alone(self) -> dict[str, Any]:
        """Each network, and the ensemble of all."""
        each = [self.score(state, i) for i, state in enumerate(self.states)]
        return {"each": each, "ensemble": together(self.models, self.images.test)}

    def midpoint(self, way: str, anchor: int) -> dict[str, Any]:
        """The plain average by the options that are best on validation images, and the carried networks alone.

        A soft plan may blur a network so much that what is left of an average is the anchor: then the first is good
        and the second is not.
        """
        tried: dict[str, tuple[State, list[State]]] = {}
        for by in WAYS[way]:
            moved = self.moved(by, anchor)
            tried[str(by)] = self.merged(moved, anchor), moved
        scores = {name: self.score(state, anchor, "validation") for name, (state, _) in tried.items()}
        chosen = best(scores)
        state, moved = tried[chosen]
        carried = [
            self.score(self.merged([own, own], anchor), anchor) for i, own in enumerate(moved) if i != anchor
        ]
        return {
            "options": chosen,
            "validation": scores,
            "test": self.score(state, anchor),
            "carried": mean(carried),
        }

    def swept(self, way: str, anchor: int) -> dict[str, Any]:
        """Accuracy of two networks over the weight of the second one, by the options whose best point is highest.

        The weight is chosen on validation images too: `best` is the test accuracy there.
        """
        places = [step / (POINTS - 1) for step in range(POINTS)]
        curves: dict[str, list[State]] = {}
        for by in WAYS[way]:
            moved = self.moved(by, anchor)
            curves[str(by)] = [self.merged(moved, anchor, [1 - t, t]) for t in places]
        seen = {name: [self.score(s, anchor, "validation") for s in c] for name, c in curves.items()}
        chosen = best({name: max(scores) for name, scores in seen.items()})
        test = [self.score(state, anchor) for state in curves[chosen]]
        at = seen[chosen].index(max(seen[chosen]))
        return {
            "options": chosen,
            "t": places[at],
            "best": test[at],
            "validation": seen[chosen],
            "test": test,
        }


def fitted(weights: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> State:
    """Weights cut off or padded to the shapes of others."""
    found: State = {}
    for key, wanted in like.items():
        made = torch.ones_like(wanted) if key.endswith("running_var") else torch.zeros_like(wanted)
        common = tuple(slice(min(a, b)) for a, b in zip(weights[key].shape, wanted.shape, strict=True))
        made[common] = weights[key][common]
        found[key] = made
    return found
