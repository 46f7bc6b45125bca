"""Keeping apart: a cut partitions the values of a program into branches and one merged part."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import fx
from torch.utils import _pytree as pytree

from isthmus.errors import InputError
from isthmus.program.program import Bridge, Program

aten = torch.ops.aten

Variant = Literal["junction", "paper"]
Outputs = Literal["average", "each"]


@dataclass(frozen=True)
class Cut:
    """Which part of a program every model keeps for itself.

    *Depth* of a value is the number of linear and conv operations on the longest path to it.

    Attributes:
        preserve_first: keep every value of depth <= this (Preserve-First Merging).
        preserve_last: keep every value of the last this many depths (partial zipping).
        depths: further inclusive ranges of depth to keep.
        modules: globs of module names whose values are kept ("blocks.3", "layer1.*").
        variant: where the models meet. "junction": the last kept values themselves are averaged,
            whatever they are (activations, identity skips). "paper": the outputs of the last kept linear
            and conv operations are averaged, and the normalisation, skip and activation behind
            them run once, merged, as in the code of Preserve-First Merging; inside a residual
            stage the whole stage's stream is then merged.
        outputs: what the result returns where outputs are kept apart: their "average", or "each" model's, as a
            tuple (models of different tasks).
    """

    preserve_first: int = 0
    preserve_last: int = 0
    depths: tuple[tuple[int, int], ...] = ()
    modules: tuple[str, ...] = ()
    variant: Variant = "junction"
    outputs: Outputs = "average"

    def __bool__(self) -> bool:
        return bool(self.preserve_first or self.preserve_last or self.depths or self.modules)

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_json(fields: dict[str, object]) -> Cut:
        ranges = fields.get("depths") or ()
        modules = fields.get("modules") or ()
        assert isinstance(ranges, (list, tuple)) and isinstance(modules, (list, tuple))
        return Cut(
            preserve_first=int(str(fields.get("preserve_first", 0))),
            preserve_last=int(str(fields.get("preserve_last", 0))),
            depths=tuple((int(low), int(high)) for low, high in ranges),
            modules=tuple(str(m) for m in modules),
            variant="paper" if fields.get("variant") == "paper" else "junction",
            outputs="each" if fields.get("outputs") == "each" else "average",
        )

    def apart(self, program: Program) -> frozenset[str]:
        """Names of the values that the cut keeps apart.

        Raises:
            InputError: a depth outside the program, a module name that matches nothing, or each model's outputs where
                none is kept.
        """
        layers = program.layers
        problems = [
            f"{what} = {count}, the model has {layers} layers"
            for what, count in (
                ("preserve_first", self.preserve_first),
                ("preserve_last", self.preserve_last),
            )
            if not 0 <= count <= layers
        ]
        problems += [
            f"depths {low}..{high}, the model has layers 1..{layers}"
            for low, high in self.depths
            if not 1 <= low <= high <= layers
        ]
        modules = {name: program.module_of(name) for name in program.learned if name not in program.weights}
        for glob in self.modules:
            if not any(_under(path, glob) for path in modules.values()):
                problems.append(f"no module of the model matches {glob!r}")
        if self.variant not in ("junction", "paper"):
            problems.append(f"variant {self.variant!r} is neither 'junction' nor 'paper'")
        if self.outputs not in ("average", "each"):
            problems.append(f"outputs = {self.outputs!r} is neither 'average' nor 'each'")
        if problems:
            raise InputError("the cut does not fit the model", problems)
        ranges = [(0, self.preserve_first)] if self.preserve_first else []
        ranges += [(layers - self.preserve_last + 1, layers)] if self.preserve_last else []
        ranges += self.depths
        apart = frozenset(
            name
            for name, path in modules.items()
            if name in program.dynamic
            and (
                any(low <= program.depth[name] <= high for low, high in ranges)
                or any(_under(path, glob) for glob in self.modules)
            )
        )
        if self.outputs == "each" and not apart & set(program.outputs):
            raise InputError(
                "every model's outputs are asked for, and no output is kept apart",
                hint="preserve_last=1 (--preserve-last 1), or the modules of the heads",
            )
        return apart


def _under(path: str, glob: str) -> bool:
    """Whether a module path matches a glob or lies inside a module that does."""
    parts = path.split(".")
    return bool(path) and any(fnmatch.fnmatchcase(".".join(parts[: i + 1]), glob) for i in range(len(parts)))


def branch_key(index: int, key: str) -> str:
    """Key in a kept-apart model of what was `key` in model `index`."""
    return f"branch{index}.{key}"


class _Brancher:
    """Copies a graph with its apart values once per model and its merged ones once."""

    def __init__(
        self,
        program: Program,
        apart: frozenset[str],
        weights: Sequence[float],
        variant: Variant,
        turned: Mapping[str, Sequence[int]],
    ):
        self.program, self.apart, self.shares, self.variant = program, apart, weights, variant
        self.turned, self.bridges = turned, dict[str, Bridge]()
        self.graph = fx.Graph()
        self.keys: dict[str, str] = {}
        self.sources: dict[str, tuple[int | None, str]] = {}
        self.made: dict[tuple[str, int | None], fx.Node] = {}
        self.junctions: list[str] = []

    def value(self, node: fx.Node, branch: int | None) -> fx.Node:
        """The copy of a value in a branch, or in the merged part (branch None)."""
        if node.name in self.program.weights:
            return self.weight(node, branch)
        if node.name not in self.program.learned:
            # Sizes, positions, masks and inputs are the same for all models.
            return self.made[(node.name, None)]
        if node.name not in self.program.dynamic:
            # Computed from weights alone: it is whose weights it is computed from.
            if (node.name, branch) not in self.made:
                self.made[(node.name, branch)] = self.copy(node, branch)
            return self.made[(node.name, branch)]
        at = (node.name, branch if node.name in self.apart else None)
        if branch is not None and at[1] is None and self.turned.get(node.name):
            return self.turned_back(node, branch)
        if at not in self.made:
            # Only a merged reader of an apart value comes here: everything else was made in order.
            self.made[at] = self.meet(node)
        return self.made[at]

    def weight(self, node: fx.Node, branch: int | None) -> fx.Node:
        at = (node.name, branch)
        if at not in self.made:
            key = self.program.weights[node.name]
            first = next(iter(self.graph.nodes), None)
            # Placeholders come before everything else.
            with self.graph.inserting_before(first) if first is not None else self.graph.inserting_after():
                name = node.name if branch is None else f"branch{branch}_{node.name}"
                copy = self.graph.placeholder(name)
            copy.meta = dict(node.meta)
            self.made[at] = copy
            self.keys[copy.name] = key if branch is None else branch_key(branch, key)
            self.sources[self.keys[copy.name]] = (branch, key)
        return self.made[at]

    def meet(self, node: fx.Node) -> fx.Node:
        """The merged version of an apart value."""
        fake = node.meta.get("val")
        if not isinstance(fake, torch.Tensor):
            # A size, or several results that a getitem picks from.
            if isinstance(fake, (tuple, list)):
                return self.copy(node, None)
            return self.made[(node.name, 0)]
        linear = self.program.applies_weight(node)
        if self.variant == "paper" and not linear and any(a.name in self.apart for a in node.all_input_nodes):
            return self.copy(node, None)
        if not fake.is_floating_point():
            raise InputError(
                "the cut runs through a value that cannot be averaged",
                [f"{node.name} ({self.program.origin[node.name]}) is {fake.dtype}"],
                hint="cut one layer earlier or later",
            )
        self.junctions.append(node.name)
        total: fx.Node | None = None
        for index, share in enumerate(self.shares):
            own = self.made[(node.name, index)]
            for axis in self.turned.get(node.name, ()):
                own = self.turn(own, node, Bridge(index, node.name, axis, True))
            part = self.graph.call_function(aten.mul.Tensor, (own, float(share)))
            part.meta = dict(node.meta)
            if total is None:
                total = part
            else:
                total = self.graph.call_function(aten.add.Tensor, (total, part))
                total.meta = dict(node.meta)
        assert total is not None
        return total

    def turned_back(self, node: fx.Node, branch: int) -> fx.Node:
        """A merged value in a branch's own coordinates."""
        at = (node.name, branch)
        if at not in self.made:
            found = self.made[(node.name, None)]
            for axis in self.turned[node.name]:
                found = self.turn(found, node, Bridge(branch, node.name, axis, False))
            self.made[at] = found
        return self.made[at]

    def turn(self, value: fx.Node, node: fx.Node, bridge: Bridge) -> fx.Node:
        """A value with one axis multiplied by a matrix of its own."""
        key = f"{'enter' if bridge.enters else 'leave'}{bridge.branch}.{bridge.value}.{bridge.axis}"
        self.bridges[key] = bridge
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            matrix = self.graph.placeholder(key.replace(".", "_"))
        width = self.program.size(node.name)[bridge.axis]
        matrix.meta = {"val": self.program.value(node.name).new_empty(width, width)}
        self.keys[matrix.name] = key
        for target, arguments in (
            (aten.transpose.int, (bridge.axis, -1)),
            (aten.linear.default, (matrix,)),
            (aten.transpose.int, (bridge.axis, -1)),
        ):
            fake = value.meta["val"]
            last = fake.transpose(bridge.axis, -1) if target is aten.transpose.int else fake
            value = self.graph.call_function(target, (value, *arguments))
            value.meta = {**node.meta, "val": last}
        return value

    def copy(self, node: fx.Node, branch: int | None) -> fx.Node:
        # Looking values up may add junctions, so it must be done before the node itself is made.
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.value(n, branch))  # type: ignore[misc]
        assert isinstance(args, tuple) and isinstance(kwargs, dict)
        copy = self.graph.create_node(
            node.op, node.target, args, kwargs, node.name if branch is None else f"branch{branch}_{node.name}"
        )
        copy.meta = dict(node.meta)
        return copy


