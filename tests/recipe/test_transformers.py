"""The merged folder is a model that transformers loads: the same logits as a merge in memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import isthmus

Make = Callable[[str], Path]

SMALL = {"vocab_size": 48, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}


def llama(layers: int = 3, *, tied: bool = False) -> tuple[type, object]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SMALL, num_hidden_layers=layers, num_key_value_heads=1, tie_word_embeddings=tied)
    return LlamaForCausalLM, config


def gpt2(layers: int = 2) -> tuple[type, object]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=48, n_embd=16, n_layer=layers, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    return GPT2LMHeadModel, config


def bert() -> tuple[type, object]:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM, BertConfig(**SMALL, num_hidden_layers=2, max_position_embeddings=32)


def made(kind: tuple[type, object], folder: Path, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = kind[0](kind[1]).eval()
    model.save_pretrained(folder)
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(12).view(2, 6)).logits


@pytest.mark.parametrize(
    "kind", [llama(), llama(tied=True), gpt2(), bert()], ids=["llama", "tied", "gpt2", "bert"]
)
def test_the_same_logits_as_in_memory(kind: tuple[type, object], recipe: Make, tmp_path: Path):
    models = [made(kind, tmp_path / name, seed) for seed, name in enumerate("xyz")]
    base, x, y = (model.state_dict() for model in models)
    text = f"""
models:
  - {{model: {tmp_path}/y, parameters: {{weight: 0.6}}}}
  - {{model: {tmp_path}/z, parameters: {{weight: 0.3}}}}
base_model: {tmp_path}/x
merge_method: task_arithmetic
isthmus: {{limits: {{shard_size: 20KB}}}}
"""
    isthmus.plan(recipe(text)).run(tmp_path / "out")
    expected = kind[0](kind[1]).eval()
    expected.load_state_dict({k: base[k] + 0.6 * (x[k] - base[k]) + 0.3 * (y[k] - base[k]) for k in base})
    loaded, report = kind[0].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    torch.testing.assert_close(logits(loaded.eval()), logits(expected), rtol=1e-5, atol=1e-6)


def test_stacked_layers_are_a_deeper_model(recipe: Make, tmp_path: Path):
    made(llama(), tmp_path / "x", 1)
    made(llama(), tmp_path / "y", 2)
    text = f"""
slices:
  - sources: [{{model: {tmp_path}/x, layer_range: [0, 2]}}]
  - sources: [{{model: {tmp_path}/y, layer_range: [1, 3]}}]
merge_method: passthrough
"""
    isthmus.plan(recipe(text)).run(tmp_path / "out")
    kind = llama(4)
    loaded, report = kind[0].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.config.num_hidden_layers == 4
    assert torch.isfinite(logits(loaded)).all()


@pytest.mark.parametrize("kind", [llama, gpt2], ids=["num_hidden_layers", "n_layer"])
@pytest.mark.parametrize(
    ("slices", "merged", "layers"),
    [
        ((("x", 0, 2), ("y", 3, 5)), "passthrough", ["x0", "x1", "y3", "y4"]),
        ((("y", 0, 3), ("x", 0, 2)), "passthrough", ["y0", "y1", "y2", "x0", "x1"]),
        ((("x", 1, 2), ("y", 4, 5)), "passthrough", ["x1", "y4"]),
        ((("y", 0, 1), ("y", 4, 5), ("x", 1, 2)), "passthrough", ["y0", "y4", "x1"]),
        ((("x", 0, 1, "y", 4),), "linear", ["x0y4"]),
        ((("y", 1, 3, "x", 0),), "linear", ["y1x0", "y2x1"]),
    ],
)
def test_models_of_several_depths_make_one_that_loads_in_full(
    kind: Callable[[int], tuple[type, object]],
    slices: tuple[tuple[str | int, ...], ...],
    merged: str,
    layers: list[str],
    recipe: Make,
    tmp_path: Path,
):
    states = {
        name: made(kind(depth), tmp_path / name, depth).state_dict() for name, depth in (("x", 2), ("y", 5))
    }
    lines: list[str] = []
    for name, first, end, *more in slices:
        sources = [f"{{model: {tmp_path}/{name}, layer_range: [{first}, {end}]}}"]
        if more:
            other, start = more
            sources.append(f"{{model: {tmp_path}/{other}, layer_range: [{start}, {start + end - first}]}}")
        lines.append(f"  - sources: [{', '.join(sources)}]")
    text = "\n".join(["slices:", *lines, f"merge_method: {merged}"])
    plan = isthmus.plan(recipe(text + ("\nparameters: {weight: 0.5}\n" if merged == "linear" else "\n")))
    plan.run(tmp_path / "out")
    loaded, report = kind(1)[0].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert loaded.config.num_hidden_layers == len(layers)

    state = loaded.state_dict()
    prefix = "model.layers" if kind is llama else "transformer.h"
    for number, told in enumerate(layers):
        origins = [(told[i], told[i + 1]) for i in range(0, len(told), 2)]
        for name in [n for n in state if n.startswith(f"{prefix}.{number}.")]:
            member = name.removeprefix(f"{prefix}.{number}.")
            expected = sum(states[model][f"{prefix}.{layer}.{member}"] for model, layer in origins) / len(
                origins
            )
            torch.testing.assert_close(state[name], expected)


def test_layers_of_an_encoder_are_not_those_of_its_decoder(recipe: Make, tmp_path: Path):
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=48, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32,
    )  # fmt: skip
    made((BartForConditionalGeneration, config), tmp_path / "x", 0)
    for part, depths in (("encoder", (3, 2)), ("decoder", (2, 3))):
        sources = [f"  - sources: [{{model: {tmp_path}/x, layer_range: [{r}]}}]" for r in ("0, 2", "1, 2")]
        text = "\n".join(["merge_method: passthrough", "modules:", f" {part}:", "  slices:", *sources, ""])
        isthmus.plan(recipe(text)).run(tmp_path / part)
        loaded, report = BartForConditionalGeneration.from_pretrained(
            tmp_path / part, output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert (loaded.config.encoder_layers, loaded.config.decoder_layers) == depths


def test_the_kind_of_each_layer_is_that_of_its_model(recipe: Make, tmp_path: Path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    whole, window = "full_attention", "sliding_attention"
    for name, kinds in (("x", [whole, window]), ("y", [window, whole, whole, window, whole])):
        config = Qwen2Config(
            **SMALL, num_hidden_layers=len(kinds), num_key_value_heads=1, layer_types=kinds, sliding_window=4
        )
        made((Qwen2ForCausalLM, config), tmp_path / name, 0)
    text = f"""
