import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.export import Dim, export

import isthmus
from isthmus import zoo
from isthmus.errors import InputError
from isthmus.zoo.nets.llama import turned

CHECKPOINTS = Path(__file__).parents[3] / "shared" / "checkpoints"
needs_checkpoints = pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="../shared/checkpoints is not here")

SMALL = [
    ("vgg11", {"base": 4}, (3, 32, 32)),
    ("vgg16", {"base": 4, "norm": "bn"}, (3, 32, 32)),
    ("vgg16", {"base": 4, "norm": "ln", "in_channels": 1, "num_classes": 7}, (1, 32, 32)),
    ("vgg", {"plan": (1, "M", 1.5), "base": 4}, (3, 8, 8)),
    ("demo_vgg", {"base": 4}, (1, 8, 8)),
    ("resnet20", {"base": 4}, (3, 32, 32)),
    ("resnet", {"depth": 8, "base": 4, "norm": "ln", "shortcut": "conv3x3"}, (3, 32, 32)),
    ("resnet", {"depth": 14, "base": 4, "norm": "none", "shortcut": "pad"}, (3, 16, 16)),
    ("mobilenet", {"widths": (4, 8), "strides": (1, 2)}, (3, 16, 16)),
    ("mlp", {"d_in": 64, "widths": (8, 8)}, (1, 8, 8)),
    ("mlp", {"d_in": 64, "widths": (), "act": "none"}, (64,)),
    ("mlp", {"d_in": 64, "widths": (8,), "act": "gelu"}, (1, 8, 8)),
    ("linear_network", {"d_in": 64, "depth": 4, "width": 8}, (1, 8, 8)),
    ("linear_network", {"d_in": 64, "depth": 4, "width": 8, "residual": True}, (1, 8, 8)),
    ("vit", {"image": 8, "patch": 4, "dim": 12, "depth": 2}, (3, 8, 8)),
    ("vit", {"image": 8, "patch": 2, "dim": 12, "depth": 1, "pool": "mean", "num_classes": 3}, (3, 8, 8)),
]


@pytest.mark.parametrize(("name", "params", "shape"), SMALL, ids=[f"{n}-{p}" for n, p, _ in SMALL])
def test_forward_and_gradients(name, params, shape):
    model = zoo.build(name, **params)
    logits = model(torch.randn(3, *shape))
    assert logits.shape == (3, params.get("num_classes", 10))
    logits.logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["demo_vgg", "resnet20", "mobilenet", "mlp", "linear_network", "vit"])
def test_exports_with_any_batch_size(name):
    params, shape = next((p, s) for n, p, s in SMALL if n == name)
    model = zoo.build(name, **params).eval()
    program = export(model, (torch.randn(5, *shape),), dynamic_shapes=({0: Dim.AUTO},)).module()
    x = torch.randn(2, *shape)
    torch.testing.assert_close(program(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "params", "layers", "parameters"),
    [
        # Published sizes: VGG16 of the vanishing-feature tables 14.72M, ResNet20 0.27M (He et al. table 6).
        ("vgg16", {}, 14, 14_719_818),
        ("vgg11", {}, 9, 9_225_610),
        ("resnet20", {"shortcut": "pad"}, 20, 269_722),
        ("resnet", {"depth": 56, "shortcut": "pad"}, 56, 853_018),
    ],
)
def test_published_sizes(name, params, layers, parameters):
    with torch.device("meta"):
        model = zoo.build(name, **params)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in model.modules()) == layers


def test_a_bias_wherever_no_batch_norm_cancels_it():
    for norm, biased in (("none", True), ("ln", True), ("bn", False)):
        for model in (zoo.vgg11(base=4, norm=norm), zoo.resnet20(base=4, norm=norm)):
            convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
            assert all((m.bias is not None) == biased for m in convs)


