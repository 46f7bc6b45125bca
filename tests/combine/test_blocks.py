"""The contract between rules and engines: blocks, passes, exact order statistics, random numbers of an element."""

import inspect
import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isthmus.combine import (
    BLOCK,
    COMBINATIONS,
    Block,
    Job,
    Place,
    blockwise,
    cut,
    measure,
    order_statistics,
    places,
    run,
    write,
)
from isthmus.combine.blocks import scratch, total
from isthmus.combine.order_statistics import Boundary, OrderStatistics, thinned
from isthmus.combine.random_masks import below, bernoulli, integers
from isthmus.errors import InputError

# Blocks


@pytest.mark.parametrize("layout", ["elements", "rows", "filters", "whole"])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (4, 2, 3), (1, 11), (0,), (3, 0)])
@pytest.mark.parametrize("block", [1, 4, 6, 1000])
def test_the_blocks_of_a_tensor_are_all_of_it_once_and_cut_no_row(layout, shape, block):
    found = places(layout, shape, key="w", seed=3, block=block)
    count = torch.Size(shape).numel()
    assert [p.start for p in found] + [count] == [0, *(p.stop for p in found)] or (not found and not count)
    tensor = torch.arange(count).view(shape)
    for place in found:
        part = cut(tensor, layout, place)
        assert torch.equal(part.reshape(-1), tensor.reshape(-1)[place.start : place.stop])
        assert place.key == "w" and place.seed == 3 and place.shape == shape
        if layout == "rows" and shape:
            assert part.shape[-1] == shape[-1]
        if layout == "filters" and len(shape) > 1:
            assert part.shape[-1] == torch.Size(shape[1:]).numel()
        if layout == "whole":
            assert part.shape == tensor.shape


def test_a_rule_of_no_passes_gives_the_same_for_any_blocks():
    base, *models = (torch.randn(4, 999, generator=torch.Generator().manual_seed(i)) for i in range(4))
    for name in ("average", "task-arithmetic", "mag-max", "consensus", "dare-ties"):
        rule = blockwise(name, [0.5, 0.3, 0.2])
        origin = None if name == "average" else base
        whole = run(rule, models, base=origin, key="w", seed=1)
        for size in (1, 100, 1000):
            found = torch.empty_like(whole)
            for place in places("elements", (4, 999), key="w", seed=1, block=size):
                parts = tuple(cut(m, "elements", place) for m in models)
                block = Block(parts, place, None if origin is None else cut(base, "elements", place))
                cut(found, "elements", place).copy_(rule.write(block))
            assert torch.equal(found, whole), name


def test_sums_are_the_same_for_any_number_of_threads():
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    once = total(values)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert total(values) == once
    finally:
        torch.set_num_threads(threads)
    assert once == pytest.approx(values.double().sum().item(), rel=1e-5)


def test_scratch_of_another_name_is_other_memory_and_of_the_same_name_the_same():
    like = torch.empty(10)
    assert scratch("a", like, torch.float32).data_ptr() == scratch("a", like, torch.float32).data_ptr()
    assert scratch("a", like, torch.float32).data_ptr() != scratch("b", like, torch.float32).data_ptr()
    assert scratch("a", torch.empty(2, 3), torch.float64).shape == (2, 3)
    assert scratch("a", torch.empty(BLOCK + 1), torch.float32).shape == (BLOCK + 1,)


@pytest.mark.parametrize("name", [row.name for row in COMBINATIONS.rows()])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (1, 1), (2, 1)])
def test_every_rule_takes_small_tensors_and_none(name: str, shape: tuple[int, ...]):
    known = {"weights", "base", "statistics"}
    function = COMBINATIONS.get(name).function
    takes = known & set(inspect.signature(function).parameters)
    count = 1 if name in ("passthrough", "near-swap", "arcee-fusion") else 2
    offered: dict[str, object] = {"base": torch.full(shape, 0.5), "statistics": ()}
    models = [torch.full(shape, float(i + 1)) for i in range(count)]
    found = function(models, **{k: v for k, v in offered.items() if k in takes})
    assert found.shape == shape and found.dtype == torch.float32 and bool(found.isfinite().all())


