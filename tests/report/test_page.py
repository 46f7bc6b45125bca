"""The page's text: complete, self-contained, and deaf to hostile names."""

from __future__ import annotations

import builtins
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isthmus.errors import MissingExtraError
from isthmus.report import Alignment, Curve, Profile, Results, Row, Series, SpaceCost, render
from isthmus.report.charts import charts
from isthmus.report.page import page
from isthmus.report.plots import figure_json
from isthmus.report.ways import columns, ways

HOSTILE = (
    "<script>alert(1)</script><b>x</b> </script><!-- <a href='http://evil.example/'>y</a> "
    "%{y} {{ 7 * 7 }} {% raw %} \x1b[31m\u202e \"'>"
)


class Page(HTMLParser):
    """The elements, attributes, text and scripts of a page."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "path"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        if tag != "path":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + data)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def figures(self) -> dict[str, dict[str, dict[str, list[dict[str, object]]]]]:
        """The plots' data, by key."""
        return {str(a["id"]): json.loads(s) for a, s in self.scripts if a.get("type") == "application/json"}


@pytest.fixture
def hostile(results: Results) -> Results:
    """The sample with every text of it hostile."""

    def spoil(value: object) -> object:
        if isinstance(value, str):
            return value if value in KEPT else value + HOSTILE
        if isinstance(value, list):
            return [spoil(item) for item in value]
        if isinstance(value, dict):
            return {key: spoil(item) for key, item in value.items()}
        return value

    return Results.model_validate(spoil(results.model_dump()))


KEPT = ("isthmus-results/1", "edge", "ensemble", "merged", "kept-apart", "linear", "log", "lower", "higher")


def test_every_number_of_the_table_is_there(results: Results, tmp_path: Path) -> None:
    path = render(results, tmp_path / "report.html")
    shown = Page(path.read_text(encoding="utf-8")).text
    assert [c.key for c in columns(results)] == [
        "accuracy", "difference", "loss", "parameters", "flops", "published",
    ]  # fmt: skip
    for way in ways(results):
        assert way.name in shown
        for cell in way.cells.values():
            assert cell in shown
    for number in ("85.72", "10.00", "−75.60", "2.3026", "1.84×", "1.97×", "92.43 ± 0.23"):
        assert number in shown
    assert "near chance" in shown


def test_everything_else_is_there_too(results: Results) -> None:
    shown = Page(page(results)).text
    for words in (
        results.title,
        results.verdict,
        "barrier 75.6 points",
        "Vanishing features",
        "Variance ratio",
        "13 spaces, which hold 99.9 % of the parameters, changed the output by 3.1e-13 of its scale, within",
        "passed",
        "2 frozen",
        "output: class (10)",
        "In total 982.08 before, 622.56 after (−36.6 %).",
        "activation-matching",
        "repair.gain_clamp",
        "alignment 0, split 0",
        "train 45,000, validation 5,000, test 10,000",
        "10.00 %",
        "sha256:4f1c9a60",
        "2.13.0+cpu",
        results.provenance.command,
    ):
        assert words in shown, words


def test_each_plot_has_its_data_as_a_table_and_a_line_on_how_to_read_it(results: Results) -> None:
    source = page(results)
    plots = charts(results)
    assert [chart.key for chart in plots] == ["curve-accuracy", "curve-loss", "profile-0", "profile-1"]
    for part, chart in zip(source.split("<figure ")[1:], plots, strict=True):
        part = part.split("</figure>")[0]
        assert "How to read this: " in part
        assert "<details>" in part
        rows = re.findall(r"<tr>(.*?)</tr>", part)
        cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]
        assert cells == [chart.header(), *chart.table()]


def test_plots_hold_the_values_in_both_modes(results: Results) -> None:
    for modes in Page(page(results)).figures().values():
        light, dark = modes["light"], modes["dark"]
        assert [t["y"] for t in light["data"]] == [t["y"] for t in dark["data"]]
        assert [t["line"] for t in light["data"]] != [t["line"] for t in dark["data"]]
    accuracy = Page(page(results)).figures()["curve-accuracy-data"]["light"]
    assert [t["name"] for t in accuracy["data"]] == ["direct", "aligned", "aligned + repair"]
    notes = [a["text"] for a in accuracy["layout"]["annotations"]]  # pyright: ignore
    assert notes == ["direct", "aligned", "aligned + repair", "parents’ mean 85.6", "chance 10.0"]


def test_a_line_has_one_colour_on_the_whole_page(results: Results) -> None:
    colours = {
        (trace["name"], str(trace["line"]))
        for modes in Page(page(results)).figures().values()
        for trace in modes["light"]["data"]
    }
    assert len(colours) == 3