def test_pad_shortcut_keeps_the_channels_in_the_middle():
    model = zoo.resnet20(base=4, shortcut="pad")
    x = torch.randn(2, 4, 8, 8)
    y = model.layer2[0].shortcut(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()


def test_layer_norm_is_over_channels_at_each_position():
    norm = zoo.resnet20(base=4, norm="ln").stem_norm
    y = norm(3 + 5 * torch.randn(2, 4, 6, 6))
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 6, 6), rtol=0, atol=1e-5)


def test_linear_network_is_linear():
    for residual in (False, True):
        model = zoo.linear_network(depth=5, width=6, d_in=4, residual=residual).double()
        x, y = torch.randn(2, 3, 4, dtype=torch.float64)
        zero = model(torch.zeros(3, 4, dtype=torch.float64))
        torch.testing.assert_close(model(x + y), model(x) + model(y) - zero)
    plain = zoo.mlp(d_in=4, widths=(6,) * 4, act="none")
    assert plain.state_dict().keys() == model.state_dict().keys()


def test_attention_is_softmax_of_queries_and_keys():
    block = zoo.vit(image=8, dim=12, heads=3, depth=1).blocks[0].attn
    x = torch.randn(2, 5, 12)
    q, k, v = (part.reshape(2, 5, 3, 4).transpose(1, 2) for part in block.qkv(x).split(12, dim=-1))
    mixed = (q @ k.mT / 2).softmax(-1) @ v
    torch.testing.assert_close(block(x), block.proj(mixed.transpose(1, 2).reshape(2, 5, 12)))


DECODERS = [
    ("gpt", {}),
    ("gpt", {"act": "relu", "heads": 3}),
    ("llama", {}),
    ("llama", {"positions": "learned", "heads": 3, "hidden": 20}),
]
TINY = {"vocabulary": 11, "context": 8, "dim": 12, "depth": 2, "heads": 2}


@pytest.mark.parametrize(("name", "params"), DECODERS, ids=[f"{n}-{p}" for n, p in DECODERS])
def test_decoders_answer_every_place_from_what_came_before(name, params):
    model = zoo.build(name, **(TINY | params)).eval()
    tokens = torch.randint(0, 11, (3, 8))
    logits = model(tokens)
    assert logits.shape == (3, 8, 11)
    logits.logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    changed = torch.cat([tokens[:, :5], (tokens[:, 5:] + 1) % 11], 1)
    torch.testing.assert_close(model(changed)[:, :5], logits[:, :5])
    assert not torch.allclose(model(changed)[:, 5:], logits[:, 5:])
    torch.testing.assert_close(model(tokens[:, :5]), logits[:, :5])


@pytest.mark.parametrize(("name", "params"), DECODERS, ids=[f"{n}-{p}" for n, p in DECODERS])
def test_decoders_export_with_any_batch_size_and_all_their_parameters_move(name, params):
    model = zoo.build(name, **(TINY | params)).eval()
    example = torch.randint(0, 11, (4, 8))
    program = export(model, (example,), dynamic_shapes=({0: Dim.AUTO},)).module()
    tokens = torch.randint(0, 11, (2, 8))
    torch.testing.assert_close(program(tokens), model(tokens), rtol=0, atol=0)
    graph, found = isthmus.verified(model, example)
    assert found.ok and not found.frozen
    assert graph.coverage > 0.99  # all but the bias of the head


