"""`isthmus: {repair, evaluate, report}`: a merge by recipe that is run on data."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import isthmus
from isthmus import weights, zoo
from isthmus.errors import DataError, InputError
from isthmus.recipe.again import plan_again
from isthmus.recipe.inspection.inspecting import inspect
from isthmus.recipe.running.shares import shares
from isthmus.recipe.running.trial import Trial
from isthmus.report import Results

Make = Callable[[str], Path]

ARCH = "isthmus.zoo:mlp d_in=64 widths=[16,16]"


def mlp() -> zoo.MLP:
    return zoo.mlp(d_in=64, widths=(16, 16))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks trained on digits from different seeds, and the first with its units in another order."""
    root = tmp_path_factory.mktemp("strangers")
    digits = zoo.open_data("digits").split(seed=0)
    trained = zoo.strangers(digits, mlp, n=2, seeds=(0, 1), epochs=8, lr=0.1)
    states = {f"s{i}": dict(result.model.state_dict()) for i, result in enumerate(trained)}
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    moved = dict(states["s0"])
    moved["layers.0.weight"], moved["layers.0.bias"] = (
        moved["layers.0.weight"][order],
        moved["layers.0.bias"][order],
    )
    moved["layers.1.weight"] = moved["layers.1.weight"][:, order]
    for name, state in {**states, "moved": moved}.items():
        (root / name).mkdir()
        save_file({k: v.contiguous() for k, v in state.items()}, root / name / "model.safetensors")
    isthmus.trace(mlp(), torch.randn(2, 1, 8, 8))  # the first trace is slow; not in a test's time
    return root


