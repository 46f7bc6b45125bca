"""Statistics and heads in `isthmus.merge`."""

import pytest
import torch
from torch import Tensor, nn

import isthmus
from isthmus.errors import InputError, MismatchError


class Net(nn.Module):
    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU())
        self.head = nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.fixture
def data() -> list[Tensor]:
    return list(torch.randn(24, 4, generator=torch.Generator().manual_seed(0)).split(8))


def test_heads_of_other_shapes_stay_the_references(data: list[Tensor]):
    a, b = Net(3, 0), Net(7, 1)
    with pytest.raises(MismatchError, match=r"head\.weight"):
        isthmus.merge([a, b])
    for reference, target in ((0, a), (1, b)):
        merged = isthmus.merge([a, b], skip=["head.*"], reference=reference)
        assert merged.model is not None and merged.model(data[0]).shape[1] == target.head.out_features
        assert torch.equal(merged.weights["head.weight"], target.head.weight)
        mean = (a.body[0].weight + b.body[0].weight) / 2
        torch.testing.assert_close(merged.weights["body.0.weight"], mean.detach())


def test_information_passes_through_each_models_own_head(data: list[Tensor]):
    a, b = Net(3, 0), Net(7, 1)
    known = [isthmus.fisher_information(m, data, skip=["head.*"]) for m in (a, b)]
    given = isthmus.merge([a, b], combine="fisher", statistics=known, skip=["head.*"])
    gathered = isthmus.merge([a, b], combine="fisher", data=data, skip=["head.*"])
    for key, value in given.weights.items():
        torch.testing.assert_close(gathered.weights[key], value)
    assert gathered.settings["skip"] == ("head.*",)
    same = isthmus.merge([a, b], combine="reg-mean", data=data, skip=["head.*"])
    assert torch.equal(same.weights["head.bias"], a.head.bias)


def test_information_moves_with_models_that_are_aligned(data: list[Tensor]):
    a = Net(3, 0)
    graph = isthmus.trace(a, data[0])
    moved = isthmus.Element(graph.random_element(1).orders, {}).apply(graph, a.state_dict())
    head = Net(7, 1).head
    b = Net(7, 0)
    b.load_state_dict({**moved, "head.weight": head.weight, "head.bias": head.bias})
    merged = isthmus.merge(
        [a, b], combine="fisher", data=data, skip=["head.*"], align={"method": "activation-matching"}
    )
    for key, value in a.state_dict().items():
        torch.testing.assert_close(merged.weights[key], value, rtol=1e-5, atol=1e-6)


def test_options_reach_the_statistics(data: list[Tensor]):
    models = [Net(3, 0), Net(3, 1)]
    how = {"variant": "sampled", "draws": 2, "seed": 5}
    merged = isthmus.merge(models, combine="fisher", data=data, statistics=how)
    assert merged.settings["statistics.draws"] == 2
    with pytest.raises(InputError, match=r"statistics of fisher have no option 'drawz'[\s\S]*variant"):
        isthmus.merge(models, combine="fisher", data=data, statistics={"drawz": 2})
    with pytest.raises(InputError, match="statistics are gathered from data"):
        isthmus.merge(models, combine="fisher", statistics={"draws": 2})
    with pytest.raises(InputError, match="average takes no statistics"):
        isthmus.merge(models, statistics={"draws": 2})
    with pytest.raises(InputError, match="architecture is needed"):
        isthmus.merge([m.state_dict() for m in models], combine="fisher", data=data)
    with pytest.raises(InputError, match="needs statistics"):
        isthmus.merge(models, combine="fisher")


def test_patterns_must_name_something(data: list[Tensor]):
    models = [Net(3, 0), Net(3, 1)]
    with pytest.raises(InputError, match="no weight is called 'classifier"):
        isthmus.merge(models, skip=["classifier.*"])
    with pytest.raises(InputError, match="nothing is left to merge"):
        isthmus.merge(models, skip=["*"])


def test_a_base_with_another_head_is_no_obstacle():
    base, a, b = Net(2, 9), Net(3, 0), Net(7, 1)
    merged = isthmus.merge([a, b], base=base, combine="task-arithmetic", skip=["head.*"])
    assert torch.equal(merged.weights["head.weight"], a.head.weight)
    key = "body.0.weight"
    expected = a.state_dict()[key] + b.state_dict()[key] - base.state_dict()[key]
    torch.testing.assert_close(merged.weights[key], expected)