def keep_apart(
    program: Program,
    cut: Cut,
    weights: Sequence[float],
    turned: Mapping[str, Sequence[int]] | None = None,
) -> tuple[Program, tuple[str, ...]]:
    """Duplicate what a cut keeps apart, once per model, and join the copies where they meet.

    The branches of model i have the keys `branch{i}.<key>`; merged keys leave their names. The models and the
    merged part are taken to be in common coordinates already, so that a junction is the weighted sum of its
    branches, except along the axes that are `turned`: there each branch keeps its own coordinates, and a matrix
    stands wherever it meets the merged part (`Program.bridges`).

    Args:
        program: the program of one model.
        cut: what is kept apart.
        weights: the models' weights at a junction, one each.
        turned: value -> the axes along which branches keep coordinates of their own.

    Returns:
        The new program, and the names of the values at which branches meet.
    """
    apart = cut.apart(program)
    brancher = _Brancher(program, apart, weights, cut.variant, turned or {})
    for node in program.graph.nodes:
        if node.op == "output" or node.name in program.weights:
            continue
        if node.name in apart:
            for index in range(len(weights)):
                brancher.made[(node.name, index)] = brancher.copy(node, index)
        elif node.op == "placeholder":
            copy = brancher.graph.placeholder(node.name)
            copy.meta = dict(node.meta)
            brancher.made[(node.name, None)] = copy
        elif node.name in program.dynamic or node.name not in program.learned:
            brancher.made[(node.name, None)] = brancher.copy(node, None)
    whose: list[int | None] = list(range(len(weights))) if cut.outputs == "each" else [None]
    outputs = tuple(
        None if name is None else brancher.value(program.nodes[name], branch).name
        for branch in whose
        for name in program.outputs
    )
    nested = pytree.tree_unflatten(list(program.outputs), program.out_spec)
    graph = brancher.graph
    graph.output([node for node in graph.nodes if node.name in outputs])
    graph.eliminate_dead_code()
    for node in [node for node in graph.nodes if node.name in brancher.keys and not node.users]:
        graph.erase_node(node)
    live = {node.name for node in graph.nodes}
    used = {name: key for name, key in brancher.keys.items() if name in live}
    if len(set(used.values())) < len(used):
        clashing = sorted(key for key in set(used.values()) if list(used.values()).count(key) > 1)
        raise InputError(
            "a branch's keys would be those of other weights", clashing, hint="rename the model's modules"
        )
    bridges = {key: brancher.bridges[key] for key in used.values() if key in brancher.bridges}
    sources = {key: brancher.sources[key] for key in used.values() if key not in bridges}
    shapes = {key: program.shapes[original] for key, (_, original) in sources.items()}
    for key, bridge in bridges.items():
        shapes[key] = (program.size(bridge.value)[bridge.axis],) * 2
    kept = replace(
        program,
        graph=graph,
        weights=used,
        buffers=frozenset(key for key, (_, original) in sources.items() if original in program.buffers),
        outputs=outputs,
        out_spec=pytree.tree_structure((nested,) * len(weights))
        if cut.outputs == "each"
        else program.out_spec,
        tied={},
        shapes=shapes,
        sources=sources,
        bridges=bridges,
    )
    return kept, tuple(brancher.junctions)
