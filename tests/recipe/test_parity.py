"""The same YAML through mergekit 0.1.5 and through isthmus, tensor by tensor.

mergekit lives in an environment of its own: ISTHMUS_MERGEKIT names the python that has it.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

import isthmus
from isthmus import weights

PYTHON = os.environ.get("ISTHMUS_MERGEKIT")
pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="ISTHMUS_MERGEKIT names no python with mergekit 0.1.5"),
    pytest.mark.timeout(600),
]

A, B, C = "{kind}-a", "{kind}-b", "{kind}-c"
Recipe = dict[str, object]


def each(**parameters: object) -> list[Recipe]:
    """Models a, b, ... with a value of each parameter per model."""
    count = len(next(iter(parameters.values()))) if parameters else 3  # type: ignore[arg-type]
    return [
        {"model": "{kind}-" + "abc"[i], "parameters": {key: value[i] for key, value in parameters.items()}}  # type: ignore[index]
        for i in range(count)
    ]


def vectors(method: str, densities: tuple[float, float] = (0.4, 0.6), **shared: object) -> Recipe:
    """One of the task vector family."""
    return {
        "models": each(weight=[0.7, 0.5], density=list(densities)), "base_model": "{kind}-base",
        "merge_method": method, "parameters": shared, "dtype": "float32",
    }  # fmt: skip


PAIR: Recipe = {"models": each(weight=[0.7, [0.2, 0.9]])}
TWO: Recipe = {"models": [{"model": A}, {"model": B}], "base_model": B}
WEIGHED: Recipe = {"models": each(weight=[0.5, 0.2, 0.9])}
THREE: Recipe = {"models": each(), "base_model": "{kind}-base"}
CIRCLE = [{"filter": "mlp", "value": [0, 0.5, 1]}, {"filter": "self_attn", "value": [1, 0]}, {"value": 0.3}]
LLAMA: dict[str, Recipe] = {
    "linear": PAIR | {"merge_method": "linear"},
    "linear-sum": PAIR | {"merge_method": "linear", "parameters": {"normalize": False}},
    "slerp": TWO | {"merge_method": "slerp", "parameters": {"t": CIRCLE}},
    "nuslerp": PAIR | {"merge_method": "nuslerp"},
    "nuslerp-base": PAIR | {"merge_method": "nuslerp", "base_model": "{kind}-base"},
    "nuslerp-column": PAIR | {"merge_method": "nuslerp", "parameters": {"nuslerp_flatten": False}},
    "nuslerp-row": PAIR
    | {"merge_method": "nuslerp", "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True}},
    "multislerp": WEIGHED | {"merge_method": "multislerp"},
    "multislerp-base": WEIGHED | {"base_model": "{kind}-base", "merge_method": "multislerp"},
    "karcher": {"models": each(), "merge_method": "karcher"},
    "task-arithmetic": vectors("task_arithmetic", **{"lambda": 0.7}),
    "task-arithmetic-normalize": vectors("task_arithmetic", normalize=True),
    "ties": vectors("ties"),
    "ties-rescale": vectors("ties", rescale=True, **{"lambda": 1.3}),
    "ties-sum": vectors("ties", normalize=False),
    "breadcrumbs": vectors("breadcrumbs", gamma=0.05),
    "breadcrumbs-ties": vectors("breadcrumbs_ties", gamma=0.05, rescale=True, normalize=True),
    # Masks are drawn by other generators: at density 1 there is nothing to draw, and all else is compared.
    "dare-linear": vectors("dare_linear", (1.0, 1.0)),
    "dare-ties": vectors("dare_ties", (1.0, 1.0), normalize=True),
    "della": vectors("della", (1.0, 1.0)),
    "della-linear": vectors("della_linear", (1.0, 1.0), normalize=True),
    "model-stock": THREE | {"merge_method": "model_stock"},
    "model-stock-filters": THREE | {"merge_method": "model_stock", "parameters": {"filter_wise": True}},
    "sce": THREE | {"merge_method": "sce", "parameters": {"select_topk": 0.3}},
    "ram": THREE | {"merge_method": "ram", "parameters": {"epsilon": "1e-3"}},
    "ramplus": THREE | {"merge_method": "ramplus_tl", "parameters": {"epsilon": 0.003, "r": 0.2, "alpha": 0.4}},
    "nearswap": {"models": [{"model": A}], "base_model": B, "merge_method": "nearswap", "parameters": {"t": 0.001}},
    "arcee-fusion": {"models": [{"model": A}], "base_model": B, "merge_method": "arcee_fusion"},
    "frankenmerge": {
        "slices": [
            {"sources": [{"model": A, "layer_range": [0, 3]}]},
            {"sources": [{"model": B, "layer_range": [1, 4],
                          "parameters": {"scale": [{"filter": "o_proj", "value": 0.5}, {"value": 1.0}]}}]},
        ],
        "merge_method": "passthrough", "dtype": "bfloat16",
    },
    "slices": {
        "slices": [
            {"sources": [{"model": A, "layer_range": [0, 2]}, {"model": B, "layer_range": [1, 3]}],
             "parameters": {"t": [0.1, 0.4]}},
            {"sources": [{"model": A, "layer_range": [2, 4]}, {"model": C, "layer_range": [2, 4]}]},
        ],
        "base_model": A, "merge_method": "slerp",
        "parameters": {"t": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]},
    },
    "bf16-linear": PAIR | {"merge_method": "linear", "dtype": "bfloat16", "out_dtype": "float32"},
    "lora": {
        "models": [{"model": "{kind}-base+{kind}-lora", "parameters": {"weight": 0.6}}],
        "base_model": "{kind}-base", "merge_method": "task_arithmetic", "dtype": "float32",
    },
}  # fmt: skip
# mergekit's own command stops at BERT; its command for raw files has the same arithmetic and no layers.
OTHERS: dict[str, Recipe] = {
    "gpt2-ties": vectors("ties"),
    "gpt2-linear": PAIR | {"merge_method": "linear"},
    "bert-ties": vectors("ties"),
    "bert-slerp": TWO | {
        "merge_method": "slerp", "parameters": {"t": [{"filter": "attention", "value": 0.7}, {"value": 0.3}]},
    },
}  # fmt: skip
TOKENS: Recipe = {
    "models": [{"model": "tok-a", "parameters": {"weight": 0.6}}, {"model": "tok-b", "parameters": {"weight": 0.7}}],
    "base_model": "tok-base", "merge_method": "task_arithmetic", "dtype": "float32"}  # fmt: skip
VOCABULARIES: dict[str, Recipe] = {
    "tok-union": TOKENS | {"tokenizer_source": "union"},
    "tok-base": TOKENS | {"tokenizer_source": "base"},
    "tok-path": TOKENS | {"tokenizer_source": "tok-b"},
    "tok-mean": {
        "models": [{"model": f"tok-{c}", "parameters": {"weight": 1}} for c in "cab"], "base_model": "tok-c",
        "merge_method": "linear", "tokenizer_source": "union",
    },
    "tok-given": TOKENS | {
        "tokenizer": {
            "source": "union", "pad_to_multiple_of": 32,
            "tokens": {
                "<a>": {"source": "tok-b", "force": True}, "<b>": {"source": {"kind": "zero"}},
                "<new>": {"source": {"kind": "model_token", "model": "tok-base", "token": "</s>"}},
            },
        },
        "chat_template": "chatml",
    },
}  # fmt: skip
# Drawn masks differ: what they keep in number and in sum of magnitudes does not.
DRAWN: dict[str, Recipe] = {
    f"llama-drawn-{method}": {
        "models": [{"model": A, "parameters": {"weight": 0.8, "density": 0.6, **more}}], "base_model": "{kind}-base",
        "merge_method": method, "parameters": {"normalize": False}, "dtype": "float32",
    }
    for method, more in (
        ("dare_linear", {}), ("dare_ties", {}), ("della", {"epsilon": 0.2}), ("della_linear", {"epsilon": 0.2}),
    )
}  # fmt: skip
RECIPES = {f"llama-{name}": recipe for name, recipe in LLAMA.items()} | OTHERS | VOCABULARIES | DRAWN


def build(root: Path) -> None:
    """The models of all recipes: random ones of transformers' own classes, an adapter, tokenizers."""
    from transformers import (
        BertConfig,
        BertModel,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    def siblings(kind: str, make: type, settings: object, count: int) -> None:
        torch.manual_seed(0)
        base = make(settings)
        for parameter in base.parameters():
            parameter.data.normal_(0, 0.02) if parameter.ndim > 1 else parameter.data.add_(
                0.05 * torch.randn_like(parameter)
            )
        base.save_pretrained(root / f"{kind}-base")
        for index in range(count):
            torch.manual_seed(index + 1)
            model = make(settings)
            model.load_state_dict(base.state_dict())
            for parameter in model.parameters():
                parameter.data.add_(0.003 * torch.randn_like(parameter))
            model.save_pretrained(root / f"{kind}-{'abc'[index]}")

    small = {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    llama = {**small, "num_hidden_layers": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    siblings("llama", LlamaForCausalLM, LlamaConfig(**llama), 3)
    siblings("bert", BertModel, BertConfig(**small, num_hidden_layers=3, max_position_embeddings=32), 2)
    gpt2 = GPT2Config(
        vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=24, bos_token_id=1, eos_token_id=2
    )
    siblings("gpt2", GPT2LMHeadModel, gpt2, 2)
    adapter(root / "llama-lora")
    signs = [chr(code) for code in range(33, 127)]
    torch.manual_seed(0)
    for name, tokens, added in (
        ("tok-base", [*signs[:80], "Ġ"], ["</s>"]),
        ("tok-a", ["Ġ", *signs[:80]], ["</s>", "<a>"]),
        ("tok-b", [*signs[:80], "Ġ"], ["</s>", "<a>", "<b>"]),
        ("tok-c", [*signs[:78], "Ġ"], ["<c>", "</s>"]),
    ):
        count = len(tokens) + len(added)
        model = LlamaForCausalLM(LlamaConfig(**(llama | {"vocab_size": count, "num_hidden_layers": 2})))
        model.save_pretrained(root / name)
        write_tokenizer(root / name, tokens, added)


def adapter(folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    tensors: dict[str, Tensor] = {}
    for layer in range(4):
        for name, out, into in (("self_attn.q_proj", 32, 32), ("mlp.down_proj", 32, 48)):
            prefix = f"base_model.model.model.layers.{layer}.{name}.lora_"
            tensors |= {
                f"{prefix}A.weight": 0.1 * torch.randn(4, into),
                f"{prefix}B.weight": 0.1 * torch.randn(out, 4),
            }
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "down_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def write_tokenizer(folder: Path, tokens: list[str], added: list[str]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>")
    fast.add_tokens(added)
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """All recipes through mergekit, in one process, since each start of it takes seconds."""
    assert PYTHON is not None
    root = tmp_path_factory.mktemp("parity")
    build(root)
    (root / "recipes").mkdir()
    (root / "theirs").mkdir()
    for name, recipe in RECIPES.items():
        text = yaml.safe_dump(recipe, sort_keys=False).replace("{kind}", name.split("-")[0])
        (root / "recipes" / f"{name}.yml").write_text(text)
    driver = Path(__file__).with_name("mergekit_driver.py")
    subprocess.run(
        [PYTHON, str(driver), "recipes", "theirs"],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=True,
        capture_output=True,
        timeout=500,
    )
    return root, root / "theirs"


def tokens_of(folder: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_yaml_gives_the_same_tensors(
    name: str, outputs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    root, theirs = outputs
    monkeypatch.chdir(root)
    failed = theirs / f"{name}.error"
    assert not failed.exists(), failed.read_text()
    isthmus.plan(root / "recipes" / f"{name}.yml").run(root / "ours" / name)
    found, expected = weights.open(root / "ours" / name), weights.open(theirs / name)
    assert set(found) == set(expected)
    if name in DRAWN:
        alike_in_sum(found, expected, weights.open(root / "llama-base"))
        return
    rows = None
    if name.startswith("tok-"):
        # mergekit numbers new tokens in the order of a set, another in each process: rows are compared by token.
        mine, other = tokens_of(root / "ours" / name), tokens_of(theirs / name)
        assert set(mine) == set(other)
        rows = ([mine[token] for token in mine], [other[token] for token in mine])
    compare(found, expected, 2**-8 if name == "llama-bf16-linear" else 1e-6, rows)
    if (theirs / name / "config.json").exists():
        mine, other = (
            json.loads((folder / name / "config.json").read_text()) for folder in (root / "ours", theirs)
        )
        # transformers fills in its defaults as it writes; where both say something, they say the same.
        assert {k: v for k, v in mine.items() if k in other} == {k: v for k, v in other.items() if k in mine}


def alike_in_sum(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> None:
    """Both rescale what is kept to the task vector's sum of magnitudes, and keep six tenths of it."""
    kept, count = [0, 0], 0
    for key, origin in base.items():
        one, two = ((model[key] - origin).double() for model in (found, expected))
        # Adding a small difference to a weight and taking the weight off again rounds.
        torch.testing.assert_close(one.abs().sum(), two.abs().sum(), rtol=1e-3, atol=1e-4)
        kept = [kept[0] + int((one != 0).sum()), kept[1] + int((two != 0).sum())]
        count += origin.numel()
    deviation = (count * 0.6 * 0.4) ** 0.5
    assert abs(kept[0] - kept[1]) < 6 * deviation
    assert abs(kept[0] - 0.6 * count) < 6 * deviation


def compare(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    bound: float,
    rows: tuple[list[int], list[int]] | None,
) -> None:
    for key in expected:
        one, two = found[key], expected[key]
        assert one.dtype == two.dtype and one.shape == two.shape, key
        if rows is not None and ("embed" in key or "lm_head" in key):
            one, two = (
                torch.cat([one[rows[0]], one[len(rows[0]) :]]),
                torch.cat([two[rows[1]], two[len(rows[1]) :]]),
            )
        worst = float((one.double() - two.double()).abs().max() / two.double().abs().max().clamp_min(1e-9))
        assert worst <= bound, f"{key}: {worst:.2e}"
