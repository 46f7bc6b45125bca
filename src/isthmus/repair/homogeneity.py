"""Whether a network scales along when its weights are scaled, and by which power at which layer."""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor, fx

from isthmus.program import LINEAR, Program
from isthmus.repair.writers import writer_of
from isthmus.symmetry.intertwiners import INTERTWINERS
from isthmus.symmetry.operations import (
    LINEAR_REDUCTIONS,
    MOVES,
    ORDERED_REDUCTIONS,
    PADS,
    operation,
    pads_zeros,
)

# What makes numbers of the same degree out of those it is given.
_KEEP = MOVES | LINEAR_REDUCTIONS | ORDERED_REDUCTIONS | {"getitem"}


def degrees(program: Program) -> tuple[dict[str, int], list[str]]:
    """By which power of s each layer's output scales when all weights are multiplied by s, and all biases fittingly.

    In a plain network of positively homogeneous activations that is the layer's depth, counted from the input,
    and a bias that is to scale along has to be multiplied by the same power.

    Args:
        program: of one model, or of a merged one; layers that are kept apart count like merged ones.

    Returns:
        Output of a linear or conv operation -> its degree; and the places at which the network does not scale, so that
        no such powers exist.

    Source: the homogeneous interpolation of Wang et al. (reference 34 of arXiv:2402.05966), which counts keys of the
        state dict instead.
    """
    found: dict[str, Fraction | None] = {name: Fraction(0) for name in program.inputs}
    layers: dict[str, int] = {}
    obstacles: list[str] = []
    for name, node in program.nodes.items():
        if name in found or not _varies(program, node):
            continue
        read = [found[a.name] for a in node.all_input_nodes if _varies(program, a)]
        if None in read:
            found[name] = None  # behind an obstacle
            continue
        degree = _degree(program, node, [d for d in read if d is not None])
        if isinstance(degree, str):
            obstacles.append(f"{program.origin[name]}: {degree}")
            found[name] = None
        else:
            found[name] = degree
            if writer_of(program, name) is not None:
                layers[name] = int(degree)
    return layers, obstacles


def _varies(program: Program, node: fx.Node) -> bool:
    """Whether a node is a tensor, or several, that depend on the input; sizes do not count."""
    return node.name in program.dynamic and isinstance(node.meta.get("val"), Tensor | tuple | list)


def _degree(program: Program, node: fx.Node, read: list[Fraction]) -> Fraction | str:
    """The degree of what a node makes, or why it has none."""
    name = operation(node)
    writer = writer_of(program, node.name)
    if writer is not None:
        if program.weights.get(writer.weight) in program.bridges:
            return read[0]
        return read[0] + 1 if not writer.obstacle else writer.obstacle
    if any(a.name in program.learned and a.name not in program.dynamic for a in node.all_input_nodes):
        norm = "norm" in name
        return "a norm takes scales off" if norm else "weights come in that are no layer's own"
    if node.target in LINEAR or name == "mul":
        numbers = [a for a in node.args if isinstance(a, (int, float))]
        return sum(read, Fraction(0)) if len(read) == 2 or numbers else "it has no rule"
    if name == "div" and len(read) == 1 and node.all_input_nodes[0] is node.args[0]:
        return read[0]
    if name in PADS and not pads_zeros(node):
        return "it pads with a constant"
    if name in (MOVES | LINEAR_REDUCTIONS | ORDERED_REDUCTIONS) or name in (
        "add",
        "sub",
        "maximum",
        "minimum",
    ):
        added = [a for a in node.args[:2] if isinstance(a, (int, float)) and a != 0]
        if name in ("add", "sub") and (added or len(_tensors(node)) != len(read)):
            return "a constant is added"
        if len(set(read)) > 1:
            depths = " and ".join(str(d) for d in sorted(set(read)))
            return f"paths of different depth meet, {depths} layers from the input"
        return read[0]
    row = INTERTWINERS.get(name)
    if row is None or row.degree is None:
        return "it does not scale with its input"
    return read[0] * row.degree


def _tensors(node: fx.Node) -> list[fx.Node]:
    return [a for a in node.all_input_nodes if isinstance(a.meta.get("val"), Tensor)]
