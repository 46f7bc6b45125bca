"""`isthmus soup` and `isthmus sweep`, as a shell sees them."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from command_line import run
from safetensors.torch import load_file, save_file

from isthmus import zoo

ARCH = ["--arch", "isthmus.zoo:demo_vgg", "base=4"]
SCORE = """
import pathlib
import torch
from safetensors.torch import load_file

best = load_file("target.safetensors")

def score(weights):
    with open("calls.txt", "a") as file:
        file.write("x")
    if pathlib.Path("stop").exists() and pathlib.Path("calls.txt").stat().st_size > 3:
        raise KeyboardInterrupt
    return -sum(float((weights[key].float() - value).square().sum()) for key, value in best.items())

def broken(weights):
    return float("nan")

def crashing(weights):
    raise RuntimeError("out of luck")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten siblings, what they are around, and a score."""
    base = zoo.init(zoo.demo_vgg(base=4), 1).state_dict()
    for index in range(10):
        generator = torch.Generator().manual_seed(index)
        moved = {k: v + 0.02 * torch.randn(v.shape, generator=generator) for k, v in base.items()}
        save_file(moved, tmp_path / f"m{index}.safetensors")
    save_file(base, tmp_path / "base.safetensors")
    save_file(base, tmp_path / "target.safetensors")
    (tmp_path / "own_score.py").write_text(SCORE)
    return tmp_path


FILES = [f"m{index}.safetensors" for index in range(10)]


def calls(folder: Path) -> int:
    file = folder / "calls.txt"
    return file.stat().st_size if file.exists() else 0


def test_ten_files_and_a_function_give_a_soup_and_a_report(folder: Path):
    done = run("soup", *FILES, "--score", "own_score:score", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "greedy of 10 models" in done.stdout and "wrote soup.safetensors" in done.stderr
    zoo.demo_vgg(base=4).load_state_dict(load_file(folder / "soup.safetensors"), strict=True)
    told = json.loads((folder / "soup" / "search.json").read_text())
    assert told["evaluated"] == len(told["steps"]) >= 11
    page = (folder / "soup" / "report.html").read_text()
    assert "Step by step" in page and "+ m" in page and "own_score.score" in page
    assert page.count("<script") == 3
    assert "First-layer kernels: " in page and page.count('<img src="data:image/png') > 8


def test_an_interrupted_soup_goes_on_and_evaluates_nothing_twice(folder: Path):
    (folder / "stop").touch()
    stopped = run("soup", *FILES, "--score", "own_score:score", cwd=folder)
    assert stopped.returncode == 130 and not (folder / "soup.safetensors").exists()
    before = calls(folder)
    (folder / "stop").unlink()
    done = run("soup", *FILES, "--score", "own_score:score", "--json", cwd=folder)
    told = json.loads(done.stdout)
    assert told["cached"] == before - 1 and told["evaluated"] == calls(folder) - before
    again = json.loads(run("soup", *FILES, "--score", "own_score:score", "--json", cwd=folder).stdout)
    assert again["evaluated"] == 0 and again["chosen"] == told["chosen"]


def test_an_architecture_and_data_are_a_score_and_the_test_split_reports(folder: Path):
    files = FILES[:3]
    done = run("soup", *files, *ARCH, "--data", "digits", "--kind", "iterated", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told["test accuracy"]) == {
        f"{told['steps'][0]['label']}, best alone",
        "the iterated soup",
    } or any(key.endswith("best alone") for key in told["test accuracy"])
    assert "validation images of digits" in told["score name"]
    learned = run(
        "soup", *files, *ARCH, "--data", "digits", "--kind", "learned", "--option", "epochs=1", "--option",
        "by=layer", "--out", "learned.safetensors", cwd=folder,
    )  # fmt: skip
    assert learned.returncode == 0, learned.stderr
    assert (folder / "learned" / "report.html").exists() and "test accuracy" in learned.stdout


def test_wise_ft_takes_one_file_and_its_base(folder: Path):
    done = run(
        "soup", "m0.safetensors", "--kind", "wise-ft", "--base", "base.safetensors", "--score", "own_score:score",
        "--option", "points=3", "--json", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["chosen"] == {"a": 0.0}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([FILES[0], "--score", "own_score:score"], ["two or more models, got 1"]),
        ([*FILES[:2]], ["what a good model is, is not known", "--score"]),
        ([*FILES[:2], *ARCH, "--data", "digits", "--score", "own_score:score"], ["two scores"]),
        ([*FILES[:2], "--score", "own_score:nothing"], ["no function 'nothing'"]),
        ([*FILES[:2], "--score", "no_such_module:score"], ["cannot be imported"]),
        ([*FILES[:2], "--score", "own_score"], ["write it as package.module:function"]),
        ([*FILES[:2], "--score", "own_score:broken"], ["there is no score of m0", "not a number"]),
        ([*FILES[:2], "--score", "own_score:crashing"], ["there is no score of m0", "out of luck"]),
        ([*FILES[:2], "--score", "own_score:score", "--kind", "gready"], ["did you mean 'greedy'"]),
        ([*FILES[:2], "--score", "own_score:score", "--option", "accept=maybe"], ["none of 'gt', 'ge'"]),
        ([*FILES[:2], "--score", "own_score:score", "--option", "seed=1"], ["not an option of a method"]),
        ([*FILES[:2], "--score", "own_score:score", "--kind", "wise-ft"], ["it needs a base model"]),
        ([*FILES[:2], "--score", "own_score:score", "--reset"], ["--reset needs --arch and --data"]),
        ([FILES[0], "narrow.safetensors", "--score", "own_score:score"], ["classifier.weight", "narrow"]),
        (
            [FILES[0], "nan.safetensors", "--score", "own_score:score"],
            ["nan holds numbers that are not finite"],
        ),
        ([FILES[0], "gone.safetensors", "--score", "own_score:score"], ["gone.safetensors does not exist"]),
        ([*FILES[:2], "--score", "own_score:score", "--out", "soup.pt"], ["soup.safetensors"]),
    ],
)
def test_bad_input_is_an_error_with_code_2_and_writes_no_soup(
    arguments: list[str], words: list[str], folder: Path
):
    state = load_file(folder / "m1.safetensors")
    save_file(zoo.demo_vgg(base=3).state_dict(), folder / "narrow.safetensors")
    broken = {**state, "classifier.bias": torch.full_like(state["classifier.bias"], torch.nan)}
    save_file(broken, folder / "nan.safetensors")
    done = run("soup", *arguments, cwd=folder)
    assert done.returncode == 2, done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr and not (folder / "soup.safetensors").exists()


def test_a_sweep_of_files_scores_every_point_and_keeps_the_best(folder: Path):
    arguments = [
        "sweep", *FILES[:3], "-x", "lam=.1,.5,1", "-y", "method=linear,task_arithmetic", "--base",
        "base.safetensors", "--score", "own_score:score", "--json",
    ]  # fmt: skip
    done = run(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["steps"]) == 6
    assert told["chosen"] == {"lam": 0.1, "method": "task-arithmetic"}
    page = (folder / "sweep" / "report.html").read_text()
    assert '"heatmap"' in page and "lam and method" in page
    assert set(load_file(folder / "sweep" / "best.safetensors")) == set(load_file(folder / "m0.safetensors"))
    assert json.loads(run(*arguments, cwd=folder).stdout)["evaluated"] == 0


@pytest.fixture
def recipe(folder: Path) -> Path:
    for name in ("m0", "m1", "m2", "base"):
        (folder / f"{name}_model").mkdir()
        save_file(load_file(folder / f"{name}.safetensors"), folder / f"{name}_model" / "model.safetensors")
    written = {
        "merge_method": "task_arithmetic",
        "base_model": "base_model",
        "models": [{"model": f"m{i}_model", "parameters": {"weight": 1.0}} for i in range(3)],
        "dtype": "float32",
    }
    path = folder / "recipe.yml"
    path.write_text(yaml.safe_dump(written))
    return path


def test_a_sweep_of_a_recipe_is_in_its_own_words(recipe: Path, folder: Path):
    arguments = [
        "sweep", "recipe.yml", "-x", "weight=.1,.5", "-y", "method=task_arithmetic,ties", "--score",
        "own_score:score", "--json",
    ]  # fmt: skip
    done = run(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["chosen"] == {"weight": 0.1, "method": "task_arithmetic"} and len(told["steps"]) == 4
    best = yaml.safe_load((folder / "sweep" / "best.yml").read_text())
    assert [model["parameters"]["weight"] for model in best["models"]] == [0.1] * 3
    merged = load_file(folder / "sweep" / "best" / "model.safetensors")
    base, parts = (
        load_file(folder / "base.safetensors"),
        [load_file(folder / f"m{i}.safetensors") for i in range(3)],
    )
    key = "classifier.weight"
    torch.testing.assert_close(merged[key], base[key] + 0.1 * sum(part[key] - base[key] for part in parts))
    assert not (folder / "sweep" / ".merge").exists()
    again = json.loads(run(*arguments, cwd=folder).stdout)
    assert again["evaluated"] == 0 and again["score"] == told["score"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recipe.yml", "-x", "gamma=.1"], ["recipe.yml cannot be swept", "gamma"]),
        (["recipe.yml", "-x", "method=task_arithmetic,tise"], ["method=tise", "tise"]),
        (["recipe.yml", "-x", "weight=.1", "-y", "weight=.2"], ["both vary weight"]),
        (["recipe.yml", "-x", "weight"], ["write it as NAME=VALUE"]),
        (["recipe.yml", "m0.safetensors", "-x", "weight=.1"], ["names its own models"]),
        (["m0.safetensors", "m1.safetensors", "-x", "density=.1,.2"], ["no option 'density'"]),
        (["m0.safetensors", "-x", "method=ties", "-y", "density=.1"], ["ties needs a base model"]),
    ],
)
def test_a_sweep_that_cannot_be_is_said_before_any_merge(
    arguments: list[str], words: list[str], recipe: Path, folder: Path
):
    done = run("sweep", *arguments, "--score", "own_score:score", cwd=folder)
    assert done.returncode == 2, done.stdout
    for word in words:
        assert word in done.stderr, done.stderr
    assert calls(folder) == 0 and "Traceback" not in done.stderr


def test_merge_takes_a_base_and_the_options_of_its_method(folder: Path):
    base, parts = (
        load_file(folder / "base.safetensors"),
        [load_file(folder / f"m{i}.safetensors") for i in range(2)],
    )
    arguments = [
        "merge",
        *FILES[:2],
        "--method",
        "task-arithmetic",
        "--base",
        "base.safetensors",
        "--option",
        "lam=.5",
    ]
    for more in ([], ARCH):
        done = run(*arguments, *more, cwd=folder)
        assert done.returncode == 0, done.stderr
        merged = load_file(folder / "merged.safetensors")
        expected = {k: v + 0.5 * sum(part[k] - v for part in parts) for k, v in base.items()}
        torch.testing.assert_close(merged["classifier.weight"], expected["classifier.weight"])
    wrong = run(*arguments, "--option", "lamm=1", cwd=folder)
    assert wrong.returncode == 2 and "no option 'lamm'" in wrong.stderr
    assert run("merge", "recipe.yml", "--base", "x", cwd=folder).returncode == 2


def test_methods_lists_the_searches(folder: Path):
    assert "adamerging" in run("methods", "search", cwd=folder).stdout
