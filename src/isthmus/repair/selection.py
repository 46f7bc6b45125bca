"""Which values a repair touches."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Literal

from torch import fx

from isthmus.errors import InputError
from isthmus.program import Program
from isthmus.repair.blocks import residual_blocks
from isthmus.repair.writers import kept_apart, statistics_of, writer_of

#: "all", or names of values, or globs of module names ("features.*", "layer1.0.conv1").
Layers = Literal["all"] | Iterable[str]

#: The same, and two choices for residual networks; see `select`.
Outputs = Literal["all", "branches", "blocks"] | Iterable[str]

# Logits stay logits when they are only looked at differently.
_VIEWS = (
    "view reshape _unsafe_view flatten unflatten squeeze unsqueeze permute transpose t slice select"
    " contiguous clone to _to_copy alias detach dropout"
).split()


def select(program: Program, layers: Outputs) -> tuple[tuple[str, ...], dict[str, str]]:
    """The layer outputs to repair, in order of execution, and those that are left out with the reason.

    Args:
        program: of the merged model.
        layers: "all" takes the output of every linear and conv operation, except the model's outputs
            (logits). "branches" takes those on the branches of residual blocks: no stem, no shortcut; of a
            network without such blocks, "all" (arXiv:2402.05966). "blocks" takes "all" and the outputs of
            residual blocks, behind their last activation (arXiv:2211.08403, for residual networks). Names and
            globs take what they match, outputs included.

    Raises:
        InputError: a name or glob that matches no layer.
    """
    writers = [name for name in program.nodes if _is_writer(program, name)]
    asked = [layers] if isinstance(layers, str) else list(layers)
    named = isinstance(layers, str) and layers in ("all", "branches", "blocks")
    if named:
        wanted = _named(program, writers, asked[0])
    else:
        # Outputs of blocks have names of their own; a module's name means its layers.
        outputs = {name for name in _block_outputs(program) if name in asked}
        wanted = matching(program, writers, [name for name in asked if name not in outputs])
        wanted = tuple(name for name in program.nodes if name in {*wanted, *outputs})
    skipped: dict[str, str] = {}
    chosen: list[str] = []
    logits = logits_of(program) if named else frozenset()
    for name in wanted:
        if kept_apart(name):
            skipped[name] = "it is kept apart, not merged"
        elif name in logits:
            skipped[name] = "it is an output of the model"
        else:
            chosen.append(name)
    return tuple(chosen), skipped


def _named(program: Program, writers: list[str], layers: str) -> tuple[str, ...]:
    """The values that a name of `Layers` stands for, logits and what is kept apart included."""
    if layers == "branches":
        blocks = residual_blocks(program)
        inside = {name for block in blocks for name in block.branch}
        return tuple(name for name in writers if name in inside or not blocks)
    if layers == "blocks":
        wanted = {*writers, *_block_outputs(program)}
        return tuple(name for name in program.nodes if name in wanted)
    return tuple(writers)


def _block_outputs(program: Program) -> list[str]:
    return [block.output for block in residual_blocks(program) if block.axis is not None]


def repairable(program: Program, layers: Outputs = "all") -> tuple[str, ...]:
    """The values that REPAIR and RESCALE would repair, in order of execution: those that need goals.

    Args:
        program: of the merged model, or of one model.
        layers: see `select`.

    Raises:
        InputError: a name or glob that matches no layer.
    """
    return select(program, layers)[0]


def norms_of(program: Program) -> tuple[str, ...]:
    """The batch norms that normalise with running statistics, branches included, in order of execution."""
    return tuple(name for name, node in program.nodes.items() if statistics_of(program, node) is not None)


def below(program: Program, values: Iterable[str]) -> frozenset[str]:
    """Everything that is computed from any of the values, themselves not included unless so computed."""
    sources = set(values)
    found: set[str] = set()
    for name, node in program.nodes.items():
        if any(a.name in sources or a.name in found for a in node.all_input_nodes):
            found.add(name)
    return frozenset(found)


def matching(program: Program, names: Iterable[str], layers: Layers) -> tuple[str, ...]:
    """Those of the names that `layers` takes.

    Raises:
        InputError: a name or glob that takes none.
    """
    names = tuple(names)
    if isinstance(layers, str):
        if layers == "all":
            return names
        layers = (layers,)
    globs = tuple(layers)
    taken = {glob: {name for name in names if _takes(program, name, glob)} for glob in globs}
    if missing := [f"{glob!r}" for glob, found in taken.items() if not found]:
        raise InputError(
            f"{len(missing)} names match no layer that could be repaired",
            missing,
            hint="layers are values of the program or globs of module names, such as "
            + ", ".join(repr(program.module_of(name) or name) for name in names[:3]),
        )
    return tuple(name for name in names if any(name in found for found in taken.values()))


def _takes(program: Program, name: str, glob: str) -> bool:
    parts = program.module_of(name).split(".")
    paths = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return name == glob or any(fnmatch.fnmatchcase(path, glob) for path in paths if path)


def _is_writer(program: Program, name: str) -> bool:
    writer = writer_of(program, name) if program.is_tensor(name) else None
    # A bridge leads between the coordinates of a branch and the merged ones: it is no layer of the model.
    return writer is not None and program.weights.get(writer.weight) not in program.bridges


def logits_of(program: Program) -> frozenset[str]:
    """The values that the model returns, before the views through which it returns them."""
    found: set[str] = set()
    for name in program.outputs:
        node = program.nodes[name] if name is not None else None
        while node is not None:
            found.add(node.name)
            viewed = any(str(node.target).startswith(f"aten.{name}.") for name in _VIEWS)
            source = node.args[0] if viewed and node.args else None
            node = source if isinstance(source, fx.Node) else None
    return frozenset(found)
