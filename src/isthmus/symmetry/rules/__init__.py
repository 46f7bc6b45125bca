"""What each family of operations says about the dimensions it touches.

A rule is a function `(trace, node) -> axes` that reads the terms of a node's arguments, unifies,
refines or freezes them, and returns the terms of its result (a list of terms; a list of such lists
for an operation with several results; None for one that is no tensor). It is registered for the
operations it speaks for:

    from isthmus.symmetry import rule

    @rule(torch.ops.mylib.my_norm.default)
    def my_norm(trace, node):
        x, weight = node.args
        trace.unify(trace.axes(x)[-1], trace.axes(weight)[0])
        return trace.axes(x)

An operation without a rule freezes everything it touches and is named in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import fx, ops

from isthmus.symmetry.terms import Term

if TYPE_CHECKING:
    from isthmus.symmetry.reading import Reading

Axes = list[Term]
Rule = Callable[["Reading", fx.Node], Axes | Sequence[Axes] | None]

TABLE: dict[object, Rule] = {}


def every(*names: str) -> tuple[object, ...]:
    """All overloads of these ATen operations, less those that write into an argument."""
    found: list[object] = []
    for name in names:
        packet = getattr(ops.aten, name)
        overloads = [getattr(packet, item) for item in packet.overloads()]
        found += [item for item in overloads if not item._schema.is_mutable]
    return tuple(found)


def given(node: fx.Node, name: str) -> Any:
    """The argument of an operation by its name in the schema, its default where it was left out.

    None where the operation has no such argument.
    """
    for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == name:
            if position < len(node.args):
                return node.args[position]
            return node.kwargs.get(name, argument.default_value)
    return None


def rule(*operations: object) -> Callable[[Rule], Rule]:
    """Register a rule for these operations.

    Args:
        operations: overloads such as `torch.ops.aten.linear.default`, or, for an operation of another library
            that may not be loaded yet, its name: `"mylib.my_norm.default"`.
    """

    def register(function: Rule) -> Rule:
        ours = str(getattr(function, "__module__", "")).startswith(f"{__name__}.")
        for operation in operations:
            if not (ours and operation in TABLE):  # ours are loaded late: a user's own rule stays
                TABLE[operation] = function
        return function

    return register
