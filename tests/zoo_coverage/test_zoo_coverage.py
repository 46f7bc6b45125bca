"""A sample of `experiments/zoo`: every family of operations in one small model each, verified in float64."""

import sys
import warnings
from pathlib import Path

import pytest
import torch

import isthmus
from isthmus.errors import ExportError

ZOO = Path(__file__).parents[2] / "experiments" / "zoo"

#: Architecture -> the least share of its parameters that must move.
SAMPLE = {
    "own:lstm-bi-proj": 0.99,
    "own:gru-state": 0.99,
    "own:lstm-cell": 0.99,
    "own:unet": 0.999,
    "own:pixel-shuffle": 0.99,
    "own:channel-shuffle": 0.88,  # a shuffle by one number of groups before a convolution with another
    "own:convolutions": 0.99,
    "own:shared": 0.99,
    "own:unfold": 0.99,
    "own:heads": 0.94,  # its input is its residual stream
    "own:splits": 0.98,  # a flip
    "torchvision:shufflenet_v2_x0_5": 0.999,  # channel shuffle
    "timm:test_vit": 0.97,
    "timm:efficientvit_b0": 0.99,  # a block with automatic casts switched off
    "hf:phi3": 0.999,
    "hf:mixtral": 0.999,
    "hf:deepseek-v3": 0.97,
    "hf:t5": 0.999,
    "hf:xlnet": 0.99,
    "hf:beit": 0.99,
}


@pytest.fixture(scope="module", autouse=True)
def zoo_importable():
    sys.path.insert(0, str(ZOO))
    yield
    sys.path.remove(str(ZOO))


@pytest.mark.parametrize("name", SAMPLE)
def test_what_is_read_off_holds_and_covers(name: str):
    import zoo

    pytest.importorskip({"timm": "timm", "hf": "transformers"}.get(name.split(":")[0], "torch"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other libraries say of themselves
        torch.manual_seed(0)
        _, build = next(zoo.candidates(name))
        model, example = build()
        graph = isthmus.trace(model.eval(), example)
        found = graph.verify(model, example, each=False).require()
    assert found.error < 1e-9
    assert not graph.unknown
    assert graph.coverage >= SAMPLE[name]


class Odd(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda v: v * 2, lambda v: v * 3, (x,))


def test_control_flow_is_refused_by_name():
    with pytest.raises(ExportError, match="higher-order operation"):
        isthmus.export(Odd(), torch.randn(2, 3))
