"""Keeping apart: every model runs its own branch, and the branches meet where the cut says."""

import json
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from isthmus import zoo
from isthmus.errors import InputError
from isthmus.program import Batch, Cut, Program, ProgramModule, export, keep_apart
from isthmus.program.keep import branch_key
from isthmus.testing import TOLERANCE


class Decoder(nn.Module):
    """Tied embeddings, positions looked up, a split, weights that are transposed and scaled before use."""

    def __init__(self):
        super().__init__()
        self.embed, self.places = nn.Embedding(7, 4), nn.Embedding(5, 4)
        self.fused = nn.Linear(4, 12)
        self.out, self.gain = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.places(torch.arange(tokens.shape[1]))
        q, k, v = self.fused(x).split(4, -1)
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True) @ (self.out * self.gain.exp()).t()
        return self.head(F.layer_norm(x, (4,)))


class Returns(nn.Module):
    """Several results, one of which is made early."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        early = torch.tanh(self.a(x))
        return {"early": early, "late": self.b(early.view(x.shape[0], early.shape[1]))}


MAKE: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: zoo.mlp(4, (5, 6, 4), 3),
    "vgg": lambda: zoo.VGG((1, "M", 2, 2), base=2, norm="bn", in_channels=1),
    "resnet": lambda: zoo.resnet(8, base=2, shortcut="pad", in_channels=1),
    "vit": lambda: zoo.vit(8, 4, 4, 2, 2, 2, in_channels=1),
    "decoder": Decoder,
    "returns": Returns,
}


def inputs(kind: str, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    if kind == "decoder":
        return torch.randint(7, (count, 5), generator=generator)
    shape = (count, 4) if kind in ("mlp", "returns") else (count, 1, 8, 8)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@cache
def models(kind: str) -> tuple[nn.Module, ...]:
    """Three models with weights and running statistics of their own, in float64."""
    made = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = MAKE[kind]().double().eval()
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5) if "var" in key else value.normal_(0, 0.7)
        made.append(model)
    return tuple(made)


@cache
def program(kind: str) -> Program:
    return export(models(kind)[0], inputs(kind, 2))


def run(kept: Program, states: list[dict[str, Tensor]], merged: dict[str, Tensor], x: Tensor) -> object:
    """A kept-apart program on the branches' own weights and the merged ones."""
    weights = {**merged, **{branch_key(i, key): t for i, own in enumerate(states) for key, t in own.items()}}
    assert set(kept.weights.values()) <= set(weights)
    return kept.compile()({key: weights[key] for key in kept.weights.values()}, Batch((x,), {}))


def leaves(value: object) -> list[Tensor]:
    return list(value.values()) if isinstance(value, dict) else [value]  # type: ignore[list-item]


@pytest.mark.parametrize("kind", MAKE)
def test_everything_kept_apart_is_the_ensemble(kind: str):
    x, shares = inputs(kind), (0.2, 0.5, 0.3)
    kept, junctions = keep_apart(program(kind), Cut(preserve_first=program(kind).layers), shares)
    nothing = {
        key: torch.full_like(t, torch.nan) if t.is_floating_point() else t
        for key, t in models(kind)[0].state_dict().items()
    }
    got = run(kept, [dict(m.state_dict()) for m in models(kind)], nothing, x)
    with torch.no_grad():
        each = [leaves(model(x)) for model in models(kind)]
        want = [
            outs[0] * shares[0] + outs[1] * shares[1] + outs[2] * shares[2]
            for outs in zip(*each, strict=True)
        ]
    assert all(map(torch.equal, leaves(got), want)), "to the bit"
    assert set(junctions) == set(program(kind).outputs)
    assert not set(kept.weights.values()) & set(program(kind).weights.values()), "nothing is merged"


#: A model kind and numbers, of which `chosen` makes a cut that fits the model.
cuts = st.tuples(
    st.sampled_from(sorted(MAKE)),
    st.tuples(*[st.integers(0, 11)] * 4),
    st.lists(st.integers(0, 11), max_size=2),
    st.sampled_from(["junction", "paper"]),
)


def chosen(drawn: tuple[str, tuple[int, ...], list[int], str]) -> tuple[str, Cut]:
    kind, (first, last, low, high), picks, variant = drawn
    layers = program(kind).layers
    paths = sorted({program(kind).module_of(n).split(".")[0] for n in program(kind).dynamic} - {""})
    low, high = sorted((1 + low % layers, 1 + high % layers))
    return kind, Cut(
        preserve_first=first % (layers + 1),
        preserve_last=last % (layers + 1),
        depths=((low, high),) if first % 2 else (),
        modules=tuple(paths[i % len(paths)] for i in picks),
        variant=variant,  # type: ignore[arg-type]
    )


