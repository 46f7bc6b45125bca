"""Base and statistics move with the models that they belong to."""

import pytest
import torch
from torch import nn

import isthmus
from isthmus.errors import InputError


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def reordered(weights: dict[str, torch.Tensor], order: torch.Tensor) -> dict[str, torch.Tensor]:
    moved = {k: v.clone() for k, v in weights.items()}
    moved["up.weight"], moved["up.bias"] = weights["up.weight"][order], weights["up.bias"][order]
    moved["down.weight"] = weights["down.weight"][:, order]
    return moved


@pytest.fixture
def family():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = {k: v.detach() for k, v in Small().state_dict().items()}
        models = [{k: v + 0.05 * torch.randn_like(v) for k, v in base.items()} for _ in range(2)]
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    return base, models, order


EXAMPLE = torch.zeros(2, 3)


@pytest.mark.parametrize("reference", [0, 1])
def test_the_base_is_in_the_coordinates_of_the_reference(family, reference: int):
    base, models, order = family
    strangers = list(models)
    strangers[1 - reference] = reordered(models[1 - reference], order)
    found = isthmus.merge(
        strangers,
        base=base,
        combine={"method": "task-arithmetic", "lam": 0.5},
        model=Small,
        example=EXAMPLE,
        align="weight-matching",
        reference=reference,
    )
    expected = isthmus.merge(models, base=base, combine={"method": "task-arithmetic", "lam": 0.5})
    for key, value in expected.weights.items():
        torch.testing.assert_close(found.weights[key], value)


def test_information_moves_with_its_model(family):
    _, models, order = family
    known = [{k: torch.rand_like(v) + 0.1 for k, v in m.items() if "weight" in k} for m in models]
    expected = isthmus.merge(models, combine="fisher", statistics=known)
    strangers = [models[0], reordered(models[1], order)]
    whole = reordered({**models[1], **known[1]}, order)
    moved = [known[0], {k: whole[k] for k in known[1]}]
    found = isthmus.merge(
        strangers, combine="fisher", statistics=moved, model=Small, example=EXAMPLE, align="weight-matching"
    )
    for key, value in expected.weights.items():
        torch.testing.assert_close(found.weights[key], value)


def test_gram_matrices_are_gathered_after_the_models_are_moved(family):
    _, models, _ = family
    grams = [{"up.weight": torch.eye(3)}] * 2
    with pytest.raises(InputError, match="statistics that reg-mean takes cannot be moved"):
        isthmus.merge(
            models,
            combine="reg-mean",
            statistics=grams,
            model=Small,
            example=EXAMPLE,
            align="weight-matching",
        )
