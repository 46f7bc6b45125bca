"""Units that do not vary on the data: they find each other, and leave those that do alone."""

import pytest
import torch
from torch import Tensor, nn

import isthmus
from isthmus.align.mixed.constant import constants_paired
from isthmus.align.mixed.joint import Joint
from isthmus.zoo import MLP

X = torch.randn(60, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

#: Inputs far from the data, on which units that are dead there answer.
FAR = 100 * X

HOW: list[dict[str, object]] = [
    {"method": "zipit"},
    {"method": "zipit", "beta": 0},
    {"method": "zipit", "beta": 1},
    {"method": "zipit", "pairing": "optimal"},
]


def dead(model: nn.Module, units: slice) -> nn.Module:
    for layer in model.layers[:2]:
        layer.bias.data[units] = -20.0
    return model.double().eval()


def build() -> nn.Module:
    torch.manual_seed(0)
    return dead(MLP(d_in=8, widths=(24, 20), num_classes=3), slice(2, 6))


@pytest.mark.parametrize("how", HOW, ids=lambda how: str(list(how.values())))
@pytest.mark.parametrize("planted", [False, True])
def test_a_network_with_dead_units_zipped_with_its_copy_is_the_network(how: dict[str, object], planted: bool):
    model = build()
    graph = isthmus.trace(model, X[:2])
    state = dict(model.state_dict())
    copy = graph.random_element(1).only(graph.spaces).apply(graph, state) if planted else state
    assert (model(FAR) - model(X)).abs().max() > 1
    for weights in ((0.5, 0.5), (0.2, 0.8)):
        merged = isthmus.merge([state, copy], model=model, graph=graph, align=how, data=[X], weights=weights)
        assert merged.model is not None and merged.alignment is not None
        for data in (X, FAR):
            torch.testing.assert_close(merged.model(data), model(data))
        assert sum("dead units" in note for note in merged.alignment.notes) == 2


def test_three_copies_with_dead_units_are_the_network():
    model = build()
    graph = isthmus.trace(model, X[:2])
    state = dict(model.state_dict())
    copies = [state, *(graph.random_element(s).only(graph.spaces).apply(graph, state) for s in (1, 2))]
    merged = isthmus.merge(copies, model=model, graph=graph, align="zipit", data=[X], weights=(0.2, 0.3, 0.5))
    assert merged.model is not None
    torch.testing.assert_close(merged.model(FAR), model(FAR))


def test_a_dead_unit_is_not_merged_with_one_that_answers_while_both_models_have_one():
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(dead(MLP(d_in=8, widths=(24, 20), num_classes=3), slice(2 + seed, 6 + seed)))
    merged = isthmus.merge(models, align="zipit", data=[X])
    assert merged.alignment is not None
    for transports in zip(*(t.maps.values() for t in merged.alignment.transports), strict=True):
        groups = [m.group.tolist() for m in transports]  # type: ignore[union-attr]
        held = [set(g[2 + i : 6 + i]) for i, g in enumerate(groups)]
        assert held[0] == held[1] and len(held[0]) == 4
        others = {g for i, group in enumerate(groups) for n, g in enumerate(group) if not 2 + i <= n < 6 + i}
        assert not held[0] & others


def statistics(sizes: tuple[int, ...], constant: dict[int, float]) -> Joint:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(50, sum(sizes), generator=generator, dtype=torch.float64)
    for unit, value in constant.items():
        samples[:, unit] = value
    centred = samples - samples.mean(0)
    for unit in constant:
        centred[:, unit] = 0
    return Joint(sizes, samples.mean(0), centred.mT @ centred / 50, 50)


def test_constant_units_are_told_by_their_values_and_then_by_their_weights():
    # Units 1, 2 and 3 of one model; 0, 1, 2 and 3 of the other, of which one is left over.
    seen = statistics((4, 5), {1: 0.0, 2: 0.0, 3: 1.0, 4: 1.0, 5: 0.0, 6: 0.0, 7: 3.0})
    rows = [torch.eye(4).double(), torch.eye(4).double()[[0, 2, 1, 3, 3]]]
    found = constants_paired(seen, lambda index: rows[index], 0)
    pairs = {(i, j) for i, j in (found == 1).nonzero().tolist() if i < j and j - i}
    assert pairs == {(1, 6), (2, 5), (3, 4)}
    assert torch.equal(found, found.mT)
    rest = torch.ones_like(found, dtype=torch.bool)
    for i, j in pairs:
        rest[i, j] = rest[j, i] = False
    assert torch.equal(found[rest], seen.correlation[rest])


def test_weights_are_not_asked_for_where_one_model_alone_has_constant_units():
    def rows(index: int) -> Tensor:
        raise AssertionError(index)

    seen = statistics((4, 4), {1: 0.0, 2: 0.0})
    assert torch.equal(constants_paired(seen, rows, 0), seen.correlation)


def test_in_the_full_group_dead_units_are_matched_by_their_weights_too():
    torch.manual_seed(0)
    model = MLP(d_in=8, widths=(24,), num_classes=3).double().eval()
    model.layers[0].bias.data[2:6] = -20.0
    graph = isthmus.trace(model, X[:2])
    state = dict(model.state_dict())
    copy = graph.random_element(2).apply(graph, state)
    by = {"method": "activation-matching", "groups": "full"}
    found = isthmus.align(graph, [state, copy], by=by, data=[X])
    for key, value in found.apply([state, copy])[1].items():
        torch.testing.assert_close(value, state[key])
    assert any("dead units (no variance), matched by their weights" in note for note in found.notes)
