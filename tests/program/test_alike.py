"""Modules of equal shapes that are not one program."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isthmus
from isthmus.errors import MismatchError, WeightsError
from isthmus.program import check_alike


class Attention(nn.Module):
    def __init__(self, heads: int):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(12, 36), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Bent(nn.Module):
    """Two layers, a bend between them, and noise in training; tied if asked."""

    def __init__(self, bend: Callable[[Tensor], Tensor], *, tied: bool = False):
        super().__init__()
        self.first, self.last, self.bend = nn.Linear(6, 6), nn.Linear(6, 6), bend
        if tied:
            self.last.weight = self.first.weight
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(self.bend(self.first(x))))


class Noisy(nn.Module):
    """Draws random numbers in eval mode too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + torch.randn_like(x))


def bent(*bends: Callable[[Tensor], Tensor], tied: bool = False) -> list[nn.Module]:
    return [Bent(bend, tied=tied) for bend in bends]


CALLS: dict[str, Callable[[list[nn.Module], Tensor], object]] = {
    "merge": lambda modules, x: isthmus.merge(modules, align="weight-matching", example=x),
    "plain merge": lambda modules, x: isthmus.merge(modules, data=[x]),
    "align": lambda modules, x: isthmus.align(modules, data=[x]),
}


@pytest.mark.parametrize("call", CALLS)
def test_other_heads_and_other_activations_are_refused(call: str):
    attentions = [Attention(heads) for heads in (3, 2, 3, 4)]
    cases = [
        (attentions, torch.randn(8, 5, 12), [1, 3]),
        (bent(torch.relu, torch.sin), torch.randn(8, 6), [1]),
    ]
    for modules, x, others in cases:
        with pytest.raises(MismatchError, match="not one program") as caught:
            CALLS[call](list(modules), x)
        assert [line.split()[0] for line in caught.value.where] == [f"models[{i}]" for i in others]


def test_a_base_of_another_program_is_named():
    modules = bent(torch.relu, torch.relu, torch.tanh)
    with pytest.raises(MismatchError, match="not one program") as caught:
        isthmus.merge(modules[:2], base=modules[2], method="task-arithmetic", data=[torch.randn(8, 6)])
    assert caught.value.where[0].startswith("the base ")


def test_a_module_that_refuses_the_example_and_one_that_returns_more_are_told():
    def refuses(x: Tensor) -> Tensor:
        raise ValueError("no")

    def twice(x: Tensor) -> Tensor:
        return torch.cat([x, x])

    modules = bent(torch.relu, refuses, twice)
    with pytest.raises(MismatchError) as caught:
        check_alike(modules[0], {"a": modules[1], "b": modules[2]}, torch.randn(2, 6))
    assert caught.value.where == (
        "a    does not take the example: no",
        "b    returns (4, 6), and with its weights the architecture (2, 6)",
    )


@pytest.mark.parametrize("tied", [False, True])
def test_one_program_passes_in_training_tied_noisy_or_in_another_dtype(tied: bool):
    example = torch.randn(4, 6)
    modules = bent(torch.relu, torch.relu, tied=tied)
    modules.append(copy.deepcopy(modules[1]).bfloat16())
    before = [copy.deepcopy(m.state_dict()) for m in modules]
    noisy = Noisy(), Noisy()
    state = torch.get_rng_state()
    check_alike(modules[0], {str(i): m for i, m in enumerate(modules)}, example)
    check_alike(noisy[0], {"other": noisy[1]}, example)
    assert torch.equal(state, torch.get_rng_state())
    assert all(m.training and m.dropout.training for m in modules)  # type: ignore[union-attr]
    for m, was in zip(modules, before, strict=True):
        assert all(torch.equal(t, was[k]) for k, t in m.state_dict().items())


def test_an_example_that_nobody_takes_is_left_to_who_reads_it():
    modules = bent(torch.relu, torch.sin)
    check_alike(modules[0], {"b": modules[1]}, torch.randn(2, 7))


def test_weights_that_are_not_there_are_said_to_be_on_the_meta_device():
    net = Bent(torch.relu)
    for models in ([copy.deepcopy(net).to("meta"), net], [net, copy.deepcopy(net).to("meta")]):
        with pytest.raises(WeightsError, match="on the meta device"):
            isthmus.merge(models, align="weight-matching", example=torch.randn(2, 6))
    with pytest.raises(WeightsError, match="on the meta device"):
        isthmus.prune(net.to("meta"), "magnitude", sparsity=0.5, example=torch.randn(2, 6))
