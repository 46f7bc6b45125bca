"""`isthmus: {align: METHOD}`: models that are held whole, moved, and merged from there."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import isthmus
from isthmus import weights, zoo
from isthmus.align import ALIGNMENTS
from isthmus.errors import InputError
from isthmus.recipe.plan import plan_text
from isthmus.recipe.running import moved

from .test_lora import adapter

Make = Callable[..., Path]
Merge = Callable[..., isthmus.Merged]

ARCH = "isthmus.zoo:mlp d_in=64 widths=[16,12]"


def mlp() -> zoo.MLP:
    return zoo.mlp(d_in=64, widths=(16, 12))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small networks trained on digits from different seeds."""
    root = tmp_path_factory.mktemp("whole")
    digits = zoo.open_data("digits").split(seed=0)
    trained = zoo.strangers(digits, mlp, n=3, seeds=(0, 1, 2), epochs=3, lr=0.1)
    for name, result in zip("abc", trained, strict=True):
        weights.save(result.model.state_dict(), root / name / "model.safetensors")
    return root


@pytest.fixture(scope="module")
def merged(folder: Path) -> Merge:
    """The same merge in Python, with what the recipe calibrates on."""
    loader = zoo.open_data("digits").split(seed=0).loader("train", batch_size=250, limit=5000)
    example = next(iter(loader))[0][:2]
    state = weights.load(folder / "a" / "model.safetensors")
    graph, _ = isthmus.verified(isthmus.trace(mlp(), example), example, weights=state)

    def merge(shares: Mapping[str, float], **how: Any) -> isthmus.Merged:
        states = [load_file(folder / name / "model.safetensors") for name in shares]
        part = list(shares.values())
        return isthmus.merge(states, model=mlp(), weights=part, data=loader, graph=graph, verify=False, **how)

    return merge


