"""What a merge says of its parents: names, licences, contents; and the merge made again from that."""

import json
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from safetensors.torch import load_file, save_file

import isthmus
from isthmus import weights
from isthmus.errors import InputError
from isthmus.recipe.again import plan_again
from isthmus.recipe.inspection.ancestry import draw, trace_back
from isthmus.recipe.inspection.inspecting import inspect
from isthmus.recipe.language.reading import examine
from isthmus.recipe.output.published import public_text
from isthmus.recipe.parents.content import content_hash

from .conftest import HIDDEN, config, llama, write

Make = Callable[[str], Path]
LINEAR = "merge_method: linear\nparameters: {weight: 1}\n"


def adapter(folder: Path, licence: str | None = None) -> Path:
    """An adapter of rank 1 for one weight."""
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    folder.mkdir(parents=True)
    save_file(
        {f"{name}.lora_A.weight": torch.ones(1, HIDDEN), f"{name}.lora_B.weight": torch.ones(HIDDEN, 1)},
        folder / "adapter_model.safetensors",
    )
    told = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    if licence is not None:
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    return folder


def card(folder: Path) -> str:
    return (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("licence", "told"),
    [
        ("apache-2.0", "All parents have this licence."),
        ("cc-by-nc-4.0", "(base: apache-2.0 + cc-by-nc-4.0)"),
        (None, "(base: apache-2.0 + unknown)"),
    ],
)
def test_an_adapter_has_a_licence_of_its_own(recipe: Make, tmp_path: Path, licence: str | None, told: str):
    adapter(tmp_path / "lora", licence)
    plan = isthmus.plan(recipe("models: [{model: base+lora}]\nmerge_method: passthrough\n"))
    plan.run(tmp_path / "out")
    assert told in card(tmp_path / "out")
    assert ("license:" in card(tmp_path / "out")) == (licence == "apache-2.0")
    said = "apache-2.0" if licence == "apache-2.0" else f"apache-2.0 + {licence or 'unknown'}"
    recorded = inspect(tmp_path / "out").recorded
    assert recorded is not None and recorded.parents[0]["licence"] == said
    assert f", {said}" in str(plan)


def test_a_recipe_that_contradicts_the_licence_of_its_parents_is_told_so(recipe: Make, tmp_path: Path):
    plan = isthmus.plan(recipe("models: [{model: a}, {model: b}]\n" + LINEAR + "isthmus: {licence: mit}\n"))
    plan.run(tmp_path / "out")
    said = "All parents have this licence. The recipe states mit, which goes unused."
    assert f"licence: apache-2.0. {said}" in plan.notes
    assert said in card(tmp_path / "out") and 'license: "apache-2.0"\n' in card(tmp_path / "out")
    same = isthmus.plan(
        recipe("models: [{model: a}, {model: b}]\n" + LINEAR + "isthmus: {licence: apache-2.0}\n")
    )
    assert not any("licence" in note for note in same.notes)


def test_licences_that_do_not_say_which_are_not_one(recipe: Make, tmp_path: Path):
    for seed, name in enumerate("xy"):
        write(tmp_path / name, llama(seed=seed), config(), "other")
    isthmus.plan(recipe("models: [{model: x}, {model: y}]\n" + LINEAR)).run(tmp_path / "out")
    assert "cannot be summed up (x: other, y: other)" in card(tmp_path / "out")
    assert "license:" not in card(tmp_path / "out")


def test_a_folder_that_is_called_like_an_id_of_the_hub_is_none(recipe: Make, tmp_path: Path):
    for seed, name in enumerate("xy"):  # beside the recipe, and not where we are
        write(tmp_path / "org" / name, llama(seed=seed), config())
    isthmus.plan(recipe("models: [{model: org/x}, {model: org/y}]\n" + LINEAR)).run(tmp_path / "out")
    assert "base_model" not in card(tmp_path / "out") and "| x | model |" in card(tmp_path / "out")


