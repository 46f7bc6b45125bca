"""The symmetries of known networks: which spaces there are, who carries them, what stays."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus
from isthmus import zoo
from isthmus.symmetry import SymmetryGraph, leaves
from isthmus.testing import TOLERANCE


def read(model: nn.Module, *shape: int) -> SymmetryGraph:
    """The model's symmetries, verified on redrawn weights and on its own."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(2, *shape)
    graph = isthmus.trace(model.eval(), x)
    found = graph.verify(model, x, each=False)
    assert found.error <= TOLERANCE[torch.float64], f"{found}\n{graph}"
    assert found.own_weights is not None and not found.unobservable and not graph.unknown
    return graph


def sizes(graph: SymmetryGraph) -> list[tuple[int, ...]]:
    """The size of every space, after those of what it is within."""
    return sorted((*(graph.spaces[o].size for o in s.within), s.size) for s in graph.spaces.values())


def layout(graph: SymmetryGraph, key: str) -> list[str]:
    return [str(axis) for axis in graph.layout[key]]


def test_an_mlp_has_a_space_for_each_hidden_layer():
    graph = read(zoo.mlp(4, (5, 7), 3), 4)
    assert list(graph.spaces) == ["layers.0", "layers.1"] and sizes(graph) == [(5,), (7,)]
    assert layout(graph, "layers.1.weight") == ["layers.1", "layers.0"]
    roles = {(m.key, m.axis): m.role for m in graph.spaces["layers.0"].members}
    assert roles == {
        ("layers.0.weight", 0): "writes",
        ("layers.0.bias", 0): "writes",
        ("layers.1.weight", 1): "reads",
    }
    assert {(f.key, f.axis, f.reason) for f in graph.fixed} == {
        ("layers.0.weight", 1, "input"),
        ("layers.2.weight", 0, "output"),
        ("layers.2.bias", 0, "output"),
    }


@pytest.mark.parametrize("norm", ["none", "bn", "ln"])
def test_a_vgg_has_a_space_for_each_convolution_and_its_norm(norm: str):
    graph = read(zoo.vgg16(base=1, norm=norm), 3, 32, 32)
    assert len(graph.spaces) == 13 - 2, "of the 13 convolutions two have one channel at this width"
    graph = read(zoo.VGG((1, "M", 2), base=3, norm=norm), 3, 8, 8)
    assert sizes(graph) == [(3,), (6,)]
    if norm == "bn":
        statistics = [m.key for m in graph.spaces["features.0"].members if m.role == "statistic"]
        assert statistics == ["features.1.running_mean", "features.1.running_var"]
        assert "batch_norm" in graph.spaces["features.0"].marks
    assert "relu" in graph.spaces["features.0"].marks


def test_channels_flattened_with_their_pixels_move_in_blocks():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4 * 4, 2))
    graph = read(model, 3, 6, 6)
    assert layout(graph, "3.weight") == ["2", "(0 16)"]


@pytest.mark.parametrize("shortcut", ["conv1x1", "conv3x3"])
def test_a_resnet_has_a_space_for_each_stage_and_one_inside_each_block(shortcut: str):
    graph = read(zoo.resnet20(base=2, norm="bn", shortcut=shortcut), 3, 8, 8)
    assert sizes(graph) == sorted([(2,), (4,), (8,)] + 3 * [(2,), (4,), (8,)])
    stage = {m.key for m in graph.spaces["stem"].members}
    assert {
        "stem.weight",
        "layer1.0.conv2.weight",
        "layer1.2.norm2.running_var",
        "layer2.0.conv1.weight",
    } <= stage
    assert not any("layer1" in key and "conv1" in key and key.endswith("bias") for key in stage)


@pytest.mark.parametrize(("base", "zeros"), [(2, [(2,), (2,)]), (4, [(2,), (2,), (4,), (4,)])])
def test_a_padded_shortcut_makes_the_wider_stage_a_sum(base: int, zeros: list[tuple[int, ...]]):
    graph = read(zoo.resnet20(base=base, norm="bn", shortcut="pad"), 3, 8, 8)
    # The stream of the first stage passes through all three, between channels that begin as zeros (one
    # of which, at the lesser width, is no set to be moved).
    blocks = 3 * [(base,), (2 * base,), (4 * base,)]
    assert sizes(graph) == sorted([(base,), *zeros, *blocks])
    assert layout(graph, "stem.weight")[0] == "stem"
    assert layout(graph, "layer2.0.conv2.weight")[0].split(" + ")[1] == "stem"
    assert layout(graph, "layer3.0.conv2.weight")[0].split(" + ")[2] == "stem"


