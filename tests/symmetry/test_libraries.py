"""Definitions by others: torchvision with random weights and statistics, decoders of transformers."""

import time
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import isthmus
from isthmus.symmetry import SymmetryGraph
from isthmus.testing import TOLERANCE


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What other libraries warn of is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def sizes(graph: SymmetryGraph) -> list[tuple[int, ...]]:
    """The size of every space, after those of what it is within."""
    return sorted((*(graph.spaces[o].size for o in s.within), s.size) for s in graph.spaces.values())


def torchvision(name: str, **options: object) -> nn.Module:
    """A model of torchvision with random weights and random statistics of its norms."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    with torch.device("meta" if name == "vgg16" else "cpu"):
        model = getattr(models, name)(**options)
    if name == "vgg16":  # its 120 million parameters behind the convolutions, made few
        layers = dict(model.classifier.named_children())
        layers |= {"0": nn.Linear(512 * 7 * 7, 16), "3": nn.Linear(16, 12), "6": nn.Linear(12, 10)}
        model.classifier = nn.Sequential(*layers.values())
        model.features.to_empty(device="cpu")
        for parameter in model.features.parameters():
            nn.init.normal_(parameter, std=0.05)
    for key, value in model.state_dict().items():
        if "running_mean" in key:
            value.normal_()
        elif "running_var" in key:
            value.uniform_(0.5, 2)
        elif value.ndim == 1 and "num_batches" not in key:
            value.uniform_(0.5, 1.5)
    return model.eval()


#: name -> (options, side of the image, number of spaces, least coverage). Depths and widths are cut where
#: the constructors let us.
TORCHVISION: dict[str, tuple[dict[str, object], int, int, float]] = {
    "resnet18": ({}, 32, 12, 0.999),
    "resnet50": ({}, 32, 37, 0.999),
    "resnext50_32x4d": ({}, 32, 53, 0.999),
    "DenseNet": (
        {"block_config": (2, 2), "num_init_features": 16, "growth_rate": 8, "num_classes": 5},
        32,
        10,
        0.99,
    ),
    "mobilenet_v2": ({"width_mult": 0.25}, 32, 24, 0.99),
    "convnext_tiny": ({}, 32, 22, 0.999),
    "vgg16": ({"init_weights": False}, 32, 15, 0.999),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_convolutional_networks(name: str):
    options, side, count, coverage = TORCHVISION[name]
    model = torchvision(name, **options)
    x = torch.randn(2, 3, side, side)
    graph = isthmus.trace(model, x)
    assert len(graph.spaces) == count and graph.coverage >= coverage and not graph.unknown
    found = graph.verify(model, x, each=False)
    assert found.error <= TOLERANCE[torch.float64] and found.own_weights is not None, found
    assert not found.unobservable


def test_torchvisions_vision_transformer():
    transformer = pytest.importorskip("torchvision.models.vision_transformer")
    torch.manual_seed(0)
    model = transformer.VisionTransformer(
        32, 16, num_layers=2, num_heads=3, hidden_dim=12, mlp_dim=20, num_classes=5
    )
    nn.init.normal_(model.heads.head.weight)
    x = torch.randn(2, 3, 32, 32)
    graph = isthmus.trace(model.eval(), x)
    block = [(3,), (3, 4), (3, 4), (20,)]
    assert sizes(graph) == sorted([(12,), *block, *block]) and not graph.unknown
    assert graph.verify(model, x).error <= TOLERANCE[torch.float64]


TINY = {
    "vocab_size": 31,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def decoder(kind: str, **options: object) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**TINY, **options})
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
def test_a_llama_style_decoder(tied: bool):
    model = decoder("Llama", tie_word_embeddings=tied)
    tokens = {"input_ids": torch.randint(3, 31, (2, 5))}
    graph = isthmus.trace(model, tokens)
    found = graph.verify(model, tokens)
    assert found.error <= TOLERANCE[torch.float64] and not found.unobservable and not graph.unknown, found
    # The stream; in each layer key heads, in each its queries and an order of values (rotary tables fix
    # that of queries and keys); the gated units.
    layer = [(2,), (2, 3), (2, 4), (20,)]
    assert sizes(graph) == sorted([(12,), *layer, *layer])
    assert bool(graph.program.tied) == tied
    (stream,) = (n for n, s in graph.spaces.items() if s.size == 12)
    for key in ("model.layers.1.input_layernorm.weight", "model.norm.weight"):
        assert str(graph.layout[key][0]) == stream
    gate, up = (graph.layout[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up"))
    assert gate == up and str(gate[1]) == stream


def test_a_norm_of_queries_and_keys_is_shared_by_the_heads():
    model = decoder("Qwen3")
    tokens = {"input_ids": torch.randint(3, 31, (2, 5))}
    graph = isthmus.trace(model, tokens)
    assert graph.verify(model, tokens).error <= TOLERANCE[torch.float64]
    layer = [(2,), (2, 3), (2, 4), (20,)]
    assert sizes(graph) == sorted([(12,), *layer, *layer])


def test_queries_keys_and_values_chained_inside_each_head():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=31, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
        rotary_pct=0.5, max_position_embeddings=32, use_cache=False,
    )  # fmt: skip
    model = transformers.GPTNeoXForCausalLM(config).eval()
    tokens = {"input_ids": torch.randint(3, 31, (2, 5))}
    graph = isthmus.trace(model, tokens)
    assert graph.verify(model, tokens).error <= TOLERANCE[torch.float64]
    # Half of each head is rotated and so has names; the other half of queries and keys moves.
    layer = [(3,), (3, 2), (3, 4), (20,)]
    assert sizes(graph) == sorted([(12,), *layer, *layer])


def test_a_decoder_of_seven_billion_parameters_is_read_on_meta_in_seconds():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(use_cache=False)).eval()
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters > 6.5e9
    start = time.perf_counter()
    graph = isthmus.trace(model, {"input_ids": torch.zeros(2, 8, dtype=torch.long, device="meta")})
    assert time.perf_counter() - start < 60
    assert len(graph.spaces) == 1 + 32 * 3 and graph.coverage > 0.999
    assert all(tensor.is_meta for tensor in model.parameters()), "nothing was allocated"
    found = graph.verify(model)
    assert not found.ok and str(found).startswith("unverified")
    with pytest.raises(isthmus.IsthmusError, match="were not verified"):
        found.require()


KINDS: dict[str, Callable[[], nn.Module]] = {
    "encoder": lambda: nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, dropout=0.0),
    "norm first": lambda: nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, norm_first=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_torchs_own_transformer_layer(kind: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), KINDS[kind](), nn.Linear(12, 2)).eval()
    x = torch.randn(2, 4, 5)
    graph = isthmus.trace(model, x)
    assert graph.verify(model, x).error <= TOLERANCE[torch.float64]
    assert sizes(graph) == [(3,), (3, 4), (3, 4), (12,), (20,)] and not graph.unknown