def test_the_tree_of_merges(recipe: Make, tmp_path: Path, models: Path):
    isthmus.plan(recipe("models: [{model: a}, {model: b}]\n" + LINEAR)).run(tmp_path / "ab")
    write(tmp_path / "c", load_file(models / "c" / "model.safetensors"), config())
    text = f"models: [{{model: '{tmp_path}/ab'}}, {{model: c}}]\nmerge_method: slerp\nbase_model: c\n"
    isthmus.plan(recipe(text + "parameters: {t: 0.5}\n")).run(tmp_path / "abc")
    assert (
        draw(trace_back(tmp_path / "abc"))
        == dedent("""
        abc  by slerp
        |- c  base  apache-2.0
        `- ab  model  by linear  apache-2.0
           |- a  model  apache-2.0  not here
           `- b  model  apache-2.0  not here
    """).strip()
    )
    # Another model in the place of a parent is not taken for it, whatever it tells of itself.
    write(tmp_path / "a", llama(seed=8), config())
    held = tmp_path / "ab" / "model.safetensors"
    save_file(llama(seed=9), held, weights.metadata(held))
    found = trace_back(tmp_path / "abc")
    assert draw(found).splitlines()[1:] == [
        "|- c  base  apache-2.0",
        "`- ab  model  apache-2.0  another of that name is here",
    ]
    assert [parent.found for parent in found.parents] == [True, False] and not found.parents[1].parents


def test_a_tree_without_contents_and_one_that_is_too_deep_end(tmp_path: Path):
    for name, other in (("x", "y"), ("y", "x")):  # a circle: no file can hold its own hash
        (tmp_path / name).mkdir()
        notes = {"isthmus.recipe": "merge_method: linear", "isthmus.parents": json.dumps([{"model": other}])}
        save_file({"w": torch.zeros(2)}, tmp_path / name / "model.safetensors", notes)
    assert draw(trace_back(tmp_path / "x")).splitlines() == [
        "x  by linear",
        "`- y  no content is recorded, and one of that name is here",
    ]
    told: list[dict[str, str]] = []
    for depth in range(60):
        file = tmp_path / f"{depth}.safetensors"
        notes = {"isthmus.recipe": "merge_method: linear", "isthmus.parents": json.dumps(told)}
        save_file({"w": torch.zeros(2)}, file, notes)
        told = [{"model": file.name, "hash": content_hash((file,))}]
    assert len(draw(trace_back(tmp_path / "59.safetensors")).splitlines()) == 51


def test_a_parent_that_is_met_again_is_told_once(tmp_path: Path):
    told: list[dict[str, str]] = []
    for depth in range(30):  # told each time, the last would have a thousand million ancestors
        file = tmp_path / f"{depth}.safetensors"
        notes = {"isthmus.recipe": "merge_method: linear", "isthmus.parents": json.dumps(told)}
        save_file({"w": torch.zeros(2)}, file, notes)
        told = [
            {"model": file.name, "hash": content_hash((file,)), "role": role} for role in ("base", "model")
        ]
    lines = draw(trace_back(file)).splitlines()
    assert len(lines) == 59 and lines[-1] == "`- 28.safetensors  model  as above"


