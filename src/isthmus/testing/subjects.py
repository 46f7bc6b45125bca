"""Small networks to hold methods to their laws on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isthmus.program import Batch, Program
from isthmus.symmetry import SymmetryGraph, reorder, trace
from isthmus.symmetry.elements import random_orders
from isthmus.testing.calls import Weights
from isthmus.zoo import MLP, VGG, ViT


@dataclass(frozen=True, eq=False)
class Subject:
    """A small network: three strangers' weights for it (float64), and data."""

    name: str
    program: Program
    graph: SymmetryGraph
    models: tuple[Weights, ...]
    data: Tensor

    def run(self, weights: Mapping[str, Tensor], program: Program | None = None) -> Tensor:
        with torch.no_grad():
            out = (program or self.program).compile()(weights, Batch((self.data,), {}))
        assert isinstance(out, Tensor)
        return out

    @functools.cached_property
    def targets(self) -> Tensor:
        """What the first model answers to the data."""
        return self.run(self.models[0]).argmax(1)

    def copies(self) -> list[Weights]:
        """A model and two copies of it in other orders."""
        found = [dict(self.models[0])]
        for seed in (1, 2):
            orders = random_orders(self.graph, torch.Generator().manual_seed(seed))
            found.append(
                {
                    key: reorder(t, self.graph.layout[key], orders, self.graph.spaces)
                    if key in self.graph.layout
                    else t
                    for key, t in self.models[0].items()
                }
            )
        return found


_NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(d_in=6, widths=(7, 5), num_classes=3), (6,)),
    "conv": (lambda: VGG((1, "M", 1.5), base=4, in_channels=1, num_classes=3), (1, 6, 6)),
    "conv-bn": (lambda: VGG((1, "M", 1.5), base=4, norm="bn", in_channels=1, num_classes=3), (1, 6, 6)),
    "attention": (
        lambda: ViT(
            image=4, patch=2, dim=8, depth=1, heads=2, mlp_ratio=1, pool="mean", in_channels=1, num_classes=3
        ),
        (1, 4, 4),
    ),
}


@functools.cache
def subject_of(name: str) -> Subject:
    """The network of that name: an MLP, a plain conv net, one with batch norms, attention."""
    make, shape = _NETS[name]
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        model = make().double().eval()
    data = torch.randn(24, *shape, generator=generator, dtype=torch.float64) + 0.3
    graph = trace(model, data[:2])
    models = tuple(drawn(model, generator) for _ in range(3))
    return Subject(name, graph.program, graph, models, data)


def drawn(model: nn.Module, generator: torch.Generator) -> Weights:
    """Weights in which no unit is dead, no two are alike, and every path counts."""

    def draw_one(key: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.clone()
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if tensor.ndim > 1:
            return noise * (2 / max(tensor[0].numel(), 1)) ** 0.5
        scales = key.endswith("running_var") or bool(torch.all(tensor == 1))
        return 0.5 + noise.abs() if scales else 0.3 * noise

    return {key: draw_one(key, tensor) for key, tensor in model.state_dict().items()}
