"""The command line, as a shell sees it."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from command_line import ARCH, run
from safetensors.torch import load_file, save_file

from isthmus import cli, zoo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cli")
    for seed in (1, 2):
        model = zoo.init(zoo.demo_vgg(base=4), seed)
        save_file(model.state_dict(), made / f"{'ab'[seed - 1]}.safetensors")
    return made


def test_help_lists_the_verbs_and_imports_no_torch(tmp_path: Path):
    command = [sys.executable, "-m", "isthmus", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True)
    for verb in ("demo", "symmetry", "merge", "compare", "methods"):
        assert verb in shown.stdout
    probe = "import sys; import isthmus.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60)


def test_symmetry_lists_spaces_and_verifies(tmp_path: Path):
    shown = run("symmetry", "base=4", *ARCH[:2], "--shape", "2,1,8,8", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "features.18.weight[0]" in shown.stdout and "verified: relative error" in shown.stdout
    asked = run("symmetry", "base=4", *ARCH[:2], "--shape", "2,1,8,8", "--json", cwd=tmp_path)
    described = json.loads(asked.stdout)
    assert described["verification"]["error"] < 1e-9
    assert described["spaces"][0]["members"][0] == ["features.0.weight", 0, "writes"]


def test_methods_lists_what_each_needs(tmp_path: Path):
    shown = run("methods", cwd=tmp_path)
    assert "activation-matching" in shown.stdout and "needs" in shown.stdout
    rows = json.loads(run("methods", "repair", "--json", cwd=tmp_path).stdout)
    assert {"reset", "repair", "rescale"} <= {row["name"] for row in rows}


def test_merge_writes_weights_that_load(folder: Path):
    shown = run(
        "merge", "a.safetensors", "b.safetensors", *ARCH, "--align", "activation-matching",
        "--repair", "rescale", "--data", "digits", "--calibration", "200", "--json", cwd=folder,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert set(json.loads(shown.stdout)["test accuracy"]) == {"a", "b", "merged"}
    zoo.demo_vgg(base=4).load_state_dict(load_file(folder / "merged.safetensors"), strict=True)


def test_two_files_average_without_an_architecture(folder: Path):
    shown = run("merge", "a.safetensors", "b.safetensors", "--out", "plain.safetensors", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    a, b, merged = (load_file(folder / f"{name}.safetensors") for name in ("a", "b", "plain"))
    torch.testing.assert_close(
        merged["classifier.weight"], (a["classifier.weight"] + b["classifier.weight"]) / 2
    )


def test_checkpoints_of_one_name_are_told_apart(folder: Path):
    for seed in "12":
        (folder / seed).mkdir()
        (folder / seed / "a.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    data = [*ARCH, "--data", "digits", "--calibration", "100", "--json"]
    shown = run("merge", "1/a.safetensors", "2/a.safetensors", *data, cwd=folder)
    assert list(json.loads(shown.stdout)["test accuracy"]) == ["1/a", "2/a", "merged"]
    shown = run("merge", "a.safetensors", "a.safetensors", *data, cwd=folder)
    assert list(json.loads(shown.stdout)["test accuracy"]) == ["a (1)", "a (2)", "merged"]


def test_one_model_beside_its_base_is_merged_by_a_rule_that_takes_one(folder: Path):
    given = ["--base", "b.safetensors", "--method", "task-arithmetic", "--out", "task.safetensors"]
    shown = run("merge", "a.safetensors", *given, cwd=folder)
    assert shown.returncode == 0, shown.stderr
    task, model = load_file(folder / "task.safetensors"), load_file(folder / "a.safetensors")
    assert all(torch.allclose(task[key], value, atol=1e-6) for key, value in model.items())


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.safetensors", "gone.safetensors"], ["gone.safetensors"]),
        (["a.safetensors", "bomb.pt"], ["bomb.pt"]),
        (["a.safetensors", "narrow.safetensors", *ARCH], ["narrow.", "features.0.weight", "and 13 more"]),
        (["a.safetensors", "nan.safetensors", *ARCH], ["nan.safetensors", "classifier.bias"]),
        (["a.safetensors", "b.safetensors", "--arch", "isthmus.zoo:nothing"], ["nothing"]),
        (["a.safetensors", "b.safetensors", "--arch", "isthmus.zoo:demo_vgg", "bass=4"], ["bass"]),
        (["a.safetensors", "b.safetensors", *ARCH, "--align", "weight_matching"], ["weight-matching"]),
        (["a.safetensors", "b.safetensors", *ARCH, "--align", "zipit beto=1"], ["no option 'beto'", "beta"]),
        (["a.safetensors", "b.safetensors", *ARCH, "--align", "zipit cca"], ["names 2 methods", "KEY=VALUE"]),
        (["a.safetensors", "b.safetensors", *ARCH, "--repair", "reset", "--data", "digits"], ["rescale"]),
        (["a.safetensors", "b.safetensors", *ARCH, "--data", "digts"], ["digits"]),
        (["a.safetensors"], ["two or more"]),
        (["gone.safetensors"], ["gone.safetensors does not exist"]),
        (["a.safetensors", "b.safetensors", *ARCH, "--align", "weight-matching"], ["do not fit", "--shape 2,1,8,8"]),
        (["a.safetensors", "b.safetensors", "--arch", "isthmus.zoo:mlp"], ["--arch takes arguments"]),
    ],
)  # fmt: skip
def test_bad_input_is_an_error_with_code_2_and_writes_nothing(
    arguments: list[str], words: list[str], folder: Path
):
    state = load_file(folder / "a.safetensors")
    save_file(zoo.demo_vgg(base=3).state_dict(), folder / "narrow.safetensors")
    save_file(
        state | {"classifier.bias": torch.full_like(state["classifier.bias"], torch.nan)},
        folder / "nan.safetensors",
    )
    (folder / "bomb.pt").write_bytes(pickle.dumps(Bomb()))
    shown = run("merge", *arguments, "--out", "refused.safetensors", cwd=folder)
    assert shown.returncode == 2, shown.stderr
    assert "error: " in shown.stderr and "Traceback" not in shown.stderr
    for word in words:
        assert word in shown.stderr
    assert not (folder / "refused.safetensors").exists()
    assert not (folder / "exploded").exists()


def test_compare_writes_the_report_and_the_results(folder: Path):
    shown = run(
        "compare", "a.safetensors", "b.safetensors", *ARCH, "--data", "digits", "--calibration", "200",
        "--preserve-first", "5", "--points", "3", "--align", "activation-matching", "--repair", "rescale",
        "--repair", "remove-bias last=2", "--out", "out",
        cwd=folder,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    results = json.loads((folder / "out" / "results.json").read_text())
    names = [row["name"] for row in results["rows"]]
    assert names[:3] == ["a", "b", "ensemble"] and "preserve-first 5 of 10" in names
    assert "activation-matching + remove-bias (last 2)" in names
    assert "direct average" in shown.stdout
    assert results["verification"]["error"] < 1e-9
    (panel,) = results["panels"]
    shown = [row["name"] for row in panel["rows"]]
    assert panel["name"].startswith("First-layer kernels: ") and shown[:2] == ["a", "b"]
    assert shown[-3:] == ["direct average", "b, activation-matching", "activation-matching"]
    assert (folder / "out" / "report.html").stat().st_size > 1_000_000


def test_methods_take_their_options_within_their_text(folder: Path):
    shown = run(
        "merge", "a.safetensors", "b.safetensors", *ARCH, "--data", "digits", "--calibration", "200", "--kept", "0",
        "--align", "weight-matching restarts=2", "--repair", "remove-bias last=3", "--out", "asked.safetensors",
        "--json", cwd=folder,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    settings = json.loads(shown.stdout)["settings"]
    assert "'restarts': 2" in settings["align"] and settings["repair.last"] == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--repair", "rescal"], "did you mean 'rescale'"),
        (["--repair", "rescale gain=2"], "rescale has no option 'gain'"),
        (["--align", "weight-machting"], "did you mean 'weight-matching'"),
        (["--preserve-first", "11"], "preserve_first = 11, the model has 10 layers"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_measured(
    options: list[str], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("isthmus.comparing.evaluate", None)
    shown = run("compare", "a.safetensors", "b.safetensors", *ARCH, "--data", "digits", *options, cwd=folder)
    assert shown.returncode == 2 and words in shown.stderr


def test_ctrl_c_says_so(monkeypatch, capsys):
    def pressed() -> None:
        raise KeyboardInterrupt

    stopped = typer.Typer()
    stopped.command()(pressed)
    monkeypatch.setattr(cli, "app", stopped)
    monkeypatch.setattr(sys, "argv", ["isthmus"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.INTERRUPTED and "interrupted" in capsys.readouterr().err
