"""Recurrent layers: gates x hidden on the rows, the hidden state on the columns it is read by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import fx, ops

from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, rule
from isthmus.symmetry.rules.pointwise import broadcast
from isthmus.symmetry.terms import Atom, Case, Product, Sum, Term, size

aten = ops.aten

#: Operation -> (gates, mark).
_LAYERS = {
    aten.lstm.input: (4, "lstm"),
    aten.gru.input: (3, "gru"),
    aten.rnn_tanh.input: (1, "tanh"),
    aten.rnn_relu.input: (1, "relu"),
}
_CELLS = {
    aten.lstm_cell.default: (4, "lstm"),
    aten.gru_cell.default: (3, "gru"),
    aten.rnn_tanh_cell.default: (1, "tanh"),
    aten.rnn_relu_cell.default: (1, "relu"),
}


def _arguments(node: fx.Node) -> list[object]:
    """The arguments after the input and the state, with the state as a list."""
    x, state, *rest = node.args
    return [x, list(state) if isinstance(state, (list, tuple)) else [state], *rest]


def _weights(
    trace: Reading, tensors: Iterator[object], biases: bool, gates: int, mark: str, x: Term
) -> _Cell:
    """Read one cell's weights: rows are gates x hidden in one order for all gates."""
    into, back = next(tensors), next(tensors)
    rows = [trace.axes(into)[0], trace.axes(back)[0]]
    if biases:
        rows += [trace.axes(next(tensors))[0], trace.axes(next(tensors))[0]]
    hidden = trace.new(size(rows[0]) // gates)
    for row in rows:
        trace.unify(row, hidden if gates == 1 else Product((trace.fixed(gates), hidden)))
    trace.unify(trace.axes(into)[1], x)
    trace.reads(into, 1)
    trace.mark([hidden], mark)
    return _Cell(hidden, back)


class _Cell:
    """One direction of one layer: its hidden units, and the weight that reads its state."""

    def __init__(self, hidden: Term, back: object):
        self.hidden, self.back, self.state = hidden, back, hidden

    def close(self, trace: Reading, projection: object | None) -> None:
        """Feed the state (projected or not) back."""
        if projection is not None:
            out, inner = trace.axes(projection)
            trace.unify(inner, self.hidden)
            trace.reads(projection, 1)
            self.state = out
        trace.unify(trace.axes(self.back)[1], self.state)
        trace.reads(self.back, 1)


@rule(*_LAYERS)
def layers(trace: Reading, node: fx.Node) -> list[Axes]:
    """All layers and directions over a sequence: (outputs, last states)."""
    gates, mark = _LAYERS[node.target]  # type: ignore[index]
    x, states, weights, biases, count, _, _, bidirectional, batch_first = _arguments(node)
    assert isinstance(states, list) and isinstance(weights, (list, tuple)) and isinstance(count, int)
    axes = trace.axes(x)
    directions = 2 if bidirectional else 1
    each = len(weights) // (count * directions)
    projected = each in (3, 5)
    trace.freeze([axes[1 if batch_first and len(axes) == 3 else 0]])
    batch = axes[0 if batch_first else 1] if len(axes) == 3 else None
    tensors = iter(weights)
    features = axes[-1]
    cells: list[_Cell] = []
    for _ in range(count):
        here: list[_Cell] = []
        for _ in range(directions):
            cell = _weights(trace, tensors, bool(biases), gates, mark, features)
            cell.close(trace, next(tensors) if projected else None)
            here.append(cell)
        cells += here
        features = here[0].state if directions == 1 else Sum(tuple(cell.state for cell in here))
    kinds = [[cell.state for cell in cells], [cell.hidden for cell in cells]][: len(states)]
    last = [_stacked(terms, batch) for terms in kinds]
    for given, made in zip(states, last, strict=True):
        broadcast(trace, made, trace.axes(given))
    return [[*axes[:-1], features], *last]


def _stacked(terms: Sequence[Term], batch: Term | None) -> Axes:
    """The last states of all cells, one after another along the first dimension."""
    rest = [] if batch is None else [batch]
    if len(terms) == 1:
        return [Atom(1), *rest, terms[0]]
    key = Atom(len(terms))
    key.bound = Sum(tuple(Atom(1) for _ in terms))
    return [key, *rest, Case(key, tuple((1, term) for term in terms))]


@rule(*_CELLS)
def cell(trace: Reading, node: fx.Node) -> Axes | list[Axes]:
    """One step: the new state, and of an LSTM its memory."""
    gates, mark = _CELLS[node.target]  # type: ignore[index]
    x, states, *weights = _arguments(node)
    assert isinstance(states, list)
    axes = trace.axes(x)
    given = [weight for weight in weights if weight is not None]
    made = _weights(trace, iter(given), len(given) > 2, gates, mark, axes[-1])
    made.close(trace, None)
    result = [*axes[:-1], made.hidden]
    for state in states:
        broadcast(trace, result, trace.axes(state))
    return [result, list(result)] if gates == 4 else result
