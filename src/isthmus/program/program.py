"""A model as one graph of ATen operations, with its weights as inputs of the graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx
from torch._ops import OpOverload  # what a node's target is; torch has no public name for it
from torch.utils import _pytree as pytree

from isthmus.errors import MismatchError

if TYPE_CHECKING:
    from isthmus.program.run import Runner

aten = torch.ops.aten

#: Operations that apply a weight matrix or kernel: what *depth* counts.
LINEAR = frozenset(
    {
        aten.linear.default,
        aten.addmm.default,
        aten.mm.default,
        aten.matmul.default,
        aten.bmm.default,
        aten.conv1d.default,
        aten.conv2d.default,
        aten.conv3d.default,
        aten.conv1d.padding,
        aten.conv2d.padding,
        aten.conv3d.padding,
        aten.convolution.default,
        aten.conv_transpose1d.default,
        aten.conv_transpose2d.input,
        aten.conv_transpose3d.input,
    }
)


@dataclass(frozen=True)
class Bridge:
    """A matrix that turns one axis of a value between a branch's coordinates and the merged ones.

    Attributes:
        branch: index of the model.
        value: the value in the program of one model.
        axis: which of its axes is turned.
        enters: whether it leads from the branch into the merged part, or back.
    """

    branch: int
    value: str
    axis: int
    enters: bool


@dataclass(frozen=True)
class Program:
    """A model as one graph: values flow from weights and inputs through operations to outputs.

    A value is named by its node. The graph is never edited in place: every method returns a
    new program or a runner.

    Attributes:
        graph: the ATen graph; weights, constants and inputs are its placeholders.
        weights: placeholder name -> key in the state dict.
        buffers: the keys among `weights` that are buffers.
        constants: placeholder name -> value, for what is in no state dict.
        inputs: placeholder names of the model's inputs, flattened in order.
        outputs: names of the values the model returns, flattened; None for a constant.
        in_spec, out_spec: how (args, kwargs) and the result nest.
        tied: key -> the key under which the same tensor enters the graph.
        shapes: key -> shape of every weight of the state dict, buffers included.
        sources: where models were kept apart, key -> (index of the model whose weight it is, or None for
            a merged one; the key it had there).
        bridges: key of a matrix between a branch and the merged part -> that bridge.
    """

    graph: fx.Graph
    weights: dict[str, str]
    buffers: frozenset[str]
    constants: dict[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str | None, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    tied: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sources: dict[str, tuple[int | None, str]] = field(default_factory=dict)
    bridges: dict[str, Bridge] = field(default_factory=dict)

    @cached_property
    def nodes(self) -> dict[str, fx.Node]:
        """Name -> node, in order of execution."""
        return {node.name: node for node in self.graph.nodes}

    @cached_property
    def keys(self) -> dict[str, str]:
        """State-dict key -> placeholder name."""
        return {key: name for name, key in self.weights.items()}

    def __deepcopy__(self, memo: dict[int, object]) -> Program:
        # Never edited in place, and the fake tensors in its graph cannot be copied.
        return self

    def value(self, name: str) -> Tensor:
        """The fake tensor that stands for a value: its shape, dtype and device."""
        fake = self.nodes[name].meta.get("val")
        if not isinstance(fake, Tensor):
            raise KeyError(f"{name} is not a tensor value")
        return fake

    def size(self, name: str) -> tuple[int, ...]:
        """Shape of a value at the example's batch size."""
        return tuple(int(n) for n in self.value(name).shape)

    def is_tensor(self, name: str) -> bool:
        return isinstance(self.nodes[name].meta.get("val"), Tensor)

    @cached_property
    def learned(self) -> frozenset[str]:
        """Values that depend on a weight; the rest are sizes, positions and masks."""
        found: set[str] = set()
        for node in self.graph.nodes:
            if node.name in self.weights or any(a.name in found for a in node.all_input_nodes):
                found.add(node.name)
        return frozenset(found)

    @cached_property
    def dynamic(self) -> frozenset[str]:
        """Values that depend on an input."""
        found: set[str] = set(self.inputs)
        for node in self.graph.nodes:
            if any(a.name in found for a in node.all_input_nodes):
                found.add(node.name)
        return frozenset(found)

    def linear_weight(self, node: fx.Node) -> str | None:
        """The placeholder of the weight that a linear or conv node applies, if it is one."""
        if node.target not in LINEAR:
            return None
        # A matmul of two activations (attention) applies no weight; the weight may be behind a view.
        # Where the input is made of weights too (learned queries), the matrix is what comes after it.
        for argument in reversed(node.all_input_nodes):
            source = argument
            while source.op == "call_function" and len(source.all_input_nodes) == 1:
                source = source.all_input_nodes[0]
            if source.name in self.weights and self.size(argument.name) and len(self.size(argument.name)) > 1:
                return source.name
        return None

    def applies_weight(self, node: fx.Node) -> bool:
        """Whether a node is a linear or conv operation with a matrix that is computed from weights alone."""
        return node.target in LINEAR and any(
            a.name in self.learned and a.name not in self.dynamic and len(self.size(a.name)) > 1
            for a in node.all_input_nodes
        )

    @cached_property
    def biases(self) -> tuple[str, ...]:
        """Keys of what linear and conv operations add to their products, in order of execution."""
        found: list[str] = []
        for node in self.graph.nodes:
            if node.target not in LINEAR or node.name not in self.dynamic:
                continue
            matrix = self.linear_weight(node)
            found += [
                self.weights[argument.name]
                for argument in node.all_input_nodes
                if argument.name in self.weights and argument.name != matrix
            ]
        return tuple(key for key in dict.fromkeys(found) if key not in self.buffers)

    @cached_property
    def depth(self) -> dict[str, int]:
        """Depth of each value: linear and conv operations on the longest path from an input."""
        depths: dict[str, int] = {}
        for node in self.graph.nodes:
            before = max((depths[a.name] for a in node.all_input_nodes), default=0)
            # Depth is counted along activations: what is computed from weights alone adds none.
            counts = node.name in self.dynamic and self.applies_weight(node)
            depths[node.name] = before + counts
        return depths

    @property
    def layers(self) -> int:
        """L: the depth of the deepest output."""
        return max(self.depth[name] for name in self.outputs if name is not None)

    def module_of(self, name: str) -> str:
        """Dotted name of the user's module in whose forward a value was computed."""
        stack = self.nodes[name].meta.get("nn_module_stack") or {}
        path = list(stack.values())[-1][0] if stack else ""
        # What export adds itself (sizes) has a stack with a note of its own in the place of a name.
        return "" if path.startswith("_empty_nn_module_stack") else path

    @cached_property
    def origin(self) -> dict[str, str]:
        """Node -> a readable place: its module and operation."""
        places: dict[str, str] = {}
        for node in self.graph.nodes:
            target = node.target
            # Without the overload: "linear" of ATen, "mylib.my_norm" of another library.
            *parts, last = str(target).removeprefix("aten.").split(".")
            op = (".".join(parts) or last) if node.op == "call_function" else node.op
            places[node.name] = f"{self.module_of(node.name)}:{op}" if self.module_of(node.name) else op
        return places

    def lookup(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Placeholder -> tensor, from a state dict; a tied weight may come under either key.

        Raises:
            MismatchError: a weight of the graph is in no key.
        """
        other: dict[str, list[str]] = {}
        for alias, key in self.tied.items():
            other.setdefault(key, []).append(alias)
        found: dict[str, Tensor] = {}
        missing: list[str] = []
        for name, key in self.weights.items():
            source = next((k for k in (key, *other.get(key, ())) if k in weights), None)
            if source is None:
                missing.append(key)
            else:
                found[name] = weights[source]
        if missing:
            raise MismatchError(f"{len(missing)} weights of the program are missing", missing)
        return found

    def compile(
        self,
        outputs: Iterable[str] | None = None,
        *,
        given: Iterable[str] = (),
        taps: Iterable[str] = (),
        batch_statistics: Iterable[str] = (),
    ) -> Runner:
        """Make a function of the weights and inputs out of all or part of the graph.

        Args:
            outputs: values to compute; None for what the model returns.
            given: values that the caller supplies instead of having them computed.
            taps: values shown to the caller's `tap(name, value)` as they are computed; what the
                tap returns (if not None) takes the value's place downstream.
            batch_statistics: batch-norm values to normalise with the batch's own statistics.
        """
        from isthmus.program.run import build

        return build(self, outputs, tuple(given), tuple(taps), frozenset(batch_statistics))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Program:
        """The same program with its baked-in devices, and its floating dtypes, replaced.

        An exported graph bakes in the device of factory operations and the dtype of casts;
        both are rewritten here, and constants move along.
        """
        target = torch.device(device) if device is not None else None

        def rewrite(value: object) -> object:
            if target is not None and isinstance(value, torch.device):
                return target
            if dtype is not None and isinstance(value, torch.dtype) and value.is_floating_point:
                return dtype
            return value

        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            copy = graph.node_copy(node, copies.__getitem__)
            copy.args = pytree.tree_map(rewrite, copy.args)
            copy.kwargs = pytree.tree_map(rewrite, copy.kwargs)
            if dtype is not None and _takes_default_dtype(node):
                copy.kwargs = {**copy.kwargs, "dtype": dtype}
            copies[node] = copy
        constants = {
            name: value.to(
                target or value.device, dtype if dtype and value.is_floating_point() else value.dtype
            )
            for name, value in self.constants.items()
        }
        return replace(self, graph=graph, constants=constants)

    @property
    def device(self) -> torch.device | None:
        """The device that factory operations and constants are baked to, if there are any."""
        for value in self.constants.values():
            return value.device
        for node in self.graph.nodes:
            device = node.kwargs.get("device")
            if isinstance(device, torch.device):
                return device
        return None


def _takes_default_dtype(node: fx.Node) -> bool:
    """Whether a node makes floating numbers from nothing, in torch's default dtype."""
    value = node.meta.get("val")
    if (
        not isinstance(node.target, OpOverload)
        or not isinstance(value, Tensor)
        or not value.is_floating_point()
    ):
        return False
    if any(isinstance(argument.meta.get("val"), Tensor) for argument in node.all_input_nodes):
        return False  # follows its input
    places = [argument.name for argument in node.target._schema.arguments]  # pyright: ignore[reportPrivateUsage]
    return "dtype" in places[len(node.args) :] and node.kwargs.get("dtype") is None
