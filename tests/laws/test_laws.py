"""Every registered method is held to every law that it claims; and the checks catch what breaks them."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from isthmus import testing
from isthmus.align import ALIGNMENTS, Alignment
from isthmus.align.methods.weight_matching import weight_matching
from isthmus.combine import COMBINATIONS
from isthmus.combine.average import average
from isthmus.errors import InputError
from isthmus.maps import Permutation, Transport
from isthmus.prune import PRUNERS, Choice
from isthmus.prune.magnitude import magnitude
from isthmus.registry import LAWS, Registry
from isthmus.repair import REPAIRS, rescale, reset
from isthmus.symmetry import Leaf
from isthmus.testing import check_alignment, check_combination, check_pruner, check_repair

CHECKS: list[tuple[Registry, Callable]] = [
    (ALIGNMENTS, check_alignment),
    (COMBINATIONS, check_combination),
    (PRUNERS, check_pruner),
    (REPAIRS, check_repair),
]


@pytest.mark.parametrize(
    ("check", "name", "law"),
    [
        pytest.param(check, row.name, law, id=f"{row.name}-{law}")
        for table, check in CHECKS
        for row in table.rows()
        for law in row.claims
    ],
)
def test_a_method_keeps_the_laws_that_it_claims(check: Callable, name: str, law: str):
    assert check(name, laws=[law]) == (law,)


@pytest.mark.parametrize(("table", "check"), CHECKS, ids=lambda x: getattr(x, "kind", ""))
def test_every_law_that_is_claimed_is_checked(table: Registry, check: Callable):
    checked = testing.laws_checked(table.kind)
    assert set(checked) <= set(LAWS)
    for row in table.rows():
        assert set(row.claims) <= set(checked), f"{row.name} claims what nothing checks"


def test_every_law_is_checked_of_some_kind():
    checked = {law for table, _ in CHECKS for law in testing.laws_checked(table.kind)}
    assert checked == set(LAWS)


def test_a_registered_method_is_known_by_its_function():
    assert check_combination(average) == check_combination("average")


def test_by_default_all_claims_are_checked():
    assert check_combination("average") == COMBINATIONS.get("average").claims


def test_options_reach_the_method():
    assert check_combination("average", accumulate="float32", laws=["order-free"]) == ("order-free",)
    with pytest.raises(TypeError, match="speed"):
        check_combination("average", speed=1)


def test_a_function_of_which_nothing_is_known_asks_for_laws():
    with pytest.raises(InputError, match=r"not registered[\s\S]*hint: pass laws="):
        check_combination(lambda tensors, *, weights: tensors[0])


def test_a_law_that_is_not_checked_of_a_kind_is_refused():
    with pytest.raises(InputError, match=r"combination[\s\S]*inverts[\s\S]*there are: copies-give"):
        check_combination("average", laws=["inverts"])


def test_a_wrong_name_has_a_hint():
    with pytest.raises(InputError, match="did you mean 'rescale'"):
        check_repair("rescal")


# What is wrong is caught, with the law and the number.


def broken(check: Callable, function: Callable, *laws: str) -> str:
    """The message of a check in which all of these laws fail."""
    with pytest.raises(AssertionError, match=f"breaks {len(laws)} of {len(laws)} laws") as raised:
        check(function, laws=laws)
    for law in laws:
        assert f"{law} ({LAWS[law]})" in str(raised.value)
    return str(raised.value)


def test_a_sum_is_no_average():
    text = broken(
        check_combination, lambda tensors, *, weights: torch.stack(tensors).sum(0), "copies-give-the-model"
    )
    assert "differs by 1.0e+00 of its largest value, 1e-09 allowed" in text


def test_weights_given_to_the_wrong_models_are_caught():
    def reversed_weights(tensors, *, weights):
        return average(tensors, weights=weights[::-1])

    broken(check_combination, reversed_weights, "order-free")
    assert check_combination(reversed_weights, laws=["copies-give-the-model"])


def test_an_average_that_ignores_the_weights_of_copies_is_still_one_but_the_first_model_is_not_order_free():
    broken(check_combination, lambda tensors, *, weights: tensors[0], "order-free")


def test_a_result_in_another_dtype_is_caught():
    text = broken(
        check_combination,
        lambda tensors, *, weights: average([t.double() for t in tensors], weights=weights),
        "copies-give-the-model",
    )
    assert "is float64" in text


def test_a_global_generator_is_no_seed():
    text = broken(
        check_combination,
        lambda tensors, *, weights: tensors[0] * torch.bernoulli(torch.full_like(tensors[0], 0.5)),
        "seeded",
        "streaming-equals-memory",
    )
    assert "numbers differ" in text


def test_a_rule_that_looks_at_the_whole_tensor_does_not_stream():
    text = broken(
        check_combination,
        lambda tensors, *, weights: tensors[0] / tensors[0].std(),
        "streaming-equals-memory",
    )
    assert "in blocks of" in text


def shuffled(graph, reader=None):
    """An alignment of random orders; with a reader, one weight that reads a space is forgotten."""

    def forgetful(graph, models, *, reference=0):
        seen = graph
        if reader is not None:
            space = next(iter(graph.spaces.values()))
            (key, axis) = next((m.key, m.axis) for m in space.members if m.role == "reads")
            axes = list(graph.layout[key])
            axes[axis] = Leaf(axes[axis].size)
            seen = dataclasses.replace(graph, layout={**graph.layout, key: tuple(axes)})
        maps = {}
        for name, space in graph.spaces.items():
            sizes = [graph.spaces[outer].size for outer in space.within]
            maps[name] = Permutation(torch.rand(*sizes, space.size).argsort(-1))
        transports = [Transport(seen, {} if i == reference else maps) for i in range(len(models))]
        return Alignment("forgetful", seen, tuple(transports), reference)

    return forgetful


def test_an_alignment_that_forgets_one_reader_breaks_the_function():
    text = broken(check_alignment, shuffled(None, reader=True), "function-kept")
    assert "the output of model" in text


def test_random_orders_keep_the_function_and_find_nothing():
    method = shuffled(None)
    assert check_alignment(method, laws=["function-kept", "inverts"])
    broken(check_alignment, method, "planted-found", "copies-give-the-model", "seeded", "batching-free")


def test_an_alignment_that_moves_its_reference_is_caught():
    def moves_all(graph, models, *, reference=0):
        found = weight_matching(graph, models, reference=(reference + 1) % len(models))
        return dataclasses.replace(found, reference=reference)

    assert "reference 0" in broken(check_alignment, moves_all, "function-kept")


def doubling(program, weights, data, *, goals, mode="joint", allow_new_parameters=False):
    result = rescale(
        program, weights, data, goals=goals, mode=mode, allow_new_parameters=allow_new_parameters
    )
    doubled = {k: 2 * v if v.is_floating_point() else v for k, v in result.weights.items()}
    return dataclasses.replace(result, weights=doubled)


def test_a_repair_that_always_doubles_is_caught():
    text = broken(check_repair, doubling, "unmerged-is-identity")
    assert "differs by 1.0e+00" in text
    # Doubled new parameters count double.
    broken(check_repair, doubling, "fused-equals-unfused")


def test_a_repair_that_cannot_be_unfused_is_caught():
    def fused_only(program, weights, data, *, goals):
        return rescale(program, weights, data, goals=goals)

    assert "allow_new_parameters" in broken(check_repair, fused_only, "fused-equals-unfused")


def test_a_joint_pass_depends_on_batching_and_a_sequential_one_does_not():
    broken(check_repair, "repair", "batching-free")
    assert check_repair("repair", laws=["batching-free", "seeded"], mode="sequential")


def test_reset_is_for_networks_with_batch_norms():
    assert check_repair("reset") == ("idempotent", "seeded")


def test_a_repair_that_adds_up_is_not_idempotent():
    def shrinking(program, weights, data):
        return dataclasses.replace(
            reset(program, weights, data), weights={k: v * 0.9 for k, v in weights.items()}
        )

    broken(check_repair, shrinking, "idempotent")


def test_a_pruner_that_drops_what_ties_with_the_threshold_is_caught():
    def dropping(program, weights, layers, *, sparsity):
        kept = magnitude(program, weights, layers, sparsity=sparsity, scope="layer").keep
        return Choice(
            {key: keep & (keep.flatten().cumsum(0).view(keep.shape) > 1) for key, keep in kept.items()}
        )

    broken(check_pruner, dropping, "sparsity-exact", "unpruned-is-identity")


def test_a_pruner_that_halves_what_it_keeps_is_caught():
    def halving(program, weights, layers, *, sparsity):
        found = magnitude(program, weights, layers, sparsity=sparsity)
        return Choice(found.keep, {layer.key: weights[layer.key] / 2 for layer in layers})

    broken(check_pruner, halving, "unpruned-is-identity", "pruned-stays-pruned")
    assert check_pruner(halving, laws=["sparsity-exact", "seeded"])
