"""What each rule computes, against a plain float64 reference or an invariant of its paper."""

import importlib
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import isthmus
from isthmus.combine import COMBINATIONS, Place, blockwise, combine, terms_of
from isthmus.combine.by_rank import RUN, kept_by_rank
from isthmus.combine.random_masks import below, bernoulli, integers
from isthmus.combine.trimming import ranked

SHAPE = (12, 30)


def drawn(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def rule(name: str, tensors: list[Tensor], **options: object) -> Tensor:
    return COMBINATIONS.get(name).function(tensors, **options)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# Task vectors (reference notes, section 11)


def test_copies_add_up_under_task_arithmetic():
    base, model = drawn(2)
    close(rule("task-arithmetic", [model] * 4, base=base, lam=0.3), base + 0.3 * 4 * (model - base))
    close(rule("task-arithmetic", [model], base=base, weights=[-1.0]), 2 * base - model)
    close(rule("task-arithmetic", [model] * 3, base=base, normalize=True), model)


@pytest.mark.parametrize("convention", ["paper", "mergekit", "peft"])
def test_one_model_untrimmed_is_its_task_vector(convention: str):
    base, model = drawn(2)
    close(
        rule("ties", [model], base=base, density=1.0, convention=convention, lam=0.7),
        base + 0.7 * (model - base),
    )
    for name in ("dare-linear", "dare-ties", "della", "della-linear", "breadcrumbs", "breadcrumbs-ties"):
        kept = {} if convention == "peft" and name.startswith("d") else {"convention": "mergekit"}
        close(rule(name, [model], base=base, density=1.0, **kept), model)


@pytest.mark.parametrize(
    "name", ["ties", "dare-linear", "dare-ties", "della", "breadcrumbs", "magnitude-prune"]
)
def test_no_multiple_of_the_task_vectors_is_the_base(name: str):
    base, *models = drawn(3)
    assert torch.equal(rule(name, models, base=base, lam=0.0), base)


def trimmed(vector: Tensor, density: float, extra: int = 0) -> Tensor:
    flat = vector.abs().flatten()
    least = flat.sort(descending=True).values[int(density * flat.numel()) - 1 + extra]
    return vector * (vector.abs() >= least)


@pytest.mark.parametrize("density", [0.1, 0.37, 0.8])
def test_ties_is_algorithm_1_on_the_whole_model(density: float):
    base, *models = drawn(4)
    found = rule("ties", models, base=base, density=density)
    # One element more than asked for, as the paper's code has it.
    vectors = torch.stack([trimmed(m - base, density, 1) for m in models])
    sign = vectors.sum(0).sign()
    majority = sign.sum().sign()
    sign = torch.where(sign == 0, majority, sign)
    agree = (vectors.sign() == sign) & (vectors != 0)
    expected = base + (vectors * agree).sum(0) / agree.sum(0).clamp_min(1)
    close(found, expected)


def test_tied_votes_go_to_plus_or_to_the_majority():
    base = torch.zeros(4)
    a, b = torch.tensor([1.0, -5, -5, -5]), torch.tensor([-1.0, -5, -5, -5])
    for tie, first in (("plus", 1.0), ("majority", -1.0)):
        found = rule("ties", [a, b], base=base, density=1.0, tie=tie)
        assert found.tolist() == [first, -5, -5, -5]


def test_the_threshold_of_a_model_is_one_for_all_of_its_tensors():
    base, *models = ({"big": 10 * t, "small": t / 10} for t in drawn(3))
    found = combine(models, "ties", base=base, options={"density": 0.3})
    for key, share in (("big", 0.6), ("small", 0.0)):
        moved = (found[key] != base[key]).double().mean().item()
        assert moved >= share if share else moved < 0.2
    apart = combine(models, "ties", base=base, options={"density": 0.3, "scope": "tensor"})
    assert all(0.3 < (apart[k] != base[k]).double().mean() < 0.6 for k in base)


def test_of_equal_elements_the_first_all_or_one_more_are_kept():
    base = torch.zeros(6)
    model = torch.tensor([2.0, 1, -1, 1, 0.5, -3])
    kept = {
        equals: rule("magnitude-prune", [model], base=base, density=0.5, equals=equals).tolist()
        for equals in ("first", "all", "rank-below")
    }
    assert kept["first"] == [2, 1, 0, 0, 0, -3]
    assert kept["all"] == [2, 1, -1, 1, 0, -3]
    assert kept["rank-below"] == [2, 1, -1, 1, 0, -3]
    plain = torch.tensor([1.0, 2, 3, 4])
    assert rule(
        "magnitude-prune", [plain], base=torch.zeros(4), density=0.5, equals="rank-below"
    ).tolist() == [
        0,
        2,
        3,
        4,
    ]


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=40),
    st.floats(0.02, 1),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_exactly_so_many_elements_are_kept(values: list[int], density: float, dtype: torch.dtype):
    model = torch.tensor(values, dtype=dtype)
    found = rule("magnitude-prune", [model], base=torch.zeros_like(model), density=density)
    count = max(1, int(density * len(values))) if density < 1 else len(values)
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:count]
    assert found.tolist() == [v if i in order else 0 for i, v in enumerate(values)]


