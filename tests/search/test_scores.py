"""Scores: asked for once, kept on the disk, and numbers or said."""

import functools
import json
import math

import pytest
import torch

import isthmus
from isthmus import soup
from isthmus.errors import InputError
from isthmus.search import Scores, identity


class Counted:
    """A score that counts its calls, and stops working after so many."""

    def __init__(self, score, most=10**9):
        self.score, self.calls, self.most = score, 0, most

    def __call__(self, weights):
        self.calls += 1
        if self.calls > self.most:
            raise KeyboardInterrupt
        return self.score(weights)


@pytest.mark.parametrize(
    "kind", ["greedy", "iterated", "with-replacement", "random", "uniform", "grid", "optuna"]
)
def test_an_interrupted_search_goes_on_and_evaluates_nothing_twice(kind, tmp_path, siblings, drawn, near):
    options = {"grid": {"resolution": 2}, "optuna": {"trials": 6}}.get(kind, {})
    whole = Counted(near(drawn(0)))
    expected = soup(siblings, whole, kind, score_name="s", **options)
    broken = Counted(near(drawn(0)), most=4)
    with pytest.raises(KeyboardInterrupt):
        soup(siblings, broken, kind, folder=tmp_path, score_name="s", **options)
    rest = Counted(near(drawn(0)))
    found = soup(siblings, rest, kind, folder=tmp_path, score_name="s", **options)
    assert rest.calls == whole.calls - 4
    assert found.score == expected.score and found.chosen == expected.chosen
    assert all(torch.equal(found.weights[key], value) for key, value in expected.weights.items())
    again = Counted(near(drawn(0)))
    assert soup(siblings, again, kind, folder=tmp_path, score_name="s", **options).evaluated == 0
    assert again.calls == 0


def test_the_same_models_under_other_names_are_known(tmp_path, siblings, drawn, near):
    soup(siblings, near(drawn(0)), folder=tmp_path, score_name="s")
    other = Counted(near(drawn(0)))
    names = [f"m{i}" for i in range(5)]
    soup([dict(reversed(s.items())) for s in siblings], other, folder=tmp_path, score_name="s", names=names)
    assert other.calls == 0


def test_another_score_or_another_model_is_not_known(tmp_path, siblings, drawn, near):
    soup(siblings, near(drawn(0)), folder=tmp_path, score_name="s")
    other = Counted(near(drawn(0)))
    soup(siblings, other, folder=tmp_path, score_name="t")
    assert other.calls > 0
    changed = [*siblings[:4], {**siblings[4], "layer.bias": siblings[4]["layer.bias"] + 1}]
    fresh = Counted(near(drawn(0)))
    soup(changed, fresh, folder=tmp_path, score_name="s")
    assert 0 < fresh.calls < 10


def test_a_line_cut_by_a_kill_is_forgotten_and_other_nonsense_is_an_error(tmp_path, siblings, drawn, near):
    soup(siblings, near(drawn(0)), folder=tmp_path, score_name="s")
    file = tmp_path / "scores.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    count = Counted(near(drawn(0)))
    soup(siblings, count, folder=tmp_path, score_name="s")
    assert count.calls == 1 and all(json.loads(line) for line in file.read_text().splitlines())
    file.write_bytes(b"{}\n" + b"".join(lines))
    with pytest.raises(InputError, match=r"scores\.jsonl:1 is no score"):
        soup(siblings, count, folder=tmp_path, score_name="s")


def test_a_score_that_is_no_number_is_an_error_or_counted(siblings, drawn, near):
    score = near(drawn(0))
    bad = siblings[2]["layer.weight"]

    def broken(weights):
        return math.nan if torch.equal(weights["layer.weight"], bad) else score(weights)

    with pytest.raises(InputError, match=r"there is no score of models\[2\]\n  not a number"):
        soup(siblings, broken)
    found = soup(siblings, broken, on_error="skip")
    assert found.skipped == 1 and "models[2] (not a number)" in " ".join(found.notes)
    assert "models[2]" not in found.chosen


@pytest.mark.parametrize(
    ("result", "words"),
    [(None, "returned a NoneType"), ("good", "returned a str"), (torch.zeros(2), "returned a Tensor")],
)
def test_what_is_not_one_number_is_said(result, words, siblings):
    with pytest.raises(InputError, match=words):
        soup(siblings, lambda weights: result)


def test_an_exception_names_the_candidate_and_may_be_skipped(siblings):
    def score(weights):
        raise RuntimeError("out of luck")

    with pytest.raises(InputError, match=r"there is no score of models\[0\]\n  RuntimeError: out of luck"):
        soup(siblings, score)
    with pytest.raises(InputError, match="no model has a score"):
        soup(siblings, score, on_error="skip")


def test_a_failure_is_tried_again_next_time(tmp_path, siblings, drawn, near):
    score, failing = near(drawn(0)), [True]

    def moody(weights):
        if failing[0] and torch.equal(weights["layer.weight"], siblings[0]["layer.weight"]):
            raise RuntimeError("busy")
        return score(weights)

    assert soup(siblings, moody, folder=tmp_path, on_error="skip", score_name="s").skipped >= 1
    failing[0] = False
    assert soup(siblings, moody, folder=tmp_path, score_name="s").skipped == 0


def test_a_score_of_minus_infinity_is_a_score(siblings):
    found = soup(siblings, lambda weights: -math.inf)
    assert found.score == -math.inf and found.skipped == 0
    assert '"-inf"' in json.dumps(found.as_dict(), default=str) or found.as_dict()["score"] == -math.inf


def test_a_folder_that_cannot_be_is_an_error_before_any_score(tmp_path, siblings, drawn, near):
    (tmp_path / "file").write_text("")
    count = Counted(near(drawn(0)))
    with pytest.raises(InputError, match="cannot be used to keep scores"):
        soup(siblings, count, folder=tmp_path / "file")
    assert count.calls == 0


def test_a_score_is_called_by_its_name_and_code(net, data):
    def one(weights):
        return 1.0

    def two(weights):
        return 2.0

    assert identity(one) != identity(two) and "one" in identity(one)
    assert identity(functools.partial(one, 3)) != identity(one)
    assert identity(isthmus.score(net, data, "loss")) == "isthmus.score loss"
    assert "Counted" in identity(Counted(one))


def test_only_two_ways_with_failures():
    with pytest.raises((InputError, TypeError)):
        Scores(max, on_error="ignore")
