import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from isthmus.errors import InputError, MismatchError
from isthmus.paths import Path, Segment


def pair(
    seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(seed)
    a, b = (
        {"w": torch.randn(3, 4, generator=random).to(dtype), "n": torch.tensor(seed + i)} for i in range(2)
    )
    return a, b


def test_a_segment_is_a_path() -> None:
    assert isinstance(Segment(*pair()), Path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_ends_are_the_endpoints_to_the_bit(dtype: torch.dtype) -> None:
    a, b = pair(dtype=dtype)
    for end, t in ((a, 0.0), (b, 1.0)):
        at = Segment(a, b).at(t)
        assert all(torch.equal(at[key], end[key]) and at[key].dtype == end[key].dtype for key in end)
        assert all(at[key].data_ptr() != end[key].data_ptr() for key in end)


@given(t=st.floats(0, 1), seed=st.integers(0, 5))
def test_interpolation_is_that_of_float64_rounded_once(t: float, seed: int) -> None:
    a, b = pair(seed)
    want = (1 - t) * a["w"].double() + t * b["w"].double()
    got = Segment(a, b).at(t)["w"]
    assert got.dtype == torch.float32
    # One rounding to float32, and at most one unit of it where the two float64 formulas straddle a tie.
    assert (got.double() - want).abs().max() <= 2**-23 * want.abs().max().clamp(min=1e-30)


@given(t=st.floats(0, 1), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_what_both_share_does_not_move(t: float, dtype: torch.dtype) -> None:
    a, _ = pair(dtype=dtype)
    same = {key: value.clone() for key, value in a.items()}
    assert torch.equal(Segment(a, same).at(t)["w"], a["w"])


def test_counters_are_those_of_a() -> None:
    a, b = pair()
    assert Segment(a, b).at(0.75)["n"].item() == a["n"].item()
    assert Segment(a, b).at(0.75)["n"].dtype == torch.int64


def test_half_and_single_precision_meet_in_single() -> None:
    (a, _), (b, _) = pair(0, torch.float16), pair(1, torch.float32)
    assert Segment(a, b).at(0.5)["w"].dtype == torch.float32


def test_tied_weights_stay_tied() -> None:
    a, b = pair()
    tied = [{"w": s["w"], "head": s["w"]} for s in (a, b)]
    at = Segment(*tied).at(0.3)
    assert at["w"] is at["head"]


def test_parameters_are_detached() -> None:
    a, b = (nn.Linear(2, 2) for _ in range(2))
    at = Segment(a.state_dict(keep_vars=True), b.state_dict(keep_vars=True)).at(0.5)
    assert not any(tensor.requires_grad for tensor in at.values())


def test_all_differences_are_named_at_once() -> None:
    a = {"x": torch.zeros(2), "y": torch.zeros(3), "only": torch.zeros(1), "kind": torch.zeros(1)}
    b = {"x": torch.zeros(2), "y": torch.zeros(4), "other": torch.zeros(1), "kind": torch.zeros(1).long()}
    with pytest.raises(MismatchError) as caught:
        Segment(a, b)
    message = str(caught.value)
    assert "4 tensors differ" in message
    assert all(
        word in message for word in ("only in a", "other    only in b", "(3,)    b (4,)", "torch.int64")
    )


@pytest.mark.parametrize("t", [-0.1, 1.5, float("nan")])
def test_t_outside_is_refused(t: float) -> None:
    with pytest.raises(InputError, match="runs from 0 to 1"):
        Segment(*pair()).at(t)
