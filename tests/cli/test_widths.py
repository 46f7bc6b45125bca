"""`isthmus align` and `isthmus merge` of checkpoints of two widths, each with an `--arch` of its own."""

import json
from pathlib import Path

import pytest
import torch
from command_line import run
from safetensors.torch import load_file, save_file
from torch import Tensor

import isthmus
from isthmus import zoo

NARROW, WIDE = "isthmus.zoo:mlp widths=[6]", "isthmus.zoo:mlp widths=[12]"
EACH = ["--arch", NARROW, "--arch", WIDE, "d_in=64"]
DATA = ["--data", "digits", "--calibration", "100"]
PAIR = ["narrow.safetensors", "wide.safetensors"]


def twice(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same function with every hidden unit there twice, each with half of its readers' weight."""
    keys = list(state)
    first, bias, last, outer = (state[key] for key in keys)
    made = (
        first.repeat_interleave(2, 0),
        bias.repeat_interleave(2, 0),
        last.repeat_interleave(2, 1) / 2,
        outer,
    )
    return dict(zip(keys, made, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, the same with its units doubled, and one of the doubled width that was drawn anew."""
    made = tmp_path_factory.mktemp("widths")
    narrow = dict(zoo.init(zoo.mlp(d_in=64, widths=[6]), 1).state_dict())
    other = zoo.init(zoo.mlp(d_in=64, widths=[12]), 2).state_dict()
    for name, state in {"narrow": narrow, "wide": twice(narrow), "other": other}.items():
        save_file({k: v.contiguous() for k, v in state.items()}, made / f"{name}.safetensors")
    return made


def same(folder: Path, ours: str, theirs: str) -> bool:
    a, b = load_file(folder / ours), load_file(folder / theirs)
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=1e-5) for k in a)


@pytest.mark.parametrize(("reference", "stays"), [("0", 0), ("1", 1), ("best", 0)])
def test_a_network_merged_with_its_doubled_self_is_itself_in_the_width_that_stays(
    reference: str, stays: int, folder: Path
):
    how = [*EACH, *DATA]
    shown = run("align", *PAIR, *how, "--method", "transport", "--reference", reference, "--json", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert all(f"symmetries of {path} verified" in shown.stderr for path in PAIR)
    told = json.loads(shown.stdout)
    kept = told["reference"]
    assert kept == stays
    assert told["kept"]["information kept"]["mean"] == pytest.approx(1, abs=1e-3)
    merged = run("merge", *PAIR, *how, "--maps", "maps.safetensors", "--repair", "rescale", cwd=folder)
    assert merged.returncode == 0, merged.stderr
    assert same(folder, "merged.safetensors", PAIR[kept])
    scores = [line.split()[2] for line in merged.stdout.splitlines() if line.startswith("test accuracy")]
    assert len(scores) == 3 and len(set(scores)) == 1
    named = run(
        "merge", *PAIR, *how, "--align", "transport", "--reference", reference, "--out", "n.safetensors", cwd=folder
    )  # fmt: skip
    assert named.returncode == 0, named.stderr
    assert same(folder, "n.safetensors", PAIR[kept])
    moved = run("align", *PAIR, *how, "--apply", "maps.safetensors", "--out", "moved.safetensors", cwd=folder)
    assert moved.returncode == 0, moved.stderr
    assert same(folder, "moved.safetensors", PAIR[kept])


def test_strangers_of_two_widths_may_also_grow(folder: Path):
    strangers = ["narrow.safetensors", "other.safetensors", *EACH, "--shape", "2,1,8,8"]
    by_weights = ["--method", "transport", "--option", "by=weights", "--out", "by.safetensors"]
    shown = run("align", *strangers, *by_weights, cwd=folder)
    assert shown.returncode == 0, shown.stderr
    method = ["--method", "matched-averaging", "--option", "gamma=20.5", "--reference", "1"]
    shown = run("align", *strangers, *method, cwd=folder)
    assert shown.returncode == 0, shown.stderr
    shown = run("merge", *strangers, "--maps", "maps.safetensors", "--out", "g.safetensors", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert "isthmus.load('g.safetensors', model=...)" in shown.stderr
    merged = isthmus.load(folder / "g.safetensors", model=lambda: zoo.mlp(d_in=64, widths=[12]))
    assert merged(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    grown = load_file(folder / "g.safetensors")["layers.0.weight"]
    assert 12 < len(grown) <= 6 + 12


def test_heads_of_other_sizes_are_skipped(folder: Path):
    head = zoo.init(zoo.mlp(d_in=64, widths=[6], num_classes=4), 3).state_dict()
    save_file(dict(head), folder / "four.safetensors")
    each = ["--arch", NARROW, "--arch", f"{NARROW} num_classes=4", "d_in=64", "--shape", "2,1,8,8"]
    how = ["--align", "weight-matching", "--skip", "layers.1.*", "--out", "heads.safetensors"]
    shown = run("merge", "narrow.safetensors", "four.safetensors", *each, *how, cwd=folder)
    assert shown.returncode == 0, shown.stderr
    merged, narrow = load_file(folder / "heads.safetensors"), load_file(folder / "narrow.safetensors")
    assert torch.equal(merged["layers.1.weight"], narrow["layers.1.weight"])
    assert not torch.allclose(merged["layers.0.weight"], narrow["layers.0.weight"])


def test_arguments_may_stand_in_the_text_of_one_architecture_too(folder: Path):
    quoted = ["--arch", f"{NARROW} d_in=64", "--shape", "2,1,8,8", "--out", "a.safetensors"]
    shown = run(
        "merge", "narrow.safetensors", "narrow.safetensors", *quoted, "--align", "weight-matching", cwd=folder
    )
    assert shown.returncode == 0, shown.stderr
    assert same(folder, "a.safetensors", "narrow.safetensors")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["align", *PAIR, "narrow.safetensors", *EACH], ["--arch is given 2 times for 3", "once for each"]),
        (["align", *PAIR, "--arch", NARROW, "d_in=64"], ["the architecture (6, 64)", "repeat --arch"]),
        (["merge", *PAIR, "--arch", NARROW, "d_in=64"], ["wide.safetensors (12, 64)", "repeat --arch"]),
        (["compare", *PAIR, "--arch", NARROW, "d_in=64", *DATA], ["align and merge also take"]),
        (["align", *reversed(PAIR), *EACH], ["(6, 64)", "in order"]),
        (["align", *PAIR, *EACH, "--shape", "2,1,8,8"], ["takes checkpoints of one width", "transport"]),
        (["merge", *PAIR, *EACH, "--align", "c2m3"], ["c2m3 takes checkpoints of one width", "--align", "transport"]),
        (["merge", *PAIR, *EACH], ["several widths have no average", "--align", "transport"]),
        (["merge", *PAIR, *EACH, *DATA, "--align", "transport", "--preserve-first", "1"], ["layers.0: 6, 12"]),
        (["merge", *PAIR], ["differ", "--arch for each"]),
        (["align", *PAIR, "--arch", "isthmus.zoo:mlp isthmus.zoo:mlp"], ["names 2 architectures"]),
        (["align", *PAIR, "--arch", "isthmus.zoo:mlp 'widths"], ["names no architecture"]),
        (["align", *PAIR, *EACH, "--reference", "2"], ["none of 2 models", "0 to 1"]),
        (["align", *PAIR, *EACH, *DATA, "--method", "transport", "--reference", "universe"], ["no mean"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(arguments: list[str], words: list[str], folder: Path):
    shown = run(*arguments, cwd=folder)
    assert shown.returncode == 2
    assert all(word in shown.stderr for word in words), shown.stderr
