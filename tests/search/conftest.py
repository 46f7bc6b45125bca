"""Small models to search over, and data that one of them explains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def _drawn(seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "layer.weight": (scale * torch.randn(4, 3, generator=generator)).to(dtype),
        "layer.bias": (scale * torch.randn(4, generator=generator)).to(dtype),
        "steps": torch.tensor(7),
    }


def _near(target: State, label: str = "layer.weight"):
    """Minus the squared distance to a target: a score that averaging improves."""

    def score(weights) -> float:
        return -float((weights[label].double() - target[label].double()).square().sum())

    return score


@pytest.fixture
def drawn():
    """(seed, scale, dtype) -> a state dict."""
    return _drawn


@pytest.fixture
def near():
    """(target) -> a score that grows towards it."""
    return _near


@pytest.fixture
def siblings() -> list[State]:
    """Five models around one."""
    centre = _drawn(0)
    made = []
    for seed in range(1, 6):
        noise = _drawn(seed, 0.3)
        made.append({k: v + noise[k] if v.is_floating_point() else v.clone() for k, v in centre.items()})
    return made


class Net(nn.Module):
    """A classifier with batch norms, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.second = nn.Linear(8, 8, bias=False)
        self.third = nn.Linear(8, 8, bias=False)
        self.third.weight = self.second.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x)).relu()
        return self.head(self.third(self.second(hidden).relu()).relu())


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def nets(net: Net) -> list[State]:
    """Four models around a network, as state dicts of their own."""
    made = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        state = {}
        for key, value in net.state_dict().items():
            tied = state.get("second.weight") if key == "third.weight" else None
            noise = 0.2 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else 0
            state[key] = (
                tied if tied is not None else (value + noise).abs() if "var" in key else value + noise
            )
        made.append(state)
    return made


@pytest.fixture
def data(net: Net) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        y = net(x).argmax(1)
    return [(x[:32], y[:32]), (x[32:], y[32:])]
