"""Reordering a weight, against the definition: new[k] = old[p[k]], index by index."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isthmus.symmetry import Axis, Blocks, Concat, Interleaved, Leaf, Space, reorder
from isthmus.symmetry.axes import leaves, spaces_of, to_json

#: heads; width inside each head; groups with two things inside each; a set of its own.
SPACES = {
    "h": Space("h", 3),
    "d": Space("d", 4, within=("h",)),
    "g": Space("g", 2),
    "e": Space("e", 3, within=("g",)),
    "q": Space("q", 2, within=("h",)),
    "x": Space("x", 2, within=("h", "q")),
    "f": Space("f", 5),
}


def leaf(name: str) -> Leaf:
    return Leaf(SPACES[name].size, name)


h, d, g, e, q, x, f = map(leaf, SPACES)
LAYOUTS: dict[str, tuple[Axis, ...]] = {
    "plain": (f, Leaf(2)),
    "twice": (f, f),
    "heads": (Blocks((h, d)), f),
    "heads and pixels": (Leaf(2), Blocks((h, d, Leaf(2)))),
    "fused": (Concat((Blocks((h, d)), f, Blocks((h, d)))), Leaf(2)),
    "chained": (Blocks((h, Concat((d, d, Leaf(2))))),),
    "grouped filter": (Blocks((g, Leaf(2))), e, Leaf(2)),
    "both sides": (Blocks((g, e)), e),
    "heads on their own axis": (h, d, f),
    "width before heads": (d, f, h),
    "three levels": (Blocks((h, q, x)), Blocks((h, d))),
    "inner axes apart": (Blocks((h, q)), x),
    "padded": (Concat((Leaf(1), f, Leaf(2))),),
    "groups behind what they enclose": (Blocks((d, h)), f),
    "two shuffled": (Interleaved((f, Leaf(5)), (0, 1) * 5), Leaf(2)),
    "unevenly": (Interleaved((f, Blocks((h, d)), Leaf(1)), (1, 0, 1, 1, 2, *(0, 1) * 4, *(1,) * 5)),),
    "in turn inside heads": (Blocks((h, Interleaved((d, Leaf(2)), (0, 1, 0, 0, 1, 0)))), f),
}


def old_position(axis: Axis, position: int, orders: dict[str, Tensor], outer: dict[str, int]) -> int:
    """Where the element at a new position was, one element at a time."""
    if isinstance(axis, Leaf):
        if axis.space is None or axis.space not in orders:
            return position
        return int(orders[axis.space][(*(outer[o] for o in SPACES[axis.space].within), position)])
    if isinstance(axis, Concat):
        start = 0
        for part in axis.parts:
            if position < start + part.size:
                return start + old_position(part, position - start, orders, outer)
            start += part.size
    if isinstance(axis, Interleaved):
        which = axis.order[position]
        places = [place for place, turn in enumerate(axis.order) if turn == which]
        return places[old_position(axis.strands[which], places.index(position), orders, outer)]
    assert isinstance(axis, Blocks)
    total, stride, here = 0, axis.size, {**outer, **seen(axis, position)}
    for factor in axis.factors:
        stride //= factor.size
        digit = position // stride % factor.size
        total += stride * old_position(factor, digit, orders, here)
        if isinstance(factor, Leaf) and factor.space:
            here[factor.space] = digit
    return total


def seen(axis: Axis, position: int) -> dict[str, int]:
    """What a position along one axis says of the spaces on it."""
    if isinstance(axis, Leaf):
        return {axis.space: position} if axis.space else {}
    if isinstance(axis, (Concat, Interleaved)):
        return {}
    found, stride = {}, axis.size
    for factor in axis.factors:
        stride //= factor.size
        found |= seen(factor, position // stride % factor.size)
    return found


def draw(names: list[str], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(
            *(SPACES[o].size for o in SPACES[name].within), SPACES[name].size, generator=generator
        ).argsort(-1)
        for name in names
    }


@given(
    st.sampled_from(sorted(LAYOUTS)),
    st.lists(st.sampled_from(sorted(SPACES)), unique=True),
    st.integers(0, 99),
)
def test_every_element_comes_from_where_the_orders_say(name: str, moving: list[str], seed: int):
    axes, orders = LAYOUTS[name], draw(moving, seed)
    shape = [axis.size for axis in axes]
    tensor = torch.arange(torch.Size(shape).numel()).view(shape)
    got = reorder(tensor, axes, orders, SPACES)
    for place in itertools.product(*map(range, shape)):
        outer: dict[str, int] = {}
        said = [seen(axis, i) for axis, i in zip(axes, place, strict=True)]
        old = []
        for here, (axis, i) in enumerate(zip(axes, place, strict=True)):
            outer = {k: v for other, found in enumerate(said) if other != here for k, v in found.items()}
            old.append(old_position(axis, i, orders, outer))
        assert got[place] == tensor[tuple(old)], (place, old)


def test_a_weight_that_does_not_move_is_handed_back():
    tensor = torch.randn(12, 5)
    assert reorder(tensor, LAYOUTS["heads"], {}, SPACES) is tensor
    assert reorder(tensor, LAYOUTS["heads"], draw(["g"], 0), SPACES) is tensor


def test_an_axis_may_be_left_in_its_order():
    tensor, orders = torch.randn(5, 5), draw(["f"], 1)
    assert torch.equal(reorder(tensor, LAYOUTS["twice"], orders, SPACES, skip=1), tensor[orders["f"]])
    assert torch.equal(reorder(tensor, LAYOUTS["twice"], orders, SPACES, skip=0), tensor[:, orders["f"]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_any_dtype_is_moved_to_the_bit(dtype: torch.dtype):
    tensor = torch.randn(12, 5).to(dtype)
    orders = draw(["h", "d", "f"], 2)
    got = reorder(tensor, LAYOUTS["heads"], orders, SPACES)
    assert got.dtype == dtype and torch.equal(got.flatten().sort().values, tensor.flatten().sort().values)


def test_axes_print_in_a_small_notation():
    assert [str(axis) for axis in LAYOUTS["fused"]] == ["(h d) + f + (h d)", "2"]
    assert str(LAYOUTS["chained"][0]) == "(h d + d + 2)"
    assert to_json(LAYOUTS["chained"][0]) == {"blocks": [["h", 3], {"concat": [["d", 4], ["d", 4], 2]}]}
    shuffled = LAYOUTS["two shuffled"][0]
    assert str(shuffled) == "f & 5"
    assert to_json(shuffled) == {"turn": [["f", 5], 5], "order": [0, 1] * 5}


def test_an_axis_knows_its_size_leaves_and_spaces():
    axis = LAYOUTS["chained"][0]
    assert axis.size == 3 * (4 + 4 + 2) and spaces_of(axis) == {"h", "d"}
    assert [item.size for item in leaves(axis)] == [3, 4, 4, 2]


def test_an_interleaved_axis_is_a_concatenation_in_another_order():
    axis = LAYOUTS["unevenly"][0]
    assert isinstance(axis, Interleaved) and axis.size == 18 and spaces_of(axis) == {"f", "h", "d"}
    assert [axis.order[place] for place in axis.gathered] == [0] * 5 + [1] * 12 + [2]
    assert axis.concatenated.parts == axis.strands
