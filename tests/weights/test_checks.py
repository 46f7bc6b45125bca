"""Which bytes, are they numbers, do two sets fit."""

import hashlib
import struct

import pytest
import torch
from torch import Tensor

from isthmus import weights
from isthmus.errors import MismatchError, WeightsError

Tensors = dict[str, Tensor]


def test_a_digest_is_of_the_values_not_of_their_order_or_strides(tensors: Tensors):
    other = {name: tensors[name].clone().contiguous() for name in reversed(tensors)}
    assert weights.digest(tensors) == weights.digest(other)


def test_a_digest_does_not_change_between_releases():
    known = {"w": torch.tensor([[1.0, 2.0]]), "n": torch.tensor(3)}
    expected = hashlib.sha256(
        b'["n", "int64", []]\n'
        + struct.pack("<q", 3)
        + b'["w", "float32", [1, 2]]\n'
        + struct.pack("<2f", 1, 2)
    )
    assert weights.digest(known) == expected.hexdigest()
    assert weights.digest(known).startswith("2982035434f24f7c")


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 3.0])},
        {"b": torch.tensor([1.0, 2.0])},
        {"a": torch.tensor([[1.0, 2.0]])},
        {"a": torch.tensor([1.0, 2.0]).view(torch.int32)},
        {"a": torch.tensor([1.0, 2.0]), "b": torch.empty(0)},
        {"a": torch.tensor([1.0, -0.0])},
        {},
    ],
)
def test_a_digest_sees_every_difference(other: Tensors):
    assert weights.digest({"a": torch.tensor([1.0, 2.0])}) != weights.digest(other)


def test_finite_weights_pass(tensors: Tensors):
    weights.check_finite(tensors, "org/a")


def test_every_tensor_that_is_not_finite_is_listed():
    nan, inf = float("nan"), float("inf")
    tensors = {
        "a": torch.tensor([1.0, nan, inf, -inf]),
        "fine": torch.ones(2),
        "b": torch.tensor([nan, 0.0]).to(torch.float8_e4m3fn),
        "c": torch.tensor([complex(0, inf)]),
    }
    with pytest.raises(WeightsError) as caught:
        weights.check_finite(tensors, "org/a")
    assert caught.value.what == "org/a holds numbers that are not finite in 3 of 4 tensors"
    assert caught.value.where == (
        "a    1 NaN, 2 infinite of 4",
        "b    1 NaN, 0 infinite of 2",
        "c    0 NaN, 1 infinite of 1",
    )


def test_sets_that_fit_pass(tensors: Tensors):
    weights.check_same(tensors, dict(reversed(tensors.items())), ("model", "checkpoint"))


def test_every_key_that_does_not_fit_is_listed_at_once():
    model = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2), "norm": torch.ones(3)}
    checkpoint = {"fc.weight": torch.ones(2, 4), "head": torch.ones(1), "norm": torch.ones(3)}
    with pytest.raises(MismatchError) as caught:
        weights.check_same(model, checkpoint, ("model", "a.safetensors"))
    assert str(caught.value) == (
        "model and a.safetensors do not fit: 3 of 4 tensors differ\n"
        "  fc.bias      only in model\n"
        "  head         only in a.safetensors\n"
        "  fc.weight    model (2, 3)    a.safetensors (2, 4)\n"
        "\n"
        "hint: these look like two architectures: check which one each set of weights was trained in"
    )


def test_of_many_that_do_not_fit_six_of_each_kind_are_named():
    model = {f"h.{n:02}": torch.ones(2) for n in range(60)}
    checkpoint = {f"h.{n:02}": torch.ones(3) for n in range(20)} | {
        f"x.{n:02}": torch.ones(1) for n in range(7)
    }
    with pytest.raises(MismatchError, match="67 of 67 tensors differ") as caught:
        weights.check_same(model, checkpoint, ("model", "a"))
    assert len(caught.value.where) == 3 * 7
    assert [line for line in caught.value.where if line.startswith("and")] == [
        "and 34 more", "and 1 more", "and 14 more",
    ]  # fmt: skip


@pytest.mark.parametrize("swap", [False, True])
def test_a_head_that_is_its_embedding_is_recognised(swap: bool):
    tied = {"embed": torch.ones(5, 2), "norm": torch.ones(2), "up": torch.ones(2, 2)}
    pair = (tied, tied | {"head": torch.ones(5, 2)})
    one, other = pair[::-1] if swap else pair
    with pytest.raises(MismatchError, match="1 of 4 tensors differ") as caught:
        weights.check_same(one, other, ("a", "b"))
    assert (
        caught.value.hint is not None
        and "if head is the head, and elsewhere tied to embed" in caught.value.hint
    )
    with pytest.raises(MismatchError, match="two architectures"):
        weights.check_same(tied, tied | {"bias": torch.ones(2)}, ("a", "b"))


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_common_prefix_is_recognised(prefix: str, swap: bool):
    plain = {"fc.weight": torch.ones(1), "fc.bias": torch.ones(1)}
    wrapped = {prefix + name: tensor for name, tensor in plain.items()}
    pair = (wrapped, plain) if swap else (plain, wrapped)
    with pytest.raises(MismatchError, match=f"each name in wrapped begins with '{prefix}'"):
        weights.check_same(*pair, ("wrapped", "plain") if swap else ("plain", "wrapped"))


def test_two_sizes_are_recognised():
    with pytest.raises(MismatchError, match="one architecture in two sizes"):
        weights.check_same({"a": torch.ones(1)}, {"a": torch.ones(2)}, ("a", "b"))