@pytest.fixture
def make(strangers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.chdir(strangers)

    def write(block: str, models: str = "{model: s0}, {model: s1}") -> Path:
        path = tmp_path / "recipe.yml"
        path.write_text(
            f"models: [{models}]\nmerge_method: linear\nparameters: {{weight: 0.5}}\nisthmus:\n  {block}\n"
        )
        return path

    return write


def accuracy(folder: Path) -> float:
    model = mlp()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return isthmus.evaluate(model, zoo.open_data("digits").loader("test"), split="test").accuracy


def test_a_repair_that_helps_is_kept_and_measured(make: Make, tmp_path: Path, strangers: Path):
    recipe = make(
        f"model: {ARCH}\n  data: digits\n  repair: rescale\n  evaluate: accuracy\n  report: page.html"
    )
    plan = isthmus.plan(recipe)
    assert "rescale, kept if it is better on validation data" in str(plan)
    assert plan.disk == 2 * plan.bytes_written
    done = plan.run(tmp_path / "out")
    found = done.finished
    assert found is not None and found.chosen == "merged + rescale"
    before, after = found.validation.values()
    assert after.accuracy > before.accuracy
    # The written numbers are those of the same merge in memory, and of the folder as it lies there.
    digits = zoo.open_data("digits").split(seed=0)
    in_memory = isthmus.merge(
        [weights.load(strangers / name) for name in ("s0", "s1")],
        model=mlp(),
        repair="rescale",
        data=digits.loader("train", batch_size=250, limit=5000),
    )
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in in_memory.weights.items():
        torch.testing.assert_close(written[name], tensor, rtol=1e-6, atol=1e-7)
    assert accuracy(tmp_path / "out") == pytest.approx(found.scores["merged + rescale"].accuracy)
    # All of it is said: on the terminal, in the card, in the header, in results.json, on the page.
    said = f"test accuracy {100 * found.scores['s0'].accuracy:.2f}%"
    assert said in str(done) and said in (tmp_path / "out" / "README.md").read_text()
    told = json.loads(weights.metadata(tmp_path / "out")["isthmus.afterwards"])
    assert told["chosen"] == "merged + rescale" and told["repair"] == "rescale"
    assert inspect(tmp_path / "out").as_dict()["merged"]["afterwards"] == told  # type: ignore[index]
    results = Results.read(tmp_path / "out" / "results.json")
    assert [(row.name, row.kind) for row in results.rows] == [
        ("s0", "edge"), ("s1", "edge"), ("merged", "merged"), ("merged + rescale", "merged"),
    ]  # fmt: skip
    assert [profile.name for profile in results.profiles] == ["What the repair did"]
    assert "merged + rescale" in (tmp_path / "out" / "page.html").read_text()
    assert {p.name for p in tmp_path.iterdir()} == {"out", "recipe.yml"}, "nothing is left beside it"


def test_a_repair_that_does_not_help_is_not_kept(make: Make, tmp_path: Path):
    both = "{model: s0}, {model: moved}"
    plain = isthmus.plan(make("seed: 0", both)).run(tmp_path / "plain")
    recipe = make(
        f"model: {ARCH}\n  data: digits\n  calibration: 2\n  repair: {{method: repair, max_gain: 2}}", both
    )
    done = isthmus.plan(recipe).run(tmp_path / "out")
    assert done.finished is not None
    before, after = done.finished.validation.values()
    assert after.accuracy < before.accuracy, "two images are no statistics"
    assert done.finished.chosen == "merged" and not done.finished.scores
    assert "repair not kept" in str(done)
    left, right = (load_file(f / "model.safetensors") for f in (plain.folder, done.folder))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_parents_are_run_as_they_were_aligned(make: Make, tmp_path: Path):
    from isthmus.symmetry import saved

    example = torch.randn(2, 1, 8, 8)
    graph, verification = isthmus.verified(isthmus.trace(mlp(), example), example)
    saved.save(graph, tmp_path / "graph.json", verification)
    recipe = make(
        f"model: {ARCH}\n  data: digits\n  align: {{method: weight-matching, graph: {tmp_path}/graph.json}}\n"
        "  repair: {method: repair, mode: sequential}\n  evaluate: loss",
        "{model: s0}, {model: moved}",
    )
    done = isthmus.plan(recipe).run(tmp_path / "out")
    assert done.finished is not None
    scores = done.finished.scores
    # The planted order is found, so that both parents and their mean are one network, and repair has nothing to do.
    assert {round(score.loss, 5) for score in scores.values()} == {round(scores["s0"].loss, 5)}
    assert done.finished.repaired is not None
    assert all(
        abs(gain - 1) < 1e-3 for change in done.finished.repaired.changed.values() for gain in change.gain
    )


def test_a_killed_run_does_not_merge_twice(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = make(f"model: {ARCH}\n  data: digits\n  repair: rescale\n  evaluate: accuracy")
    isthmus.plan(recipe).run(tmp_path / "whole")
    wanted = {f.name: f.read_bytes() for f in (tmp_path / "whole").iterdir() if f.name != "README.md"}
    with monkeypatch.context() as patched:

        def fail(*_: object):
            raise KeyboardInterrupt

        patched.setattr(Trial, "finish", fail)
        with pytest.raises(KeyboardInterrupt):
            isthmus.plan(recipe).run(tmp_path / "out")
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.merged").is_dir()
    stamp = (tmp_path / ".out.merged" / "model.safetensors").stat().st_mtime_ns
    seen: list[int] = []
    original = Trial.finish

    def watched(self: Trial, folder: Path, *rest: object):
        seen.append((folder / "model.safetensors").stat().st_mtime_ns)
        return original(self, folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Trial, "finish", watched)
    isthmus.plan(recipe).run(tmp_path / "out")
    assert seen == [stamp]
    found = {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir() if f.name != "README.md"}
    assert found == wanted
    (tmp_path / ".again.merged").mkdir()
    with pytest.raises(InputError, match="in the way"):
        isthmus.plan(recipe).run(tmp_path / "again")


def test_a_merge_that_collapses_says_so(make: Make, tmp_path: Path, strangers: Path):
    broken = {k: -v for k, v in load_file(strangers / "s0" / "model.safetensors").items()}
    (tmp_path / "minus").mkdir()
    save_file(broken, tmp_path / "minus" / "model.safetensors")
    recipe = make(
        f"model: {ARCH}\n  data: digits\n  evaluate: accuracy", f"{{model: s0}}, {{model: {tmp_path}/minus}}"
    )
    assert "the merge is hardly better" in str(isthmus.plan(recipe).run(tmp_path / "out"))


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (f"model: {ARCH}\n  repair: rescale", "recipe.yml:6  repair runs the merged model on data"),
        ("data: digits\n  repair: rescale", "recipe.yml:6  repair runs the merged model, and there is no config"),
        (f"model: {ARCH}\n  data: digits\n  repair: rescal", "recipe.yml:7  no repair is called 'rescal'"),
        (f"model: {ARCH}\n  data: digits\n  repair: {{method: reset, layer: x}}", "has no option 'layer'"),
        (f"model: {ARCH}\n  data: digits\n  repair: {{method: repair, mode: jiont}}", "mode is 'jiont': it is one of"),
        (f"model: {ARCH}\n  data: digits\n  repair: {{method: repair, eps: x}}", "eps is 'x', not a number"),
        (f"model: {ARCH}\n  data: digits\n  repair: {{mode: joint}}", "is no repair: write its name"),
        (
            f"model: {ARCH}\n  data: digits\n  repair: {{method: repair, allow_new_parameters: true}}",
            "a merged folder holds the tensors of its parents",
        ),
        (f"model: {ARCH}\n  data: digitz\n  evaluate: loss", "recipe.yml:6  digitz: neither a kind of data"),
        (f"model: {ARCH}\n  data: npz:gone.npz\n  evaluate: loss", "recipe.yml:6  npz:gone.npz: there is no"),
        ("model: isthmus.zoo:mpl\n  data: digits\n  evaluate: loss", "recipe.yml:5  isthmus.zoo:mpl: isthmus.zoo has"),
        ("model: isthmus.zoo:mlp 'x\n  data: digits\n  evaluate: loss", "recipe.yml:5"),
        ("model: torchvision:resnet\n  data: digits\n  evaluate: loss", "torchvision has no model 'resnet'"),
        (
            "model: isthmus.zoo:mlp d_in=64 widths=[16]\n  data: digits\n  evaluate: loss",
            "layers.2.weight    not in the model    recipe (10, 16)",
        ),
        (f"model: {ARCH}\n  data: digits\n  seed: 1", "recipe.yml:5  model is for repair, evaluate and an align"),
        (f"model: {ARCH}\n  data: digits\n  evaluate: loss\n  calibration: 5", "calibration is for repair and an"),
        ("report: page.html", "recipe.yml:5  a report shows what was measured"),
        (f"model: {ARCH}\n  data: digits\n  evaluate: loss\n  report: ../page.html", "is no page: write a name"),
        (f"model: {ARCH}\n  data: digits\n  evaluate: loses", "is 'loses', not 'accuracy' or 'loss'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_told_by_the_plan(block: str, expected: str, make: Make):
    with pytest.raises(InputError) as caught:
        isthmus.plan(make(block))
    assert expected in caught.value.render()


def test_models_that_are_missing_hide_nothing_else(make: Make):
    with pytest.raises(InputError) as caught:
        isthmus.plan(make("repair: rescal\n  evaluate: loss\n  data: digitz", "{model: gone}, {model: s0}"))
    assert [line.split("  ")[0] for line in caught.value.where] == [f"recipe.yml:{n}" for n in (1, 5, 7)]


def test_slices_have_no_parents_of_their_shape(make: Make, tmp_path: Path):
    recipe = make("seed: 0")
    piece = "- sources: [{model: s0, layer_range: [0, 2]}]\n- sources: [{model: s1, layer_range: [2, 3]}]\n"
    block = f"isthmus:\n  model: {ARCH}\n  data: digits\n  evaluate: loss\n"
    recipe.write_text(f"slices:\n{piece}merge_method: passthrough\n{block}")
    done = isthmus.plan(recipe).run(tmp_path / "out")
    assert done.finished is not None and list(done.finished.scores) == ["merged"]
    recipe.write_text(f"slices:\n{piece}merge_method: passthrough\n{block}  repair: rescale\n")
    with pytest.raises(InputError, match="no parent has the layers of these slices"):
        isthmus.plan(recipe)


def test_data_that_does_not_fit_is_told_before_the_merge(make: Make, tmp_path: Path, strangers: Path):
    import numpy as np

    images = np.zeros((20, 9, 9), np.uint8)
    labels = np.arange(20) % 10
    np.savez(tmp_path / "large.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    np.savez(
        tmp_path / "many.npz",
        x_train=images[:, :8, :8], y_train=labels * 2, x_test=images[:, :8, :8], y_test=labels,
    )  # fmt: skip
    for file, words in (("large", "cannot be run on the data"), ("many", "the model has 10 classes")):
        recipe = make(f"model: {ARCH}\n  data: npz:{file}.npz\n  evaluate: loss")  # found beside the recipe
        with pytest.raises(DataError, match=words):
            isthmus.plan(recipe).run(tmp_path / "out")
        assert not (tmp_path / "out").exists() and not (tmp_path / ".out.merged").exists()


def test_a_recipe_from_inside_a_model_runs_no_code_and_reads_no_data_elsewhere(
    make: Make, tmp_path: Path, strangers: Path
):
    sound = f"model: {ARCH}\n  data: digits\n  evaluate: loss"
    isthmus.plan(make(sound)).run(tmp_path / "out")
    again = plan_again(tmp_path / "out", strangers)
    again.run(tmp_path / "again")
    same = [f"{f}/model.safetensors" for f in (tmp_path / "out", tmp_path / "again")]
    assert Path(same[0]).read_bytes() == Path(same[1]).read_bytes()
    notes = weights.metadata(tmp_path / "out")
    held = load_file(same[0])
    (strangers / "evil.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "data.npz").write_bytes(b"x")
    for model, data, words in (
        ("evil:model", "digits", "evil:model is code"),
        ("timm:resnet18 checkpoint_path=x.pth", "digits", "timm:resnet18 is code"),
        (ARCH, f"npz:{tmp_path}/data.npz", "leads nowhere else"),
    ):
        text = notes["isthmus.recipe"].replace(ARCH, model).replace("data: digits", f"data: {data}")
        save_file(held, tmp_path / "evil.safetensors", {**notes, "isthmus.recipe": text})
        with pytest.raises(InputError, match=words):
            plan_again(tmp_path / "evil.safetensors", strangers)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linear\nparameters: {weight: [1, 3]}", {"s0": 0.5, "s1": 0.5}),
        ("slerp\nbase_model: s0\nparameters: {t: 0.25}", {"s0": 0.75, "s1": 0.25}),
        ("task_arithmetic\nbase_model: s0\nparameters: {weight: 0.3}", {"s1": 1.0}),
        ("karcher", {"s0": 0.5, "s1": 0.5}),
    ],
)
def test_shares_of_the_models(text: str, expected: dict[str, float], make: Make):
    recipe = make("seed: 0")
    recipe.write_text(f"models: [{{model: s0}}, {{model: s1}}]\nmerge_method: {text}\n")
    assert shares(isthmus.plan(recipe)) == pytest.approx(expected)


def test_a_model_of_transformers_whose_files_have_other_names(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        num_channels=1, num_labels=10,
    )  # fmt: skip
    for seed, name in enumerate("xy"):
        torch.manual_seed(seed)
        ViTForImageClassification(config).save_pretrained(tmp_path / name)
    recipe = make(
        "data: digits\n  evaluate: accuracy\n  repair: repair\n  calibration: 50",
        f"{{model: {tmp_path}/x}}, {{model: {tmp_path}/y}}",
    )
    done = isthmus.plan(recipe).run(tmp_path / "out")
    assert done.finished is not None and done.finished.repaired is not None
    loaded, report = ViTForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    loader = zoo.open_data("digits").loader("test", batch_size=250)
    with torch.no_grad():
        right = sum(int((loaded(x).logits.argmax(1) == y).sum()) for x, y in loader)
    assert right / loader.samples == pytest.approx(done.finished.scores[done.finished.chosen].accuracy)
