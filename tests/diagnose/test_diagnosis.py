"""The whole diagnosis: grid, sizes, words, plain data, and the command that it ends with."""

import functools
import io
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import run
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import isthmus
from isthmus import zoo
from isthmus.diagnose import CAUSES, RELATIONS, Attempt, Bound, Diagnosis, Recipe, Rule, holding
from isthmus.diagnose.grid import (
    affordable,
    best_within,
    finalists,
    first_round,
    repairs,
    second_round,
    third_round,
    within,
)
from isthmus.diagnose.subsets import halves, moments, standardised, take
from isthmus.diagnose.terminal import shown
from isthmus.diagnosing import results
from isthmus.errors import DataError, InputError
from isthmus.measure import Finding, cost
from isthmus.program import Cut, export, keep_apart
from isthmus.repair import REPAIRS

ARCH = ["--arch", "isthmus.zoo:mlp", "d_in=64", "widths=[16,16]"]


@functools.cache
def strangers() -> tuple[nn.Module, nn.Module]:
    loader = zoo.digits().split(seed=0).loader("train", batch_size=64)
    nets = [zoo.init(zoo.mlp(d_in=64, widths=[16, 16]), seed) for seed in (1, 2)]
    a, b = (zoo.train(n, loader, epochs=4, lr=0.2, clip=1.0, threads=1).model for n in nets)
    return a, b


@functools.cache
def diagnosis() -> Diagnosis:
    data = zoo.digits().split(seed=0)
    return isthmus.diagnose(
        strangers(),
        data.loader("train", limit=300),
        validation=data.loader("validation"),
        names=["a", "b"],
        subset=150,
    )


def test_it_says_what_they_are_and_what_is_best_at_each_size():
    found = diagnosis()
    assert found.relation.rule == "strangers"
    assert list(found.best) == [1.0, 1.1, 1.2, 2.0]
    scores = [attempt.score for attempt in found.best.values()]
    assert scores == sorted(scores) and scores[0] > found.chance
    assert all((a.parameters or 9) <= b + 1e-9 for b, a in found.best.items())
    assert all(attempt.whole is not None for attempt in found.best.values())
    assert found.examples == len(zoo.digits().split(seed=0).arrays("validation")[1])
    tried = {attempt.recipe.repair for attempt in found.attempts}
    assert tried == {None, *REPAIRS.names()}
    refused = [a for a in found.attempts if a.refused]
    assert {a.recipe.repair for a in refused} >= {"reset"} and all(a.score == -float("inf") for a in refused)


def test_words_and_plain_data_hold_the_same():
    found = diagnosis()
    said = str(found)
    assert found.summary in said and all(cause.found in said for cause in found.causes)
    assert all(found.command(attempt) in said for attempt in found.best.values())
    assert "isthmus.merge(models, align=" in said and ", data=data)" in said
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["format"] == "isthmus-diagnosis/1" and plain["relation"]["rule"] == "strangers"
    assert [c["rule"] for c in plain["causes"]] == [c.rule for c in found.causes]
    by_name = {f["name"]: f for f in plain["findings"]}
    assert set(by_name) == set(found.findings)
    assert list(by_name["vanishing features"]["layers"]) == ["layers.0", "layers.1", "layers.2"]
    assert [row["budget"] for row in plain["best"]] == [1.0, 1.1, 1.2, 2.0]
    assert all("conditions" in cause and "source" in cause for cause in plain["causes"])


def test_the_terminal_shows_causes_and_sizes_without_colour():
    file = io.StringIO()
    Console(file=file, width=100).print(shown(diagnosis()), highlight=False)
    text = file.getvalue()
    for word in (
        "strangers",
        "where the layers disagree",
        "best recipe",
        "ensemble",
        "1.1x",
    ):
        assert word in text
    assert "\x1b" not in text and " refused" in text


def test_results_are_those_of_the_report():
    made = results(diagnosis(), command="isthmus diagnose")
    assert [row.name for row in made.rows][:3] == ["a", "b", "ensemble"]
    assert [p.name for p in made.profiles] == ["Vanishing features", "Variance ratio"]
    assert made.provenance.evaluated == "validation"


def test_the_same_inputs_give_the_same_diagnosis_and_less_time_tries_less():
    data = zoo.digits().split(seed=0)
    one = data.loader("train", limit=60)
    first, again = (isthmus.diagnose(strangers(), one, recipes=2, subset=20, budgets=[1.0]) for _ in range(2))
    assert first.to_dict() == again.to_dict() and len(first.attempts) == 2 and first.left > 5
    short = isthmus.diagnose(strangers(), one, subset=20, seconds=1e-6)
    assert len(short.attempts) == 1 and short.left > 5 and "not tried" in str(short)


