"""Einstein sums: dimensions of one letter are one index set."""

from __future__ import annotations

from torch import fx, ops

from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, rule
from isthmus.symmetry.terms import Term, size

aten = ops.aten


@rule(aten.einsum.default)
def einsum(trace: Reading, node: fx.Node) -> Axes:
    """Letters unify; those that the result lacks are contracted, dimensions of size one ask nothing."""
    equation, tensors = str(node.args[0]), node.args[1]
    assert isinstance(tensors, (list, tuple))
    inputs, result = parse(equation, [len(trace.shape(t)) for t in tensors])
    terms: dict[str, Term] = {}
    pairs: list[tuple[Term, Term]] = []
    for tensor, letters in zip(tensors, inputs, strict=True):
        for axis, (letter, term) in enumerate(zip(letters, trace.axes(tensor), strict=True)):
            known = terms.get(letter)
            if known is None or size(known) == 1:
                terms[letter] = term
            elif size(term) != 1 and known is not term:
                pairs.append((known, term))
            if letter not in result:
                trace.reads(tensor, axis)
    trace.unify_all(pairs)
    for tensor, letters in zip(tensors, inputs, strict=True):
        trace.mix(trace.axes(tensor), [i for i, letter in enumerate(letters) if letter not in result])
    return [terms[letter] for letter in result]


def parse(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    """The letters of each operand's dimensions, and of the result's.

    An ellipsis stands for digits counted from the right, which no letter can be.

    >>> parse("...ij,jk->...ik", [3, 2])
    ([['0', 'i', 'j'], ['j', 'k']], ['0', 'i', 'k'])
    >>> parse("ij,jk", [2, 2])[1]
    ['i', 'k']
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    hidden = 0

    def expand(text: str, count: int) -> list[str]:
        before, dots, after = text.partition("...")
        middle = [str(n) for n in reversed(range(count))] if dots else []
        return [*before, *middle, *after]

    inputs: list[list[str]] = []
    for text, rank in zip(operands, ranks, strict=True):
        count = rank - len(text.replace("...", ""))
        hidden = max(hidden, count)
        inputs.append(expand(text, count))
    if arrow:
        return inputs, expand(right, hidden)
    # Without an arrow: the ellipsis, then every letter that occurs once, in alphabetical order.
    everything = [letter for letters in inputs for letter in letters if not letter.isdigit()]
    once = sorted(letter for letter in set(everything) if everything.count(letter) == 1)
    return inputs, [*(str(n) for n in reversed(range(hidden))), *once]
