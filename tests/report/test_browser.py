"""The page in a real browser: plots drawn, nothing on the console, nothing wider than a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from isthmus.diagnose import Diagnosis
from isthmus.report import Results, render
from isthmus.report.diagnosis import render_diagnosis
from isthmus.report.theme import DARK, LIGHT, Theme

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
)

# Chromium's window is at least 500 wide, so a phone is a frame; the page tells it what it sees.
FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark"><style>body {{ margin: 0 }}</style>
<script>addEventListener("message", (event) => {{ document.body.dataset.seen = event.data; }});</script>
<body><iframe src="{page}" style="border: 0; width: {width}px; height: 5600px"></iframe>"""
SPY = """<script>
const wrong = [];
addEventListener("error", (event) => wrong.push(String(event.message)));
addEventListener("unhandledrejection", (event) => wrong.push(String(event.reason)));
document.addEventListener("securitypolicyviolation", (event) => wrong.push(event.blockedURI));
setTimeout(() => {
  const main = document.querySelector("main").getBoundingClientRect();
  const outside = [...document.querySelectorAll("body *:not(.hidden)")].filter((element) => {
    if (element.closest("thead, .scroll, svg, details:not([open]) > :not(summary)")) return false;
    const box = element.getBoundingClientRect();
    return box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5);
  });
  parent.postMessage(JSON.stringify({
    wrong,
    width: innerWidth,
    scroll: document.documentElement.scrollWidth,
    outside: outside.map((element) => element.outerHTML.slice(0, 120)),
    plots: [...document.querySelectorAll(".plot svg.main-svg:first-child")].map((svg) => svg.clientWidth),
    lines: document.querySelectorAll(".plot .scatterlayer .js-line").length,
    labels: [...document.querySelectorAll(".annotation-text")].map((t) => [t.textContent, t.style.fill]),
    title: document.title,
    background: getComputedStyle(document.documentElement).backgroundColor,
  }), "*");
}, 1500);
</script></body>"""


def _open(page: Path, *arguments: str, window: tuple[int, int], theme: Theme) -> str:
    """Run Chromium on a page, with a new profile; its stdout. The console must stay empty."""
    assert CHROMIUM is not None
    profile = page.parent / "profile"
    done = subprocess.run(
        [
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={window[0]},{window[1]}",
            f"--blink-settings=preferredColorScheme={0 if theme is DARK else 1}",
            *arguments,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    shutil.rmtree(profile)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    return done.stdout


def _seen(results: Results, folder: Path, width: int, theme: Theme) -> dict[str, object]:
    return _watched(render(results, folder / "report.html"), width, theme)


def _watched(page: Path, width: int, theme: Theme) -> dict[str, object]:
    """What a page says of itself in a frame of a width."""
    folder, source = page.parent, page.read_text(encoding="utf-8")
    (folder / "spied.html").write_text(source.replace("</body>", SPY), encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(page="spied.html", width=width), encoding="utf-8")
    dom = _open(frame, "--dump-dom", window=(max(width, 500), 900), theme=theme)
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found, dom
    return json.loads(html.unescape(found[1]))


def _rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_the_page_fits_and_its_plots_are_drawn(
    results: Results, tmp_path: Path, width: int, theme: Theme
) -> None:
    seen = _seen(results, tmp_path, width, theme)
    assert seen["wrong"] == []
    assert seen["width"] == width
    assert seen["outside"] == []
    assert seen["scroll"] == width
    plots, labels = seen["plots"], seen["labels"]
    assert isinstance(plots, list)
    assert len(plots) == 4
    assert all(0.8 * min(width, 460) < drawn <= width for drawn in plots)
    assert seen["lines"] == 12
    assert isinstance(labels, list)
    assert ["direct", _rgb(theme.series[0])] in labels
    assert seen["background"] == _rgb(theme.paper)


def test_hostile_names_do_nothing(results: Results, tmp_path: Path) -> None:
    bad = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>" + "x" * 300
    curves = [curve.model_copy(update={"name": bad + curve.name}) for curve in results.curves]
    rows = [row.model_copy(update={"name": bad + row.name, "note": bad}) for row in results.rows]
    spoiled = results.model_copy(update={"curves": curves, "rows": rows, "verdict": bad})
    seen = _seen(spoiled, tmp_path, 390, LIGHT)
    assert seen["title"] == results.title
    assert seen["wrong"] == []
    assert (seen["outside"], seen["scroll"]) == ([], 390)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_a_diagnosis_fits_a_phone(diagnosis: Diagnosis, tmp_path: Path, theme: Theme) -> None:
    seen = _watched(render_diagnosis(diagnosis, tmp_path / "page.html"), 390, theme)
    assert (seen["wrong"], seen["outside"], seen["scroll"]) == ([], [], 390)
    assert isinstance(seen["plots"], list) and len(seen["plots"]) == 2
    assert seen["background"] == _rgb(theme.paper)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_a_pruning_fits_a_phone(pruning: Results, tmp_path: Path, theme: Theme) -> None:
    seen = _seen(pruning, tmp_path, 390, theme)
    assert (seen["wrong"], seen["outside"], seen["scroll"]) == ([], [], 390)
    assert isinstance(seen["plots"], list) and len(seen["plots"]) == 3
    assert seen["lines"] == 6
    assert seen["background"] == _rgb(theme.paper)


@pytest.mark.parametrize("width", [390, 1280])
def test_screenshots(results: Results, tmp_path: Path, width: int) -> None:
    page = render(results, tmp_path / "report.html")
    shot = tmp_path / "shot.png"
    dom = _open(page, f"--screenshot={shot}", "--dump-dom", window=(width, 2400), theme=LIGHT)
    assert dom.count('class="main-svg"') >= 4
    content = shot.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (width, 2400)
    assert len(content) > 50_000  # an empty page of this size is a tenth of it
