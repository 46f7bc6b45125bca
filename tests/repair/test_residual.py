"""Residual blocks: which layers are on their branches, and what comes out of them."""

import pytest
import torch
from torch import nn

from isthmus.errors import InputError
from isthmus.program import Batch, export
from isthmus.repair import goals, repair, repairable, residual_blocks

MODES = pytest.mark.parametrize("mode", ["joint", "sequential"])


def of(net, values):
    return [net.program.module_of(value) for value in values]


@pytest.mark.parametrize("net", ["resnet", "resnet-ln", "resnet-bn"], indirect=True)
def test_branches_are_the_two_convolutions_of_each_block_without_stem_shortcut_and_head(net):
    blocks = residual_blocks(net.program)
    assert len(blocks) == 3
    inner = repairable(net.program, "branches")
    assert [name.rpartition(".")[2] for name in of(net, inner)] == ["conv1", "conv2"] * 3
    assert [len(block.shortcut) for block in blocks] == ([0, 0, 0] if net.name == "resnet-ln" else [0, 1, 1])
    assert all(block.axis == 1 and block.output.startswith("relu") for block in blocks)


@pytest.mark.parametrize("net", ["vgg", "mlp"], indirect=True)
def test_without_blocks_branches_are_all_layers_and_blocks_none(net):
    assert residual_blocks(net.program) == ()
    assert repairable(net.program, "branches") == repairable(net.program, "blocks") == repairable(net.program)


def test_a_transformer_has_two_blocks_a_layer(get_net):
    net = get_net("vit")
    blocks = residual_blocks(net.program)
    assert len(blocks) == 4
    assert {block.axis for block in blocks} == {2}
    assert len(repairable(net.program, "blocks")) == len(repairable(net.program)) + 4


def test_channels_are_followed_through_permutations():
    class Block(nn.Module):
        """As in ConvNeXt: linear layers with channels last, in a network with channels first."""

        def __init__(self):
            super().__init__()
            self.stem, self.mix, self.head = nn.Conv2d(2, 4, 1), nn.Linear(4, 4), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + self.mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    (block,) = residual_blocks(export(Block(), torch.randn(3, 2, 5, 6)))
    assert (block.axis, block.output) == (1, "add")


def test_gates_and_rotations_are_no_blocks():
    class Rotated(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            q = self.query(x)
            return self.out(q * x.cos() + q.flip(-1) * x.sin())

    assert residual_blocks(export(Rotated(), torch.randn(3, 4))) == ()


@MODES
@pytest.mark.parametrize("net", ["resnet", "resnet-bn", "vit"], indirect=True)
def test_outputs_of_blocks_reach_their_goals_by_parameters_of_their_own(net, mode):
    values = repairable(net.program, "blocks")
    ends = [block.output for block in residual_blocks(net.program)]
    to = goals(net.program, net.weights, [0.5, 0.5], [net.data], values)
    folded = repair(net.program, net.average, [net.data], goals=to, layers="blocks", mode=mode)
    assert {v: why for v, why in folded.skipped.items() if v in ends} == dict.fromkeys(
        ends, "it is the output of a residual block, and an identity skip takes no gain"
    )
    assert not folded.new_parameters
    options = {"layers": "blocks", "mode": mode, "allow_new_parameters": True}
    result = repair(net.program, net.average, [net.data], goals=to, **options)
    assert {f"repair.{v}.{kind}" for v in ends for kind in ("gain", "shift")} <= {*result.new_parameters}
    read = [f"{v}_shifted" for v in ends]
    found = result.program.compile(read)(result.weights, Batch((net.data,), {}))
    for value in ends:
        x = found[f"{value}_shifted"].detach()
        over = [d for d in range(x.ndim) if d != (1 if x.ndim == 4 else 2)]
        # A joint pass normalises by the batch's variance, and leaves in norms the unbiased estimate of it.
        error = 3e-2 if (net.name, mode) == ("resnet-bn", "joint") else 1e-5
        assert torch.allclose(x.mean(over), to[value].mean, rtol=error, atol=error)
        assert torch.allclose(x.std(over, correction=0), to[value].std, rtol=error, atol=error)
    again = export(result.module(), net.data[:2])
    assert {k for k in result.weights if k.startswith("repair.")} <= {*again.weights.values()}


def test_a_block_can_be_named(get_net):
    net = get_net("resnet")
    end = residual_blocks(net.program)[0].output
    assert repairable(net.program, [end, "stem"]) == ("conv2d", end)
    with pytest.raises(InputError, match="1 names match no layer"):
        repairable(net.program, [end, "add_99"])
