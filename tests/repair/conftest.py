"""Small networks of every kind, and two strangers of each."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from isthmus.program import Batch, Program, export
from isthmus.zoo import MLP, LinearNetwork, MobileNet, ResNet, ViT, demo_vgg

Weights = dict[str, Tensor]

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(d_in=12, widths=(8, 6), num_classes=4), (12,)),
    "linear": (lambda: LinearNetwork(depth=4, width=6, residual=True, d_in=12, num_classes=3), (12,)),
    "vgg": (lambda: demo_vgg(base=3), (1, 8, 8)),
    "vgg-ln": (lambda: demo_vgg(base=3, norm="ln"), (1, 8, 8)),
    "vgg-bn": (lambda: demo_vgg(base=3, norm="bn"), (1, 8, 8)),
    "resnet": (lambda: ResNet(8, base=3, norm="none"), (3, 8, 8)),
    "resnet-ln": (lambda: ResNet(8, base=3, norm="ln", shortcut="pad"), (3, 8, 8)),
    "resnet-bn": (lambda: ResNet(8, base=3, norm="bn"), (3, 8, 8)),
    "mobilenet": (lambda: MobileNet((4, 6, 5), (1, 2, 1)), (3, 8, 8)),
    "vit": (lambda: ViT(image=8, patch=4, dim=8, depth=2, heads=2), (3, 8, 8)),
}


@dataclass(frozen=True)
class Net:
    """A program, two sets of float64 weights for it, and data."""

    name: str
    model: nn.Module
    program: Program
    weights: tuple[Weights, Weights]
    data: Tensor

    @property
    def average(self) -> Weights:
        a, b = self.weights
        return {k: (a[k] + b[k]) / 2 if a[k].is_floating_point() else a[k] for k in a}

    def run(self, weights: Weights, program: Program | None = None) -> Tensor:
        out = (program or self.program).compile()(weights, Batch((self.data,), {}))
        assert isinstance(out, Tensor)
        return out.detach()


def redrawn(model: nn.Module, seed: int) -> Weights:
    """Weights as initialised, everything else (biases, norms and their statistics) anywhere sensible."""
    generator = torch.Generator().manual_seed(seed)

    def draw(key: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor + seed
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if tensor.ndim > 1:
            return noise * (2 / max(tensor[0].numel(), 1)) ** 0.5
        if key.endswith("running_var") or ("norm" in key and key.endswith("weight")):
            return 0.5 + noise.abs()
        return tensor.double() + 0.3 * noise

    return {key: draw(key, tensor) for key, tensor in model.state_dict().items()}


@functools.cache
def build(name: str) -> Net:
    make, shape = NETS[name]
    torch.manual_seed(0)
    model = make().double().eval()
    data = torch.randn(24, *shape, dtype=torch.float64) + 0.5
    return Net(name, model, export(model, data[:2]), (redrawn(model, 1), redrawn(model, 2)), data)


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Tensors of a few numbers: on a busy machine two threads wait for each other seven times longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def net(request: pytest.FixtureRequest) -> Net:
    """The network whose name the test is parametrised with (indirectly)."""
    return build(request.param)


@pytest.fixture(scope="session")
def get_net() -> Callable[[str], Net]:
    return build
