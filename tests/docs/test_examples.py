"""Every python block of the README and the guides runs, block after block, as its reader would."""

import re
from pathlib import Path

import pytest

import isthmus

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks, f"{page.name} has no python block"
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)  # noqa: S102 - our own pages


#: What pages call the methods of a kind.
KINDS = {
    "rules": "combination", "alignments": "alignment", "repairs": "repair", "pruners": "pruner", "searches": "search",
}  # fmt: skip


def test_what_pages_count_is_what_there_is():
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = 0
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for count, word in re.findall(rf"\b(\d+) (?:combination )?({'|'.join(KINDS)})\b", text):
            rows = [r for r in isthmus.methods(KINDS[word]) if r.function.__module__.startswith("isthmus.")]
            assert int(count) == len(rows), f"{page.name}: {count} {word}, and there are {len(rows)}"
            found += 1
    assert found, "no page counts anything"