def test_three_models_are_diagnosed_as_two_are():
    data = zoo.digits().split(seed=0)
    three = [*strangers(), zoo.init(zoo.mlp(d_in=64, widths=[16, 16]), 3)]
    found = isthmus.diagnose(three, data.loader("train", limit=60), subset=30, recipes=2)
    assert found.relation.rule == "strangers" and "uneven-parents" in {cause.rule for cause in found.causes}
    assert "model 0, model 1 and model 2 are strangers" in found.summary and "ensemble, 3x" in str(found)
    assert "partial accuracy barrier, one layer" not in found.findings


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"budgets": [0.5]}, "0.5"),
        ({"budgets": []}, "none"),
        ({"subset": 0}, "subset = 0"),
        ({"recipes": 0, "seconds": -1.0}, "seconds = -1"),
        ({"names": ["a"]}, "names: 1 for 2"),
    ],
)
def test_what_does_not_fit_is_said_at_once(arguments: dict[str, object], words: str):
    with pytest.raises(InputError, match=words):
        isthmus.diagnose(strangers(), [], **arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="two or more"):
        isthmus.diagnose([strangers()[0]], [])


def test_sizes_are_those_of_the_programs():
    x = torch.zeros(2, 64)
    net = zoo.mlp(d_in=64, widths=[16, 8, 8])
    program = export(net.eval(), x)
    unit = cost(program, x)
    depths = affordable(program, 2, [1.0, 1.8, 1.9, 2.0])
    ratios = {}
    for depth in range(1, 4):
        kept, _ = keep_apart(program, Cut(preserve_first=depth), (0.5, 0.5))
        ratios[depth] = cost(kept, x).over(unit)[0].value
    assert depths == sorted({max(d for d, r in ratios.items() if r <= b) for b in (1.8, 1.9, 2.0)})


def attempt(recipe: Recipe, size: float, accuracy: float | None, whole: float | None = None) -> Attempt:
    return Attempt(recipe, float(size), accuracy, whole, "" if accuracy is not None else "refused")


def test_the_best_is_of_what_fits_and_was_measured_whole():
    plain, kept, large = Recipe("m", "x"), Recipe("m", "x", 2), Recipe("m", "y", 4)
    found = [attempt(plain, 1, 0.8, 0.7), attempt(kept, 1.1, 0.9, 0.6), attempt(large, 1.5, 0.9)]
    found.append(attempt(Recipe(), 1, None))
    assert [a.recipe for a in within(found, 2.0)] == [large, plain, kept]
    assert best_within(found, [1.0, 2.0])[2.0].recipe == plain
    assert {a.recipe for a in finalists(found, [1.0], each=2)} == {plain}
    assert best_within([attempt(Recipe(), 1, None)], [1.0]) == {}


def test_the_grid_is_short_and_each_round_takes_the_best_of_the_one_before():
    first = list(first_round(related=False))
    assert first[0] == Recipe() and len(first) == len(set(first)) == 2 + len(repairs())
    assert {recipe.align for recipe in first_round(related=True)} == {None}
    scores = (("x", 0.1), ("y", 0.4), (None, 0.3), ("z", 0.2), ("w", None))
    found = [attempt(Recipe("activation-matching", r), 1, s) for r, s in scores]
    best = ["y", None, "z"]
    assert list(second_round(False, found)) == [Recipe("weight-matching", r) for r in best]
    found.append(attempt(Recipe("weight-matching", "y"), 1, 0.35))
    assert list(third_round(found, [2, 3])) == [
        Recipe("activation-matching", r, d) for d in (2, 3) for r in best
    ]
    assert list(third_round([attempt(Recipe(), 1, None)], [3])) == []


def test_recipes_are_options_and_flags():
    recipe = Recipe("weight-matching", None, 3)
    assert recipe.options == {"align": "weight-matching", "preserve_first": 3}
    assert recipe.flags == ["--align", "weight-matching", "--preserve-first", "3"]
    assert str(recipe) == "weight-matching + first 3 layers apart" and str(Recipe()) == "as they are"
    assert str(Recipe(preserve_first=1)) == "as they are + first layer apart"


def test_a_model_that_no_merge_comes_near_is_named():
    found = diagnosis()
    ahead = replace(found, parents=(found.parents[0], found.best[2.0].score + 0.06))
    said = f"No merge that was tried comes near to b alone, {100 * ahead.parents[1]:.2f}% right."
    assert ahead.summary.endswith(said)
    near = replace(found, parents=(found.parents[0], found.best[2.0].score + 0.04))
    assert "alone" not in near.summary


def test_copies_disagree_nowhere_and_layers_that_cost_nothing_are_not_listed():
    found = diagnosis()
    assert (
        found.disagreeing and not replace(found, relation=replace(found.relation, rule="copies")).disagreeing
    )
    name = "partial accuracy barrier, one layer"
    barrier = replace(found.findings[name], layers={"x": 0.0, "y": 1.5})
    said = replace(found, findings={**found.findings, name: barrier}).disagreeing[-1]
    assert said == "merged alone, most accuracy is lost by y (1.50 points)"


def test_a_rule_is_not_said_where_a_more_basic_one_holds():
    found = {"x": Finding("x", 2.0, layers={"a": 2.0, "b": 0.5, "c": 3.0})}
    basic = Rule("basic", (Bound("x", "at least", 2.0),), "{x:.1f} at {where}", "means", "do", "here")
    other = Rule("other", (Bound("x", "at least", 1.0),), "found", "means", "do", "here", unless=("basic",))
    missing = Rule("missing", (Bound("y", "at most", 9.0),), "found", "means", "do", "here")
    (cause,) = holding([basic, other, missing], found)
    assert cause.found == "2.0 at c, a" and cause.conditions == ("x at least 2 (measured: 2)",)
    assert [c.rule for c in holding([other], found)] == ["other"]


