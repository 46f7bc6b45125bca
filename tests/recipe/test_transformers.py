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


def gpt2() -> tuple[type, object]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
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