slices:
  - sources: [{{model: {tmp_path}/x, layer_range: [0, 2]}}]
  - sources: [{{model: {tmp_path}/y, layer_range: [3, 5]}}]
merge_method: passthrough
"""
    isthmus.plan(recipe(text)).run(tmp_path / "out")
    loaded = Qwen2ForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.layer_types == [whole, window, window, whole]


def test_one_of_two_has_a_head_of_its_own(recipe: Make, tmp_path: Path):
    tied, apart = made(llama(tied=True), tmp_path / "x", 1), made(llama(), tmp_path / "y", 2)
    pair = f"{{model: {tmp_path}/x}}, {{model: {tmp_path}/y}}"
    text = f"models: [{pair}]\nmerge_method: linear\nparameters: {{weight: 1}}\n"
    isthmus.plan(recipe(text)).run(tmp_path / "out")
    loaded = llama()[0].from_pretrained(tmp_path / "out")
    head = (tied.state_dict()["lm_head.weight"] + apart.state_dict()["lm_head.weight"]) / 2
    torch.testing.assert_close(loaded.state_dict()["lm_head.weight"], head)
    assert loaded.state_dict()["model.embed_tokens.weight"].ne(head).any()


def test_a_merged_tokenizer_loads_beside_its_model(recipe: Make, tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .conftest import config, tokenizer, write
    from .conftest import llama as weights

    for seed, (name, words) in enumerate({"x": ["?", "one", "two"], "y": ["?", "two", "three"]}.items()):
        state = weights(vocabulary=4, seed=seed)
        for layer in range(3):
            prefix = f"model.layers.{layer}"
            state[f"{prefix}.mlp.gate_proj.weight"] = state[f"{prefix}.mlp.up_proj.weight"].clone()
            state[f"{prefix}.post_attention_layernorm.weight"] = torch.ones(8)
        write(tmp_path / name, state, config(vocabulary=4))
        tokenizer(tmp_path / name, words, [f"<{name}>"])
    text = f"""
models: [{{model: {tmp_path}/x}}, {{model: {tmp_path}/y}}]
merge_method: linear
parameters: {{weight: 1}}
tokenizer: {{source: union, pad_to_multiple_of: 4}}
chat_template: chatml
"""
    isthmus.plan(recipe(text)).run(tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.get_vocab() == {"?": 0, "one": 1, "two": 2, "<x>": 3, "three": 4, "<y>": 5}
    assert loaded("three one <y>")["input_ids"] == [4, 1, 5]
    assert model.config.vocab_size == 8
    assert model(torch.tensor([loaded("three one <y>")["input_ids"]])).logits.shape == (1, 3, 8)
    turns = [{"role": "user", "content": "one"}]
    assert loaded.apply_chat_template(turns, tokenize=False) == "<|im_start|>user\none<|im_end|>\n"


def test_planted_orders_are_found_and_the_average_is_the_original(recipe: Make, tmp_path: Path):
    """Also where files have other names than the model that loads them, as a ViT's have."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4,
        num_channels=1, num_labels=5,
    )  # fmt: skip
    model = made((ViTForImageClassification, config), tmp_path / "x", 0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    moved = 0
    for tensor in model.state_dict().values():
        for dim, size in enumerate(tensor.shape):
            if size == 24:
                tensor.copy_(tensor.index_select(dim, order))
                moved += 1
    assert moved == 6
    model.save_pretrained(tmp_path / "y")
    plan = isthmus.plan(
        recipe(
            f"models: [{{model: {tmp_path}/x}}, {{model: {tmp_path}/y}}]\nmerge_method: linear\n"
            "parameters: {weight: 0.5}\nisthmus: {align: weight-matching}\n"
        )
    )
    assert f"first   aligned to {tmp_path}/x by weight-matching and the symmetries of config.json" in str(
        plan
    )
    plan.run(tmp_path / "out")
    loaded = ViTForImageClassification.from_pretrained(tmp_path / "out")
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-6, atol=1e-7)