def test_what_was_not_measured_is_not_said():
    # Networks with an answer per position have no single row of logits whose commonest answer could be told.
    names = ("bias dominance", "bias dominance over the parents'")
    found = {name: Finding(name, 3.0) for name in names}
    (cause,) = holding(CAUSES, found)
    assert cause.rule == "bias-dominated" and cause.found.endswith("3.0 times the parents' ratio.")
    (cause,) = holding(CAUSES, {**found, "commonest answer": Finding("commonest answer", 0.85)})
    assert cause.found.endswith("3.0 times the parents' ratio. 85% of its answers are one class.")


@pytest.mark.parametrize(
    ("value", "said"), [(-0.004, "0.00"), (0.0, "0.00"), (-0.006, "-0.01"), (-10.0, "-10.00")]
)
def test_zero_has_no_sign(value: float, said: str):
    rule = Rule("r", (Bound("cosine", "at most", 1.0),), "It is {cosine:.2f}.", "", "", "")
    (cause,) = holding([rule], {"cosine": Finding("cosine", value)})
    assert cause.found == f"It is {said}."


def test_data_is_halved_cut_and_standardised():
    batches = [(torch.full((2, 3, 4, 4), float(i)), torch.arange(2)) for i in range(3)]
    first, second = halves(batches)
    assert len(first) == 2 and len(second) == 1
    one, rest = halves([(torch.arange(6.0).view(3, 2), torch.arange(3))])
    assert take(one, 9)[0][1].tolist() == [0] and take(rest, 9)[0][1].tolist() == [1, 2]  # type: ignore[index]
    with pytest.raises(DataError, match="one example"):
        halves([(torch.zeros(1, 2), torch.zeros(1).long())])
    x = 5 + 3 * torch.randn(50, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    seen = moments([(x, torch.zeros(50).long())])
    assert seen is not None and seen[0].shape == (2,)
    (item,) = standardised([(x, torch.zeros(50).long())], *seen)
    made = item[0][0]  # type: ignore[index]
    assert isinstance(made, Tensor)
    assert made.mean((0, 2, 3)).abs().max() < 1e-5 and (made.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert moments([torch.zeros(3, 2).long()]) is None
    named = {"pixel_values": x, "labels": torch.zeros(50).long()}
    assert set(standardised([named], *seen)[0]) == {"pixel_values", "labels"}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("diagnose")
    for name, model in zip("ab", strangers(), strict=True):
        save_file(model.state_dict(), made / f"{name}.safetensors")
    return made


def test_the_command_that_is_advised_runs_and_gives_what_was_said(folder: Path):
    asked = [
        "a.safetensors",
        "b.safetensors",
        *ARCH,
        "--data",
        "digits",
        "--calibration",
        "200",
        "--subset",
        "100",
    ]
    done = run("diagnose", *asked, "--budget", "1", "--budget", "2", "--json", "--report", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    best = found["best"][-1]
    words = shlex.split(best["command"])
    assert words[:2] == ["isthmus", "merge"]
    made = run(*words[1:], "--out", "merged.safetensors", cwd=folder)
    assert made.returncode == 0, made.stderr
    images = zoo.digits().split(seed=0)
    factory = functools.partial(zoo.mlp, d_in=64, widths=[16, 16])
    if best["options"].get("preserve_first"):
        model = isthmus.load(folder / "merged.safetensors", model=factory)
    else:
        model = factory()
        model.load_state_dict(load_file(folder / "merged.safetensors"))
    assert isthmus.evaluate(model, images.loader("validation")).accuracy == pytest.approx(best["whole"])
    assert (folder / "out" / "report.html").stat().st_size > 100_000
    assert json.loads((folder / "out" / "diagnosis.json").read_text()) == found
    assert json.loads((folder / "out" / "results.json").read_text())["verdict"] == found["summary"]


def test_the_command_line_shows_it_and_says_what_is_wrong(folder: Path):
    done = run(
        "diagnose", "a.safetensors", "b.safetensors", *ARCH, "--data", "digits", "--recipes", "2", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert "strangers" in done.stdout and "commands\n1x" in done.stdout
    assert "  isthmus merge a.safetensors b.safetensors --arch isthmus.zoo:mlp d_in=64" in done.stdout
    for wrong, word in (
        (["a.safetensors", *ARCH, "--data", "digits"], "two or more"),
        (["a.safetensors"], "--arch"),
    ):
        done = run("diagnose", *wrong, cwd=folder)
        assert done.returncode == 2 and word in done.stderr


def test_the_guide_has_every_rule_with_its_limits():
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "diagnose.md").read_text(encoding="utf-8")
    for rule in (*RELATIONS, *CAUSES):
        assert f"| {rule.name} | {'; '.join(map(str, rule.when))} | {rule.source} |" in guide, rule.name
