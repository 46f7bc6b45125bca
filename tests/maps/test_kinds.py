"""Each kind of map does to a dimension what its dense A and B say; composing and inverting are those of matrices."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.errors import InputError
from isthmus.maps import (
    Dense,
    Map,
    Membership,
    Permutation,
    ScaledPermutation,
    Stack,
    compose,
    identity,
    invert,
)

GENERATOR = torch.Generator().manual_seed(0)
ORDER = torch.tensor([2, 0, 4, 1, 3])
SCALE = torch.tensor([0.5, 2.0, 3.0, 0.25, 1.5], dtype=torch.float64)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


ROTATION = torch.linalg.qr(random(5, 5))[0]
KINDS: dict[str, Map] = {
    "identity": identity(5),
    "permutation": Permutation(ORDER),
    "scaled": ScaledPermutation(ORDER, SCALE),
    "signed": ScaledPermutation(ORDER, SCALE.sign() * torch.tensor([1, -1, 1, -1, -1])),
    "rotation": Dense(ROTATION, ROTATION.mT.contiguous(), keeps_function=True),
    "narrower": Dense(random(3, 5), random(5, 3)),
    "groups": Membership(torch.tensor([0, 1, 1, 2, 0]), SCALE / 4, 4),
    "stack": Stack(2, 5, 9),
}
each = pytest.mark.parametrize("item", KINDS.values(), ids=KINDS)


@each
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_write_is_a_and_read_is_b(item: Map, dim: int):
    a, b = item.matrices()
    assert a.shape == (item.target, item.source) and b.shape == (item.source, item.target)
    assert a.dtype == b.dtype == torch.float64
    tensor = random(*(5 if d == dim else d + 2 for d in range(3)))
    before = tensor.clone()
    front = tensor.movedim(dim, 0)
    torch.testing.assert_close(item.write(tensor, dim), torch.tensordot(a, front, 1).movedim(0, dim))
    torch.testing.assert_close(item.read(tensor, dim), torch.tensordot(b.mT, front, 1).movedim(0, dim))
    assert torch.equal(tensor, before)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_keeps_its_dtype(item: Map, dtype: torch.dtype):
    tensor = random(5, 2).to(dtype)
    assert item.write(tensor, 0).dtype == item.read(tensor, 0).dtype == dtype


@pytest.mark.parametrize("name", ["identity", "permutation", "scaled", "signed", "rotation", "stack"])
def test_what_keeps_the_function_is_undone_by_reading(name: str):
    item = KINDS[name]
    a, b = item.matrices()
    assert item.keeps_function
    torch.testing.assert_close(b @ a, torch.eye(5, dtype=torch.float64))


@pytest.mark.parametrize("name", ["narrower", "groups"])
def test_what_loses_information_does_not_claim_to_keep_the_function(name: str):
    assert not KINDS[name].keeps_function


@pytest.mark.parametrize(
    ("first", "then"),
    [(f, t) for f, t in itertools.product(KINDS, KINDS) if KINDS[f].target == KINDS[t].source],
)
def test_composing_multiplies_the_matrices(first: str, then: str):
    both = compose(KINDS[first], KINDS[then])
    (a1, b1), (a2, b2), (a, b) = (m.matrices() for m in (KINDS[first], KINDS[then], both))
    torch.testing.assert_close(a, a2 @ a1)
    torch.testing.assert_close(b, b1 @ b2)
    assert both.keeps_function == (KINDS[first].keeps_function and KINDS[then].keeps_function)


@pytest.mark.parametrize("name", ["identity", "permutation", "scaled", "signed", "rotation"])
def test_a_map_and_its_inverse_are_the_identity(name: str):
    item = KINDS[name]
    eye = torch.eye(5, dtype=torch.float64)
    for both in (compose(item, invert(item)), compose(invert(item), item)):
        for matrix in both.matrices():
            torch.testing.assert_close(matrix, eye)
    assert type(invert(item)) is type(item)


@pytest.mark.parametrize("name", ["narrower", "groups", "stack"])
def test_what_loses_information_has_no_inverse(name: str):
    with pytest.raises(InputError, match="this map has no inverse: "):
        invert(KINDS[name])


def test_a_dense_map_that_is_not_undone_has_no_inverse():
    with pytest.raises(InputError, match="no inverse"):
        invert(Dense(random(4, 4), random(4, 4)))


@settings(max_examples=25)
@given(st.permutations(range(6)), st.permutations(range(6)))
def test_permutations_are_a_group(first: list[int], then: list[int]):
    one, two = Permutation(torch.tensor(first)), Permutation(torch.tensor(then))
    tensor = torch.arange(6.0)
    both = compose(one, two)
    assert isinstance(both, Permutation)
    assert torch.equal(both.write(tensor, 0), two.write(one.write(tensor, 0), 0))
    assert torch.equal(invert(both).write(both.write(tensor, 0), 0), tensor)
    assert both.moved == 6 - sum(int(both.index[i]) == i for i in range(6))


def test_branches_kept_apart_do_not_overlap_and_cover_all():
    parts = [Stack(0, 2, 5), Stack(2, 3, 5)]
    total = sum((a @ a.mT for a, _ in (p.matrices() for p in parts)), torch.zeros(5, 5, dtype=torch.float64))
    assert torch.equal(total, torch.eye(5, dtype=torch.float64))
    assert str(parts[1]) == "kept apart: units 2 to 5 of 5"


def test_members_of_a_group_share_it_and_each_reads_it_whole():
    item = KINDS["groups"]
    a, b = item.matrices()
    assert torch.equal(b.sum(1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(a.sum(1)[0], (SCALE[0] + SCALE[4]) / 4)
    assert str(item) == "5 units in 3 of 4 groups"


# What is wrong says so.


def test_a_scale_of_zero_is_refused():
    with pytest.raises(InputError, match="zero cannot be undone"):
        ScaledPermutation(torch.arange(2), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(("start", "source", "target"), [(-1, 2, 4), (3, 2, 4), (0, 5, 4)])
def test_a_block_outside_the_merged_units_is_refused(start: int, source: int, target: int):
    with pytest.raises(InputError, match="outside 4"):
        Stack(start, source, target)


def test_a_dense_pair_that_does_not_fit_names_both_shapes():
    with pytest.raises(Exception, match=r"do not fit|source|target"):
        Dense(torch.zeros(2, 3), torch.zeros(2, 3))


def test_maps_of_different_sizes_do_not_compose():
    with pytest.raises(InputError, match="a map to 5 units cannot be followed by one from 4"):
        compose(identity(5), identity(4))


def test_permutations_per_head_compose_and_apply_as_whole_models_only():
    heads = Permutation(torch.tensor([[1, 0], [0, 1]]))
    assert str(heads) == "permutation, 2 of 4 units moved"
    with pytest.raises(InputError, match="per outer unit"):
        heads.write(torch.zeros(2), 0)
    with pytest.raises(InputError, match=r"Transport\.then"):
        compose(heads, heads)