@pytest.mark.parametrize(("name", "params"), DECODERS, ids=[f"{n}-{p}" for n, p in DECODERS])
def test_decoders_are_drawn_by_the_seed(name, params):
    model = zoo.build(name, **(TINY | params))
    first, again, other = (zoo.init(model, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["tokens.weight"], other["tokens.weight"])
    assert zoo.init(zoo.build(name), 0).tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_rotary_attention_knows_distances_only():
    model = zoo.llama(**TINY)
    q, k = torch.randn(2, 1, 1, 2, 6)
    # The same two vectors at places 2 and 0, and at 5 and 3.
    here, there = (torch.zeros(2, 1, 1, 8, 6) for _ in range(2))
    for rows, shift in ((here, 0), (there, 3)):
        rows[0, :, :, 2 + shift], rows[1, :, :, shift] = q[:, :, 0], k[:, :, 1]
    scores = [
        (turned(rows[0]) @ turned(rows[1]).mT)[0, 0, 2 + shift, shift]
        for rows, shift in ((here, 0), (there, 3))
    ]
    torch.testing.assert_close(scores[0], scores[1])
    assert model.positions is None


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("vgg61", {}, "unknown architecture 'vgg61'\n\nhint: did you mean 'vgg1"),
        ("vgg16", {"bass": 16, "depth": 3}, "vgg16 has no such parameters\n  bass\n  depth"),
        ("vgg16", {"norm": "gn"}, "unknown normalisation 'gn'"),
        ("vgg16", {"base": "wide"}, r"vgg16\(base='wide'\) cannot be built"),
        ("vgg", {"plan": "vgg13"}, "unknown VGG plan 'vgg13'"),
        ("vgg", {"plan": (1, "P", -1)}, "positive channel multipliers and 'M'\n  'P'\n  -1"),
        ("vgg", {"plan": ("M",)}, "there is no convolution in it"),
        ("resnet", {"depth": 18}, "6n \\+ 2 layers, not 18"),
        ("resnet", {"shortcut": "none"}, "unknown shortcut 'none'"),
        ("mlp", {"act": "rely"}, "unknown activation 'rely'"),
        ("linear_network", {"depth": 1}, "at least 2 layers"),
        ("mobilenet", {"widths": (8, 8), "strides": (1,)}, "2 widths, 1 strides"),
        ("vit", {"patch": 5, "dim": 10, "pool": "max"}, "patch=5.*\n.*heads=3.*\n.*pool='max'"),
        ("gpt", {"dim": 10, "act": "swish"}, "heads=4.*\n.*act='swish' is none of relu"),
        ("llama", {"dim": 10, "positions": "alibi"}, "positions='alibi'.*\n.*heads=4 does not divide"),
        ("llama", {"dim": 12}, "heads of 3 features have no planes to turn"),
    ],
)
def test_what_cannot_be_built_is_said(name, params, words):
    with pytest.raises(InputError, match=words):
        zoo.build(name, **params)


def test_every_architecture_builds_and_is_exported():
    for name, factory in zoo.ARCHITECTURES.items():
        assert getattr(zoo, name) is factory
    with torch.device("meta"):
        for name in zoo.ARCHITECTURES:
            zoo.build(name)
    assert all(hasattr(zoo, name) for name in zoo.__all__)


def entries():
    if not CHECKPOINTS.is_dir():
        return []
    return json.loads((CHECKPOINTS / "manifest.json").read_text())["entries"]


@needs_checkpoints
@pytest.mark.parametrize("entry", entries(), ids=lambda e: e["name"])
def test_reference_checkpoints_load(entry):
    model = zoo.build(entry["arch"], **entry["params"])
    found = load_file(CHECKPOINTS / entry["file"])
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in found.items()})
    assert sum(p.numel() for p in model.parameters()) == entry["parameters"]


@needs_checkpoints
@pytest.mark.parametrize(
    ("arch", "params"),
    [
        ("vgg", {"base": 4}),
        ("vgg", {"base": 4, "norm": "bn", "plan": "vgg11"}),
        ("vgg", {"base": 4, "norm": "ln"}),
        ("resnet", {"base": 4}),
        ("resnet", {"base": 4, "norm": "ln", "depth": 14}),
        ("mobilenet", {}),
        ("mlp", {}),
        ("mlp", {"act": "none"}),
    ],
)
def test_same_keys_and_function_as_the_reference(arch, params, monkeypatch):
    spec = importlib.util.spec_from_file_location("reference_models", CHECKPOINTS / "models.py")
    reference = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec.loader.exec_module(reference)
    theirs, ours = reference.build(arch, **params).eval(), zoo.build(arch, **params).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 1, 28, 28) if arch == "mlp" else torch.randn(2, 3, 32, 32)
    assert torch.equal(theirs(x), ours(x))
