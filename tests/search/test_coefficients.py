"""Grids, Optuna and WiSE-FT: points of a rule, chosen by a score."""

import math
import sys

import pytest
import torch

from isthmus import combine, soup
from isthmus.errors import InputError, MissingExtraError
from isthmus.search import simplex


def test_a_whole_is_dealt_out_in_every_way():
    found = list(simplex(3, 4))
    assert len(found) == math.comb(6, 2) == len(set(found))
    assert all(sum(point) == pytest.approx(1) and min(point) >= 0 for point in found)
    assert found[0] == (1.0, 0.0, 0.0) and found[-1] == (0.0, 0.0, 1.0)
    assert len(list(simplex(2, 50))) == 51, "the pairs of the Fisher paper"
    with pytest.raises(InputError, match="more than"):
        next(simplex(20, 20))


def test_a_grid_of_shares_finds_the_best_of_them(siblings, near):
    target = combine(siblings[:3], weights=[0.25, 0.5, 0.25])
    found = soup(siblings[:3], near(target), "grid", resolution=4)
    assert found.chosen["weights"] == pytest.approx([0.25, 0.5, 0.25])
    assert len(found.steps) == 15 and found.score > -1e-9
    for key, value in target.items():
        torch.testing.assert_close(found.weights[key], value)


def test_a_grid_over_options_is_what_the_rule_makes(siblings, drawn, near):
    base, models = drawn(0), siblings[:3]
    target = combine(models, "ties", base=base, options={"density": 0.5, "lam": 0.5})
    over = {"density": [0.2, 0.5], "lam": [0.5, 1.0], "method": ["ties", "task-arithmetic"]}
    found = soup(models, near(target), "grid", base=base, over=over)
    assert found.chosen == {"density": 0.5, "lam": 0.5, "method": "ties"}
    assert len(found.steps) == 8 and found.score == 0.0
    assert all(torch.equal(found.weights[key], value) for key, value in target.items())


def test_everything_wrong_with_a_grid_is_said_before_any_score(siblings, drawn):
    called = []
    over = {"density": [0.5, 7.0], "method": ["ties", "tise"]}
    with pytest.raises(InputError) as raised:
        soup(siblings, lambda w: called.append(1) or 0.0, "grid", base=drawn(0), over=over)
    assert "density" in str(raised.value) and "no combination is called 'tise'" in str(raised.value)
    with pytest.raises(InputError, match="needs a base model"):
        soup(siblings, lambda w: called.append(1) or 0.0, "grid", method="ties", over={"lam": [1.0]})
    with pytest.raises(InputError, match="no option 'densiti'"):
        soup(siblings, lambda w: called.append(1) or 0.0, "grid", over={"densiti": [1.0]})
    with pytest.raises(InputError, match="density has none"):
        soup(siblings, lambda w: 0.0, "grid", base=drawn(0), method="ties", over={"density": []})
    assert not called


def test_optuna_climbs_and_repeats_itself(siblings, near):
    target = combine(siblings[:2], weights=[0.7, 0.3])
    runs = [soup(siblings[:2], near(target), "optuna", trials=25, seed=1) for _ in range(2)]
    assert [s.score for s in runs[0].steps] == [s.score for s in runs[1].steps]
    assert runs[0].chosen["weights"] == pytest.approx([0.7, 0.3], abs=0.1)
    assert sum(runs[0].chosen["weights"]) == pytest.approx(1)


def test_optuna_chooses_options_and_rules(siblings, drawn, near):
    base = drawn(0)
    target = combine(siblings, "task-arithmetic", base=base, options={"lam": 0.4})
    found = soup(
        siblings, near(target), "optuna", base=base, method=["ties", "task-arithmetic"],
        space={"lam": (0.1, 1.0)}, trials=30,
    )  # fmt: skip
    assert found.chosen["method"] == "task-arithmetic" and found.chosen["lam"] == pytest.approx(0.4, abs=0.05)
    free = soup(siblings, near(target), "optuna", base=base, method="task-arithmetic", trials=8)
    assert len(free.chosen["weights"]) == 5
    for space, words in (({"lam": (1.0, 0.1)}, "the space of lam"), ({"lamb": (0.1, 1.0)}, "lamb")):
        with pytest.raises(InputError, match=words):
            soup(siblings, near(target), "optuna", base=base, method="ties", space=space)


def test_without_optuna_the_extra_is_named(siblings, drawn, near, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"isthmus\[search\]"):
        soup(siblings, near(drawn(0)), "optuna")


def test_trials_without_a_score_are_told_and_skipped(siblings, drawn, near):
    score, calls = near(drawn(0)), []

    def moody(weights):
        calls.append(1)
        return math.nan if len(calls) % 3 == 0 else score(weights)

    found = soup(siblings, moody, "optuna", trials=9, on_error="skip")
    assert found.skipped == 3


def test_wise_ft_walks_from_the_base_to_the_model(drawn, near):
    base, tuned = drawn(0), drawn(1)
    target = {k: torch.lerp(v, tuned[k], 0.75) if v.is_floating_point() else v for k, v in base.items()}
    found = soup([tuned], near(target), "wise-ft", base=base, points=5)
    assert found.chosen == {"a": 0.75} and [s.candidate["a"] for s in found.steps] == [0, 0.25, 0.5, 0.75, 1]
    torch.testing.assert_close(found.weights["layer.bias"], target["layer.bias"])
    ends = [soup([tuned], near(t), "wise-ft", base=base).weights for t in (base, tuned)]
    for end, expected in zip(ends, (base, tuned), strict=True):
        assert all(torch.equal(end[key], value) for key, value in expected.items())
    with pytest.raises(InputError, match="to one model, not to 2"):
        soup([tuned, base], near(target), "wise-ft", base=base)
    with pytest.raises(InputError, match="hold both ends"):
        soup([tuned], near(target), "wise-ft", base=base, points=1)
