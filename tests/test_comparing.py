"""What a comparison of merges says in a sentence."""

import pytest
import torch
from torch import nn

import isthmus
from isthmus import zoo
from isthmus.comparing import Splits


@pytest.fixture(scope="module")
def strangers() -> list[nn.Module]:
    """Two networks trained on the digits from other inits, for a second."""
    train = zoo.digits().split().loader("train", batch_size=2000)
    found: list[nn.Module] = []
    for seed in (1, 2):
        net = zoo.init(zoo.mlp(d_in=64, widths=[24, 24]), seed)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(40):
            for x, y in train:
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()
        found.append(net.eval())
    return found


@pytest.mark.parametrize("copies", [True, False])
def test_the_verdict_keeps_apart_only_what_a_merge_of_one_size_does_not_reach(
    strangers: list[nn.Module], copies: bool
):
    data = zoo.digits().split()
    held = data.loader("validation", batch_size=500)
    splits = Splits(data.loader("train", batch_size=500), held, held)
    models = [strangers[0], strangers[0 if copies else 1]]
    found = isthmus.compare(
        models, splits, align=["weight-matching"], repairs=[], preserve_first=[2], points=3
    )
    verdict = found.results.verdict
    if copies:
        assert verdict.endswith(
            "on validation is no less than the parents' mean: nothing need be kept apart."
        )
    else:
        assert verdict.endswith("no depth that was tried brings a kept-apart merge to the parents' mean.")
