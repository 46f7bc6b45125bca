"""Adapters, added while merging."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import isthmus
from isthmus.errors import InputError

from .conftest import HIDDEN

Make = Callable[[str], Path]
Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"


def adapter(folder: Path, tensors: dict[str, Tensor], **settings: object) -> None:
    folder.mkdir(exist_ok=True)
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], **settings}
    (folder / "adapter_config.json").write_text(json.dumps(told))


def pair(out: int, into: int, rank: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(out + into)
    return torch.randn(out, rank, generator=generator), torch.randn(rank, into, generator=generator)


def merged(recipe: Make, tmp_path: Path) -> dict[str, Tensor]:
    isthmus.plan(recipe("models: [{model: base+lora}]\nmerge_method: passthrough\n")).run(tmp_path / "out")
    return load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize("stabilised", [False, True])
def test_the_product_is_added_with_its_scale(recipe: Make, tmp_path: Path, models: Path, stabilised: bool):
    b, a = pair(HIDDEN, HIDDEN)
    down_b, down_a = pair(HIDDEN, 12, rank=3)
    head = torch.randn(16, HIDDEN)
    adapter(
        tmp_path / "lora",
        {
            f"{Q}.lora_A.weight": a, f"{Q}.lora_B.weight": b,
            f"{DOWN}.lora_A.weight": down_a, f"{DOWN}.lora_B.weight": down_b,
            "lm_head.weight": head,
        },
        use_rslora=stabilised, modules_to_save=["lm_head"],
        rank_pattern={"down_proj": 3}, alpha_pattern={"down_proj": 9},
    )  # fmt: skip
    base = load_file(models / "base" / "model.safetensors")
    found = merged(recipe, tmp_path)
    by = math.sqrt if stabilised else float
    torch.testing.assert_close(found[f"{Q}.weight"], base[f"{Q}.weight"] + 6 / by(2) * b @ a)
    torch.testing.assert_close(found[f"{DOWN}.weight"], base[f"{DOWN}.weight"] + 9 / by(3) * down_b @ down_a)
    torch.testing.assert_close(found["lm_head.weight"], head)
    untouched = "model.layers.2.mlp.up_proj.weight"
    assert torch.equal(found[untouched], base[untouched])


def test_weights_stored_the_other_way_round(recipe: Make, tmp_path: Path, models: Path):
    b, a = pair(12, HIDDEN)  # of a layer that stores (in, out): down_proj is (8, 12) here
    adapter(
        tmp_path / "lora", {f"{DOWN}.lora_A.weight": a, f"{DOWN}.lora_B.weight": b}, fan_in_fan_out=True
    )  # fmt: skip
    base = load_file(models / "base" / "model.safetensors")
    torch.testing.assert_close(
        merged(recipe, tmp_path)[f"{DOWN}.weight"], base[f"{DOWN}.weight"] + 3 * (b @ a).T
    )


def test_an_adapted_embedding(recipe: Make, tmp_path: Path, models: Path):
    b, a = pair(HIDDEN, 16)
    name = "model.embed_tokens"
    adapter(tmp_path / "lora", {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b})
    base = load_file(models / "base" / "model.safetensors")
    torch.testing.assert_close(
        merged(recipe, tmp_path)[f"{name}.weight"], base[f"{name}.weight"] + 3 * (b @ a).T
    )


def test_an_adapted_model_is_a_model_of_any_method(recipe: Make, tmp_path: Path, models: Path):
    b, a = pair(HIDDEN, HIDDEN)
    adapter(tmp_path / "lora", {f"{Q}.lora_A.weight": a, f"{Q}.lora_B.weight": b})
    text = "models: [{model: base+lora, parameters: {weight: 0.5}}]\nbase_model: base\nmerge_method: task_arithmetic\n"
    plan = isthmus.plan(recipe(text))
    assert "base+lora: LoRA of rank 2 added to 1 tensors" in plan.notes
    plan.run(tmp_path / "out")
    base = load_file(models / "base" / "model.safetensors")[f"{Q}.weight"]
    found = load_file(tmp_path / "out" / "model.safetensors")[f"{Q}.weight"]
    torch.testing.assert_close(found, base + 0.5 * 3 * b @ a)


@pytest.mark.parametrize(
    ("tensors", "settings", "words"),
    [
        ({}, {"use_dora": True}, "use_dora = true: this arithmetic is not known here"),
        ({}, {"some_new_kind": {"x": 1}}, "some_new_kind"),
        ({}, {"peft_type": "LOHA"}, "it is a LOHA adapter, not LORA"),
        ({}, {"init_lora_weights": "pissa"}, "it changed the model's own weights too"),
        ({}, {"lora_alpha": None}, "r and lora_alpha are not both numbers"),
        ({}, {"alpha_pattern": {"(a+)+": 3}}, "only plain names of modules"),
        ({f"{Q}.lora_magnitude_vector": (8,)}, {}, "is no part of a LoRA adapter that is known here"),
        ({"model.layers.9.self_attn.q_proj.lora_A.weight": (2, 8)}, {}, "fits no tensor of the model"),
        ({f"{DOWN}.lora_A.weight": (2, 8)}, {}, "has one half of a factor only"),
        ({f"{DOWN}.lora_A.weight": (2, 9), f"{DOWN}.lora_B.weight": (8, 2)}, {}, "is not B (8, 2) times A (2, 9)"),
        ({f"{DOWN}.lora_A.weight": (4, 12), f"{DOWN}.lora_B.weight": (8, 4)}, {}, "is not B (8, 4) times A (4, 12)"),
        ({"lm_head.weight": (3, 3)}, {}, "(3, 3) for lm_head.weight (16, 8)"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(
    recipe: Make, tmp_path: Path, tensors: dict[str, tuple[int, ...]], settings: dict[str, object], words: str
):
    b, a = pair(HIDDEN, HIDDEN)
    given = {f"{Q}.lora_A.weight": a, f"{Q}.lora_B.weight": b} | {
        k: torch.ones(v) for k, v in tensors.items()
    }
    adapter(tmp_path / "lora", given, **settings)
    with pytest.raises(InputError) as raised:
        isthmus.plan(recipe("models:\n- model: base+lora\nmerge_method: passthrough\n"))
    assert words in str(raised.value) and "recipe.yml:2" in str(raised.value)


def test_a_folder_that_is_no_adapter(recipe: Make, tmp_path: Path):
    (tmp_path / "lora").mkdir()
    with pytest.raises(InputError, match=r"is no LoRA adapter: it has no adapter_config\.json"):
        isthmus.plan(recipe("models: [{model: base+lora}]\nmerge_method: passthrough\n"))


def test_an_adapter_is_no_model(recipe: Make, tmp_path: Path):
    a, b = torch.randn(2, 8), torch.randn(8, 2)
    given = {f"{Q}.lora_A.weight": a, f"{Q}.lora_B.weight": b}
    for name, settings, model in (
        ("lora", {"base_model_name_or_path": "base"}, "base"),
        ("bare", {}, "MODEL"),
    ):
        folder = tmp_path / name
        adapter(folder, given, **settings)
        with pytest.raises(InputError) as raised:
            isthmus.plan(recipe(f"models: [{{model: a}}, {{model: {folder}}}]\nmerge_method: linear\n"))
        said = raised.value.render()
        assert f"{folder} is an adapter, and no model by itself" in said and "missing" not in said
        assert f"hint: write it behind the model that it was trained on: {model}+{folder}" in said
