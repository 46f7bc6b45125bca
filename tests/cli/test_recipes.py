"""Recipes on the command line: golden text, errors, exit codes."""

import json
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from command_line import run
from safetensors.torch import load_file, save_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()
        state = {f"h.{i}.w": torch.randn(4, 4, generator=generator) for i in range(2)}
        save_file(
            state | {"wte.weight": torch.randn(6, 4, generator=generator)},
            tmp_path / name / "model.safetensors",
        )
    (tmp_path / "recipe.yml").write_text(
        dedent("""
        models:
          - model: a
            parameters: {weight: [0, 1]}
          - model: b
            parameters: {weight: 0.5}
        base_model: base
        merge_method: task_arithmetic
        """).lstrip()
    )
    return tmp_path


def test_plan_prints_the_plan_and_writes_nothing(folder: Path):
    before = sorted(folder.rglob("*"))
    shown = run("plan", "recipe.yml", "--table", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert (
        shown.stdout
        == dedent("""
        for all: int8_mask false  lambda 1  normalize false  rescale false
        tensor      shape  made of
        h.0.w       4x4    a 0  b 0.5  base (base)
        h.1.w       4x4    a 1  b 0.5  base (base)
        wte.weight  6x4    a 0  b 0.5  base (base)
    """).lstrip()
    )
    assert shown.stderr == ""
    assert json.loads(run("plan", "recipe.yml", "--json", cwd=folder).stdout)["method"] == "task_arithmetic"
    assert run("plan", "recipe.yml", cwd=folder).stdout.startswith(
        "recipe.yml: task_arithmetic of 3 models\n"
    )
    assert sorted(folder.rglob("*")) == before


def test_a_wrong_recipe_is_told_at_once_with_code_2(folder: Path):
    text = (
        (folder / "recipe.yml")
        .read_text()
        .replace("model: b\n", "model: gone\n")
        .replace("weight: 0.5", "wieght: 0.5")
    )
    (folder / "wrong.yml").write_text(text)
    for verb in (["plan", "wrong.yml"], ["merge", "wrong.yml", "--out", "out"]):
        shown = run(*verb, cwd=folder)
        assert shown.returncode == 2
        assert shown.stdout == ""
        assert (
            shown.stderr
            == dedent("""
            error: 2 problems in wrong.yml
              wrong.yml:4  gone does not exist
              wrong.yml:5  unknown parameter 'wieght', did you mean 'weight'?
        """).lstrip()
        )
    assert not (folder / "out").exists()


def test_merge_by_recipe_and_again_from_the_result(folder: Path):
    shown = run("merge", "recipe.yml", "--out", "out", "--threads", "1", "--shard-size", "100", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert "out: 3 tensors" in shown.stdout and "checked: 3 tensors, 224 bytes, as planned" in shown.stdout
    assert "task_arithmetic of 3 models" in shown.stderr and "on 1 thread, " in shown.stderr
    merged = {}
    for file in (folder / "out").glob("*.safetensors"):
        merged |= load_file(file)
    base, a, b = (load_file(folder / name / "model.safetensors") for name in ("base", "a", "b"))
    torch.testing.assert_close(merged["h.1.w"], a["h.1.w"] + 0.5 * (b["h.1.w"] - base["h.1.w"]))
    again = run("merge", "out", "--out", "again", "--json", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["tensors"] == 3
    torch.testing.assert_close(load_file(folder / "again" / "model.safetensors"), merged, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recipe.yml"], "hint: --out FOLDER"),
        (["recipe.yml", "a", "--out", "x"], "names its own models"),
        (["recipe.yml", "--out", "x", "--align", "weight-matching"], "--align: not for a merge by recipe"),
        (
            ["a/model.safetensors", "b/model.safetensors", "--threads", "2"],
            "--threads: only for a merge by recipe",
        ),
        (["recipe.yml", "--out", "x", "--shard-size", "much"], "--shard-size: 'much' is no size"),
        (["recipe.yml", "--out", "x", "--max-memory", "much"], "--max-memory: 'much' is no size"),
        (["recipe.yml", "--out", "x", "--parents", "."], "the recipe says where its models are"),
        (["a", "--out", "x"], "tells of no recipe"),
        (["gone.yml", "--out", "x"], "gone.yml cannot be read"),
    ],
)
def test_what_does_not_go_together(folder: Path, arguments: list[str], words: str):
    shown = run("merge", *arguments, cwd=folder)
    assert shown.returncode == 2
    assert shown.stderr.startswith("error: ") and words in shown.stderr
    assert not (folder / "x").exists()


def test_inspect_lineage_and_diff(folder: Path):
    assert run("merge", "recipe.yml", "--out", "out", cwd=folder).returncode == 0
    shown = run("inspect", "out", "--tensors", cwd=folder).stdout
    assert "layers    h x 2" in shown and "h.1.w       float32 (4, 4)" in shown
    assert "merged    by isthmus" in shown and "  merge_method: task_arithmetic" in shown
    assert (
        json.loads(run("inspect", "out", "--json", cwd=folder).stdout)["merged"]["parents"][0]["role"]
        == "base"
    )
    assert (
        run("lineage", "out", cwd=folder).stdout
        == "out  by task_arithmetic\n|- base  base\n|- a  model\n`- b  model\n"
    )
    table = run("diff", "a", "b", "--base", "base", cwd=folder).stdout.splitlines()
    assert table[0] == "task vectors of a and b, from base"
    assert [line.split()[0] for line in table[2:]] == ["h.0", "h.1", "wte.weight", "all"]
    assert set(json.loads(run("diff", "a", "b", "--json", cwd=folder).stdout)["blocks"]) == {
        "h.0",
        "h.1",
        "wte.weight",
    }
    assert run("inspect", "gone", cwd=folder).returncode == 2
