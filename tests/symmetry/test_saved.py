"""A graph as a file: what comes back is what was written, and what contradicts itself is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import isthmus
from isthmus.errors import InputError
from isthmus.symmetry import SymmetryGraph
from isthmus.symmetry.saved import load, save
from isthmus.symmetry.stand_in import verified_by
from isthmus.zoo import MLP, VGG, ViT


def vit(dim: int = 8, heads: int = 2, depth: int = 1) -> nn.Module:
    return ViT(
        image=4,
        patch=2,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=1,
        pool="mean",
        in_channels=1,
        num_classes=3,
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(d_in=6, widths=(8, 7), num_classes=3), (6,)),
    "conv-bn": (lambda: VGG((1, "M", 2), base=6, norm="bn", in_channels=1, num_classes=3), (1, 6, 6)),
    "heads": (vit, (1, 4, 4)),
}


def traced(name: str) -> SymmetryGraph:
    make, shape = NETS[name]
    return isthmus.trace(make(), torch.randn(2, *shape))


@pytest.mark.parametrize("name", NETS)
def test_a_graph_comes_back_whole(name: str, tmp_path: Path):
    graph = traced(name)
    again = load(save(graph, tmp_path / "graph.json"))
    assert str(again) == str(graph)
    for part in (
        "spaces",
        "layout",
        "fixed",
        "unknown",
        "gauges",
        "openings",
        "groups",
        "coverage",
        "unread",
        "ones",
    ):
        assert getattr(again, part) == getattr(graph, part), part
    assert list(again.layout) == list(graph.layout), "sweeps visit weights in this order"
    twice = save(again, tmp_path / "again.json")
    assert twice.read_bytes() == (tmp_path / "graph.json").read_bytes()


@pytest.mark.parametrize("name", NETS)
def test_a_graph_read_back_moves_weights(name: str, tmp_path: Path):
    graph = traced(name)
    again = load(save(graph, tmp_path / "graph.json"))
    weights = NETS[name][0]().state_dict()
    element = graph.random_element(3)
    ours, theirs = (element.apply(g, weights) for g in (graph, again))
    assert all(torch.equal(ours[key], theirs[key]) for key in weights)


def test_what_needs_the_program_says_so(tmp_path: Path):
    model = NETS["mlp"][0]()
    graph, found = isthmus.verified(model, torch.randn(2, 6))
    again = load(save(graph, tmp_path / "graph.json", found))
    for act in (
        again.verify,
        lambda: isthmus.align(again, [model, model], data=[torch.zeros(2, 6)]),
    ):
        with pytest.raises(InputError, match="holds no program to run") as caught:
            act()
        assert "verified: relative error" in str(caught.value) and "trace the model again" in str(
            caught.value
        )


def _set(*path: object, to: object) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for step in path[:-1]:
            content = content[step]
        content[path[-1]] = to

    return change


HOSTILE: dict[str, tuple[Callable[[Any], None], str]] = {
    "another version": (_set("format", to="isthmus.symmetry/99"), "format 'isthmus.symmetry/99'"),
    "another file": (_set("format", to="x"), "no symmetry graph"),
    "unknown field": (_set("run", to="me"), "run"),
    "a size of text": (_set("spaces", "layers.0", "size", to="8"), "layers.0"),
    "a size of nothing": (_set("spaces", "layers.0", "size", to=0), "layers.0"),
    "another size": (_set("spaces", "layers.0", "size", to=9), "8 units of layers.0, which has 9"),
    "a shape that is not its axes": (
        _set("weights", "layers.0.weight", "shape", to=[8, 7]),
        "for a shape of",
    ),
    "a huge weight": (_set("weights", "layers.0.weight", "shape", to=[2**60, 6]), "layers.0.weight"),
    "no axis": (_set("weights", "layers.0.weight", "axes", to=["a", 6]), "is no axis"),
    "an axis that is true": (_set("weights", "layers.0.weight", "axes", to=[True, 6]), "no size"),
    "a space within itself": (_set("spaces", "layers.0", "within", to=["layers.0"]), "within itself"),
    "within nothing": (_set("spaces", "layers.0", "within", to=["gone"]), "no space"),
    "a member elsewhere": (
        _set("spaces", "layers.0", "members", to=[["layers.0.weight", 1, "writes"]]),
        "not on axis 1",
    ),
    "a role of its own": (
        _set("spaces", "layers.0", "members", to=[["layers.0.weight", 0, "eats"]]),
        "members",
    ),
    "tied to nothing": (_set("tied", to={"a": "b"}), "tied to b"),
    "fixed beyond": (_set("fixed", to=[["layers.0.weight", 9, 1, "why"]]), "no axis 9"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_contradicts_itself_is_refused(what: str, tmp_path: Path):
    change, words = HOSTILE[what]
    path = save(traced("mlp"), tmp_path / "graph.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        load(path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        '{"format": NaN}',
        '{"format": "a", "format": "b"}',
        "[" * 100_000,
        "\x00" * 50,
    ],
)
def test_what_is_no_graph_is_refused(text: str, tmp_path: Path):
    path = tmp_path / "graph.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"graph\.json"):
        load(path)


def test_an_axis_nested_without_end_is_refused(tmp_path: Path):
    path = save(traced("mlp"), tmp_path / "graph.json")
    axis: object = 6
    for _ in range(200):
        axis = {"blocks": [axis]}
    content = json.loads(path.read_text())
    content["weights"]["layers.0.weight"]["axes"][1] = axis
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"nested too deep|recursion limit"):
        load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    for path in (tmp_path / "gone.json", tmp_path):
        with pytest.raises(InputError, match="not a readable symmetry graph"):
            load(path)


# Verified by a narrower model.


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def test_a_model_on_meta_is_verified_by_a_narrower_one():
    graph, found = verified_by(
        on_meta(lambda: vit(512, 2, 2)), torch.zeros(2, 1, 4, 4), vit(8, 2, 2), torch.randn(2, 1, 4, 4)
    )
    assert found.ok and "same structure" in found.note
    assert max(space.size for space in graph.spaces.values()) == 512


@pytest.mark.parametrize(
    ("small", "words"),
    [
        (lambda: vit(8, 2, 1), "operations"),
        (lambda: vit(8, 1, 2), "called with|space|dimensions|weight"),
        (lambda: MLP(d_in=16, widths=(8,), num_classes=3), "operations"),
    ],
)
def test_a_narrower_model_of_another_structure_is_refused(small: Callable[[], nn.Module], words: str):
    model = small()
    example = torch.randn(2, 16) if isinstance(model, MLP) else torch.randn(2, 1, 4, 4)
    with pytest.raises(InputError, match=words) as caught:
        verified_by(on_meta(lambda: vit(512, 2, 2)), torch.zeros(2, 1, 4, 4), model, example)
    assert "another structure" in str(caught.value)


def test_an_option_that_is_no_size_is_a_difference():
    class Net(nn.Module):
        def __init__(self, width: int, dim: int):
            super().__init__()
            self.a, self.b, self.dim = nn.Linear(4, width), nn.Linear(width, 2), dim

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.softmax(self.a(x), self.dim))

    example = torch.zeros(2, 3, 4)
    large = on_meta(lambda: Net(64, -1))
    assert verified_by(large, example, Net(8, -1), torch.randn(2, 3, 4))[1].ok
    with pytest.raises(InputError, match="called with"):
        verified_by(large, example, Net(8, -2), torch.randn(2, 3, 4))
