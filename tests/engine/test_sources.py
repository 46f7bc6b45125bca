"""Rows in another order, rows that are missing, low-rank additions, factors: read in any runs, the same."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from isthmus import weights
from isthmus.engine import Adapter, Job, Source, Work, digest, run, size
from isthmus.engine.sources import reader
from isthmus.errors import InputError, MismatchError, WeightsError

A = torch.arange(12.0).view(4, 3)
B = 100 + torch.arange(15.0).view(5, 3)
UP, DOWN = torch.tensor([[1.0], [2.0], [0.0], [-1.0]]), torch.tensor([[1.0, 10.0, 100.0]])
FILES = [{"w": A, "one": torch.tensor(2.0)}, {"w": B}, {"up": UP, "down": DOWN}]
NONE = torch.zeros(3)

CASES: dict[str, tuple[Source, Tensor]] = {
    "as it is": (Source(0, "w"), A),
    "a range": (Source(0, "w", rows=range(1, 4)), A[1:]),
    "any order": (Source(0, "w", rows=(2, 0, 0, 3, 1)), A[[2, 0, 0, 3, 1]]),
    "missing": (Source(0, "w", rows=(-1, 3, -1, -1)), torch.stack([NONE, A[3], NONE, NONE])),
    "filled": (
        Source(0, "w", rows=(1, -1, -1), fill=(Source(1, "w", rows=(0, 4, -1)),)),
        torch.stack([A[1], B[4], NONE]),
    ),
    "filled by a mean": (
        Source(0, "w", rows=(-1, -1), fill=(Source(1, "w", rows=(0, -1)), Source(1, "w", rows=(2, 3)))),
        torch.stack([(B[0] + B[2]) / 2, B[3]]),
    ),
    "scaled": (Source(0, "w", scale=0.5), A / 2),
    "adapted": (Source(0, "w", adapters=(Adapter(2, "up", "down", 2.0),)), A + 2 * UP @ DOWN),
    "adapted and gathered": (
        Source(0, "w", rows=(3, -1, 0), adapters=(Adapter(2, "up", "down", 2.0),), scale=0.5),
        torch.stack([(A + 2 * UP @ DOWN)[3], NONE, (A + 2 * UP @ DOWN)[0]]) / 2,
    ),
    "narrowed": (Source(1, "w", dtype=torch.bfloat16), B.bfloat16()),
    "widened": (Source(0, "one", dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)),
}


@pytest.mark.parametrize(("source", "expected"), CASES.values(), ids=CASES)
def test_any_run_of_a_source(source: Source, expected: Tensor):
    found = reader(source, FILES)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    for start in range(expected.numel()):
        for stop in range(start + 1, expected.numel() + 1):
            assert torch.equal(found.elements(start, stop), expected.reshape(-1)[start:stop])
    found.drop(0, expected.numel())


def test_a_weight_stored_the_other_way_round_is_adapted():
    source = Source(0, "w", adapters=(Adapter(1, "up", "down", 1.0, transposed=True),))
    up, down = torch.tensor([[1.0], [2.0], [3.0]]), torch.ones(1, 4)
    found = reader(source, [{"w": A}, {"up": up, "down": down}])
    assert torch.equal(found.elements(0, 12).view(4, 3), A + (up @ down).T)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source(0, "v"), "there is no v in checkpoint 0"),
        (Source(7, "w"), "there is no w in checkpoint 7"),
        (Source(0, "w", rows=(4,)), "has 4 rows, and row 4 is asked for"),
        (Source(0, "one", rows=(0,)), "is one number and has no rows"),
        (Source(1, "w", adapters=(Adapter(2, "up", "down", 1.0),)), "an adapter does not fit w"),
        (Source(0, "w", rows=(0, -1), fill=(Source(1, "w"),)), "cannot fill rows"),
    ],
)
def test_what_does_not_fit_is_said(source: Source, message: str):
    with pytest.raises(MismatchError, match=message):
        reader(source, FILES)


def test_an_adapter_that_is_not_finite_is_named_and_not_the_model():
    files = [{"w": A}, {"up": UP * torch.nan, "down": DOWN}]
    with pytest.raises(WeightsError, match="not finite") as caught:
        reader(Source(0, "w", adapters=(Adapter(1, "up", "down", 1.0),)), files)
    assert caught.value.where == ("up",)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_merge_of_gathered_rows(threads: int, tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(n, 700, generator=generator) for n in (900, 1000)]
    for number, table in enumerate(tables):
        weights.save({"w": table}, tmp_path / f"{number}.safetensors")
    rows = tuple(range(900)) + (-1,) * 100
    order = tuple(torch.randperm(1000, generator=generator).tolist())
    other = Source(1, "w", rows=order)
    job = Job(
        "w", (1000, 700), torch.float32, (Source(0, "w", rows=rows, fill=(other,)), other), rule="average"
    )
    files = tuple(str(tmp_path / f"{n}.safetensors") for n in range(2))
    done = run(Work(files, (job,), str(tmp_path / "out")), threads=threads)
    second = tables[1][list(order)]
    expected = (torch.cat([tables[0], second[900:]]).double() + second.double()) / 2
    assert torch.equal(weights.open(done.folder)["w"], expected.float())


def test_equal_work_has_equal_digests():
    def work(rows: object = None, dtype: torch.dtype = torch.float32) -> Work:
        return Work(("a",), (Job("w", (2,), dtype, (Source(0, "w", rows=rows),)),), "out")

    assert digest(work()) == digest(work())
    different = [work(), work(range(2)), work((0, 1)), work((0, -1)), work(dtype=torch.bfloat16)]
    assert len({digest(w) for w in different}) == 5


@pytest.mark.parametrize("text", ["", "5 apples", "-1", 0, "0"])
def test_amounts_of_memory_that_are_none(text: int | str):
    with pytest.raises(InputError, match="no amount of memory"):
        size(text)