@pytest.fixture
def make(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Write a recipe that aligns; its weights are those of the models in order, and their sum is one."""
    monkeypatch.chdir(folder)

    def write(
        align: str, shares: Mapping[str, float] = {"a": 0.5, "b": 0.5}, more: str = "", data: bool = True
    ) -> Path:
        models = ", ".join(f"{{model: {m}, parameters: {{weight: {w}}}}}" for m, w in shares.items())
        named = f"  model: {ARCH}\n" + ("  data: digits\n" if data else "")
        path = tmp_path / "recipe.yml"
        path.write_text(
            f"models: [{models}]\nmerge_method: linear\nisthmus:\n  align: {align}\n{named}{more}"
        )
        return path

    return write


def assert_close(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Equal to the rounding of float32: a moved model is written in it before it is merged."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-6, atol=2e-7)


THREE = {"a": 0.5, "b": 0.3, "c": 0.2}
WAYS = [
    ("activation-matching", "activation-matching", {"a": 0.5, "b": 0.5}),
    ("{method: zipit, alpha: 0.5, beta: 0.5}", {"method": "zipit", "alpha": 0.5, "beta": 0.5}, THREE),
    ("c2m3", "c2m3", THREE),
    ("transport", "transport", {"a": 0.75, "b": 0.25}),
    ("{method: transport, by: weights, mass: l1}", {"method": "transport", "by": "weights", "mass": "l1"}, THREE),
    ("{method: cca, gamma: 1e-1}", {"method": "cca", "gamma": 0.1}, {"a": 0.7, "b": 0.3}),
    ("relu-scaling", "relu-scaling", {"a": 0.5, "b": 0.5}),
    (
        "{method: weight-matching, residual: match, restarts: 2}",
        {"method": "weight-matching", "restarts": 2},
        {"a": 0.5, "b": 0.5},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("align", "by", "shares"), WAYS, ids=[way[0] for way in WAYS])
def test_a_recipe_merges_as_python_does(
    align: str, by: object, shares: dict[str, float], make: Make, merged: Merge, tmp_path: Path
):
    plan = isthmus.plan(make(align, shares))
    done = plan.run(tmp_path / "out", threads=2)
    assert_close(load_file(done.folder / "model.safetensors"), merged(shares, align=by).weights)
    assert done.aligned[0].startswith(f"symmetries of {ARCH}, verified: relative error")
    assert done.aligned[1].startswith("b aligned to a: 2 spaces, ")
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")], (
        "nothing is left behind"
    )


def test_the_reference_is_the_base_or_the_one_named(make: Make, merged: Merge, tmp_path: Path):
    shares = {"a": 0.5, "b": 0.5}
    isthmus.plan(make("{method: activation-matching, reference: b}", shares)).run(tmp_path / "out")
    wanted = merged(shares, align="activation-matching", reference=1)
    assert_close(load_file(tmp_path / "out" / "model.safetensors"), wanted.weights)


def test_models_that_keep_their_function_are_merged_by_any_rule(make: Make, merged: Merge, tmp_path: Path):
    recipe = make("c2m3")
    recipe.write_text(
        recipe.read_text().replace(
            "merge_method: linear", "base_model: a\nmerge_method: slerp\nparameters: {t: 0.3}"
        )
    )
    isthmus.plan(recipe).run(tmp_path / "out")
    aligned = merged({"a": 0.5, "b": 0.5}, align="c2m3").aligned
    wanted = isthmus.combine(list(aligned), "slerp", options={"t": 0.3})
    assert_close(load_file(tmp_path / "out" / "model.safetensors"), wanted)


def test_a_method_that_was_registered_since(
    make: Make, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing of a method is known by its name: also one of somebody else's is named with its options."""
    from isthmus.align.alignment import permutations
    from isthmus.symmetry import SymmetryGraph

    def rolled(
        graph: SymmetryGraph, models: Sequence[Mapping[str, Tensor]], *, reference: int = 0, by: int = 1
    ) -> isthmus.Alignment:
        """Units of the first space, moved on."""
        name = next(iter(graph.spaces))
        order = torch.arange(graph.spaces[name].size).roll(by)
        moves = [permutations(graph, {} if i == reference else {name: order}) for i in range(len(models))]
        return isthmus.Alignment("rolled", graph, tuple(moves), reference)

    monkeypatch.setattr(ALIGNMENTS, "_methods", dict(vars(ALIGNMENTS)["_methods"]))  # and taken back
    ALIGNMENTS.register("rolled", claims=("function-kept",))(rolled)
    isthmus.plan(make("{method: rolled, by: 3}", {"a": 0.0, "b": 1.0})).run(tmp_path / "out")
    found, own = (
        load_file(tmp_path / "out" / "model.safetensors"),
        load_file(folder / "b" / "model.safetensors"),
    )
    assert torch.equal(found["layers.0.weight"], own["layers.0.weight"].roll(3, 0))
    assert torch.equal(found["layers.1.weight"], own["layers.1.weight"].roll(3, 1))


def test_weights_that_are_skipped_come_from_the_reference(make: Make, merged: Merge, tmp_path: Path):
    isthmus.plan(make("zipit", THREE, '  skip: ["layers.2.*"]\n')).run(tmp_path / "out")
    wanted = merged(THREE, align="zipit", skip=["layers.2.*"])
    assert_close(load_file(tmp_path / "out" / "model.safetensors"), wanted.weights)


def test_a_run_after_a_kill_takes_up_what_was_moved(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = isthmus.plan(make("{method: zipit, beta: 0.5}", THREE))
    plan.run(tmp_path / "whole", threads=2)
    wanted = (tmp_path / "whole" / "model.safetensors").read_bytes()

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place, owner in (("weighted", isthmus.Alignment), ("publish", weights.Draft)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, place, cut)
            with pytest.raises(KeyboardInterrupt):
                plan.run(tmp_path / "out", threads=3)
    assert len(list(tmp_path.glob(".out.aligned.*.safetensors"))) == 3
    with monkeypatch.context() as patch:
        patch.setattr(moved, "align_models", cut)
        done = plan.run(tmp_path / "out", threads=3)
    assert (done.folder / "model.safetensors").read_bytes() == wanted
    assert {file.name for file in tmp_path.iterdir()} == {"recipe.yml", "whole", "out"}


def test_what_was_moved_for_another_recipe_is_not_taken_up(
    make: Make, merged: Merge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(weights.Draft, "publish", cut)
        with pytest.raises(KeyboardInterrupt):
            isthmus.plan(make("{method: zipit, beta: 0.5}")).run(tmp_path / "out")
    isthmus.plan(make("{method: zipit, beta: 0}")).run(tmp_path / "out")
    wanted = merged({"a": 0.5, "b": 0.5}, align={"method": "zipit", "beta": 0.0})
    assert_close(load_file(tmp_path / "out" / "model.safetensors"), wanted.weights)


@pytest.mark.parametrize(("align", "cut"), [("activation-matching", False), ("zipit", False), ("cca", True)])
def test_a_merge_of_moved_models_is_repaired_as_in_python(
    align: str,
    cut: bool,
    make: Make,
    merged: Merge,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Parents are measured as they were found: a model whose units are mixed computes nothing by itself."""
    shares = {"a": 0.5, "b": 0.5}
    plan = isthmus.plan(
        make(align, shares, "  repair: {method: repair, mode: sequential}\n  evaluate: loss\n")
    )
    if cut:  # the alignment is asked for once more, and is read back
        from isthmus.recipe.running.trial import Trial

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Trial, "finish", stop)
            with pytest.raises(KeyboardInterrupt):
                plan.run(tmp_path / "out")
        monkeypatch.setattr(moved, "align_models", stop)
    done = plan.run(tmp_path / "out")
    assert done.finished is not None and done.finished.repaired is not None
    wanted = merged(shares, align=align, repair={"method": "repair", "mode": "sequential"})
    assert_close(done.finished.repaired.weights, wanted.weights)
    digits = zoo.open_data("digits").loader("test", batch_size=250)
    for name in shares:
        alone = isthmus.evaluate(mlp(), digits, load_file(folder / name / "model.safetensors"), split="test")
        assert done.finished.scores[name].loss == pytest.approx(alone.loss)
    assert {file.name for file in tmp_path.iterdir()} == {"recipe.yml", "out"}


def test_the_plan_says_what_it_takes(make: Make):
    plan = isthmus.plan(make("{method: zipit, alpha: 0.5}", THREE))
    said = str(plan)
    assert (
        f"first   aligned to a by zipit (alpha 0.5) and the symmetries of {ARCH}, on digits: 3 whole models in memory, "
    ) in said
    assert "units are mixed, so that the models meet by weighted average" in said
    elements = sum(tensor.numel() for tensor in mlp().state_dict().values())
    assert plan.disk == plan.bytes_written + 3 * 4 * elements
    by_parts = isthmus.plan(make("c2m3", THREE))
    assert by_parts.memory == plan.memory > 14 * 4 * elements


@pytest.mark.parametrize("row", ALIGNMENTS.rows(), ids=lambda row: row.name)
def test_every_registered_alignment_can_be_planned(row: Any, make: Make):
    """With all of its options at their defaults, as far as YAML has them."""
    options = {name: value for name, value in row.options.items() if value is not None}
    plan = isthmus.plan(make(json.dumps({"method": row.name, "reference": "b", **options})))
    assert plan.moving is not None and plan.moving.method == row.name
    assert {**plan.moving.options} == options
    assert plan.moving.keeps == ("function-kept" in row.claims)


HEAD = "recipe.yml:4"


@pytest.mark.parametrize(
    ("align", "more", "data", "words"),
    [
        ("zipti", "", True, f"{HEAD}  no alignment is called 'zipti', did you mean 'zipit'?"),
        ("zip_it", "", True, "did you mean 'zipit'?"),
        ("{alpha: 0.3, method: zipit, beeta: 1}", "", True, "zipit has no option 'beeta', did you mean 'beta'?"),
        ("{method: zipit, alpha: x}", "", True, f"{HEAD}  alpha is 'x', not a number"),
        ("{method: zipit, pairing: gredy}", "", True, "one of greedy, optimal, did you mean 'greedy'?"),
        ("{method: c2m3, max_rounds: 1.5}", "", True, "max_rounds is 1.5, not a whole number"),
        ("{method: cca, affine: 1}", "", True, "affine is 1, neither true nor false"),
        ("{method: straight-through, loss: mse}", "", True, "loss is 'mse': it is one of cross-entropy"),
        ("{method: weight-matching, start: [1]}", "", True, "start is [1], which is none of its values"),
        ("{method: zipit, alpha: {x: 1}}", "", True, "alpha is {'x': 1}, not a number"),
        ("{method: zipit, alpha: .nan}", "", True, "alpha is nan, which is not finite"),
        ("{method: c2m3, data: digits}", "", True, "c2m3 has no option 'data'"),
        ("{method: weight-matching, max_sweep: 3}", "", True, "has no option 'max_sweep', did you mean 'max_sweeps'?"),
        ("{method: weight-matching, start: gone.safetensors}", "", True, "start: gone.safetensors does not exist"),
        ("zipit", "", False, f"{HEAD}  zipit runs the models on data, and the recipe names none"),
        ("{method: zipit, graph: graph.json}", "", True, "a file of symmetries holds no program to run"),
        ("{method: c2m3, reference: d}", "", True, "d is no model of this recipe"),
        ("c2m3", "", False, "takes none of shape (2, 3, 32, 32)"),
        ("c2m3", "  calibration: 5\n", True, "calibration is for repair and an align that runs models"),
        ("c2m3", "  limits: {memory: 200MB}\n", True, "recipe.yml:7  c2m3 holds 2 whole models in memory, about"),
        ("zipit", "  blocks: [{match: '*bias', parameters: {weight: 2}}]\n", True, "for all tensors"),
        ("[zipit]", "", True, "isthmus.align is ['zipit'], not a mapping"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_told_by_the_plan(align: str, more: str, data: bool, words: str, make: Make):
    with pytest.raises(InputError) as caught:
        isthmus.plan(make(align, more=more, data=data))
    assert words in caught.value.render()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "linear",
            "ties\nbase_model: a",
            "zipit mixes units, so that models meet by weighted average, not by ties",
        ),
        ("weight: 0.5}}]", "weight: -0.2}}]", "each model has one, not negative, for all tensors"),
        ("model: b,", "model: wide,", "models of several widths are aligned in Python"),
        ("  model: isthmus.zoo:mlp", "  model: isthmus.zoo:vgg16 #", "tensors do not fit"),
    ],
)
def test_merges_that_make_no_sense_are_told_by_the_plan(
    old: str, new: str, words: str, make: Make, folder: Path
):
    wide = zoo.mlp(d_in=64, widths=(20, 12)).state_dict()
    weights.save(wide, folder / "wide" / "model.safetensors")
    recipe = make("zipit")
    assert old in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        isthmus.plan(recipe)
    assert words in caught.value.render()


def test_what_only_the_models_tell_is_said_before_anything_is_written(make: Make, tmp_path: Path):
    plan = isthmus.plan(make("{method: matched-averaging, gamma: 50.0, variance: 0.01}"))
    with pytest.raises(InputError, match="the network changes its widths") as caught:
        plan.run(tmp_path / "out")
    assert any("16 -> " in line for line in caught.value.where)
    with pytest.raises(InputError, match="holds 2 whole models in memory"):
        isthmus.plan(make("c2m3")).run(tmp_path / "out", max_memory="100MB")
    assert {file.name for file in tmp_path.iterdir()} == {"recipe.yml"}


def test_a_recipe_from_inside_a_model_names_no_more_than_it_did(make: Make, folder: Path, tmp_path: Path):
    outside = tmp_path / "outside.safetensors"
    weights.save({"x": torch.zeros(1)}, outside)
    sound = make("zipit").read_text()
    assert plan_text(sound, "r", folder / "r", (folder,), inside=folder).moving is not None
    for old, new, words in (
        (ARCH, "evil:model", "evil:model is code"),
        ("data: digits", f"data: text:{outside}", "leads nowhere else"),
        ("align: zipit", f"align: {{method: weight-matching, start: {outside}}}", "does not exist"),
        ("align: zipit", f"align: {{method: c2m3, graph: {outside}}}", "does not exist"),
    ):
        with pytest.raises(InputError) as caught:
            plan_text(sound.replace(old, new), "r", folder / "r", (folder,), inside=folder)
        assert words in caught.value.render()


def test_a_folder_of_transformers_by_its_configuration_and_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers import LlamaConfig, LlamaForCausalLM

    from isthmus.program.pretrained import pretrained

    monkeypatch.chdir(tmp_path)
    config = LlamaConfig(
        vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    for seed, name in enumerate("xy"):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
    down, up = torch.randn(2, 16), torch.randn(24, 2)
    place = "model.layers.1.mlp.up_proj"
    adapter(
        tmp_path / "lora",
        {f"{place}.lora_A.weight": down, f"{place}.lora_B.weight": up},
        target_modules=["up_proj"],
    )
    Path("recipe.yml").write_text(
        "models: [{model: x, parameters: {weight: 0.75}}, {model: y+lora, parameters: {weight: 0.25}}]\n"
        "merge_method: linear\nisthmus: {align: {method: c2m3, max_rounds: 20}}\n"
    )
    plan = isthmus.plan("recipe.yml")
    assert "aligned to x by c2m3 (max_rounds 20) and the symmetries of config.json: 2 whole models" in str(
        plan
    )
    done = plan.run("out")
    assert done.aligned[0].startswith("symmetries of config.json, verified")
    states = [weights.load("x"), weights.load("y")]
    states[1][f"{place}.weight"] = states[1][f"{place}.weight"] + 3.0 * up @ down
    model, example = pretrained("x").make({})
    how = {"method": "c2m3", "max_rounds": 20}
    wanted = isthmus.merge(
        states, model=model, example=example, align=how, weights=[0.75, 0.25], verify=False
    )
    found = weights.load("out")
    assert "lm_head.weight" not in found
    assert_close(found, {name: wanted.weights[name] for name in found})
