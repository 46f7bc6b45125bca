"""Which values a profile over layers looks at, and what it calls them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from isthmus.errors import InputError
from isthmus.program import Program

aten = torch.ops.aten

At = Literal["layers", "norms", "both"]

#: Normalisations: what stands between a layer and its activation.
NORMS = frozenset(
    {
        aten.batch_norm.default,
        aten.layer_norm.default,
        aten.group_norm.default,
        aten.instance_norm.default,
        aten.rms_norm.default,
    }
)


@dataclass(frozen=True)
class Layers:
    """The layers of a profile, in order of execution.

    Attributes:
        labels: value name -> readable place: the module's path where it is the only such operation of
            that module, otherwise path and value.
        left_out: operations without one, because the merged model keeps them apart or they have no batch
            dimension.
    """

    labels: dict[str, str]
    left_out: int


def shared_layers(program: Program, merged: Program, at: At = "layers") -> Layers:
    """The outputs of linear and conv operations, or of norms, that a program and its merged version both compute.

    Args:
        program: the program of one parent.
        merged: the program of the merged model. Where parts are kept apart, merged values have the
            names they have in `program`, and branches have others. Where all is, there is none.
        at: "layers" for linear and conv operations, "norms" for normalisations, or "both".

    Raises:
        InputError: another choice, or norms of a program without.
    """
    if at not in ("layers", "norms", "both"):
        raise InputError(f"at = {at!r} is none of 'layers', 'norms' and 'both'")

    def wanted(node: fx.Node) -> bool:
        norm = node.target in NORMS
        return (norm and at != "layers") or (at != "norms" and program.applies_weight(node))

    places = [
        node.name
        for node in program.graph.nodes
        if node.users and node.name in program.dynamic and wanted(node)
    ]
    if at == "norms" and not places:
        raise InputError("the model has no norm to look at", hint='use at="layers"')
    found = [name for name in places if name in merged.nodes and batch_dim(program, name) is not None]
    return Layers(readable(program, found, places), len(places) - len(found))


def readable(program: Program, values: list[str], among: list[str] | None = None) -> dict[str, str]:
    """Value -> the path of its module, with its own name where others of the values are of that module too."""
    paths = {name: program.module_of(name) for name in among or values}
    uses = Counter(paths.values())
    return {
        name: paths[name] if paths[name] and uses[paths[name]] == 1 else f"{paths[name]}:{name}".lstrip(":")
        for name in values
    }


def batch_norms(program: Program) -> dict[str, tuple[str, str, str, float]]:
    """Batch norms with running statistics: value -> what it normalises, keys of its mean and variance, eps."""
    found: dict[str, tuple[str, str, str, float]] = {}
    for node in program.graph.nodes:
        if node.target is not aten.batch_norm.default:
            continue
        read, mean, variance, eps = node.args[0], node.args[3], node.args[4], node.args[7]
        if all(isinstance(n, fx.Node) and n.name in program.weights for n in (mean, variance)):
            keys = [program.weights[n.name] for n in (mean, variance)]
            found[node.name] = (read.name, keys[0], keys[1], float(eps))
    return found


def depth_of_keys(program: Program) -> dict[str, int]:
    """Key -> the depth at which its weight first meets an activation: its layer, counted from 1.

    What is used before the first layer (an embedding of positions) counts to it.
    """
    depths: dict[str, int] = {}
    for name, key in program.weights.items():
        stack, seen, met = [program.nodes[name]], {name}, []
        while stack:
            for user in stack.pop().users:
                if user.name in program.dynamic:
                    met.append(program.depth[user.name])
                elif user.name not in seen:
                    seen.add(user.name)
                    stack.append(user)
        if met:
            depths[key] = max(min(met), 1)
    return depths


def batch_dim(program: Program, name: str) -> int | None:
    """The one dimension of a value that grows with the batch; None if there is none or several."""
    # Export leaves the batch size symbolic, and nothing else.
    grows = [index for index, size in enumerate(program.value(name).shape) if not isinstance(size, int)]
    return grows[0] if len(grows) == 1 else None


def channel_axis(program: Program, name: str) -> int:
    """The axis of a linear or conv operation's output that its weight makes."""
    return 1 if "conv" in str(program.nodes[name].target) else len(program.size(name)) - 1
