"""`isthmus symmetry`, as a shell sees it."""

import json
import subprocess
import warnings
from pathlib import Path

import command_line
import pytest

from isthmus.cli import output, spaces
from isthmus.cli import symmetry as verb
from isthmus.symmetry.saved import load

MLP = ("isthmus.zoo:MLP", "d_in=6", "widths=[8,7]", "num_classes=3", "--shape", "2,6")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other libraries
        return command_line.run("symmetry", *arguments, cwd=cwd)


def without_error(text: str) -> str:
    """The digits of a rounding error left out."""
    return "\n".join(
        line.split("relative error")[0] + "relative error" if "relative error" in line else line
        for line in text.splitlines()
    )


GOLDEN = """\
isthmus.zoo:MLP d_in=6 widths=[8, 7] num_classes=3: 143 parameters, 2 spaces, 97.9% of the parameters move

space     size  group                   written by                          read by
layers.0     8  permutation x positive  layers.0.weight[0], layers.0.bias[0]  layers.1.weight[1]
layers.1     7  permutation x positive  layers.1.weight[0], layers.1.bias[0]  layers.2.weight[1]

fixed, and why:
  input   1 axis     layers.0.weight[1]
  output  2 axes     layers.2.weight[0], layers.2.bias[0]

verified: relative error"""


def words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_table(tmp_path: Path):
    shown = run(*MLP, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert words(without_error(shown.stdout))[: len(GOLDEN.splitlines())] == words(GOLDEN)


def test_layers_that_repeat_share_a_row(tmp_path: Path):
    arguments = ["isthmus.zoo:MLP", "d_in=6", "widths=[8,8,8,8]", "num_classes=3", "--shape", "2,6"]
    shown = run(*arguments, "--no-check", cwd=tmp_path).stdout
    assert "layers.{0..3}  x4" in shown and "not verified" in shown
    every = run(*arguments, "--no-check", "--all", cwd=tmp_path).stdout
    assert all(f"\nlayers.{i} " in every for i in range(4))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.0.w", "a.1.w", "a.2.w"], ["a.{0..2}.w"]),
        (["a.0.w", "a.2.w", "a.4.w"], ["a.{0,2,4}.w"]),
        (["conv1.w", "conv2.w"], ["conv1.w", "conv2.w"]),
        (["a.3.w", "b"], ["a.3.w", "b"]),
        ([f"a.{2 * i}.w" for i in range(9)], ["a.{0,2,4,6,..,16}.w"]),
    ],
)
def test_names_that_differ_in_a_number_fold(names: list[str], found: list[str]):
    assert spaces.folded(names) == found


@pytest.mark.parametrize(
    ("name", "other", "shown"),
    [
        ("ups.{0..1}.weight[0]", "ups.{0..1}", "ups.{0..1}.weight[0]"),
        ("net.ups.{0..1}.weight[0]", "net.ups.{0..1}", ".{0..1}.weight[0]"),
        ("blocks.{0..1}.qkv.weight[0]", "blocks.{0..1}.qkv/0", ".qkv.weight[0]"),
        ("blocks.{0,2}.out.weight[1]", "blocks.{0,2}.qkv", ".out.weight[1]"),
        ("stem.weight[0]", "stem", "stem.weight[0]"),
    ],
)
def test_a_name_beside_another_goes_without_their_module(name: str, other: str, shown: str):
    assert spaces._beside(name, other) == shown


def test_json_and_saved_graph_and_reading_it(tmp_path: Path):
    shown = run(*MLP, "--json", "--save", "graph.json", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    described = json.loads(shown.stdout)
    assert described["verification"]["ok"] and described["verification"]["error"] < 1e-9
    assert [space["name"] for space in described["spaces"]] == ["layers.0", "layers.1"]
    assert "wrote graph.json" in shown.stderr
    assert load(tmp_path / "graph.json").spaces["layers.0"].size == 8
    again = run("graph.json", cwd=tmp_path)
    assert again.returncode == 0 and "when it was saved: verified" in again.stdout
    assert words(again.stdout)[2:5] == words(run(*MLP, "--no-check", cwd=tmp_path).stdout)[2:5]


def test_check_exits_with_1_where_nothing_could_be_verified(tmp_path: Path):
    plain = run(*MLP, "--meta", cwd=tmp_path)
    assert plain.returncode == 0 and "unverified: on the meta device" in plain.stdout
    checked = run(*MLP, "--meta", "--check", cwd=tmp_path)
    assert checked.returncode == 1 and "error: unverified" in checked.stderr
    small = run(*MLP, "--meta", "--check", "--small", "widths=[4,3]", cwd=tmp_path)
    assert small.returncode == 0, small.stderr
    assert "on a model of the same structure" in small.stdout


def test_check_exits_with_1_where_a_space_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import isthmus.symmetry as room
    from isthmus.symmetry import verified

    def failing(*given: object, **options: object) -> object:
        from dataclasses import replace

        graph, found = verified(*given, **options)  # type: ignore[arg-type]
        return graph, replace(found, frozen={"layers.0": "layers.0:linear"})

    monkeypatch.setattr(room, "verified", failing)
    shown = run(*MLP, "--check", cwd=tmp_path)
    assert shown.returncode == 1
    assert "layers.0 (layers.0:linear)" in shown.stderr
    assert run(*MLP, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no model is named"),
        (("nothing",), "names no model"),
        (("isthmus.zoo:nothing",), "no factory 'nothing'"),
        (("isthmus.zoo:MLP", "isthmus.zoo:VGG"), "one model is needed, not 2"),
        ((*MLP[:-1], "2,x"), "sizes separated by commas"),
        ((*MLP[:-1], "2,5"), "cannot be exported"),
        ((*MLP, "--save", "graph.txt"), "graph.json"),
        ((*MLP, "--meta", "--small", "widths"), "KEY=VALUE"),
        (("gone.json",), "not a readable symmetry graph"),
        (("hf:./gone",), "no folder"),
        (("torchvision:resnt18",), "resnet18"),
        (("isthmus.zoo:MLP", "d_in=6", "widths=[-8]", "num_classes=3"), "isthmus.zoo:MLP made no model"),
    ],
)
def test_wrong_input_is_an_error_with_code_2(arguments: tuple[str, ...], said: str, tmp_path: Path):
    shown = run(*arguments, cwd=tmp_path)
    assert shown.returncode == 2
    assert shown.stderr.startswith("error: ") and said in shown.stderr and not shown.stdout


def test_what_takes_long_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    import time

    monkeypatch.setattr(verb, "PATIENCE", 0.05)
    said: list[str] = []
    monkeypatch.setattr(output, "say", said.append)
    with verb._busy("verifying"):
        time.sleep(0.3)
    assert said == ["verifying ...", "verifying: took 0 s"]


def test_a_configuration_is_enough(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=2, head_dim=16, vocab_size=500, pad_token_id=0,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "model")
    shown = run("hf:model", "--check", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "model.layers.{0..1}.mlp.gate_proj  x2" in shown.stdout


def test_a_configuration_is_narrowed_to_verify_what_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=192, num_hidden_layers=1, num_attention_heads=8,
        num_key_value_heads=2, head_dim=16, vocab_size=500, pad_token_id=0,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(verb, "LARGEST", 1000)
    shown = run("hf:model", "--check", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "on a model of the same structure" in shown.stdout
