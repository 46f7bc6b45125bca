"""The page of a diagnosis."""

import html
import json
import re
import sys
from dataclasses import replace

import pytest

from isthmus.errors import MissingExtraError
from isthmus.report.diagnosis import render_diagnosis


def figures(page: str, key: str) -> dict:
    body = re.search(rf'id="{key}-data">(.*?)</script>', page, re.DOTALL)
    assert body is not None
    return json.loads(body[1])


def text_of(page: str) -> str:
    return re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)


def test_the_page_says_what_the_diagnosis_says(diagnosis, tmp_path):
    page = render_diagnosis(diagnosis, tmp_path / "page.html", command="isthmus diagnose a b").read_text()
    words = text_of(page)
    for said in (
        diagnosis.summary,
        diagnosis.relation.advice,
        diagnosis.causes[0].found,
        diagnosis.causes[0].source,
        "zipit needs something",
        "isthmus diagnose a b",
        "3 recipes were not tried",
        "85.25",
        "1.25×",
    ):
        assert said in html.unescape(words)
    for _, line in diagnosis.commands:
        assert line.split()[-1] in words
    assert "b<script>" not in page
    assert "http://" not in words and "default-src 'none'" in page


def test_layers_are_drawn_and_what_is_of_models_is_not(diagnosis, tmp_path):
    page = render_diagnosis(diagnosis, tmp_path / "page.html").read_text()
    (line,) = figures(page, "layers-0")["light"]["data"]
    assert line["y"] == [0.5, 0.25, None] and line["text"] == ["conv1", "conv2", "head"]
    assert 'id="layers-1"' not in page
    heat = figures(page, "grid")["dark"]["data"][0]
    assert heat["x"] == ["0", "4"]
    assert heat["z"] == [[None, 86.0], [80.0, None]]


@pytest.mark.parametrize(("least", "axis"), [(0.0, "tozero"), (-1.0, "normal"), (None, "normal")])
def test_what_cannot_be_less_than_zero_is_drawn_from_there(diagnosis, tmp_path, least, axis):
    (name, finding) = next((name, f) for name, f in diagnosis.findings.items() if f.layers)
    bounded = replace(diagnosis, findings={name: replace(finding, bounds=(least, None))})
    page = render_diagnosis(bounded, tmp_path / "page.html").read_text()
    assert figures(page, "layers-0")["light"]["layout"]["yaxis"]["rangemode"] == axis


def test_nothing_that_was_measured_by_layer_or_tried_leaves_a_page_without_plots(diagnosis, tmp_path):
    bare = replace(diagnosis, findings={}, attempts=(), best={}, causes=())
    page = render_diagnosis(bare, tmp_path / "page.html").read_text()
    assert "Nothing is wrong with them" in page and "Plotly" not in page


def test_without_plotly_it_says_what_to_install(diagnosis, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(MissingExtraError, match="plotly"):
        render_diagnosis(diagnosis, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
