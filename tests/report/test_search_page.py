"""The page of a search."""

import json
import math
import re
import sys

import pytest
import torch

from isthmus.errors import MissingExtraError
from isthmus.report.search import render_search
from isthmus.search import Searched, Step


def found(steps=None, **changes) -> Searched:
    made = {
        "kind": "greedy",
        "weights": {"w": torch.zeros(1)},
        "score": 0.9,
        "chosen": {"a": 0.5, "b<script>": 0.5},
        "steps": tuple(
            steps
            or [
                Step("a", {"a": 1.0}, 0.8, True, 0.8),
                Step("+ b<script>", {"a": 0.5, "b<script>": 0.5}, 0.9, True, 0.9),
                Step("+ c", {"a": 0.33}, None, False, 0.9, note="not a number"),
                Step("+ d", {"a": 0.33}, 0.7, False, 0.9, cached=True),
            ]
        ),
        "members": ("a", "b<script>", "c", "d"),
        "settings": {"accept": "gt"},
        "notes": ("2 BatchNorm statistics are means",),
        "by": "mine.score",
    }
    return Searched(**{**made, **changes})


def figures(page: str, key: str) -> dict:
    body = re.search(rf'id="{key}-data">(.*?)</script>', page, re.DOTALL)
    assert body is not None
    return json.loads(body[1])


def test_the_page_holds_every_step_and_loads_nothing(tmp_path):
    page = render_search(
        found(),
        tmp_path / "page.html",
        measured={"soup": 0.861},
        measure="test accuracy",
        command="isthmus soup",
    ).read_text()
    for words in ("mine.score", "+ c", "not a number", "known", "2 BatchNorm", "0.861", "isthmus soup"):
        assert words in page
    assert "b<script>" not in page and "b&lt;script&gt;" in page
    assert "http://" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "default-src 'none'" in page
    light = figures(page, "steps")["light"]
    line, candidates = light["data"]
    assert line["y"] == [0.8, 0.9, 0.9, 0.9] and candidates["y"] == [0.8, 0.9, None, 0.7]
    assert candidates["marker"]["symbol"] == ["circle", "circle", "x-thin-open", "x-thin-open"]
    assert set(figures(page, "steps")) == {"light", "dark"} and 'id="grid-data"' not in page


def test_two_varied_things_are_a_heat_map_of_the_best(tmp_path):
    steps = [
        Step(f"{x} {y}", {"density": x, "method": y}, score, False, None)
        for x, y, score in [
            (0.1, "ties", 0.5),
            (0.3, "ties", 0.6),
            (0.1, "dare-ties", -math.inf),
            (0.3, "ties", 0.4),
        ]
    ]
    page = render_search(found(steps), tmp_path / "page.html", axes=("density", "method")).read_text()
    grid = figures(page, "grid")["dark"]["data"][0]
    assert grid["x"] == ["0.1", "0.3"] and grid["y"] == ["ties", "dare-ties"]
    assert grid["z"] == [[0.5, 0.6], [None, None]]


def test_many_steps_are_numbered_and_none_scored_draws_nothing(tmp_path):
    many = [Step(f"s{i}", {}, float(i), False, None) for i in range(40)]
    page = render_search(found(many), tmp_path / "page.html").read_text()
    assert "ticktext" not in figures(page, "steps")["light"]["layout"]["xaxis"]
    none = [Step("s", {}, None, False, None, note="broken")]
    page = render_search(found(none, score=None), tmp_path / "page.html").read_text()
    assert "Plotly" not in page and "broken" in page


@pytest.mark.parametrize("library", ["jinja2", "plotly.graph_objects"])
def test_without_the_extra_it_says_so_and_writes_nothing(library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"isthmus\[report\]"):
        render_search(found(), tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
