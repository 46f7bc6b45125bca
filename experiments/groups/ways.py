"""The ways to bring two networks together before their weights are averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from learned import learn
from torch import Tensor, nn

import isthmus

State = dict[str, Tensor]
#: A way: a pair of networks to the same two networks moved, and what to remember of it.
Way = Callable[["Pair"], tuple[list[State], list[str]]]

WEIGHTS, ACTIVATIONS = "weight-matching", "activation-matching"


@dataclass(frozen=True, eq=False)
class Pair:
    """Two networks of one architecture, and the data that an alignment may see.

    Attributes:
        graph: the verified symmetries.
        models: their weights.
        model: the architecture.
        calibration: windows of the training works.
        lessons: more of them, for what learns by gradient.
    """

    graph: isthmus.SymmetryGraph
    models: Sequence[State]
    model: nn.Module
    calibration: Sequence[tuple[Tensor, Tensor]]
    lessons: Sequence[tuple[Tensor, Tensor]]

    @cached_property
    def folded(self) -> list[State]:
        """The same functions, the scales of their norms folded into what reads them."""
        return [self.graph.fold_norms(state) for state in self.models]


@dataclass(frozen=True)
class Step:
    """One alignment, of where the networks stand.

    Attributes:
        method: its name.
        full: whether it may use the full group of each space, or orders alone.
        moves: whether the residual stream may move.
        restarts: tries of weight matching, of which the best objective is kept.
        stream: of activation matching, where a stream is looked at: the "last" place, or all "pooled".
    """

    method: str
    full: bool = True
    moves: bool = True
    restarts: int = 1
    stream: str = "last"

    def options(self) -> dict[str, object]:
        found: dict[str, object] = {
            "method": self.method,
            "groups": "full" if self.full else "permutation",
            "residual": "match" if self.moves else "identity",
        }
        return found | ({"restarts": self.restarts} if self.method == WEIGHTS else {"stream": self.stream})


def direct(pair: Pair) -> tuple[list[State], list[str]]:
    return list(pair.models), []


def direct_folded(pair: Pair) -> tuple[list[State], list[str]]:
    return pair.folded, []


def aligned(*steps: Step, folded: bool = True) -> Way:
    """Alignments one after another, each from where the last has brought the networks."""

    def way(pair: Pair) -> tuple[list[State], list[str]]:
        graph = pair.graph.folded if folded else pair.graph
        states, notes = pair.folded if folded else list(pair.models), []
        for step in steps:
            data = pair.calibration if step.method == ACTIVATIONS else None
            found = isthmus.align(graph, states, step.options(), data=data)
            states = found.apply(states)
            notes += [*found.notes, found.status]
        return states, notes

    return way


def taught(start: Way) -> Way:
    """What a way finds, moved on within the group along the gradient of the midpoint's loss."""

    def way(pair: Pair) -> tuple[list[State], list[str]]:
        states, notes = start(pair)
        moved, more = learn(pair.graph.folded, pair.model, states, pair.lessons)
        return [states[0], moved], [*notes, *more]

    return way


#: Chosen on the validation works, on the first pair of `llama-learned`.
CHOSEN = aligned(Step(ACTIVATIONS, stream="pooled"), Step(WEIGHTS, moves=False))

WAYS: dict[str, Way] = {
    "direct": direct,
    "direct, norms folded": direct_folded,
    "permutations, by weights": aligned(Step(WEIGHTS, full=False), folded=False),
    "permutations, by weights, stream stays": aligned(Step(WEIGHTS, full=False, moves=False), folded=False),
    "permutations, by activations": aligned(Step(ACTIVATIONS, full=False), folded=False),
    "permutations, by activations, stream stays": aligned(
        Step(ACTIVATIONS, full=False, moves=False), folded=False
    ),
    "full groups, by weights": aligned(Step(WEIGHTS)),
    "full groups, by weights, stream stays": aligned(Step(WEIGHTS, moves=False)),
    "full groups, by activations": aligned(Step(ACTIVATIONS)),
    "full groups, by activations, stream stays": aligned(Step(ACTIVATIONS, moves=False)),
    "full groups, by weights, from the permutations": aligned(Step(WEIGHTS, full=False), Step(WEIGHTS)),
    "full groups, by weights, best of 5": aligned(Step(WEIGHTS, restarts=5)),
    "full groups, by activations, stream pooled": aligned(Step(ACTIVATIONS, stream="pooled")),
    "stream by pooled activations, the rest by weights": CHOSEN,
    "the same, then learned": taught(CHOSEN),
}

#: Measured on the first pair of a family alone.
EXPLORED = (
    "full groups, by activations, stream stays",
    "full groups, by weights, from the permutations",
    "full groups, by weights, best of 5",
)
