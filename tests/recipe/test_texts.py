"""A merge by recipe that is measured on a text: next-token loss of parents and merge on a held-out part."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import isthmus
from isthmus import weights
from isthmus.errors import DataError, InputError
from isthmus.recipe.running.texts import Text, read_text, refuse_unless_causal

from .conftest import VOCABULARY, config, llama, tokenizer, write

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

WORDS = ["unk", *"abcdefghijklmno"]
RECIPE = """
models:
  - {model: one, parameters: {weight: 0.5}}
  - {model: two, parameters: {weight: 0.5}}
merge_method: linear
isthmus: {data: "text:words.txt", evaluate: loss, report: page.html}
"""


def full_llama(seed: int) -> dict[str, torch.Tensor]:
    """As transformers has it: with a gate."""
    state = llama(2, seed=seed)
    generator = torch.Generator().manual_seed(100 + seed)
    for layer in range(2):
        up = state[f"model.layers.{layer}.mlp.up_proj.weight"]
        state[f"model.layers.{layer}.mlp.gate_proj.weight"] = torch.randn(up.shape, generator=generator) * 0.1
        norm = f"model.layers.{layer}.post_attention_layernorm.weight"
        state[norm] = state[f"model.layers.{layer}.input_layernorm.weight"]
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tiny Llamas with a tokenizer of sixteen words, a text of 6000 words, and a recipe."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("one", "two")):
        folder = write(tmp_path / name, full_llama(seed), config(2))
        tokenizer(folder, WORDS)
    draws = torch.randint(1, VOCABULARY, (6000,), generator=torch.Generator().manual_seed(0))
    (tmp_path / "words.txt").write_text(" ".join(WORDS[i] for i in draws))
    (tmp_path / "recipe.yml").write_text(RECIPE)
    return tmp_path


def losses(folder: Path, text: Text) -> list[float]:
    """What transformers' own loss is on each window of the test part."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen, following = text.arrays("test")
    with torch.no_grad():
        rows = model(seen).logits
    return nn.functional.cross_entropy(rows.flatten(0, 1), following.flatten(), reduction="none").tolist()


def test_parents_and_merge_are_measured_on_the_held_out_part(room: Path):
    done = isthmus.plan(room / "recipe.yml").run(room / "out")
    found = done.finished
    assert found is not None and list(found.scores) == ["one", "two", "merged"]
    cut = (room / "one" / "tokenizer.json").read_text()
    text = read_text(room / "words.txt", cut, VOCABULARY, None, 2048)
    for name, folder in (("one", "one"), ("two", "two"), ("merged", "out")):
        each = losses(room / folder, text)
        assert found.scores[name].examples == len(each) == 5 * 128
        assert found.scores[name].loss == pytest.approx(sum(each) / len(each), rel=1e-5)
    merged = found.scores["merged"]
    assert f"perplexity {math.exp(merged.loss):.4g}" in str(done)
    told = json.loads(weights.metadata(room / "out")["isthmus.afterwards"])
    assert told["test"]["merged"]["perplexity"] == pytest.approx(math.exp(merged.loss), rel=1e-4)
    assert told["examples"] == {"train": 36, "validation": 5, "test": 5}
    assert (room / "out" / "page.html").is_file()


def test_the_parts_of_a_text_lie_behind_each_other():
    text = Text(torch.arange(1001), 2000, validation=3, length=10)
    parts = [text.arrays(split) for split in text.splits]
    assert torch.equal(torch.cat([seen.flatten() for seen, _ in parts]), torch.arange(1000))
    assert all(torch.equal(seen + 1, following) for seen, following in parts)
    assert [len(seen) for seen, _ in parts] == [87, 3, 10]
    assert sum(len(seen) for seen, _ in text.loader("train", batch_size=4, limit=6)) == 6


def test_a_short_text_is_refused():
    with pytest.raises(DataError, match="a text of 30 tokens") as caught:
        Text(torch.arange(30), 100)
    assert "train 0, validation 0, test 0" in str(caught.value)


def test_without_a_tokenizer_the_plan_says_so(room: Path):
    for name in ("one", "two"):
        (room / name / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json, and there is none"):
        isthmus.plan(room / "recipe.yml")


def test_images_and_texts_are_not_confused(room: Path):
    (room / "recipe.yml").write_text(RECIPE.replace("text:words.txt", "digits"))
    with pytest.raises(InputError, match="takes no images") as caught:
        isthmus.plan(room / "recipe.yml")
    assert "text:FILE" in str(caught.value)
    (room / "recipe.yml").write_text(RECIPE.replace("words.txt", "gone.txt"))
    with pytest.raises(InputError, match="there is no such file"):
        isthmus.plan(room / "recipe.yml")


def test_a_tokenizer_that_the_model_does_not_know_is_refused(room: Path):
    cut = (room / "one" / "tokenizer.json").read_text()
    with pytest.raises(InputError, match="numbers tokens up to 15, and the model has rows for 8"):
        read_text(room / "words.txt", cut, 8, None, 2048)


class Peeking(nn.Module):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(tokens.roll(-1, 1), 16).float()


def test_a_model_that_looks_ahead_is_refused():
    with pytest.raises(InputError, match="Peeking looks at later tokens"):
        refuse_unless_causal(Peeking(), torch.arange(12).view(2, 6), 16)
