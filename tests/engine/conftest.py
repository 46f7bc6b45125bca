"""Small checkpoints of several blocks, and a way to make work of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from isthmus import weights
from isthmus.engine import Job, Source, Work

Tensors = dict[str, Tensor]


def make(seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """Sorted by name, as files give them; one tensor has several blocks and runs of blocks."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"big": (1500, 1100), "head.ключ": (40, 7, 3), "norm": (65,), "one": (), "row": (3, 140_001)}
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in sorted(shapes.items())}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three siblings in folders; the last one serves as the base."""
    folder = tmp_path_factory.mktemp("models")
    base = make(0, torch.float32)
    for number in range(3):
        noise = make(number + 1, torch.float32)
        tensors = {n: (t + (0.1 * noise[n] if number < 2 else 0)).bfloat16() for n, t in base.items()}
        weights.save(tensors, folder / str(number) / "model.safetensors")
    return [folder / str(number) for number in range(3)]


@pytest.fixture
def work_of(models: list[Path], tmp_path: Path) -> Callable[..., Work]:
    """Work on the models by one rule."""

    def make_work(rule: str = "average", out: str = "out", base: bool = False, **more: object) -> Work:
        size = more.pop("shard_size", 10**9)
        count = int(more.pop("count", 2))
        jobs = [
            Job(
                name,
                entry.shape,
                entry.dtype,
                tuple(Source(i, name) for i in range(count)),
                base=Source(2, name) if base else None,
                rule=rule,
                **more,
            )
            for name, entry in weights.headers(models[0]).items()
        ]
        return Work(tuple(map(str, models)), tuple(jobs), str(tmp_path / out), shard_size=size)

    return make_work
