"""Views in which a space has a dimension of its own: the same numbers, writable."""

import torch
from torch import Tensor

from isthmus.symmetry.axes import Axis, Blocks, Concat, Interleaved, Leaf
from isthmus.symmetry.expose import exposed, occurrences, out_of_reach

A, H, D = Leaf(3, "a"), Leaf(2, "h"), Leaf(4, "d")


def numbered(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).view(shape)


def views(tensor: Tensor, axes: list[Axis], axis: int, space: str, *within: str) -> list[tuple[int, Tensor]]:
    return list(exposed(tensor, axes, axis, space, within))


def test_a_leaf_comes_first():
    weight = numbered(5, 3)
    ((occurrence, view),) = views(weight, [Leaf(5), A], 1, "a")
    assert occurrence == 0 and torch.equal(view, weight.T)
    view.zero_()
    assert not weight.any(), "it is the weight itself"


def test_a_factor_of_a_product():
    weight = numbered(8, 5)
    axes = [Blocks((H, D)), Leaf(5)]
    ((_, inner),) = views(weight, axes, 0, "d")
    assert torch.equal(inner, weight.view(2, 4, 5).permute(1, 0, 2))
    ((_, outer),) = views(weight, axes, 0, "h")
    assert torch.equal(outer, weight.view(2, 4, 5))
    ((_, both),) = views(weight, axes, 0, "d", "h")
    assert torch.equal(both, weight.view(2, 4, 5))


def test_parts_of_a_concatenation_are_counted_from_the_left():
    weight = numbered(13)
    axes = [Concat((A, Leaf(2), Blocks((H, D))))]
    assert torch.equal(views(weight, axes, 0, "a")[0][1], weight[:3])
    assert torch.equal(views(weight, axes, 0, "d", "h")[0][1], weight[5:].view(2, 4))
    gate: list[Axis] = [Concat((A, Leaf(1), A))]
    assert occurrences(gate[0], "a") == 2 and occurrences(gate[0], "b") == 0
    found = views(numbered(7), gate, 0, "a")
    assert [n for n, _ in found] == [0, 1]
    assert found[0][1].tolist() == [0, 1, 2] and found[1][1].tolist() == [4, 5, 6]


def test_a_concatenation_inside_a_product():
    # Heads, each with its queries and its keys.
    axes: list[Axis] = [Blocks((H, Concat((D, D))))]
    found = views(numbered(16), axes, 0, "d", "h")
    assert [view.tolist() for _, view in found] == [
        [[0, 1, 2, 3], [8, 9, 10, 11]],
        [[4, 5, 6, 7], [12, 13, 14, 15]],
    ]


def test_an_outer_space_on_another_axis():
    weight = numbered(2, 3, 4)
    ((_, view),) = views(weight, [H, A, D], 2, "d", "h")
    assert torch.equal(view, weight.permute(0, 2, 1))
    # Two outer spaces stand in the order asked for.
    ((_, view),) = views(weight, [H, A, D], 2, "d", "a", "h")
    assert torch.equal(view, weight.permute(1, 0, 2))


def test_a_square_weight_is_opened_on_one_axis():
    weight = numbered(3, 3)
    ((_, rows),) = views(weight, [A, A], 0, "a")
    ((_, columns),) = views(weight, [A, A], 1, "a")
    assert torch.equal(rows, weight) and torch.equal(columns, weight.T)


def test_strands_in_even_turns_are_views():
    axes: list[Axis] = [Interleaved((A, Leaf(3, "b")), (0, 1, 0, 1, 0, 1)), Leaf(2)]
    weight = numbered(6, 2)
    ((_, view),) = views(weight, axes, 0, "b")
    assert torch.equal(view, weight[1::2])
    view.zero_()
    assert not weight[1::2].any() and weight[2::2].all()
    assert not out_of_reach(axes[0])
    blocks: list[Axis] = [Interleaved((Blocks((H, Leaf(2, "c"))), Leaf(4)), (0, 1) * 4)]
    ((_, view),) = views(numbered(8), blocks, 0, "c", "h")
    assert view.tolist() == [[0, 2], [4, 6]]


def test_strands_in_uneven_turns_are_out_of_reach():
    uneven = Interleaved((A, Leaf(3, "b")), (0, 0, 1, 0, 1, 1))
    assert out_of_reach(uneven) == {"a", "b"}
    assert out_of_reach(Concat((D, Blocks((H, uneven))))) == {"a", "b"}
    assert out_of_reach(Interleaved((A, Leaf(3, "b")), (0, 0, 0, 1, 1, 1))) == set()
    assert out_of_reach(Interleaved((A, Leaf(1, "b")), (0, 1, 0, 0))) == {"a"}
