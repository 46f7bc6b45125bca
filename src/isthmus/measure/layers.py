"""Which values a profile over layers looks at, and what it calls them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from isthmus.program import Program


@dataclass(frozen=True)
class Layers:
    """The layers of a profile, in order of execution.

    Attributes:
        labels: value name -> readable place: the module's path where it is the only linear or conv
            operation of that module, otherwise path and value.
        left_out: linear and conv operations without one, because the merged model keeps them apart
            or they have no batch dimension.
    """

    labels: dict[str, str]
    left_out: int


def shared_layers(program: Program, merged: Program) -> Layers:
    """The outputs of linear and conv operations that a program and its merged version both compute.

    Args:
        program: the program of one parent.
        merged: the program of the merged model. Where parts are kept apart, merged values have the
            names they have in `program`, and branches have others. Where all is, there is none.
    """
    linear = [
        node.name
        for node in program.graph.nodes
        if node.users and node.name in program.dynamic and program.applies_weight(node)
    ]
    found = [name for name in linear if name in merged.nodes and batch_dim(program, name) is not None]
    paths = {name: program.module_of(name) for name in linear}
    uses = Counter(paths.values())
    labels = {
        name: paths[name] if paths[name] and uses[paths[name]] == 1 else f"{paths[name]}:{name}".lstrip(":")
        for name in found
    }
    return Layers(labels, len(linear) - len(found))


def batch_dim(program: Program, name: str) -> int | None:
    """The one dimension of a value that grows with the batch; None if there is none or several."""
    # Export leaves the batch size symbolic, and nothing else.
    grows = [index for index, size in enumerate(program.value(name).shape) if not isinstance(size, int)]
    return grows[0] if len(grows) == 1 else None


def channel_axis(program: Program, name: str) -> int:
    """The axis of a linear or conv operation's output that its weight makes."""
    return 1 if "conv" in str(program.nodes[name].target) else len(program.size(name)) - 1
