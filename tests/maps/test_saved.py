"""A file of maps is somebody else's: what it says is checked against the graph before anything moves."""

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isthmus
from isthmus import weights as files
from isthmus.align import Alignment, Cost
from isthmus.align.saved import check_models
from isthmus.errors import InputError, MismatchError, WeightsError
from isthmus.maps import Dense, Membership, Permutation, ScaledPermutation, Shift, Stack, Transport, saved
from isthmus.symmetry import SymmetryGraph
from isthmus.zoo import MLP

NAME = "layers.0"


@functools.cache
def graph() -> SymmetryGraph:
    return isthmus.trace(MLP(d_in=3, widths=(4, 5), num_classes=2).eval(), torch.zeros(2, 3))


@functools.cache
def other() -> SymmetryGraph:
    """Another network, with a space of the same name and size."""
    model = nn.Sequential()
    model.add_module("layers", nn.Sequential(nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 2)))
    return isthmus.trace(model, torch.zeros(2, 7))


def transports() -> tuple[Transport, ...]:
    eye = torch.eye(4, dtype=torch.float64)
    return (
        Transport(graph(), {NAME: Dense(eye, eye)}),
        Transport(graph(), {NAME: Permutation(torch.tensor([1, 0, 3, 2]))}),
    )


def alignment(*moved: Transport) -> Alignment:
    costs = (Cost(1, NAME, float("nan"), 0.5, "mean cosine"),)
    return Alignment("cca", graph(), moved or transports(), 0, costs, {"gamma": 0.1, "at": "here"}, ("one",))


def edited(
    path: Path,
    description: Callable[[dict[str, Any]], object] = lambda d: None,
    tensors: Callable[[dict[str, Tensor]], object] = lambda t: None,
) -> Path:
    """A file of maps with something else in it."""
    alignment().save(path)
    said, held = json.loads(files.metadata(path)["isthmus.maps"]), files.load(path)
    description(said)
    tensors(held)
    files.save(held, path, metadata={"isthmus.maps": json.dumps(said)})
    return path


@pytest.mark.parametrize(
    "item",
    [
        Permutation(torch.tensor([2, 0, 1, 3])),
        ScaledPermutation(torch.tensor([2, 0, 1, 3]), torch.tensor([1.0, 2.0, 0.5, 4.0])),
        Dense(torch.randn(3, 4), torch.randn(4, 3)),
        Membership(torch.tensor([0, 0, 2, 1]), torch.tensor([0.5, 0.5, 1.0, 1.0]), 3),
        Stack(2, 4, 8),
    ],
    ids=lambda item: type(item).__name__,
)
def test_every_kind_of_map_comes_back(item: Any, tmp_path: Path):
    moved = Transport(graph(), {NAME: item})
    moved.save(tmp_path / "maps.safetensors")
    again = Transport.load(tmp_path / "maps.safetensors", graph())
    assert type(again.maps[NAME]) is type(item)
    assert all(map(torch.equal, again.maps[NAME].matrices(), item.matrices()))


def test_gauges_and_shifts_come_back(tmp_path: Path):
    shift = Shift(torch.randn(4), torch.randn(4))
    eye = torch.eye(4)
    moved = Transport(graph(), {NAME: Dense(eye, eye)}, shifts={NAME: shift})
    scaled = graph().random_element(seed=1)
    both = (moved, Transport(graph(), {n: Permutation(o) for n, o in scaled.orders.items()}, scaled.values))
    alignment(*both).save(tmp_path / "maps.safetensors")
    again = Alignment.load(tmp_path / "maps.safetensors", graph()).transports
    assert torch.equal(again[0].shifts[NAME].read, shift.read)
    assert scaled.values
    assert all(torch.equal(again[1].values[n], v) for n, v in scaled.values.items())


def test_how_maps_were_found_comes_back(tmp_path: Path):
    found = alignment()
    found.save(tmp_path / "maps.safetensors")
    again = Alignment.load(tmp_path / "maps.safetensors", graph())
    assert (again.method, again.settings, again.notes, again.status) == (
        found.method, found.settings, found.notes, found.status,
    )  # fmt: skip
    assert again.costs[0].after == 0.5
    assert again.costs[0].before != again.costs[0].before  # not a number, as it was


def test_a_space_that_is_frozen_elsewhere_does_not_make_it_another_graph(tmp_path: Path):
    alignment().save(tmp_path / "maps.safetensors")
    Alignment.load(tmp_path / "maps.safetensors", graph().frozen({"layers.1": "here"}))
    with pytest.raises(InputError, match=rf"do not fit the model\n  model 0: {NAME}: no such space"):
        Alignment.load(tmp_path / "maps.safetensors", graph().frozen({NAME: "here"}))


