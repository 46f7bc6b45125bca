"""Memory stays where it is, whatever the size of a tensor, and `max_memory` holds."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import isthmus
from isthmus import weights
from isthmus.engine import size
from isthmus.engine.memory import private

pytestmark = pytest.mark.skipif(not private(), reason="the system does not say how much memory is private")


def peak_of(work: Callable[[], object]) -> int:
    """Most private memory while it runs, in bytes, as looked at every few milliseconds."""
    most, done = private(), threading.Event()

    def look() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, private())
            time.sleep(0.002)

    looking = threading.Thread(target=look)
    looking.start()
    work()
    done.set()
    looking.join()
    return most


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One tensor of 100 MB each."""
    folder = tmp_path_factory.mktemp("large")
    table = torch.randn(50_000, 1000).bfloat16()
    for number in range(3):
        table[number::3] *= 1.5
        weights.save({"w": table}, folder / str(number) / "model.safetensors")
    return [folder / str(number) for number in range(3)]


@pytest.mark.parametrize("method", ["average", "ties", "della", "slerp"])
def test_memory_is_that_of_a_few_blocks(method: str, models: list[Path], tmp_path: Path):
    options = {"slerp": {"t": 0.5}, "ties": {"density": 0.3}}.get(method, {})
    base = models[2] if method in ("ties", "della") else None
    paths = models[:2]
    before = private()
    limit = before + size("120MB")

    def merge() -> None:
        isthmus.merge_files(
            paths, tmp_path / "out", method=method, base=base, threads=2, max_memory=limit, **options
        )

    peak = peak_of(merge)
    assert peak <= limit, f"{(peak - before) / 1e6:.0f} MB more than before"
