"""What can be pruned: the matrices and kernels of linear and conv operations, found in the graph."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from isthmus.errors import InputError
from isthmus.program import LINEAR, Program
from isthmus.repair.writers import COMPUTED, Writer, writer_of


@dataclass(frozen=True)
class Layer:
    """A weight of two or more dimensions that linear or conv operations apply.

    Attributes:
        key: in the state dict.
        shape: as stored.
        out: axis of the stored weight that makes the output channels.
        groups: of a transposed convolution, whose groups are blocks of axis 0; else 1.
        values: the outputs of the operations that apply it, in order of execution.
    """

    key: str
    shape: tuple[int, ...]
    out: int
    groups: int
    values: tuple[str, ...]

    def rows(self, tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "units inputs"]:
        """A tensor of the weight's shape with one row per output unit: all that the unit is computed from."""
        if self.groups == 1:
            return tensor.movedim(self.out, 0).flatten(1)
        return tensor.unflatten(0, (self.groups, -1)).movedim(2, 1).flatten(0, 1).flatten(1)

    def stored(self, rows: Shaped[Tensor, "units inputs"]) -> Shaped[Tensor, "..."]:
        """`rows` undone."""
        if self.groups == 1:
            others = [size for axis, size in enumerate(self.shape) if axis != self.out]
            return rows.unflatten(1, others).movedim(0, self.out)
        units, kernel = self.shape[1], self.shape[2:]
        blocks = rows.unflatten(0, (self.groups, units)).unflatten(2, (-1, *kernel))
        return blocks.movedim(1, 2).flatten(0, 1)


def prunable(program: Program, skip: Sequence[str] = ()) -> tuple[tuple[Layer, ...], dict[str, str]]:
    """The layers of a program that can be pruned, in order of execution.

    Args:
        program: the graph.
        skip: patterns of weights to leave whole ("classifier.*").

    Returns:
        The layers, and each matrix that is none with the reason.

    Raises:
        InputError: a pattern that no layer's weight has, or no layer is left.
    """
    writers: dict[str, list[Writer]] = {}
    for name in program.nodes:
        if program.is_tensor(name) and (writer := writer_of(program, name)) is not None:
            writers.setdefault(writer.weight, []).append(writer)
    found: dict[str, Layer] = {}
    left: dict[str, str] = {}
    for placeholder, own in writers.items():
        if (key := program.weights.get(placeholder)) is None:
            continue  # computed from constants
        shape = program.shapes[key]
        layouts = {(writer.out, writer.groups) for writer in own}
        if key in program.buffers or len(shape) < 2 or not program.value(placeholder).is_floating_point():
            left[key] = "it is no matrix of parameters"
        elif any(writer.obstacle == COMPUTED for writer in own):
            left[key] = "what is applied is computed from it"
        elif others := _other_readers(program, placeholder):
            left[key] = f"it is also read by {', '.join(others)}"
        elif len(layouts) > 1:
            left[key] = "it is applied both ways round"
        else:
            ((out, groups),) = layouts
            found[key] = Layer(key, shape, out, groups, tuple(writer.value for writer in own))
    names = {key: [key, *(alias for alias, first in program.tied.items() if first == key)] for key in found}

    def taken(key: str, pattern: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for name in names[key])

    if unused := [repr(pattern) for pattern in skip if not any(taken(key, pattern) for key in found)]:
        raise InputError(
            f"no layer that could be pruned is called {', '.join(unused)}",
            hint="skip= takes patterns of names, such as " + ", ".join(map(repr, list(found)[:3])),
        )
    skipped = {key: "left out (skip)" for key in found if any(taken(key, pattern) for pattern in skip)}
    layers = tuple(layer for key, layer in found.items() if key not in skipped)
    if not layers:
        raise InputError(
            "there is no layer to prune", [f"{k}: {why}" for k, why in {**left, **skipped}.items()]
        )
    return layers, left | skipped


def _other_readers(program: Program, placeholder: str) -> list[str]:
    """Places where a weight is read by something else than a linear or conv operation, such as an embedding."""
    found: list[str] = []
    stack = list(program.nodes[placeholder].users)
    while stack:
        node = stack.pop()
        if node.name in program.dynamic:
            if node.target not in LINEAR:
                found.append(program.origin[node.name])
        else:
            stack.extend(node.users)
    return sorted(set(found))
