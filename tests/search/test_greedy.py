"""Greedy soups: what is accepted, in which order, and that the mean is the mean."""

import json

import pytest
import torch

from isthmus import combine, soup
from isthmus.errors import InputError
from isthmus.search import SEARCHES, gather
from isthmus.search.mean import Mean

GREEDY = ("greedy", "iterated", "with-replacement", "random")


def lookup(table):
    """A score by the (rounded) value of one number: a search over numbers in place of networks."""

    def score(weights):
        return table.get(round(float(weights["w"]), 4), -1.0)

    return score


def numbers(*values):
    return [{"w": torch.tensor(float(v), dtype=torch.float64)} for v in values]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_running_mean_is_the_average_rule(dtype, drawn):
    states = [drawn(seed, dtype=dtype) for seed in range(5)]
    members = gather(states)
    mean = Mean(members)
    for index in (3, 0, 4):
        mean.add(index)
    expected = combine([states[3], states[0], states[4], states[1]])
    candidate = mean.candidate(1)
    for key, value in expected.items():
        assert candidate[key].dtype == value.dtype
        torch.testing.assert_close(candidate[key], value, rtol=torch.finfo(dtype).eps, atol=1e-9)
    assert list(candidate) == list(states[0])
    assert len(mean) == 3, "a candidate is not put in"


def test_a_mean_of_copies_is_the_model_to_the_bit(drawn):
    state = drawn(1)
    members = gather([state] * 7)
    mean = Mean(members)
    for index in range(7):
        mean.add(index)
    assert all(torch.equal(value, state[key]) for key, value in mean.weights().items())


def test_models_are_tried_from_best_to_worst_and_kept_if_better():
    # 0 is best; with 2 it is 1.0, which is better still; with 6 as well it is 2.667, which is not.
    models = numbers(6, 2, 0)
    found = soup(models, lookup({6: 0.1, 2: 0.4, 0: 0.5, 1: 0.9, 2.6667: 0.6}))
    assert found.chosen == {"models[1]": 0.5, "models[2]": 0.5}
    assert found.score == 0.9 and float(found.weights["w"]) == 1.0
    assert [(s.label, s.accepted, s.best) for s in found.steps] == [
        ("models[0]", False, None),
        ("models[1]", False, None),
        ("models[2]", True, 0.5),
        ("+ models[1]", True, 0.9),
        ("+ models[0]", False, 0.9),
    ]
    assert found.extra["counts"] == {"models[1]": 1, "models[2]": 1}


def test_equally_good_models_are_tried_in_the_order_given():
    found = soup(numbers(3, 1, 2), lookup({}))
    assert [s.label for s in found.steps[3:]] == ["+ models[1]", "+ models[2]"]
    assert found.steps[0].accepted


def test_as_good_is_enough_only_where_asked():
    table = {0: 0.5, 2: 0.5, 1: 0.5}
    assert len(soup(numbers(0, 2), lookup(table)).chosen) == 1
    assert len(soup(numbers(0, 2), lookup(table), accept="ge").chosen) == 2


def test_what_was_rejected_is_tried_again_until_nothing_changes():
    # 0, then 4 (mean 2: worse), then 2 (mean 1: better); after that, 4 makes 2, or 0 + 2 + 4.
    table = {0: 0.5, 4: 0.4, 2: 0.3, 1: 0.6}
    once = soup(numbers(0, 4, 2), lookup(table))
    again = soup(numbers(0, 4, 2), lookup({**table, 2.0: 0.3}), "iterated")
    assert once.score == again.score == 0.6
    # Now the three together (mean 2) are best, but 0 and 4 alone make 2 as well: look them up by count.
    models = numbers(0, 5, 1)
    score = lookup({0: 0.5, 5: 0.4, 1: 0.3, 2.5: 0.2, 0.5: 0.6, 2: 0.9})
    assert soup(models, score).score == 0.6
    found = soup(models, score, "iterated")
    assert found.score == 0.9 and len(found.chosen) == 3
    assert soup(models, score, "iterated", max_passes=1).score == 0.6