def test_nothing_is_loaded_from_anywhere(results: Results) -> None:
    source = page(results)
    parsed = Page(source)
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster", "formaction", "background"):
            assert (attributes.get(name) or "data:,").startswith("data:"), (tag, attributes)
        assert tag not in ("iframe", "object", "embed", "base", "img")
    policy = next(a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    style = "".join(re.findall(r"<style>(.*?)</style>", source, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    ours = [script for _, script in parsed.scripts if not script.lstrip().startswith("/**\n* plotly.js")]
    assert len(ours) == len(parsed.scripts) - 1
    assert not any("http" in script for script in ours)


def test_the_same_results_give_the_same_bytes(results: Results) -> None:
    assert page(results) == page(Results.model_validate_json(results.model_dump_json()))


def test_hostile_names_are_text(hostile: Results, results: Results) -> None:
    source = page(hostile)
    parsed, clean = Page(source), Page(page(results))
    assert parsed.open == []
    allowed = {tag for tag, _ in clean.tags}
    assert {tag for tag, _ in parsed.tags} <= allowed | {"p"}
    assert len(parsed.scripts) == len(clean.scripts)
    assert "<script>alert(1)</script><b>x</b>" in parsed.text  # shown, and shown as written
    assert "49" not in re.findall(r"\{\{ 7 \* 7 \}\}|49(?= \{% raw)", parsed.text)
    assert "\x1b" not in source
    assert "\u202e" not in source
    for modes in parsed.figures().values():
        shown = json.dumps([modes["light"]["data"], modes["light"]["layout"]])
        assert not re.search(
            r"<\s*(script|a|b)\b", shown
        )  # plotly reads tags in names: they are entities here


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_shown_and_counted(results: Results, value: float) -> None:
    broken = results.model_copy(
        update={
            "rows": [*results.rows, Row(name="diverged", accuracy=math.nan, loss=value, parameters=value)],
            "curves": [
                Curve(name="direct", t=[0.0, 0.5, 1.0], accuracy=[0.8, value, 0.8], loss=[0.5, value, None])
            ],
            "profiles": [
                Profile(
                    name="p",
                    quantity="q",
                    layers=["a"],
                    series=[Series(name="s", values=[value])],
                    scale=scale,
                )
                for scale in ("linear", "log")
            ],
        }
    )
    parsed = Page(page(broken))
    assert "n/a: measured, but not a finite number" in parsed.text
    assert "rows / diverged / loss" in parsed.text
    assert parsed.figures()["curve-loss-data"]["light"]["data"][0]["y"] == [0.5, None, None]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.floats() | st.none(), min_size=1, max_size=6), scale=st.sampled_from(["linear", "log"])
)
def test_any_numbers_make_plots(results: Results, values: list[float | None], scale: str) -> None:
    profile = {"name": "p", "quantity": "q", "layers": [str(i) for i in range(len(values))], "scale": scale}
    profile |= {"series": [Series(name="s", values=values)], "reference": values[0]}
    wild = results.model_copy(
        update={
            "rows": [Row(name="a", kind="edge", loss=values[0]), Row(name="b", loss=values[-1])],
            "curves": [Curve(name="c", t=[i / 8 for i in range(len(values))], loss=values)],
            "profiles": [Profile.model_validate(profile)],
            "alignment": Alignment(
                method="m", spaces=[SpaceCost(space="s", size=1, before=v, after=values[0]) for v in values]
            ),
        }
    )
    for chart in charts(wild):
        assert set(json.loads(figure_json(chart))) == {"light", "dark"}
        assert len(chart.table()) == len(values)
    assert ways(wild)


def test_almost_nothing_makes_a_page(results: Results) -> None:
    bare = Results(title="t", verdict="v", provenance=results.provenance)
    parsed = Page(page(bare))
    assert "Not run" in parsed.text
    assert parsed.scripts == []  # no plots, no 5 MB of plotly
    for update in (
        {"rows": [Row(name="only")]},
        {"curves": [Curve(name="empty", t=[])]},
        {"curves": [Curve(name="point", t=[0.5], accuracy=[0.5], loss=[0.0])]},
        {"profiles": [Profile(name="p", quantity="q", layers=[], series=[])]},
        {
            "profiles": [
                Profile(
                    name="p", quantity="q", layers=["a"] * 200, series=[Series(name="s", values=[1.0] * 200)]
                )
            ]
        },
        {"profiles": [Profile.vanishing(["a", "b"], {f"s{i}": [0.1 * i, None] for i in range(9)})]},
    ):
        assert Page(page(bare.model_copy(update=update))).open == []


def test_chance_far_below_the_curves_does_not_squash_them(results: Results) -> None:
    near = [Curve(name="siblings", t=[0.0, 0.5, 1.0], accuracy=[0.86, 0.87, 0.86])]
    chart = charts(results.model_copy(update={"curves": near}))[0]
    assert chart.bounds[0] > 80
    assert chart.note == "Chance, 10.00 %, lies below the plot."


def test_equal_layer_names_stay_apart() -> None:
    profile = Profile(
        name="p", quantity="q", layers=["tied", "tied"], series=[Series(name="s", values=[1.0, 2.0])]
    )
    results = Results.model_validate(
        {"title": "t", "verdict": "v", "profiles": [profile], "provenance": {"isthmus": "0", "torch": "0"}}
    )
    assert Page(page(results)).figures()["profile-0-data"]["light"]["data"][0]["x"] == ["1  tied", "2  tied"]


def _without(module: str) -> Callable[..., object]:
    genuine = builtins.__import__

    def refuse(name: str, *args: object, **more: object) -> object:
        if name.split(".")[0] == module:
            raise ImportError(f"No module named {module!r}")
        return genuine(name, *args, **more)  # pyright: ignore

    return refuse


@pytest.mark.parametrize("module", ["plotly", "jinja2"])
def test_a_missing_extra_is_named(
    module: str, results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "__import__", _without(module))
    with pytest.raises(MissingExtraError, match=rf"need[s]? {module}") as caught:
        render(results, tmp_path / "report.html")
    assert caught.value.hint == "pip install 'isthmus[report]'"
    assert list(tmp_path.iterdir()) == []
