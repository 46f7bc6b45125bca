"""A plan run to a folder: the tensors, what lies beside them, and where it says it came from."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import isthmus
from isthmus.errors import InputError, MismatchError, WeightsError
from isthmus.recipe.again import plan_again
from isthmus.recipe.inspection.difference import difference
from isthmus.recipe.inspection.inspecting import inspect

from .conftest import config, llama, tokenizer, write

Make = Callable[[str], Path]
EACH = "models: [{model: a}, {model: b}]\n"


def test_the_arithmetic_and_what_lies_beside_it(recipe: Make, tmp_path: Path, models: Path):
    path = recipe(EACH + "merge_method: linear\nparameters: {weight: 1}\nname: My merge\n")
    done = isthmus.plan(path).run(tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    a, b = (load_file(models / name / "model.safetensors") for name in "ab")
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (a[name] + b[name]) / 2)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "recipe.yml",
    }  # fmt: skip
    assert (tmp_path / "out" / "recipe.yml").read_text() == path.read_text()
    assert done.checks == ("24 tensors, 6.53 kB, as planned",)


def test_the_card_says_what_is_known_and_no_more(recipe: Make, tmp_path: Path):
    isthmus.plan(recipe(EACH + "merge_method: linear\nparameters: {weight: 1}\nname: My merge\n")).run(
        tmp_path / "out"
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith(
        dedent("""
        ---
        tags:
        - merge
        - isthmus
        - "linear"
        license: "apache-2.0"
        ---

        # My merge

        Merged by isthmus with `linear`.
    """).lstrip()
    )
    assert "All parents have this licence." in card
    assert "| a | model | apache-2.0 | `sha256:" in card


@pytest.mark.parametrize(
    ("other", "stated", "expected"),
    [
        ("mit", None, "The parents' licences cannot be summed up (a: apache-2.0, d: mit)"),
        (None, None, "The parents' licences cannot be summed up (a: apache-2.0, d: unknown)"),
        ("mit", "other", "The licence is the one that the recipe states."),
    ],
)
def test_a_licence_is_never_invented(
    recipe: Make, tmp_path: Path, other: str | None, stated: str | None, expected: str
):
    write(tmp_path / "d", llama(seed=9), config(), other)
    text = "models: [{model: a}, {model: d}]\nmerge_method: linear\nparameters: {weight: 1}\n"
    isthmus.plan(recipe(text + (f"isthmus: {{licence: {stated}}}\n" if stated else ""))).run(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert expected in card
    assert ('license: "other"' in card) == (stated is not None)
    assert stated is not None or "license:" not in card


def test_a_merge_tells_its_recipe_and_is_made_again_to_the_byte(recipe: Make, tmp_path: Path, models: Path):
    path = recipe("models: [{model: a, parameters: {weight: 1}}]\nbase_model: base\nmerge_method: dare_ties\n"
                  "parameters: {density: 0.5}\nisthmus: {seed: 5}\n")  # fmt: skip
    isthmus.plan(path).run(tmp_path / "out")
    told = inspect(tmp_path / "out").recorded
    assert told is not None and told.recipe == path.read_text()
    assert [(p["model"], p["role"], p["licence"]) for p in told.parents] == [
        ("base", "base", "apache-2.0"), ("a", "model", "apache-2.0"),
    ]  # fmt: skip
    plan_again(tmp_path / "out", models).run(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()


def test_a_recipe_from_inside_a_model_leads_nowhere(recipe: Make, tmp_path: Path, models: Path):
    isthmus.plan(recipe(EACH + "merge_method: linear\nparameters: {weight: 1}\n")).run(tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    there = models / "a"
    for reference in (
        str(there),
        f"../{models.name}/a",
        "~/a",
        "a/../../" + models.name + "/a",
        "link/a",
        ".",
        "org/a",
    ):
        text = f"models: [{{model: '{reference}'}}]\nmerge_method: passthrough\n"
        (tmp_path / "evil").mkdir(exist_ok=True)
        if not (tmp_path / "evil" / "link").exists():
            (tmp_path / "evil" / "link").symlink_to(models)
        save_file(state, tmp_path / "evil" / "model.safetensors", {"isthmus.recipe": text})
        with pytest.raises(InputError, match="leads nowhere else"):
            plan_again(tmp_path / "evil", tmp_path / "evil")


def test_parents_that_changed_are_refused(recipe: Make, tmp_path: Path, models: Path):
    isthmus.plan(recipe(EACH + "merge_method: linear\nparameters: {weight: 1}\n")).run(tmp_path / "out")
    write(tmp_path / "a", llama(seed=7), config())
    write(tmp_path / "b", load_file(models / "b" / "model.safetensors"), config())
    with pytest.raises(MismatchError, match=r"1 parents of .* are not the ones") as raised:
        plan_again(tmp_path / "out", tmp_path)
    assert raised.value.where[0].startswith("a    recorded sha256:")


def test_a_model_without_a_recipe_says_so(models: Path):
    with pytest.raises(InputError, match="tells of no recipe"):
        plan_again(models / "a")


def test_inspect_says_what_a_model_is(models: Path):
    text = str(inspect(models / "a"))
    assert "tensors   24 (float32 x 24), 1.63 k parameters, 6.53 kB in 1 file" in text
    assert "layers    model.layers x 3" in text
    assert "config    LlamaForCausalLM (llama)" in text
    assert "licence   apache-2.0" in text
    with pytest.raises(WeightsError, match="does not exist"):
        inspect(models / "gone")


def test_difference_by_block(models: Path):
    found = difference(models / "a", models / "b", base=models / "base")
    assert list(found.blocks) == [
        "lm_head.weight", "model.embed_tokens.weight", "model.layers.0", "model.layers.1", "model.layers.2",
        "model.norm.weight",
    ]  # fmt: skip
    a, b, base = (load_file(models / name / "model.safetensors") for name in ("a", "b", "base"))
    one, two = ((model["lm_head.weight"] - base["lm_head.weight"]).double() for model in (a, b))
    distance = found.tensors["lm_head.weight"]
    assert distance.cosine == pytest.approx(float((one * two).sum() / one.norm() / two.norm()), rel=1e-6)
    assert distance.relative == pytest.approx(
        float((one - two).norm() / (one.norm() * two.norm()).sqrt()), rel=1e-6
    )
    assert distance.signs == pytest.approx(float((one.sign() == two.sign()).double().mean()))
    same = difference(models / "a", models / "a").whole
    assert same.relative == 0 and same.cosine == pytest.approx(1) and same.signs == 1


def test_difference_of_structure(models: Path, tmp_path: Path):
    state = llama(layers=2) | {"extra": torch.zeros(3), "lm_head.weight": torch.zeros(3, 3)}
    write(tmp_path / "other", state)
    text = difference(models / "a", tmp_path / "other").table()
    assert "only in a: 7 tensors" in text and "only in other: 1 tensors (extra)" in text
    assert "shapes differ: lm_head.weight  (16, 8)  (3, 3)" in text
    with pytest.raises(MismatchError, match="no tensor in common"):
        difference(models / "a", write(tmp_path / "strange", {"q": torch.zeros(1)}))


def test_integers_must_agree(recipe: Make, tmp_path: Path):
    for name, count in (("x", 1), ("y", 2)):
        write(tmp_path / name, {"w": torch.zeros(4), "ids": torch.tensor([count])})
    text = "models: [{model: x}, {model: y}]\nmerge_method: linear\nparameters: {weight: 1}\n"
    with pytest.raises(MismatchError, match="1 integer tensors differ"):
        isthmus.plan(recipe(text)).run(tmp_path / "out")
    isthmus.plan(recipe(text + "isthmus: {skip: [ids]}\n")).run(tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")["ids"].item() == 1


def test_embeddings_follow_their_tokens(recipe: Make, tmp_path: Path):
    words = {"x": ["?", "one", "two"], "y": ["?", "two", "one", "three"]}
    states = {}
    for seed, (name, tokens) in enumerate(words.items()):
        states[name] = llama(vocabulary=len(tokens), seed=seed)
        write(tmp_path / name, states[name], config(vocabulary=len(tokens)))
        tokenizer(tmp_path / name, tokens)
    text = dedent("""
        models: [{model: x, parameters: {weight: 3}}, {model: y, parameters: {weight: 1}}]
        base_model: x
        merge_method: linear
        tokenizer:
          source: union
          pad_to_multiple_of: 8
          tokens:
            two: {source: y, force: true}
            new: {source: {kind: zero}}
            copy: {source: {kind: model_token, model: x, token: one}}
    """)
    done = isthmus.plan(recipe(text)).run(tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
    x, y = (states[name]["model.embed_tokens.weight"] for name in "xy")
    expected = torch.stack([
        (3 * x[0] + y[0]) / 4, (3 * x[1] + y[2]) / 4, y[1], y[3], torch.zeros(8), x[1],
    ])  # fmt: skip
    torch.testing.assert_close(merged[:6], expected)
    torch.testing.assert_close(merged[6:], expected.mean(0).expand(2, 8), rtol=1e-5, atol=1e-7)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 8
    assert any("6 tokens in their rows" in line for line in done.checks)


def test_limits_on_the_way_and_in_the_recipe(recipe: Make, tmp_path: Path):
    plan = isthmus.plan(
        recipe(
            EACH
            + "merge_method: linear\nparameters: {weight: 1}\nisthmus: {limits: {shard_size: 2KB, threads: 1}}\n"
        )
    )
    plan.run(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    again = load_file(sorted((tmp_path / "out").glob("*.safetensors"))[0])
    assert again


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"threads": -1}, {"shard_size": 0}, {"max_memory": 0}])
def test_nothing_is_not_taken_for_not_given(recipe: Make, tmp_path: Path, wrong: dict[str, Any]):
    plan = isthmus.plan(recipe(EACH + "merge_method: linear\nparameters: {weight: 1}\n"))
    with pytest.raises(InputError, match=r" = \S+: nothing can be done|0 is no amount of memory"):
        plan.run(tmp_path / "out", **wrong)
    assert not list(tmp_path.glob("*out*"))


def test_a_merge_keeps_to_the_memory_that_its_plan_says(recipe: Make, tmp_path: Path):
    """In a process of its own, since the tests' holds more."""
    text = EACH + "base_model: base\nmerge_method: dare_ties\nparameters: {weight: 1, density: 0.5}\n"
    path = recipe(text + "isthmus: {limits: {threads: 1}}\n")
    command = [
        sys.executable,
        "-m",
        "isthmus",
        "merge",
        str(path),
        "--out",
        str(tmp_path / "out"),
        "--max-memory",
    ]
    done = subprocess.run(
        [*command, str(isthmus.plan(path).memory)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_disk_that_is_full_is_told_before_the_work(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import shutil

    plan = isthmus.plan(recipe(EACH + "merge_method: linear\nparameters: {weight: 1}\n"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(InputError, match="are needed and 100 bytes are free"):
        plan.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_stays_as_it_is(recipe: Make, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty"):
        isthmus.plan(recipe(EACH + "merge_method: linear\nparameters: {weight: 1}\n")).run(tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_the_paper_s_arithmetic_is_another(recipe: Make, tmp_path: Path):
    text = EACH + "base_model: base\nmerge_method: ties\nparameters: {weight: 1}\n"
    isthmus.plan(recipe(text)).run(tmp_path / "mergekit")
    isthmus.plan(recipe(text + "isthmus: {convention: paper}\n")).run(tmp_path / "paper")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("mergekit", "paper"))
    # mergekit keeps everything where no density is given, the paper a fifth.
    assert any(not torch.equal(one[key], two[key]) for key in one)


def test_a_large_content_is_hashed_by_samples(models: Path, monkeypatch: pytest.MonkeyPatch):
    from isthmus.recipe.parents import content

    files = (models / "a" / "model.safetensors",)
    assert content.content_hash(files).startswith("sha256:")
    monkeypatch.setattr(content, "WHOLE_HASH", 10)
    sampled = content.content_hash(files)
    assert sampled.startswith("sampled-sha256:")
    assert sampled != content.content_hash((models / "b" / "model.safetensors",))


def test_a_plain_merge_imports_what_it_needs_and_no_more():
    heavy = "{'scipy', 'sympy', 'jinja2', 'isthmus.align', 'isthmus.measure', 'isthmus.repair'} & set(sys.modules)"
    probe = f"import sys; import isthmus.recipe.running.run; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60)