@pytest.mark.parametrize("name", [row.name for row in COMBINATIONS.rows()])
def test_no_rule_writes_to_what_it_is_given(name: str):
    function = COMBINATIONS.get(name).function
    takes = set(inspect.signature(function).parameters)
    count = 1 if name in ("passthrough", "near-swap", "arcee-fusion") else 2
    tensors = [torch.randn(6, 5, generator=torch.Generator().manual_seed(i)) for i in range(count + 1)]
    before = [t.clone() for t in tensors]
    kind = blockwise(name, count).statistics
    known = [torch.ones(6, 5) if kind == "elements" else torch.eye(5)] * count
    offered: dict[str, object] = {"base": tensors[0], "statistics": known}
    found = function(tensors[1:], **{k: v for k, v in offered.items() if k in takes})
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    assert all(found.data_ptr() != t.data_ptr() for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["average", "ties", "dare-linear", "slerp", "model-stock"])
def test_rules_read_and_write_the_dtypes_of_checkpoints(name: str, dtype: torch.dtype):
    base, a, b = (torch.randn(3, 4, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(3))
    takes = {} if name == "average" else {"base": base}
    found = COMBINATIONS.get(name).function([a, b], **takes)
    assert found.dtype == dtype and bool(found.float().isfinite().all())


def test_a_users_function_is_a_rule_on_uncut_tensors():
    @COMBINATIONS.register("first-of-test")
    def first(tensors, *, weights, base=None, power=1.0):
        """The first model."""
        return tensors[0] ** power + (0 if base is None else base)

    try:
        rule = blockwise("first-of-test", 2, {"power": 2.0})
        assert rule.layout == "whole" and rule.passes == 0
        assert run(rule, [torch.full((2,), 3.0), torch.ones(2)]).tolist() == [9.0, 9.0]
        with pytest.raises(InputError, match="first-of-test has no option 'strength'"):
            blockwise("first-of-test", 2, {"strength": 1})
    finally:
        COMBINATIONS._methods.pop("first-of-test")


def test_a_rule_of_all_tensors_measures_them_all_before_it_writes():
    base = {k: torch.zeros(4) for k in "ab"}
    model = {"a": torch.tensor([4.0, 3, 2, 1]), "b": torch.tensor([0.4, 0.3, 0.2, 0.1])}
    rule = blockwise("magnitude-prune", 1, {"density": 0.5, "scope": "model"})
    jobs = [Job(k, [model[k]], base[k]) for k in "ab"]
    measure(rule, jobs)
    assert [write(rule, job).tolist() for job in jobs] == [[4, 3, 2, 1], [0, 0, 0, 0]]


# Order statistics


def test_a_rule_takes_next_to_no_memory_before_it_has_seen_anything():
    blockwise("ties", 2, {"density": 0.3})
    tracemalloc.start()
    rules = [blockwise("ties", 2, {"density": 0.3}) for _ in range(100)]  # a model has one for each tensor
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 10_000 * len(rules)


def statistics(values: Tensor, ranks: list[int], sizes: int = BLOCK) -> tuple[tuple[Boundary, ...], int]:
    """The numbers of some ranks, and how many passes it took."""
    found = OrderStatistics(lambda count: ranks)
    blocks = [(p, values[p.start : p.stop]) for p in places("elements", tuple(values.shape), block=sizes)]
    looks = 0
    for index in range(found.passes):
        if found.skips(index):
            continue
        looks += 1
        for place, block in blocks:
            found.add(index, found.measure(index, thinned(block, place) if index == 0 else block), place)
        found.close(index)
    return found.boundaries, looks


@given(st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0, 1e-40, 3e38, 7.25]), min_size=1, max_size=60), st.data())
def test_small_tensors_have_exact_ranks_and_equal_numbers_are_counted(
    values: list[float], data: st.DataObject
):
    rank = data.draw(st.integers(0, len(values) - 1))
    for dtype in (torch.float32, torch.float64):
        tensor = torch.tensor(values, dtype=dtype)
        (found,), looks = statistics(tensor, [rank], 7)
        ordered = tensor.sort().values
        assert found.value == ordered[rank].item() and looks == 1
        assert found.below == int((tensor < ordered[rank]).sum())
        assert found.equal == int((tensor == ordered[rank]).sum())
        seen = 0
        for place in places("elements", tuple(tensor.shape), block=7):
            here = int((tensor[place.start : place.stop] == ordered[rank]).sum())
            assert found.equals(place) == (seen, here)
            seen += here


LARGE = 300_000


