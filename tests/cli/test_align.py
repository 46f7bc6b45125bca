"""`isthmus align`: maps to a file, applied to checkpoints, and taken by `isthmus merge`."""

import json
from pathlib import Path

import pytest
import torch
from command_line import ARCH, run
from safetensors.torch import load_file, save_file
from torch import Tensor

import isthmus
from isthmus import zoo
from isthmus.maps import Permutation, Transport
from isthmus.symmetry import SymmetryGraph

SHAPE = ["--shape", "2,1,8,8"]
DATA = ["--data", "digits", "--calibration", "200"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two strangers, a and b, and c: a with its units in another order."""
    made = tmp_path_factory.mktemp("align")
    states = [dict(zoo.init(zoo.demo_vgg(base=4), seed).state_dict()) for seed in (1, 2)]
    graph = isthmus.trace(zoo.demo_vgg(base=4).eval(), torch.zeros(2, 1, 8, 8))
    moved = reordered(graph, states[0])
    for name, state in zip("abc", [*states, moved], strict=True):
        save_file({k: v.contiguous() for k, v in state.items()}, made / f"{name}.safetensors")
    return made


def reordered(graph: SymmetryGraph, state: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    orders = {n: torch.randperm(s.size, generator=generator) for n, s in graph.spaces.items()}
    maps = {n: Permutation(o) for n, o in orders.items()}
    return Transport(graph, maps).apply(state)


def same(folder: Path, ours: str, theirs: str) -> bool:
    a, b = load_file(folder / ours), load_file(folder / theirs)
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


def test_maps_are_written_and_move_a_checkpoint_to_the_other(folder: Path):
    pair = ["a.safetensors", "c.safetensors", *ARCH, *SHAPE]
    shown = run("align", *pair, "--out", "ac.safetensors", "--json", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert "symmetries verified" in shown.stderr
    told = json.loads(shown.stdout)
    assert (told["method"], told["reference"], told["kept"]) == ("weight-matching", 0, None)
    assert min(cost["after"] for cost in told["costs"]) > 0.999
    shown = run("align", *pair, "--apply", "ac.safetensors", "--out", "back.safetensors", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert "c.safetensors in the units of a.safetensors: back.safetensors" in shown.stdout
    assert same(folder, "back.safetensors", "a.safetensors")
    zoo.demo_vgg(base=4).load_state_dict(load_file(folder / "back.safetensors"), strict=True)


def test_merge_takes_maps_and_gives_what_it_gives_with_the_method(folder: Path):
    pair = ["a.safetensors", "b.safetensors", *ARCH, *DATA]
    assert run("align", *pair, "--method", "zipit", "--out", "ab.safetensors", cwd=folder).returncode == 0
    by_maps = run("merge", *pair, "--maps", "ab.safetensors", "--out", "m.safetensors", cwd=folder)
    assert by_maps.returncode == 0, by_maps.stderr
    assert "information kept 0." in by_maps.stdout and "(PCA)" in by_maps.stdout
    named = run("merge", *pair, "--align", "zipit", "--out", "n.safetensors", "--json", cwd=folder)
    assert same(folder, "m.safetensors", "n.safetensors")
    told = json.loads(named.stdout)["kept"]
    assert 0 < told["information kept"]["mean"] <= told["information bound"]["mean"] <= 1
    # A group of units is a part of a sum: nothing to write alone.
    alone = run("align", *pair, "--apply", "ab.safetensors", cwd=folder)
    assert alone.returncode == 2 and "--maps ab.safetensors" in alone.stderr


@pytest.mark.parametrize(
    ("reference", "stays"), [("1", 1), ("medoid", None), ("universe", 0), ("best", None)]
)
def test_the_reference_is_an_index_or_chosen(reference: str, stays: int | None, folder: Path):
    three = [f"{name}.safetensors" for name in "abc"]
    data = [*DATA, "--kept", "0"] if reference == "best" else SHAPE
    shown = run(
        "align",
        *three,
        *ARCH,
        *data,
        "--reference",
        reference,
        "--json",
        "--out",
        "r.safetensors",
        cwd=folder,
    )
    assert shown.returncode == 0, shown.stderr
    told = json.loads(shown.stdout)
    assert stays is None or told["reference"] == stays
    assert reference == "1" or reference in " ".join(told["notes"])
    shown = run(
        "align", *three, *ARCH, *SHAPE, "--apply", "r.safetensors", "--out", f"moved-{reference}", cwd=folder
    )
    assert shown.returncode == 0, shown.stderr
    assert len(list((folder / f"moved-{reference}").iterdir())) == 2


def test_merge_chooses_its_reference(folder: Path):
    pair = ["a.safetensors", "b.safetensors", *ARCH, *DATA, "--kept", "0"]
    shown = run(
        "merge",
        *pair,
        "--align",
        "weight-matching",
        "--reference",
        "best",
        "--out",
        "best.safetensors",
        cwd=folder,
    )
    assert shown.returncode == 0, shown.stderr
    assert "the best, of" in shown.stdout and "information kept" not in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["align", "a.safetensors", *ARCH], ["two or more"]),
        (["align", "a.safetensors", "b.safetensors"], ["--arch"]),
        (["align", "a.safetensors", "b.safetensors", *ARCH, "--out", "maps.pt"], ["maps.safetensors"]),
        (["align", "a.safetensors", "b.safetensors", *ARCH, "--reference", "worst"], ["best, medoid"]),
        (["align", "a.safetensors", "b.safetensors", *ARCH, *SHAPE, "--reference", "best"], ["--data"]),
        (["align", "a.safetensors", "b.safetensors", *ARCH, *SHAPE, "--method", "zipit"], ["needs calibration data"]),
        (["align", "a.safetensors", "b.safetensors", *ARCH, *SHAPE, "--option", "sweep=2"], ["no option 'sweep'"]),
        (["align", "a.safetensors", "b.safetensors", *ARCH, "--apply", "x", "--method", "cca"], ["--method"]),
        (["align", "a.safetensors", "b.safetensors", *ARCH, *SHAPE, "--apply", "a.safetensors"], ["holds no maps"]),
        (["align", "a.safetensors", "b.safetensors", *ARCH, "--shape", "2,x"], ["sizes separated by commas"]),
        (["merge", "a.safetensors", "b.safetensors", *ARCH, "--reference", "medoid"], ["--align"]),
        (["merge", "a.safetensors", "b.safetensors", *ARCH, "--maps", "m", "--align", "zipit"], ["--maps"]),
        (["merge", "a.safetensors", "b.safetensors", *ARCH, *SHAPE, "--maps", "a.safetensors"], ["holds no maps"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(arguments: list[str], words: list[str], folder: Path):
    shown = run(*arguments, cwd=folder)
    assert shown.returncode == 2
    assert all(word in shown.stderr for word in words), shown.stderr


def test_other_models_or_another_order_of_them_are_refused(folder: Path):
    pair = ["a.safetensors", "c.safetensors", *ARCH, *SHAPE]
    assert run("align", *pair, "--out", "own.safetensors", cwd=folder).returncode == 0
    swapped = ["c.safetensors", "a.safetensors", *ARCH, *SHAPE]
    for verb in (["align", *swapped, "--apply"], ["merge", *swapped, "--out", "no.safetensors", "--maps"]):
        shown = run(*verb, "own.safetensors", cwd=folder)
        assert shown.returncode == 2
        assert "a.safetensors: aligned as model 0" in shown.stderr
    assert not (folder / "no.safetensors").exists()