class Dense(nn.Module):
    """Every layer reads all before it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 3 * i) for i in range(3))
        self.grow = nn.ModuleList(nn.Conv2d(4 + 3 * i, 3, 3, padding=1) for i in range(3))
        self.head = nn.Linear(13, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, grow in zip(self.norms, self.grow, strict=True):
            x = torch.cat([x, grow(F.relu(norm(x)))], 1)
        return self.head(x.mean((2, 3)))


def test_what_is_concatenated_moves_apart():
    graph = read(Dense(), 3, 6, 6)
    assert list(graph.spaces) == ["stem", "grow.0", "grow.1", "grow.2"]
    assert layout(graph, "norms.2.weight") == ["stem + grow.0 + grow.1"]
    assert layout(graph, "norms.2.running_mean") == ["stem + grow.0 + grow.1"]
    assert layout(graph, "head.weight")[1] == "stem + grow.0 + grow.1 + grow.2"


def test_a_depthwise_filter_moves_with_its_channel():
    graph = read(zoo.mobilenet((4, 6), (1, 2)), 3, 8, 8)
    assert list(graph.spaces) == ["stem", "blocks.0.pw", "blocks.1.pw"]
    assert layout(graph, "blocks.1.dw.weight") == ["blocks.0.pw", "1", "3", "3"]


def test_several_filters_per_channel_move_inside_it():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 12, 3, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 2)
    )
    graph = read(model, 3, 6, 6)
    assert sizes(graph) == [(4,), (4, 3)]
    assert layout(graph, "1.weight")[0] == "(0 1/1)" and layout(graph, "4.weight")[1] == "(0 1/1 16)"


class Grouped(nn.Module):
    """A ResNeXt block: narrow, grouped, wide, beside a skip."""

    def __init__(self, groups: int):
        super().__init__()
        self.stem, self.narrow = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 12, 1)
        self.grouped, self.norm = nn.Conv2d(12, 8, 3, padding=1, groups=groups), nn.BatchNorm2d(8)
        self.wide, self.head = nn.Conv2d(8, 5, 1), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.norm(self.grouped(F.relu(self.narrow(x)))))
        return self.head((x + self.wide(y)).mean((2, 3)))


def test_groups_move_as_blocks_and_inside_each_its_channels():
    graph = read(Grouped(4), 3, 6, 6)
    assert sizes(graph) == [(4,), (4, 2), (4, 3), (5,)]
    groups = next(n for n, s in graph.spaces.items() if s.size == 4)
    into = next(s for s in graph.spaces.values() if s.size == 3)
    out = next(s for s in graph.spaces.values() if s.size == 2)
    assert layout(graph, "narrow.weight")[0] == f"({groups} {into.name})"
    # A filter's own input axis holds what is within its group only: the group is on axis 0.
    assert layout(graph, "grouped.weight")[:2] == [f"({groups} {out.name})", into.name]
    assert layout(graph, "norm.running_var") == [f"({groups} {out.name})"]
    assert layout(graph, "wide.weight")[1] == f"({groups} {out.name})"


def test_group_norm_keeps_groups_together():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 2)
    )
    graph = read(model, 3, 4, 4)
    assert sizes(graph) == [(2,), (2, 3)]
    assert layout(graph, "1.weight") == layout(graph, "0.bias")


class ConvNeXt(nn.Module):
    """Depthwise, channels last, norm, wide and back, layer scale, skip."""

    def __init__(self):
        super().__init__()
        self.stem, self.dw = nn.Conv2d(3, 6, 2, stride=2), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 10), nn.Linear(10, 6)
        self.gamma, self.head = nn.Parameter(1e-6 * torch.ones(6)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(F.gelu(self.up(self.norm(self.dw(x).permute(0, 2, 3, 1)))))
        return self.head((x + (self.gamma * y).permute(0, 3, 1, 2)).mean((2, 3)))


def test_a_layer_scale_that_hides_a_block_does_not_hide_it_from_the_check():
    graph = read(ConvNeXt(), 3, 8, 8)
    assert sizes(graph) == [(6,), (10,)]
    assert layout(graph, "gamma") == ["stem"] and graph.spaces["up"].marks == {"gelu"}
    # A wrong block changes the model's own outputs by less than a float32 check would see.
    assert graph.coverage > 0.99 or graph.coverage == pytest.approx(1 - 2 / _parameters(graph))


def _parameters(graph: SymmetryGraph) -> int:
    return sum(torch.Size(s).numel() for k, s in graph.program.shapes.items() if k in graph.layout)


def test_a_gate_per_channel_moves_with_the_channels():
    class Excite(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.down, self.up = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), nn.Conv2d(4, 6, 1)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            gate = self.up(F.relu(self.down(x.mean((2, 3))))[..., None, None])
            return self.head((x * torch.sigmoid(gate)).mean((2, 3)))

    graph = read(Excite(), 3, 6, 6)
    assert list(graph.spaces) == ["conv", "down"] and layout(graph, "up.weight")[:2] == ["conv", "down"]
    assert "gate" in graph.spaces["conv"].marks


def test_a_vision_transformer_has_a_stream_heads_and_a_space_per_block():
    graph = read(zoo.vit(8, 4, 6, 2, 2, 3), 3, 8, 8)
    block = [(2,), (2, 3), (2, 3), (18,)]
    assert sizes(graph) == sorted([(6,), *block, *block])
    assert layout(graph, "cls") == ["1", "1", "patches"] and layout(graph, "positions") == [
        "1",
        "5",
        "patches",
    ]


def test_halves_that_gate_each_other_share_one_order():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(3, 12), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.up(x).chunk(2, -1)
            return self.down(F.silu(a) * b)

    graph = read(Gated(), 3)
    assert sizes(graph) == [(6,)] and layout(graph, "up.weight")[0] == "up + up"


def test_a_tied_weight_carries_both_of_its_uses():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.body, self.head = (
                nn.Embedding(7, 5),
                nn.Linear(5, 5),
                nn.Linear(5, 7, bias=False),
            )
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            return self.head(x + torch.tanh(self.body(x)))

    torch.manual_seed(0)
    model, tokens = Tied().eval(), torch.randint(7, (2, 4))
    graph = isthmus.trace(model, tokens)
    assert graph.verify(model, tokens).error <= TOLERANCE[torch.float64]
    (name,), (alias,) = graph.spaces, graph.program.tied
    assert {alias, graph.program.tied[alias]} == {"embed.weight", "head.weight"}
    assert layout(graph, graph.program.tied[alias]) == ["7", name] and layout(graph, "body.weight") == [
        name,
        name,
    ]


def test_a_module_called_twice_has_one_space_for_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.body, self.head = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.into(x))
            return self.head(F.relu(self.body(F.relu(self.body(x)))))

    graph = read(Twice(), 3)
    assert sizes(graph) == [(5,)] and layout(graph, "body.weight") == ["into", "into"]


def test_an_input_that_is_the_stream_fixes_it():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down, self.head = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.down(F.relu(self.up(x))))

    graph = read(Residual(), 4)
    assert list(graph.spaces) == ["up"]
    assert ("down.weight", 0, "input") in {(f.key, f.axis, f.reason) for f in graph.fixed}


def test_recurrent_weights_of_ones_own_carry_a_space_on_both_axes():
    class Elman(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.again, self.head = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(x.shape[0], 5)
            for step in range(3):
                state = torch.tanh(self.into(x[:, step]) + self.again(state))
            return self.head(state)

    graph = read(Elman(), 3, 3)
    assert sizes(graph) == [(5,)] and layout(graph, "again.weight") == ["into", "into"]
    assert graph.spaces["into"].marks == {"tanh"}


ROTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": lambda x: x.flip(-1),
    "roll": lambda x: x.roll(1, -1),
    "cumsum": lambda x: x.cumsum(-1),
    "index": lambda x: x[..., torch.tensor([4, 3, 2, 1, 0])],
    "sort": lambda x: x.sort(-1).values,
    "ramp": lambda x: x * torch.arange(5.0),
}


@pytest.mark.parametrize("name", ROTATIONS)
def test_where_order_matters_nothing_moves(name: str):
    class Ordered(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.out, self.head = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.out(ROTATIONS[name](self.into(x)))))

    graph = read(Ordered(), 3)
    # Sorting forgets the order of its input: only what comes out of it has names.
    assert list(graph.spaces) in ([["out"], ["into", "out"]] if name == "sort" else [["out"]])


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: zoo.vgg16(base=16, norm="bn"), (3, 32, 32)),
        (lambda: zoo.resnet20(base=8), (3, 8, 8)),
        (lambda: zoo.resnet20(base=8, shortcut="pad"), (3, 8, 8)),
        (lambda: zoo.mobilenet((16, 32, 32, 64)[:4], (1, 2, 1, 2)), (3, 8, 8)),
        (Dense, (3, 6, 6)),
    ],
    ids=["vgg16", "resnet20", "resnet20 pad", "mobilenet", "dense"],
)
def test_nearly_all_parameters_of_convolutional_networks_move(
    model: Callable[[], nn.Module], shape: tuple[int, ...]
):
    net = model()
    graph = isthmus.trace(net.eval(), torch.randn(2, *shape))
    assert graph.coverage >= (0.9 if isinstance(net, Dense) else 0.99)


def test_a_graph_prints_its_spaces_their_members_and_what_is_fixed():
    text = str(read(zoo.vit(8, 4, 6, 1, 2, 3), 3, 8, 8))
    first, *rest = text.splitlines()
    assert first.startswith("5 spaces, ") and first.endswith("% of the parameters move")
    assert "  patches" in rest[0] and "permutation" in rest[0]
    assert any("within blocks.0.attn.qkv/0" in line for line in rest)
    assert any(
        line.strip().startswith("writes: blocks.0.fc1.weight[0], blocks.0.fc1.bias[0]") for line in rest
    )
    assert any(line.strip() == "reads: blocks.0.fc2.weight[1]" for line in rest)


def test_only_a_program_may_be_traced_without_an_example():
    with pytest.raises(TypeError, match="needs an example input"):
        isthmus.trace(nn.Linear(2, 2))
    program = isthmus.export(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3))
    assert list(isthmus.trace(program).spaces) == ["0"]


class ShuffledHalves(nn.Module):
    """As ShuffleNet: a half passes by, the other is worked on, both are shuffled and cut in half again."""

    def __init__(self):
        super().__init__()
        self.stem, self.work = nn.Conv2d(3, 16, 1), nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(2))
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv in self.work:
            left, right = x.chunk(2, 1)
            x = torch.cat([left, F.relu(conv(right))], 1)
            x = x.unflatten(1, (2, 8)).transpose(1, 2).flatten(1, 2)
        return self.head(x)


def test_a_channel_shuffle_leaves_every_half_its_own_order():
    graph = read(ShuffledHalves(), 3, 4, 4)
    # Each shuffle and cut halves what passes by and what is worked on; nothing is fixed, nothing shared.
    assert sum(size for (size,) in sizes(graph)) == 32
    assert graph.coverage == pytest.approx(1 - 2 / parameters(graph))
    assert "&" in layout(graph, "head.weight")[1]


def test_a_shuffle_of_groups_is_read_by_groups_of_another_size():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 6, 1, groups=3)
            self.third, self.head = nn.Conv2d(6, 6, 1, groups=2), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.channel_shuffle(F.relu(self.first(x)), 4)
            return self.head(F.relu(self.third(F.relu(self.second(x)))))

    graph = read(Net(), 3, 4, 4)
    assert graph.coverage > 0.9


def test_what_is_stacked_keeps_an_order_for_each_operand():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(3, 5), nn.Linear(3, 5)
            self.first, self.second = nn.Linear(5, 2), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            both = torch.relu(torch.stack([self.left(x), self.right(x)]))
            return self.first(both[0]) + self.second(both[1])

    assert sizes(read(Net(), 3)) == [(5,), (5,)]


def test_what_is_stacked_and_summed_has_one_order():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Linear(3, 5), nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.stack([self.left(x), self.right(x)], 1).amax(1))

    assert sizes(read(Net(), 3)) == [(5,)]


def test_a_group_norm_over_a_concatenation_cuts_groups_where_it_must_and_nothing_freezes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(18, 2, 1)
            self.own, self.both = nn.GroupNorm(3, 12), nn.GroupNorm(3, 18)

        def forward(self, x: Tensor) -> Tensor:
            # Groups of four in `a`, groups of six in both: a group of six ends inside a group of four.
            return self.head(self.both(torch.cat([self.own(self.a(x)), self.b(x)], 1)))

    graph = read(Net(), 3, 4, 4)
    assert sorted(leaf.size for leaf in leaves(graph.layout["a.weight"][0]) if leaf.space) == [2, 2, 4, 4]
    assert graph.coverage == pytest.approx(1 - 2 / parameters(graph))


def parameters(graph: SymmetryGraph) -> int:
    return sum(torch.Size(graph.program.shapes[key]).numel() for key in graph.layout)
