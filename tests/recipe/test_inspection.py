"""What models are and how far they are from each other, in whatever they are kept."""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import isthmus
from isthmus import weights
from isthmus.errors import InputError, WeightsError
from isthmus.recipe.again import plan_again
from isthmus.recipe.inspection.ancestry import draw, trace_back
from isthmus.recipe.inspection.difference import difference
from isthmus.recipe.inspection.inspecting import inspect

from .conftest import write

Make = Callable[[str], Path]
EACH = "models: [{model: x, parameters: {weight: 1}}, {model: y, parameters: {weight: 3}}]\nmerge_method: linear\n"


def gguf_file(path: Path, value: float) -> Path:
    """A matrix of plain numbers and one that is quantised."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.up", np.full((2, 4), value, np.float32))
    packed = gguf.quantize(np.full((2, 32), value, np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.down", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Distances.


def test_integers_and_bools_are_compared_for_equality_and_leave_distances_alone(tmp_path: Path):
    same = {"w": torch.ones(3), "n": torch.tensor([7])}
    a = write(
        tmp_path / "a", same | {"ids": torch.arange(4), "m": torch.tensor([True]), "k": torch.ones(2).int()}
    )
    b = write(
        tmp_path / "b",
        same | {"ids": torch.arange(4) ** 2, "m": torch.tensor([False]), "k": torch.ones(2).long()},
    )
    found = difference(a, b)
    assert (found.whole.count, found.whole.relative) == (3, 0) and list(found.tensors) == ["w"]
    assert "integers and bools: 3 of 4 tensors differ (ids, k, m)" in found.table()
    lines = found.table(tensors=True).splitlines()
    assert {
        "ids  2 of 4 elements differ",
        "m    1 of 1 elements differ",
        "n    equal",
        "k    int32 and int64",
    } <= {*lines}
    told = found.as_dict()["exact"]
    assert isinstance(told, dict) and told["ids"] == {
        "dtypes": ["int64", "int64"],
        "elements": 4,
        "unequal": 2,
    }
    assert "integers and bools: 0 of 4 tensors differ\n" in difference(a, a).table()


def test_models_without_weights_in_common_are_compared_all_the_same(tmp_path: Path):
    a = write(tmp_path / "a", {"n": torch.tensor([1, 2]), "w": torch.ones(3)})
    b = write(tmp_path / "b", {"n": torch.tensor([1, 3]), "w": torch.ones(4)})
    found = difference(a, b)
    assert found.table().splitlines()[1:] == [
        "shapes differ: w  (3,)  (4,)", "integers and bools: 1 of 1 tensors differ (n)",
    ]  # fmt: skip
    assert json.loads(json.dumps(found.as_dict()))["all"]["cosine"] is None


def test_complex_and_double_numbers_are_not_rounded_away(tmp_path: Path):
    base = torch.ones(4, dtype=torch.float64)
    z = torch.complex(torch.ones(2), torch.ones(2))
    a = write(tmp_path / "a", {"w": base, "z": z})
    b = write(tmp_path / "b", {"w": base + 1e-12, "z": z.conj().resolve_conj()})
    found = difference(a, b).tensors
    assert found["w"].relative == pytest.approx(1e-12, rel=1e-3)
    assert found["z"].cosine == pytest.approx(0) and found["z"].signs == 0.5


# Kinds of files.


def test_gguf_is_inspected_compared_planned_and_merged(recipe: Make, tmp_path: Path):
    x, y = gguf_file(tmp_path / "x.gguf", 1.0), gguf_file(tmp_path / "y.gguf", 2.0)
    text = str(inspect(x))
    assert "tensors   2 (float32 x 2), 72 parameters" in text
    assert f"stored    as GGUF (Q8_0 x 1, F32 x 1), {x.stat().st_size} bytes" in text
    told = inspect(x).as_dict()["entries"]
    assert isinstance(told, dict) and told["blk.0.down"] == {
        "dtype": "float32",
        "shape": [2, 32],
        "stored": "Q8_0",
    }
    plan = isthmus.plan(recipe(EACH.replace("x,", "x.gguf,").replace("y,", "y.gguf,")))
    assert (
        "note    x.gguf: GGUF, read as plain numbers and written under its own names as safetensors"
        in str(plan)
    )
    plan.run(tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(merged["blk.0.up"], torch.full((2, 4), 1.75))
    torch.testing.assert_close(merged["blk.0.down"], torch.full((2, 32), 1.75), rtol=1e-2, atol=0)
    y.write_bytes(y.read_bytes()[:60])
    with pytest.raises(WeightsError, match=r"y\.gguf is not a readable GGUF file"):
        inspect(y)


def test_a_pickle_is_inspected_without_running_it(tmp_path: Path):
    (tmp_path / "x").mkdir()
    torch.save({"w": torch.ones(2, 3), "n": torch.tensor([1])}, tmp_path / "x" / "pytorch_model.bin")
    found = inspect(tmp_path / "x")
    assert "tensors   2 (int64 x 1, float32 x 1), 6 parameters" in str(found)
    assert [file.name for file in found.checkpoint.files] == ["pytorch_model.bin"]
    assert draw(trace_back(tmp_path / "x")) == "x"


# What merges tell of themselves.


def test_what_a_call_made_says_so(tmp_path: Path):
    for name, value in (("x", 1.0), ("y", 2.0), ("base", 0.0)):
        write(tmp_path / name, {"w": torch.full((4,), value)})
    isthmus.merge_files(
        [tmp_path / "x", tmp_path / "y"], tmp_path / "out", method="ties", base=tmp_path / "base", density=0.5
    )
    text = str(inspect(tmp_path / "out"))
    assert "merged    by isthmus.merge_files from\n          base   base\n          model  x\n" in text
    assert '"method": "ties", "options": {"density": 0.5}, "seed": 0}; it is no recipe' in text
    here = "no content is recorded, and one of that name is here"
    assert draw(trace_back(tmp_path / "out")) == (
        f"out  by ties\n|- base  base  {here}\n|- x  model  {here}\n`- y  model  {here}"
    )
    with pytest.raises(InputError, match="a call made it, not a recipe"):
        plan_again(tmp_path / "out")


@pytest.mark.parametrize("told", ["[]", "{", '{"models": 3}', '"x"'])
def test_a_note_of_a_call_that_is_none_is_harmless(told: str, tmp_path: Path):
    weights.save({"w": torch.ones(1)}, tmp_path / "x.safetensors", metadata={"isthmus.merge": told})
    assert "content" in str(inspect(tmp_path / "x.safetensors"))
    assert draw(trace_back(tmp_path / "x.safetensors")).startswith("x.safetensors")


# Plans.


def test_a_plan_does_not_say_that_integers_are_equal_before_it_has_looked(recipe: Make, tmp_path: Path):
    for name, count in (("x", 1), ("y", 2)):
        write(tmp_path / name, {"w": torch.zeros(4), "ids": torch.tensor([count])})
    plan = isthmus.plan(recipe(EACH))
    assert "2 tensors (1 that must be equal in all models, 1 merged)" in str(plan)
    assert "must be equal in all" in plan.table()


def test_limits_that_are_asked_for_are_those_of_the_plan(recipe: Make, tmp_path: Path):
    for name in "xy":
        write(tmp_path / name, {"w": torch.zeros(4)})
    plan = isthmus.plan(recipe(EACH + "isthmus: {limits: {threads: 8, memory: 170MB}}\n"))
    assert "on 8 threads" in str(plan) and "170 MB of memory may be too little" in str(plan)
    within = plan.within(threads=1, max_memory=190_000_000)
    assert (
        "on 1 thread, " in str(within)
        and within.memory <= 190_000_000 < isthmus.plan(recipe(EACH)).within(threads=64).memory
    )
    assert "too little" not in str(within) and plan.within() == plan