@pytest.mark.parametrize("rescale", ["density", "norm", "none"])
def test_dare_keeps_what_its_masks_say(rescale: str):
    base, *models = drawn(3)
    found = rule(
        "dare-linear", models, base=base, density=0.3, weights=[0.5, 2.0], rescale=rescale, seed=9, key="w"
    )
    expected = base.clone()
    for stream, (weight, model) in enumerate(zip([0.5, 2.0], models, strict=True)):
        vector = model - base
        kept = vector * bernoulli(Place("w", SHAPE, 0, vector.numel(), 9), stream, 0.3).view(SHAPE)
        factor = {"density": 1 / 0.3, "norm": vector.abs().sum() / kept.abs().sum(), "none": 1.0}[rescale]
        expected += weight * factor * kept
    close(found, expected)


def test_dare_keeps_the_mean_of_the_task_vector():
    base, model = torch.zeros(200_000), torch.ones(200_000)
    found = rule("dare-linear", [model], base=base, density=0.1)
    assert found.mean().item() == pytest.approx(1, abs=0.05)
    assert set(found.unique().tolist()) == {0.0, 10.0}


def test_della_keeps_large_elements_more_often():
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(2000, 40, generator=generator)
    base = torch.zeros_like(vector)
    options = {"density": 0.5, "epsilon": 0.3, "rescale": "none"}
    kept = rule("della-linear", [vector], base=base, **options) != 0
    rates = kept.gather(1, vector.abs().argsort(1)).double().mean(0)
    expected = torch.linspace(0.2, 0.8, 40, dtype=torch.float64)
    assert float((rates - expected).abs().max()) < 0.05
    # Divided by its own probability, an element keeps its mean.
    options["rescale"] = "probability"
    whole = torch.stack([rule("della-linear", [vector], base=base, seed=s, **options) for s in range(30)])
    assert float((whole.mean(0) - vector).abs().mean()) < 0.25


def outranks(size: list[float], shift: int) -> list[bool]:
    """Which elements of a row are larger than those so much further on; of equal ones, the later."""
    length = len(size)
    peers = [(i + shift) % length for i in range(length)]
    return [(size[i], i) > (size[j], j) for i, j in enumerate(peers)]