@settings(max_examples=40)
@given(cuts, st.floats(0.05, 0.95))
def test_copies_of_one_model_kept_apart_anywhere_are_that_model(
    drawn: tuple[str, tuple[int, ...], list[int], str], share: float
):
    kind, cut = chosen(drawn)
    model, x = models(kind)[0], inputs(kind)
    kept, junctions = keep_apart(program(kind), cut, (share, 1 - share))
    state = dict(model.state_dict())
    got = run(kept, [state, state], state, x)
    with torch.no_grad():
        want = model(x)
    for ours, theirs in zip(leaves(got), leaves(want), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[torch.float64], atol=TOLERANCE[torch.float64])
    assert bool(junctions) == bool(cut.apart(program(kind)))


@settings(max_examples=15)
@given(cuts)
def test_what_is_kept_apart_is_read_under_branch_keys_and_the_rest_under_its_own(
    drawn: tuple[str, tuple[int, ...], list[int], str],
):
    kind, cut = chosen(drawn)
    original = program(kind)
    kept, _ = keep_apart(original, cut, (0.5, 0.5))
    state = models(kind)[0].state_dict()
    for key in kept.weights.values():
        head, _, rest = key.partition(".")
        assert kept.shapes[key] == tuple(state[rest if head in ("branch0", "branch1") else key].shape)
        # A weight belongs to all branches or to none.
        if head in ("branch0", "branch1"):
            assert {branch_key(0, rest), branch_key(1, rest)} <= set(kept.weights.values())
    assert kept.inputs == original.inputs and kept.out_spec == original.out_spec
    assert len(set(kept.nodes)) == len(list(kept.graph.nodes))
    kept.graph.lint()


def test_nothing_kept_apart_is_the_merged_program():
    kept, junctions = keep_apart(program("vit"), Cut(), (0.5, 0.5))
    state, x = dict(models("vit")[0].state_dict()), inputs("vit")
    assert junctions == () and set(kept.weights.values()) <= set(state)
    assert torch.equal(run(kept, [], state, x), models("vit")[0](x))  # type: ignore[arg-type]


def test_the_first_layers_are_the_models_own_and_the_rest_the_merged_ones():
    a, b, c = models("mlp")
    x, shares = inputs("mlp"), (0.25, 0.75)
    kept, (junction,) = keep_apart(program("mlp"), Cut(preserve_first=2), shares)
    got = run(kept, [dict(a.state_dict()), dict(b.state_dict())], dict(c.state_dict()), x)

    def head(model: nn.Module) -> Tensor:
        layers = model.layers  # type: ignore[union-attr]
        return F.relu(layers[1](F.relu(layers[0](x))))  # type: ignore[index,operator]

    with torch.no_grad():
        met = head(a) * 0.25 + head(b) * 0.75
        want = c.layers[3](F.relu(c.layers[2](met)))  # type: ignore[union-attr,index,operator]
    assert torch.equal(got, want)  # type: ignore[arg-type]
    assert "relu" in junction
    own = {k.split(".", 1)[1] for k in kept.weights.values() if k.startswith("branch")}
    assert own == {f"layers.{i}.{leaf}" for i in (0, 1) for leaf in ("weight", "bias")}


def test_the_paper_averages_what_the_last_kept_linear_operation_makes():
    a, b, c = models("vgg")
    x = inputs("vgg")
    states = [dict(a.state_dict()), dict(b.state_dict())]
    outputs = {}
    for variant in ("junction", "paper"):
        kept, (outputs[variant],) = keep_apart(
            program("vgg"), Cut(preserve_first=1, variant=variant), (0.5, 0.5)
        )
        got = run(kept, states, dict(c.state_dict()), x)
        with torch.no_grad():
            if variant == "paper":  # convolutions apart; norm, activation and pool merged
                met = sum(0.5 * m.features[0](x) for m in (a, b))  # type: ignore[union-attr,index,operator]
                rest = c.features[1:](met)  # type: ignore[union-attr,index,operator]
            else:
                met = sum(0.5 * m.features[:4](x) for m in (a, b))  # type: ignore[union-attr,index,operator]
                rest = c.features[4:](met)  # type: ignore[union-attr,index,operator]
            want = c.classifier(rest.mean((2, 3)))  # type: ignore[operator]
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert outputs["paper"].startswith("conv2d") and outputs["junction"].startswith("max_pool2d")


