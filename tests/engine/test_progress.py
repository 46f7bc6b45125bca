"""What is shown while a merge runs: bytes of all passes, no more and no fewer, with the tensor and the memory."""

import re
from pathlib import Path

import pytest
import torch

import isthmus
from isthmus import progress, weights

SHAPES = {
    "layers.0.weight": (300, 1000),
    "layers.1.weight": (64, 700),
    "norm.weight": (1000,),
    "none": (0, 4),
}


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    for name in ("base", "a", "b"):
        noise = 0.0 if name == "base" else 0.01
        moved = {n: t + noise * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        for dtype in (torch.float32, torch.bfloat16):
            stored = {n: t.to(dtype) for n, t in moved.items()}
            weights.save(stored, tmp_path / str(dtype).removeprefix("torch.") / name / "model.safetensors")
    return [tmp_path / "float32", tmp_path / "bfloat16"]


@pytest.mark.parametrize("dtype", [0, 1], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("average", {}),
        ("slerp", {"t": 0.3}),
        ("ties", {"density": 0.3}),
        ("ties", {"density": 0.3, "scope": "model"}),
        ("ties", {"density": 1.0, "scope": "model"}),
        ("dare-ties", {"density": 0.5}),
        ("sce", {"density": 0.5}),
        ("tsv-merge", {}),
    ],
)
def test_every_byte_is_counted_once(
    method: str,
    options: dict[str, object],
    dtype: int,
    models: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    seen: list[tuple[int, int]] = []
    meters: list[progress.Meter] = []
    original = progress.Meter.__init__

    def made(self: progress.Meter, *given: object) -> None:
        original(self, *given)  # type: ignore[arg-type]
        meters.append(self)

    monkeypatch.setattr(progress.Meter, "__init__", made)
    monkeypatch.setattr(
        progress.Meter, "seconds", property(lambda self: seen.append((self.done, self.total or 0)) or 1.0)
    )
    monkeypatch.setattr(progress, "_enabled", True)
    folder = models[dtype]
    base = None if method in ("average", "slerp") else folder / "base"
    isthmus.merge_files(
        [folder / "a", folder / "b"], tmp_path / "out", method=method, base=base, threads=1, **options
    )
    (meter,) = [m for m in meters if m.label == "merging"]
    assert meter.done == meter.total, "at the end it is all of it"
    assert all(done <= total for done, total in seen), "and never more"
    # A pass over the whole model counts as well: the inputs are read more than once.
    size = sum(t.nbytes for t in weights.load(folder / "a").values())
    once = (2 if base is None else 3) * size + size
    assert meter.done > once if "scope" in options and options["density"] != 1.0 else meter.done >= once


def test_a_line_tells_bytes_rate_time_tensor_and_memory(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(progress, "_enabled", True)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    folder = models[0]
    isthmus.merge_files(
        [folder / "a", folder / "b"], tmp_path / "out", method="ties", base=folder / "base", threads=1,
        density=0.3, scope="model",
    )  # fmt: skip
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("merging: ")]
    pattern = (
        r"merging: [\d.]+ MB/[\d.]+ MB, [\d.]+ \w+/s, \d+ s left, (the whole model|[\w.]+), [\d.]+ \w+ held"
    )
    under_way = [line for line in lines if " left, " in line]
    assert len(under_way) >= 5
    assert all(re.fullmatch(pattern, line) for line in under_way), under_way
    assert {line.split(", ")[3] for line in under_way} >= {"the whole model", "layers.0.weight"}
    assert re.fullmatch(r"merging: ([\d.]+ MB)/\1, [\d.]+ \w+/s, took \d+ s", lines[-1])