def test_with_replacement_a_model_may_count_twice():
    score = lookup({0: 0.5, 3: 0.4, 1.5: 0.6, 1: 0.9})
    found = soup(numbers(0, 3), score, "with-replacement")
    assert found.extra["counts"] == {"models[0]": 2, "models[1]": 1}
    assert found.chosen["models[0]"] == pytest.approx(2 / 3)
    assert sum(found.extra["counts"].values()) == sum(s.accepted for s in found.steps)
    with pytest.raises(InputError, match="need not end"):
        soup(numbers(0, 3), score, "with-replacement", accept="ge")


@pytest.mark.parametrize("seed", range(8))
def test_scores_never_fall_and_more_passes_never_lose(seed, drawn, near):
    target = drawn(seed + 100)
    models = [drawn(10 * seed + i) for i in range(6)]
    score = near(target)
    greedy, iterated, replaced = (soup(models, score, kind) for kind in GREEDY[:3])
    for found in (greedy, iterated, replaced):
        accepted = [s.score for s in found.steps if s.accepted]
        assert accepted == sorted(accepted)
        assert found.score == accepted[-1] == max(s.score for s in found.steps if s.accepted)
        assert found.score == pytest.approx(score(found.weights), abs=1e-12)
    assert greedy.score >= max(map(score, models))
    assert iterated.score >= greedy.score
    assert sum(replaced.extra["counts"].values()) == sum(s.accepted for s in replaced.steps)


def test_random_order_says_what_it_spreads_and_may_begin_with_the_best(siblings, drawn, near):
    score = near(drawn(0))
    found = soup(siblings, score, "random", orders=4, seed=3)
    scores = found.extra["scores of orders"]
    assert len(scores) == 4 and found.score == max(scores)
    assert found.extra["standard deviation"] >= 0 and "may be better alone" in " ".join(found.notes)
    lead = soup(siblings, score, "random", orders=2, start="best")
    assert min(lead.extra["scores of orders"]) >= max(map(score, siblings))


def test_one_model_alone_is_said():
    apart = numbers(0, 100)
    found = soup(apart, lookup({0: 0.9, 100: 0.8}))
    assert any("one model alone" in note for note in found.notes)


@pytest.mark.parametrize("kind", [*GREEDY, "uniform", "grid"])
def test_copies_give_the_model(kind, siblings, drawn, near):
    assert "copies-give-the-model" in SEARCHES.get(kind).claims
    found = soup([siblings[0]] * 3, near(drawn(0)), kind)
    for key, value in found.weights.items():
        torch.testing.assert_close(value, siblings[0][key], rtol=1e-6, atol=0)


def test_the_order_of_the_models_does_not_matter_to_their_mean(siblings, drawn, near):
    a = soup(siblings, near(drawn(0)), "uniform")
    b = soup(siblings[::-1], near(drawn(0)), "uniform")
    assert all(torch.equal(a.weights[key], b.weights[key]) for key in a.weights)


def test_a_seed_gives_the_same_search(siblings, drawn, near):
    runs = [soup(siblings, near(drawn(0)), "random", seed=5).as_dict() for _ in range(2)]
    for run in runs:
        for step in run["steps"]:
            step.pop("seconds")
    assert runs[0] == runs[1]


def test_the_result_is_written_whole(tmp_path, siblings, drawn, near):
    found = soup(siblings, near(drawn(0)))
    found.save(tmp_path / "soup.safetensors")
    told = json.loads(found.to_json(tmp_path / "search.json").read_text())
    assert told["format"] == "isthmus-search/1" and len(told["steps"]) == len(found.steps)
    assert told["chosen"] == found.chosen
    from isthmus import weights

    loaded = weights.load(tmp_path / "soup.safetensors")
    assert all(torch.equal(loaded[key], value) for key, value in found.weights.items())
    assert json.loads(weights.metadata(tmp_path / "soup.safetensors")["isthmus.search"])["kind"] == "greedy"
    assert "5 evaluated" not in str(found) and "greedy of 5 models" in str(found)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("greedy", {"accept": "maybe"}, "accept = 'maybe' is none of 'gt', 'ge'"),
        ("greedy", {"max_passes": 2}, "no option 'max_passes'; it takes accept"),
        ("iterated", {"max_passes": 0}, "no pass at all"),
        ("random", {"orders": 0}, "one order or more"),
        ("greeedy", {}, "did you mean 'greedy'"),
    ],
)
def test_wrong_options_are_said(kind, options, words, siblings, drawn, near):
    with pytest.raises(InputError, match=words):
        soup(siblings, near(drawn(0)), kind, **options)
