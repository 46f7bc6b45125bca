"""Small models of the shapes that people merge, written without any library of models."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

collect_ignore = ["mergekit_driver.py"]  # it runs in another interpreter

HIDDEN, INNER, VOCABULARY = 8, 12, 16


def llama(
    layers: int = 3, vocabulary: int = VOCABULARY, *, tied: bool = False, seed: int = 0
) -> dict[str, Tensor]:
    """Weights with the names and shapes of a Llama."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    state = {"model.embed_tokens.weight": draw(vocabulary, HIDDEN), "model.norm.weight": draw(HIDDEN) + 1}
    if not tied:
        state["lm_head.weight"] = draw(vocabulary, HIDDEN)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            state[f"{prefix}.self_attn.{name}.weight"] = draw(HIDDEN, HIDDEN)
        state[f"{prefix}.mlp.up_proj.weight"] = draw(INNER, HIDDEN)
        state[f"{prefix}.mlp.down_proj.weight"] = draw(HIDDEN, INNER)
        state[f"{prefix}.input_layernorm.weight"] = draw(HIDDEN) + 1
    return state


def config(layers: int = 3, vocabulary: int = VOCABULARY, *, tied: bool = False) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": layers, "vocab_size": vocabulary,
        "tie_word_embeddings": tied, "dtype": "float32", "rms_norm_eps": 1e-6,
    }  # fmt: skip


def write(
    folder: Path,
    state: dict[str, Tensor],
    settings: dict[str, object] | None = None,
    licence: str | None = None,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    if settings is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    if licence is not None:
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n# A model\n")
    return folder


def tokenizer(folder: Path, tokens: list[str], added: list[str] | None = None) -> None:
    """A tokenizer of whole words; `added` continue its numbers."""
    entries = [
        {"id": len(tokens) + i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for i, token in enumerate(added or [])
    ]  # fmt: skip
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": entries, "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {t: i for i, t in enumerate(tokens)}, "unk_token": tokens[0]},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` and its children `a`, `b`, `c`."""
    root = tmp_path_factory.mktemp("models")
    base = llama()
    write(root / "base", base, config(), "apache-2.0")
    for seed, name in enumerate("abc", start=1):
        moved = llama(seed=seed)
        write(root / name, {k: base[k] + 0.1 * moved[k] for k in base}, config(), "apache-2.0")
    return root


@pytest.fixture
def recipe(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write a recipe into an empty folder; the current folder is that of the models."""
    monkeypatch.chdir(models)

    def make(text: str, name: str = "recipe.yml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return make