@pytest.mark.parametrize("values", ["distinct", "equal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(40, 2), (40, 3), (9, 63), (9, 64), (9, 65), (5, 640), (3, 1001), (3, 8, 25)]
)
def test_dellas_masks_compare_with_elements_of_the_row(
    shape: tuple[int, ...], values: str, dtype: torch.dtype
):
    (vector,) = drawn(1, shape=shape)
    vector = (vector if values == "distinct" else vector.mul(2).round()).to(dtype).view(shape[0], -1)
    (rows, length), runs = vector.shape, -(-vector[0].numel() // RUN)
    width = -(-length // runs)
    place, density, epsilon = Place("w", shape, 0, vector.numel(), 2), 0.4, 0.3
    low, high = (
        torch.from_numpy(kept).view(rows, length)
        for kept in below(place, 1, (density - epsilon, density + epsilon))
    )
    shifts = (integers(place, 1, range(rows * runs), length - 1) + 1).view(rows, runs).tolist()
    expected = low.clone()
    for row, size in enumerate(vector.abs().tolist()):
        for i in range(length):
            expected[row, i] |= high[row, i] & outranks(size, shifts[row][i // width])[i]
    assert torch.equal(kept_by_rank(vector, place, 1, density, epsilon).view(rows, length), expected)


@pytest.mark.parametrize("length", [1, 2, 3, 50, 64, 65, 300])
def test_dellas_masks_do_not_depend_on_blocks(length: int):
    vector = drawn(1, shape=(41, length))[0].mul(3).round().float()

    def kept(first: int, last: int) -> Tensor:
        place = Place("w", (41, length), first * length, last * length, 3)
        return kept_by_rank(vector[first:last], place, 0, 0.5, 0.2)

    for size in (1, 3, 40):
        parts = [kept(first, min(first + size, 41)) for first in range(0, 41, size)]
        assert torch.equal(torch.cat(parts), kept(0, 41))


@pytest.mark.parametrize(
    "row",
    [
        [3.0, -1.0, 4.0, 1.5, -9.0, 2.0],
        [0.0, 1.0, 1.0, -1.0, 0.0, 2.0],
        [2.0, -1.0],
        [1.0, 1.0, -1.0],
        [float(i * 37 % 101) for i in range(100)],  # two runs of 50
    ],
)
def test_dellas_masks_meet_the_probabilities_of_ranks_and_share_a_distance(row: list[float]):
    length, density, epsilon = len(row), 0.5, 0.45
    rows = max(20_000, 360_000 // length)
    vector = torch.tensor(row).repeat(rows, 1)
    place = Place("w", (rows, length), 0, rows * length, 3)
    kept = kept_by_rank(vector, place, 0, density, epsilon).view(rows, length).double()
    chance = torch.empty(length, dtype=torch.float64)
    ladder = torch.linspace(density - epsilon, density + epsilon, length, dtype=torch.float64)
    chance[vector[0].abs().argsort(stable=True)] = ladder
    deviation = (chance * (1 - chance) / rows).sqrt()
    assert bool(((kept.mean(0) - chance).abs() < 5 * deviation).all())
    # Within a run as the shared distance makes it; between runs nothing.
    larger = torch.tensor([outranks(vector[0].abs().tolist(), s) for s in range(1, length)]).double()
    expected = 4 * epsilon**2 * torch.cov(larger.T, correction=0).view(length, length)
    run = torch.arange(length) // -(-length // -(-length // RUN))
    expected *= run.unsqueeze(0) == run.unsqueeze(1)
    expected.fill_diagonal_(0)
    found = torch.cov(kept.T).fill_diagonal_(0)
    assert float((found - expected).abs().max()) < 5.5 * 0.25 / rows**0.5
    assert length < 6 or float(expected.abs().max()) > 0.02, "there is something to be seen"


def test_della_divides_by_the_probabilities_of_ranks():
    base, model = drawn(2)
    found = rule("della-linear", [model], base=base, density=0.4, epsilon=0.1, key="w", seed=2)
    vector = model - base
    chance = torch.empty_like(vector)
    chance.scatter_(
        1, vector.abs().argsort(1), torch.linspace(0.3, 0.5, 30, dtype=torch.float64).expand(SHAPE)
    )
    kept = kept_by_rank(vector, Place("w", SHAPE, 0, 360, 2), 0, 0.4, 0.1).view(SHAPE)
    close(found, base + vector * kept / chance, 1e-9)


def test_a_long_vector_is_one_row():
    length = 300_000  # longer than a block
    order = torch.randperm(length, generator=torch.Generator().manual_seed(0))
    place = Place("w", (length,), 0, length)
    kept = kept_by_rank((order + 1.0).view(1, -1), place, 0, 0.5, 0.4).double()
    rates, expected = kept[order.argsort()].view(10, -1).mean(1), torch.linspace(0.14, 0.86, 10)
    assert float((rates - expected).abs().max()) < 5 * 0.5 / (length / 10) ** 0.5


@pytest.mark.parametrize("name", ["dare-ties", "della"])
def test_masks_that_are_remembered_are_those_that_are_drawn(name: str, monkeypatch: pytest.MonkeyPatch):
    base, *models = drawn(3)
    options = {"density": 0.4, "convention": "mergekit"}
    expected = rule(name, models, base=base, key="w", seed=2, **options)
    module = importlib.import_module(f"isthmus.combine.{name.partition('-')[0]}")
    for held in (0, 90):  # none; and of both models, 45 bytes each, all
        monkeypatch.setattr(module, "HELD", held)
        assert torch.equal(rule(name, models, base=base, key="w", seed=2, **options), expected)


def shows(name: str) -> bool:
    return terms_of(name).build is not None and blockwise(name, 1 if terms_of(name).most == 1 else 2).shows


@pytest.mark.parametrize("name", [row.name for row in COMBINATIONS.rows() if shows(row.name)])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_rules_that_claim_to_show_what_is_not_finite(name: str, wrong: float):
    terms = terms_of(name)
    given = ({"base": 2} if terms.base != "no" else {}) | ({"seed": 1} if terms.seed else {})
    count = 1 if terms.most == 1 else 2
    for where, index in itertools.product(
        [*range(count), *([2] if "base" in given else [])], range(0, 360, 37)
    ):
        tensors = [t.float() for t in drawn(3)]
        tensors[where].view(-1)[index] = wrong
        more = given | ({"base": tensors[2]} if "base" in given else {})
        assert not rule(name, tensors[:count], **more).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranks_are_stable(dtype: torch.dtype):
    size = torch.randint(0, 4, (50, 30), generator=torch.Generator().manual_seed(0)).to(dtype) / 3
    assert torch.equal(ranked(size), torch.argsort(size, dim=-1, stable=True))


def test_breadcrumbs_drops_both_ends_of_each_row():
    base, *models = drawn(3)
    found = rule("breadcrumbs", models, base=base, density=0.4, gamma=0.1, lam=0.5)
    expected = base.clone()
    for model in models:
        vector = model - base
        order = vector.abs().argsort(1)
        kept = torch.zeros_like(vector).scatter_(1, order[:, 30 - 3 - 12 : 30 - 3], 1.0)
        expected += 0.5 * vector * kept
    close(found, expected)


def test_breadcrumbs_drops_nothing_where_gamma_is_less_than_an_element():
    # A popular port slices [a:-0] here and keeps nothing.
    base, model = torch.zeros(10), torch.arange(1.0, 11)
    options = {"density": 0.5, "gamma": 0.05, "convention": "mergekit"}
    assert rule("breadcrumbs", [model], base=base, **options).tolist() == [0] * 5 + [6, 7, 8, 9, 10]


def test_mag_max_takes_the_furthest():
    base, *models = drawn(5)
    vectors = torch.stack(models) - base
    expected = base + vectors.gather(0, vectors.abs().argmax(0, keepdim=True))[0]
    close(rule("mag-max", models, base=base), expected)
    opposite = [torch.tensor([-2.0]), torch.tensor([2.0])]
    for order in (opposite, opposite[::-1]):
        assert rule("mag-max", order, base=torch.zeros(1)).item() == 2


def test_consensus_keeps_what_several_tall_masks_have():
    base, *models = drawn(4)
    vectors = torch.stack(models) - base
    whole = vectors.sum(0)
    masks = vectors.abs() > 0.4 * (whole - vectors).abs()
    close(rule("consensus", models, base=base, lam=0.7), base + 0.7 * whole * (masks.sum(0) >= 2))
    close(rule("consensus", models, base=base, least=3), base + whole * (masks.sum(0) >= 3))
    for task in range(3):
        close(rule("tall-mask", models, base=base, task=task), base + whole * masks[task])


def test_sce_weighs_by_squares_and_erases_minority_signs():
    base, *models = drawn(4)
    vectors = torch.stack(models) - base
    spread = vectors.var(0, unbiased=False)
    least = spread.flatten().sort(descending=True).values[int(360 * 0.4) - 1]
    vectors = vectors * (spread >= least)
    shares = vectors.square().sum((1, 2)) / vectors.square().sum()
    agree = vectors.sign() == torch.where(vectors.sum(0) >= 0, 1.0, -1.0)
    part = shares[:, None, None] * agree
    expected = base + (vectors * part).sum(0) / part.sum(0).clamp_min(1e-6)
    close(rule("sce", models, base=base, density=0.4), expected)


# Spheres


def test_slerp_has_constant_speed_and_unit_length():
    a = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    b = torch.tensor([0.6, 0.8, 0], dtype=torch.float64)
    angle = torch.acos(a @ b)
    for t in (0.0, 0.25, 0.5, 1.0):
        found = rule("slerp", [a, b], t=t)
        assert found.norm().item() == pytest.approx(1, abs=1e-12)
        assert torch.acos((found @ a).clamp(-1, 1)).item() == pytest.approx(t * angle.item(), abs=1e-7)


def test_slerp_with_a_base_goes_between_task_vectors():
    base, a, b = drawn(3)
    found = rule("slerp", [a, b], base=base, weights=[0.3, 0.7])
    close(found, base + rule("slerp", [a - base, b - base], weights=[0.3, 0.7]))
    assert not torch.allclose(found, rule("slerp", [a, b], weights=[0.3, 0.7]))


@pytest.mark.parametrize("name", ["slerp", "nuslerp", "karcher", "multislerp"])
@pytest.mark.parametrize("per", ["row", "filter", "column"])
def test_spheres_per_row_are_those_of_each_row(name: str, per: str):
    a, b = drawn(2, shape=(4, 3, 2))
    found = rule(name, [a, b], weights=[0.3, 0.7], per=per)
    if per == "row":
        rows = [
            rule(name, [x, y], weights=[0.3, 0.7]) for x, y in zip(a.view(-1, 2), b.view(-1, 2), strict=True)
        ]
        expected = torch.stack(rows).view(4, 3, 2)
    elif per == "filter":
        expected = torch.stack([rule(name, [x, y], weights=[0.3, 0.7]) for x, y in zip(a, b, strict=True)])
    else:
        expected = torch.empty_like(a)
        for i, j in itertools.product(range(3), range(2)):
            expected[:, i, j] = rule(name, [a[:, i, j], b[:, i, j]], weights=[0.3, 0.7])
    close(found, expected, 1e-9)


def test_two_models_karcher_mean_is_their_slerp_at_equal_lengths():
    a, b = (t / t.norm() for t in drawn(2))
    close(rule("karcher", [a, b], weights=[0.3, 0.7]), rule("slerp", [a, b], t=0.7), 1e-7)


def test_the_karcher_mean_is_where_the_arcs_balance():
    models = drawn(5)
    weights = [0.1, 0.3, 0.2, 0.25, 0.15]
    found = rule("karcher", models, weights=weights).flatten()
    assert found.norm().item() == pytest.approx(
        sum(w * m.norm().item() for w, m in zip(weights, models, strict=True))
    )
    mean, pull = found / found.norm(), torch.zeros_like(found)
    for weight, model in zip(weights, models, strict=True):
        unit = model.flatten() / model.norm()
        angle = torch.acos(mean @ unit)
        pull += weight * angle / torch.sin(angle) * (unit - (mean @ unit) * mean)
    assert pull.norm().item() < 1e-6


def test_multislerp_is_the_normalised_mean():
    models = drawn(4)
    mean = torch.stack([m / m.norm() for m in models]).mean(0)
    length = torch.stack([m.norm() for m in models]).mean()
    close(rule("multislerp", models), mean / mean.norm() * length, 1e-7)


def test_model_stock_stays_at_the_base_where_models_disagree_and_averages_where_they_agree():
    base, model = drawn(2)
    vector = model - base
    close(rule("model-stock", [base + vector, base - vector], base=base), base)
    close(rule("model-stock", [base + vector, base + 2 * vector], base=base), base + 1.5 * vector)
    close(rule("model-stock", [base, base], base=base), base)
    a = torch.tensor([1.0, 0], dtype=torch.float64)
    b = torch.tensor([0.5, 0.75**0.5], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    close(rule("model-stock", [a, b], base=zero), 2 * 0.5 / 1.5 * (a + b) / 2)


# Singular vectors


def test_iso_c_makes_all_directions_equally_long():
    base, *models = drawn(4)
    whole = (torch.stack(models) - base).sum(0)
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    close(rule("iso-c", models, base=base, lam=0.5), base + 0.5 * values.mean() * left @ right, 1e-9)
    found = torch.linalg.svdvals(rule("iso-c", models, base=base) - base)
    assert float(found.max() - found.min()) < 1e-9


def test_iso_cts_spans_what_is_common_and_what_each_task_has_alone():
    base, *models = drawn(3, shape=(20, 20))
    vectors = [m - base for m in models]
    merged = rule("iso-cts", models, base=base, common=0.8) - base
    lengths = torch.linalg.svdvals(merged)
    assert float(lengths.max() - lengths.min()) < 1e-9
    left, values, _ = torch.linalg.svd(sum(vectors), full_matrices=False)
    common = left[:, :16]
    kept = list(values[:16])
    for vector in vectors:
        kept += list(torch.linalg.svdvals(vector - common @ (common.T @ vector))[:2])
    assert lengths[0].item() == pytest.approx(torch.stack(kept).mean().item())
    # All common: the same as without tasks of their own.
    close(rule("iso-cts", models, base=base, common=1.0), rule("iso-c", models, base=base), 1e-9)


def test_one_task_is_its_own_task_matrix_under_tsv_merge():
    base, model = drawn(2)
    close(rule("tsv-merge", [model], base=base), model, 1e-9)


def test_tasks_of_other_directions_do_not_disturb_each_other_under_tsv_merge():
    base = torch.zeros(4, 4, dtype=torch.float64)
    a, b = (
        torch.diag(torch.tensor([3.0, 2, 0, 0])).double(),
        torch.diag(torch.tensor([0, 0, 5.0, 1])).double(),
    )
    close(rule("tsv-merge", [a, b], base=base), a + b, 1e-12)


@pytest.mark.parametrize("name", ["tsv-merge", "iso-c", "iso-cts"])
def test_what_is_no_matrix_is_averaged_and_a_convolution_is_one_unless_told_otherwise(name: str):
    base, *models = drawn(3, shape=(8,))
    close(rule(name, models, base=base, lam=0.5), base + 0.5 * (torch.stack(models).mean(0) - base))
    base, *models = drawn(3, shape=(4, 3, 2, 2))
    flat = rule(name, [m.view(4, 12) for m in models], base=base.view(4, 12))
    close(rule(name, models, base=base), flat.view(4, 3, 2, 2))
    close(rule(name, models, base=base, convolutions=False), torch.stack(models).mean(0))


def test_more_tasks_than_directions_leave_one_triplet_each():
    base, *models = drawn(6, shape=(3, 4))
    assert bool(rule("tsv-merge", models, base=base).isfinite().all())
    assert bool(rule("iso-cts", models, base=base).isfinite().all())


# Statistics


def test_fisher_weighs_elements_by_their_information():
    models = drawn(3)
    known = [t.square() for t in drawn(3, seed=1)]
    weights = [0.5, 0.3, 0.2]
    above = sum(w * f * m for w, f, m in zip(weights, known, models, strict=True))
    below = sum(w * f for w, f in zip(weights, known, strict=True))
    found = rule("fisher", models, statistics=known, weights=weights, floor=0.0, normalize=False)
    close(found, above / below)
    scaled = [7.5 * f for f in known]
    close(rule("fisher", models, statistics=scaled, weights=weights, floor=0.0, normalize=False), found)
    same = [torch.ones(SHAPE)] * 3
    close(
        rule("fisher", models, statistics=same, weights=weights), rule("isotropic", models, weights=weights)
    )


def test_fisher_is_normalised_over_all_tensors():
    models = [dict(zip("ab", drawn(2, seed=i), strict=True)) for i in (1, 2)]
    known = [{k: t.square() for k, t in zip("ab", drawn(2, seed=i), strict=True)} for i in (3, 4)]
    found = combine(models, "fisher", statistics=known, options={"floor": 0.0})
    norms = [sum(t.square().sum() for t in k.values()).sqrt() for k in known]
    for key in "ab":
        parts = [k[key] / n for k, n in zip(known, norms, strict=True)]
        expected = sum(p * m[key] for p, m in zip(parts, models, strict=True)) / sum(parts)
        close(found[key], expected)
    # So a model's information counts the same whatever its scale.
    scaled = [known[0], {k: 100 * t for k, t in known[1].items()}]
    close(combine(models, "fisher", statistics=scaled, options={"floor": 0.0})["a"], found["a"])


@pytest.mark.parametrize(("favor", "expected"), [(True, 1.0), (False, 2.0)])
def test_what_no_model_knows_of_is_the_targets_or_averaged(favor: bool, expected: float):
    models, known = [torch.tensor([1.0]), torch.tensor([3.0])], [torch.zeros(1)] * 2
    options = {"favor_target": favor, "normalize": False}
    assert rule("fisher", models, statistics=known, **options).item() == pytest.approx(expected)
    assert rule("fisher", models, statistics=known, floor=0.0, **options).item() == 2.0


def test_a_tensor_without_statistics_is_averaged():
    models = [{"w": torch.zeros(2, 2), "b": torch.zeros(2)}, {"w": torch.ones(2, 2), "b": torch.ones(2)}]
    for name, known in (("fisher", torch.ones(2, 2)), ("reg-mean", torch.eye(2))):
        found = combine(models, name, statistics=[{"w": known}] * 2, weights=[0.25, 0.75])
        close(found["b"], torch.full((2,), 0.75), 1e-6)


def test_reg_mean_is_the_least_squares_map_on_all_inputs():
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(200, 6, generator=generator, dtype=torch.float64) for _ in range(3)]
    maps = drawn(3, shape=(4, 6))
    grams = [x.T @ x / len(x) for x in inputs]
    found = rule("reg-mean", maps, statistics=grams, alpha=1.0)
    wanted = torch.cat([x @ m.T for x, m in zip(inputs, maps, strict=True)])
    close(found, torch.linalg.lstsq(torch.cat(inputs), wanted).solution.T, 1e-9)
    shrunk = [0.9 * g + 0.1 * torch.diag(g.diag()) for g in grams]
    expected = sum(m @ g for m, g in zip(maps, shrunk, strict=True)) @ torch.linalg.inv(sum(shrunk))
    close(rule("reg-mean", maps, statistics=grams), expected, 1e-9)


def test_reg_mean_finds_the_same_where_divide_and_conquer_fails(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(20, 6, generator=generator).double() * (torch.arange(6) < 4) for _ in range(2)]
    maps = drawn(2, shape=(3, 6))
    grams = [x.T @ x / len(x) for x in inputs]
    expected = rule("reg-mean", maps, statistics=grams)

    def fails(matrix: torch.Tensor):
        raise RuntimeError("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    close(rule("reg-mean", maps, statistics=grams), expected, 1e-9)


def test_reg_mean_of_a_convolution_reads_patches():
    maps = drawn(2, shape=(4, 3, 2, 2))
    grams = [t @ t.T for t in drawn(2, seed=1, shape=(12, 20))]
    found = rule("reg-mean", maps, statistics=grams)
    close(found, rule("reg-mean", [m.view(4, 12) for m in maps], statistics=grams).view(4, 3, 2, 2))


def test_directions_that_no_input_has_are_averaged_by_reg_mean():
    maps = drawn(2, shape=(4, 6))
    gram = torch.zeros(6, 6, dtype=torch.float64)
    gram[0, 0] = 1.0
    found = rule("reg-mean", maps, statistics=[gram, 3 * gram])
    close(found[:, 0], (maps[0][:, 0] + 3 * maps[1][:, 0]) / 4)
    close(found[:, 1:], (maps[0] + maps[1])[:, 1:] / 2)


def test_rules_are_listed_with_what_they_need():
    rows = {row.name: row for row in isthmus.methods("combination")}
    assert len(rows) >= 30
    assert "base" in rows["ties"].needs and "seed" in rows["dare-ties"].needs
    assert "statistics" in rows["fisher"].needs and rows["average"].needs == ()
    assert all(row.source for row in rows.values())