def described(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    return lambda path: edited(path, description=change)


def holding(**changes: object) -> Callable[[Path], Path]:
    """A file with some tensors replaced; None leaves one out."""

    def change(held: dict[str, Tensor]) -> None:
        for key, value in changes.items():
            name = f"{key[1]}.maps/{NAME}:{key[3:]}"
            if value is None:
                del held[name]
            else:
                held[name] = value  # type: ignore[assignment]

    return lambda path: edited(path, tensors=change)


def grouped(group: list[int], share: list[float], target: int) -> Callable[[Path], Path]:
    """A file in which the second model's space is grouped."""

    def describe(said: dict[str, Any]) -> None:
        said["models"][1]["maps"][NAME] = {"kind": "Membership", "target": target}

    def hold(held: dict[str, Tensor]) -> None:
        del held[f"1.maps/{NAME}:index"]
        held |= {f"1.maps/{NAME}:group": torch.tensor(group), f"1.maps/{NAME}:share": torch.tensor(share)}

    return lambda path: edited(path, describe, hold)


LIES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "another version": (described(lambda d: d.update(format="isthmus.maps/2")), "format"),
    "an unknown kind": (
        described(lambda d: d["models"][1]["maps"][NAME].update(kind="Rotation")), "Rotation",
    ),
    "an unknown field": (described(lambda d: d["models"][1]["maps"][NAME].update(run="rm")), "run"),
    "a space that is not there": (
        described(lambda d: d["models"][1]["maps"].update(x={"kind": "Stack", "start": 0, "source": 1, "target": 1})),
        "x: no such space",
    ),
    "an axis that is not there": (
        described(
            lambda d: d["models"][0]["maps"].update(
                {"@layers.0.weight:7": {"kind": "Stack", "start": 0, "source": 1, "target": 1}}
            )
        ),
        "no such weight, or no such axis",
    ),
    "another graph": (described(lambda d: d["models"][0].update(graph="0" * 64)), "along another graph"),
    "a reference that is not there": (described(lambda d: d["about"].update(reference=2)), "contradicts"),
    "no method": (described(lambda d: d["about"].pop("method")), "method: Field required"),
    "a missing tensor": (holding(m1_index=None), "missing"),
    "a unit twice": (holding(m1_index=torch.tensor([0, 0, 1, 2])), "each unit once"),
    "a unit that is not there": (holding(m1_index=torch.tensor([0, 1, 2, 2**40])), "each unit once"),
    "numbers for units": (holding(m1_index=torch.arange(4.0)), "float32, not int64"),
    "units for numbers": (holding(m0_forward=torch.eye(4).long()), "int64, not floating point"),
    "no number": (holding(m0_forward=torch.full((4, 4), float("nan"))), "not finite"),
    "another rank": (holding(m0_forward=torch.zeros(4)), "1 dimensions, not 2"),
    "matrices that do not fit": (holding(m0_forward=torch.zeros(3, 4)), "do not fit each other"),
    "another width": (
        holding(m0_forward=torch.zeros(4, 9), m0_backward=torch.zeros(9, 4)), "takes 9 units, the space has 4",
    ),
    "other merged units": (
        holding(m0_forward=torch.zeros(3, 4), m0_backward=torch.zeros(4, 3)), "differ in number: 3, 4",
    ),
    "a tensor of nothing": (holding(m0_x=torch.zeros(1)), "belongs to no map"),
    "a function kept that is not": (
        lambda path: edited(
            path,
            lambda d: d["models"][0]["maps"][NAME].update(keeps_function=True),
            lambda t: t.update({f"0.maps/{NAME}:forward": 2 * torch.eye(4)}),
        ),
        "does not undo itself",
    ),
    "a group that is not there": (grouped([0, 1, 2, 4], [1.0] * 4, 4), "in none of 4 groups"),
    "a negative share": (grouped([0, 1, 2, 3], [1.0, 1.0, 1.0, -1.0], 4), "negative"),
    "more groups than units": (grouped([0, 1, 2, 3], [1.0] * 4, 2**40), "differ in number"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused(lie: str, tmp_path: Path):
    make, message = LIES[lie]
    with pytest.raises(InputError, match=message):
        Alignment.load(make(tmp_path / "maps.safetensors"), graph())


def test_all_problems_are_told_at_once(tmp_path: Path):
    path = holding(m0_forward=torch.full((4, 4), float("inf")), m1_index=None)(tmp_path / "m.safetensors")
    with pytest.raises(InputError) as raised:
        Alignment.load(path, graph())
    assert len(raised.value.where) == 2


def test_maps_of_another_network_are_refused_although_they_would_fit(tmp_path: Path):
    assert other().spaces[NAME].size == graph().spaces[NAME].size
    alignment().save(tmp_path / "maps.safetensors")
    with pytest.raises(InputError, match="model 1: the file was made along another graph"):
        Alignment.load(tmp_path / "maps.safetensors", other())


def test_what_is_no_file_of_maps_says_so(tmp_path: Path):
    weights = tmp_path / "weights.safetensors"
    files.save({"a": torch.zeros(2)}, weights)
    with pytest.raises(InputError, match=r"holds no maps[\s\S]*hint: isthmus align"):
        Alignment.load(weights, graph())
    with pytest.raises(InputError, match="in a safetensors file"):
        Alignment.load(tmp_path / "maps.pt", graph())
    (tmp_path / "rubbish.safetensors").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(WeightsError):
        Alignment.load(tmp_path / "rubbish.safetensors", graph())
    files.save({"a": torch.zeros(2)}, weights, metadata={"isthmus.maps": "[" * 100_000})
    with pytest.raises(InputError, match="is no file of maps"):
        Alignment.load(weights, graph())
    saved.save(transports(), weights)
    with pytest.raises(InputError, match="does not say how its maps were found"):
        Alignment.load(weights, graph())
    with pytest.raises(InputError, match="2 models, there are 3 graphs"):
        Alignment.load(weights, [graph()] * 3)


def test_models_that_were_not_aligned_or_stand_in_another_order_are_named():
    models = [{"w": torch.full((2,), float(i))} for i in range(3)]
    found = alignment()
    check_models(found, models[:2], ("a", "b"))  # nobody said which they were
    known = replace(found, digests=tuple(map(files.digest, models[:2])))
    check_models(known, models[:2], ("a", "b"))
    with pytest.raises(MismatchError, match="b: aligned as model 1\n  c: not aligned"):
        check_models(known, models[1:], ("b", "c"))
    with pytest.raises(MismatchError, match="3 models for an alignment of 2"):
        check_models(known, models, "abc")