def test_no_folder_of_this_machine_is_published(recipe: Make, tmp_path: Path, models: Path):
    root = models.parent
    lora = adapter(tmp_path / "adapters" / "lora")
    write(tmp_path / "a", llama(seed=7), config())  # called like another parent
    text = f"""
        # of three models
        models:
        - model: {models}/a
          parameters: {{weight: 0.7}}
        - {{model: "{models}/b+{lora}", parameters: {{weight: 0.2}}}}
        - {{model: '{tmp_path}/a', parameters: {{weight: 0.1}}}}
        base_model: base
        merge_method: dare_ties
        parameters: {{density: 0.5}}
    """
    isthmus.plan(recipe(dedent(text))).run(tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        assert str(root).encode() not in file.read_bytes(), file.name
    here = tmp_path.relative_to(root)
    assert (tmp_path / "out" / "recipe.yml").read_text() == dedent(f"""
        # of three models
        models:
        - model: "./{models.name}/a"
          parameters: {{weight: 0.7}}
        - {{model: "./{models.name}/b+./{here}/adapters/lora", parameters: {{weight: 0.2}}}}
        - {{model: "./{here}/a", parameters: {{weight: 0.1}}}}
        base_model: base
        merge_method: dare_ties
        parameters: {{density: 0.5}}
    """)
    (root / "base").symlink_to(models / "base")
    try:
        plan_again(tmp_path / "out", root).run(tmp_path / "again")
    finally:
        (root / "base").unlink()
    made, again = (tmp_path / name / "model.safetensors" for name in ("out", "again"))
    assert made.read_bytes() == again.read_bytes()


def test_paths_below_one_folder_become_names(recipe: Make, tmp_path: Path, models: Path):
    text = f"models: [{{model: {models}/a}}, {{model: {models}/b}}]\nmerge_method: slerp\nbase_model: {models}/a\n"
    isthmus.plan(recipe(text + "parameters: {t: 0.5}\n")).run(tmp_path / "out")
    recorded = inspect(tmp_path / "out").recorded
    assert recorded is not None and recorded.recipe.startswith('models: [{model: "a"}, {model: "b"}]\n')
    plan_again(tmp_path / "out", models).run(tmp_path / "again")
    assert card(tmp_path / "out").replace("# out", "# again") == card(tmp_path / "again")


def test_where_the_donor_was_loaded_from_is_not_written_on(recipe: Make, tmp_path: Path):
    part = {"_name_or_path": "org/encoder", "hidden_size": 8, "layer_types": ["full_attention"] * 3}
    told = {**config(), "_name_or_path": "/home/someone/base", "vision_config": part}
    write(tmp_path / "x", llama(), told)
    write(tmp_path / "y", llama(seed=1), config())
    text = LINEAR + f"models: [{{model: {tmp_path}/x}}, {{model: {tmp_path}/y}}]\n"
    isthmus.plan(recipe(text)).run(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    del told["_name_or_path"], part["_name_or_path"]
    assert {key: written[key] for key in told} == told and "_name_or_path" not in written


def test_nor_is_where_the_tokenizer_was_loaded_from(recipe: Make, tmp_path: Path):
    told = {
        "model_max_length": 512,
        "tokenizer_file": "/home/someone/tokenizer.json",
        "name_or_path": "org/old",
    }
    for name, settings in (("x", told), ("y", {"model_max_length": 64})):
        write(tmp_path / name, llama(), config())
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(settings) + "  ")
    for first, second in (("x", "y"), ("y", "x")):
        text = LINEAR + f"models: [{{model: {tmp_path}/{first}}}, {{model: {tmp_path}/{second}}}]\n"
        isthmus.plan(recipe(text)).run(tmp_path / f"of {first}")
    assert json.loads((tmp_path / "of x" / "tokenizer_config.json").read_text()) == {"model_max_length": 512}
    kept = (tmp_path / "y" / "tokenizer_config.json").read_bytes()
    assert (tmp_path / "of y" / "tokenizer_config.json").read_bytes() == kept, (
        "what says nothing of it is copied"
    )


def test_paths_are_found_wherever_a_recipe_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "home" / "me"
    for file in (home / "x'1", tmp_path / "b" / "images.npz"):
        file.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    text = f"""
models: [{{model: '~/x''1@v1'}}, {{model: org/b}}]  # of {home}
merge_method: linear
base_model: >-
  {tmp_path}/b
isthmus: {{data: "npz:{tmp_path}/b/images.npz", model: timm:resnet18 path={tmp_path}/gone}}
"""
    read, problems = examine(text, "recipe.yml")
    assert read is not None and not problems.found
    # The folder that holds all of them is above the home: last parts. What does not exist is no path.
    assert (
        public_text(read, text)
        == f"""
models: [{{model: "x'1@v1"}}, {{model: org/b}}]  # of {home}
merge_method: linear
base_model: "b"
isthmus: {{data: "npz:images.npz", model: timm:resnet18 path={tmp_path}/gone}}
"""
    )


def test_a_header_without_its_parents_is_refused(recipe: Make, tmp_path: Path, models: Path):
    isthmus.plan(recipe("models: [{model: a}, {model: b}]\n" + LINEAR)).run(tmp_path / "out")
    held = tmp_path / "out" / "model.safetensors"
    save_file(load_file(held), held, {**weights.metadata(held), "isthmus.parents": "[]"})
    with pytest.raises(InputError, match="tells of 0 parents, and its recipe names 2"):
        plan_again(tmp_path / "out", models)


def test_a_content_is_hashed_as_it_was_before(models: Path, monkeypatch: pytest.MonkeyPatch):
    from isthmus.recipe.parents import content

    files = (models / "a" / "model.safetensors",)
    whole = content_hash(files)
    monkeypatch.setattr(content, "WHOLE_HASH", 10)
    sampled = content_hash(files)
    assert sampled != whole == content_hash(files, like=whole)
    monkeypatch.undo()
    assert content_hash(files, like=sampled) == sampled