def test_the_paper_merges_the_stream_of_the_residual_stage_in_which_it_cuts():
    resnet = program("resnet")
    inside = 2  # the first convolution of the first block
    junction, paper = (
        keep_apart(resnet, Cut(preserve_first=inside, variant=variant), (0.5, 0.5))
        for variant in ("junction", "paper")
    )
    # The skip around the block: at a junction the activation itself, in the paper the stem's convolution.
    assert {name.split("_")[0] for name in junction[1]} == {"relu"}
    assert {name.split("_")[0] for name in paper[1]} == {"conv2d"}


def test_the_last_layers_are_kept_by_partial_zipping():
    a, b, c = models("mlp")
    x = inputs("mlp")
    kept, junctions = keep_apart(program("mlp"), Cut(preserve_last=1), (0.5, 0.5))
    got = run(kept, [dict(a.state_dict()), dict(b.state_dict())], dict(c.state_dict()), x)
    with torch.no_grad():
        y = x
        for i in range(3):
            y = F.relu(c.layers[i](y))  # type: ignore[union-attr,index,operator]
        want = a.layers[3](y) * 0.5 + b.layers[3](y) * 0.5  # type: ignore[union-attr,index,operator]
    assert torch.equal(got, want) and junctions == program("mlp").outputs  # type: ignore[arg-type]


def test_a_range_of_depths_is_kept_in_the_middle():
    kept, _ = keep_apart(program("mlp"), Cut(depths=((2, 3),)), (0.5, 0.5))
    own = {k.split(".")[2] for k in kept.weights.values() if k.startswith("branch")}
    merged = {k.split(".")[1] for k in kept.weights.values() if not k.startswith("branch")}
    assert own == {"1", "2"} and merged == {"0", "3"}


@pytest.mark.parametrize(
    ("globs", "blocks"),
    [(("blocks.0",), {"0"}), (("blocks.*",), {"0", "1"}), (("blocks.1.attn", "blocks.1.fc?"), {"1"})],
)
def test_a_transformer_is_cut_by_the_names_of_its_modules(globs: tuple[str, ...], blocks: set[str]):
    kept, junctions = keep_apart(program("vit"), Cut(modules=globs), (0.5, 0.5))
    own = [k.split(".", 1)[1] for k in kept.weights.values() if k.startswith("branch")]
    assert {k.split(".")[1] for k in own} == blocks
    assert {".".join(k.split(".")[2:-1]) for k in own} >= {"attn.qkv", "fc1"}
    assert junctions
    if globs[0].count(".") == 2:
        assert not [k for k in own if "norm" in k], "only the named modules"


def test_every_problem_of_a_cut_is_said_at_once():
    cut = Cut(
        preserve_first=9, preserve_last=-1, depths=((0, 2), (3, 2), (1, 4)), modules=("layers.9", "layers.0")
    )
    with pytest.raises(InputError) as caught:
        cut.apart(program("mlp"))
    assert caught.value.what == "the cut does not fit the model"
    assert caught.value.where == (
        "preserve_first = 9, the model has 4 layers",
        "preserve_last = -1, the model has 4 layers",
        "depths 0..2, the model has layers 1..4",
        "depths 3..2, the model has layers 1..4",
        "no module of the model matches 'layers.9'",
    )


def test_a_cut_survives_json():
    cut = Cut(2, 1, ((2, 3), (4, 4)), ("blocks.*",), "paper")
    assert Cut.from_json(json.loads(json.dumps(cut.to_json()))) == cut
    assert Cut.from_json({}) == Cut() and not Cut() and cut


def test_a_kept_apart_program_is_a_module_that_exports_and_cuts_again():
    kept, _ = keep_apart(program("resnet"), Cut(preserve_first=3), (0.5, 0.5))
    a, b, c = (dict(m.state_dict()) for m in models("resnet"))
    weights = {**c, **{branch_key(i, k): t for i, own in enumerate((a, b)) for k, t in own.items()}}
    module = ProgramModule(kept, weights)
    assert set(module.state_dict()) == set(kept.weights.values())
    x = inputs("resnet")
    with torch.no_grad():
        want = module(x)
        again = export(module, x)
        assert torch.equal(again.compile()(module.state_dict(), Batch((x,), {})), want)  # type: ignore[arg-type]
    # Buffers stay buffers, under the names of their branches.
    assert {k for k, _ in module.named_buffers()} == {k for k in kept.weights.values() if "running" in k}
    twice, _ = keep_apart(kept, Cut(preserve_last=1), (0.5, 0.5))
    state = module.state_dict()
    got = run(twice, [dict(state), dict(state)], dict(state), x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