def drawn(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(LARGE, generator=generator).abs()
    if kind == "few values":
        return values.bfloat16().float().mul(8).round().div(8)
    if kind == "mostly zero":
        return values * (torch.rand(LARGE, generator=generator) < 0.05)
    if kind == "sorted":
        return values.sort().values
    if kind == "rows of other sizes":
        return values * torch.logspace(-6, 3, 300).repeat_interleave(1000)
    if kind == "hidden from the sample":  # where it looks there is nothing like the rest
        position = torch.arange(LARGE)
        return torch.where(position % (33 * 64) < 64, 1e-3 * values, 1 + values)
    return values.double() if kind == "float64" else values


@pytest.mark.parametrize(
    "kind",
    [
        "normal",
        "float64",
        "few values",
        "mostly zero",
        "sorted",
        "rows of other sizes",
        "hidden from the sample",
    ],
)
def test_large_tensors_have_exact_ranks_too(kind: str):
    values = drawn(kind)
    ordered = values.sort().values
    for ranks in ([LARGE * 4 // 5], [0], [LARGE - 1], [LARGE // 4, LARGE // 2, LARGE * 3 // 4]):
        found, looks = statistics(values, ranks, 1 << 16)
        for rank, boundary in zip(ranks, found, strict=True):
            assert boundary.value == ordered[rank].item()
            assert boundary.below == int((values < ordered[rank]).sum())
            assert boundary.equal == int((values == ordered[rank]).sum())
        assert looks in (2, 4)
        if kind in ("normal", "float64", "few values"):
            assert looks == 2, "a second look is enough where the sample tells the truth"


def test_a_sample_that_misleads_costs_two_more_looks_and_nothing_else():
    values = drawn("hidden from the sample")
    _, looks = statistics(values, [LARGE // 2], 1 << 16)
    assert looks == 4


@pytest.mark.parametrize("kind", ["normal", "float64", "few values", "mostly zero", "rows of other sizes"])
def test_where_few_numbers_are_to_be_held_they_are_counted_bit_by_bit(
    kind: str, monkeypatch: pytest.MonkeyPatch
):
    held: list[int] = []
    add = OrderStatistics.add

    def spied(self: OrderStatistics, index: int, partial: object, place: Place) -> None:
        add(self, index, partial, place)
        held.append(sum(len(tally.values) for _, tally in self._tallies))

    monkeypatch.setattr(OrderStatistics, "add", spied)
    monkeypatch.setattr(order_statistics, "_HELD", 60)
    monkeypatch.setattr(order_statistics, "_LARGE", 0)
    values = drawn(kind)
    ordered = values.sort().values
    for ranks in ([LARGE * 4 // 5], [0], [LARGE // 4, LARGE // 2, LARGE * 3 // 4]):
        found, looks = statistics(values, ranks, 1 << 16)
        assert max(held) <= 60 and looks in (2, 4, 5)
        for rank, boundary in zip(ranks, found, strict=True):
            assert boundary.value == ordered[rank].item()
            assert boundary.below == int((values < ordered[rank]).sum())
            assert boundary.equal == int((values == ordered[rank]).sum())
    if kind == "normal":
        assert looks == 5


# Random numbers


def test_an_element_draws_the_same_whatever_block_it_is_in():
    def drawn(first: int, last: int) -> Tensor:
        place = Place("w", (1000,), first, last, 7)
        several = [torch.from_numpy(found) for found in below(place, 2, (0.2, 0.7))]
        return torch.stack([bernoulli(place, 2, 0.3), *several, integers(place, 2, range(first, last), 99)])

    for size in (1, 16, 33, 250):
        parts = [drawn(first, min(first + size, 1000)) for first in range(0, 1000, size)]
        assert torch.equal(torch.cat(parts, dim=1), drawn(0, 1000))


def test_seeds_names_models_and_kinds_draw_apart():
    kinds = itertools.product((0, 1), ("a.weight", "b.weight"), (0, 1))
    places = [(Place(key, (4096,), 0, 4096, seed), stream) for seed, key, stream in kinds]
    drawn = [integers(place, stream, range(4096), 2) for place, stream in places]
    drawn += [bernoulli(place, stream, 0.5) for place, stream in places]
    for a, b in itertools.combinations(drawn, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.08


@pytest.mark.parametrize("probability", [0.5, 0.1, 0.3, 0.01, 1e-6, 1 - 1e-6])
def test_probabilities_are_met(probability: float):
    count = 400_000
    kept = bernoulli(Place("w", (count,), 0, count, 0), 0, probability).sum().item()
    deviation = (count * probability * (1 - probability)) ** 0.5
    assert abs(kept - count * probability) < 5 * deviation + 1


@pytest.mark.parametrize("bounds", [(0.2, 0.7), (0.7, 0.2), (0.3, 0.3 + 1e-6), (0.0, 1.0)])
def test_bounds_share_one_draw(bounds: tuple[float, float]):
    place = Place("w", (400_000,), 0, 400_000, 0)
    found = [torch.from_numpy(kept) for kept in below(place, 0, bounds)]
    for kept, bound in zip(found, bounds, strict=True):
        assert torch.equal(kept, bernoulli(place, 0, bound))
    one, other = sorted(found, key=lambda kept: int(kept.sum()))
    assert not (one & ~other).any(), "what is below the one is below the larger one"


@pytest.mark.parametrize("count", [1, 7, 20, 1 << 40])
def test_draws_are_spread_evenly(count: int):
    values = integers(Place("w", (1,), 0, 1, 0), 0, range(200_000), count).double() / count
    counts = torch.histc(values, min(count, 20), 0, 1).double()
    even = 200_000 / len(counts)
    assert float((counts - even).abs().max()) <= 5 * even**0.5 and values.min() >= 0 and values.max() < 1


def test_the_numbers_are_those_of_every_machine():
    place = Place("layer.weight", (8,), 0, 8, 1)
    assert bernoulli(place, 0, 0.5).tolist() == [False, False, True, False, True, False, False, True]
    assert integers(place, 0, range(4), 1000).tolist() == [903, 315, 404, 66]
    assert integers(place, 0, range(3, 4), 1000).tolist() == [66]
