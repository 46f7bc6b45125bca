"""Whatever a recipe's file holds, reading it gives a recipe or an error of ours, soon.

ISTHMUS_FUZZ_SECONDS is how long the search guided by coverage goes on (a few seconds by default); what it
finds is printed as bytes, to be added to `FOUND`.
"""

import importlib.util
import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

import isthmus.recipe
from isthmus.errors import IsthmusError
from isthmus.recipe.language.reading import examine
from isthmus.recipe.plan import plan_text

_SPEC = importlib.util.spec_from_file_location(
    "fuzz_recipe", Path(__file__).parents[1] / "hostile" / "fuzz_recipe.py"
)
assert _SPEC is not None and _SPEC.loader is not None
fuzz = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fuzz)
SEEDS, WORDS = fuzz.SEEDS, fuzz.WORDS

SECONDS = float(os.environ.get("ISTHMUS_FUZZ_SECONDS", "4"))
ROOM = str(Path(isthmus.recipe.__file__).parent)

# What the search has found before.
FOUND: list[bytes] = [
    b"models: [{model: a}]\nmerge_method: passthrough\nparameters: {? [a] : b}\n",
    b"a: !!int x\nb: !!float ''\nc: !!bool maybe\nd: !!null x\n",
    b"models: {a: b}\nmerge_method: [linear]\nisthmus: []\n",
    b"models: [1, null, [a], {model: null}]\nmerge_method: 3\nslices: {}\nmodules: 4\n",
    b"merge_method: linear\nmodels: [{model: a, parameters: {weight: {value: {value: 1}}}}]\n",
    b"? ? a\n: b\n",
    b"9" * 5000 + b": " + b"9" * 5000,
    b"a: 1:60:60.5\nb: 0b2\nc: 0x\nd: 1__2\ne: -.inf\nf: 08\n",
    b"models:\n- &m {model: a}\n- *m\nmerge_method: linear\n",
    b"<<: [1, {a: b}]\n",
    b"%YAML 9.9\n---\na: b\n",
    b"models: [{model: a}, {model: b" + b"x" * 300 + b"}]\nmerge_method: linear\nparameters: {weight: 1}\n",
    b"models: [{model: ~nobody/a}, {model: b}]\nmerge_method: linear\nisthmus: {data: ~nobody/x, evaluate: loss}\n",
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    fuzz.world(root)
    return root


@pytest.mark.parametrize("content", SEEDS + FOUND, ids=range(len(SEEDS + FOUND)))
def test_what_was_found_before(content: bytes, here: Path):
    fuzz.check(content.decode("utf-8", "replace"), here)


def test_the_seeds_are_good_recipes_but_for_what_they_name(here: Path):
    for content in SEEDS[:4]:
        plan_text(content.decode(), "fuzz.yml", here / "fuzz.yml", (here,))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150)
@given(values)
def test_any_data(data: object):
    import yaml

    with suppress(IsthmusError):
        examine(yaml.safe_dump(data, allow_unicode=True), "fuzz.yml")


@settings(max_examples=150)
@given(
    st.lists(
        st.sampled_from([*WORDS, ": ", ", ", "\n", "\n  ", "\n- ", "[", "]", "{", "}"]), max_size=30
    ).map("".join)
)
def test_any_words(text: str):
    with suppress(IsthmusError):
        examine(text, "fuzz.yml")


def mutated(content: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """One of a handful of changes, at a random place."""
    at = chance.randrange(len(content) + 1)
    to = min(len(content), at + chance.choice([1, 2, 4, 8, 16, 32]))
    word = chance.choice(WORDS).encode()
    return chance.choice(
        [
            content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :],
            content[:at] + content[to:],
            content[:at] + content[at:to] * chance.choice([2, 3, 60]) + content[to:],
            content[:at] + word + content[at:],
            content[:at] + word + content[to:],
            content[:at] + chance.choice(others)[at:],
            b"\n".join(chance.sample(lines := content.split(b"\n"), len(lines))),
        ]
    )


def covered(run: Callable[[], None]) -> set[tuple[str, int]]:
    """Lines of the room that a call runs through."""
    lines: set[tuple[str, int]] = set()

    def local(frame: FrameType, event: str, _: object):
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    def watch(frame: FrameType, event: str, argument: object):
        return local if frame.f_code.co_filename.startswith(ROOM) else None

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        run()
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.timeout(SECONDS + 300)
def test_a_search_that_follows_coverage_finds_nothing(here: Path):
    chance = random.Random(int(time.time()) if SECONDS > 10 else 0)
    corpus = [*SEEDS, *FOUND]
    known: set[tuple[str, int]] = set()
    end, tried = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        content = chance.choice(corpus)
        for _ in range(chance.randrange(1, 5)):
            content = mutated(content, corpus, chance)[:20_000]
        tried += 1
        try:
            lines = covered(lambda content=content: fuzz.check(content.decode("utf-8", "replace"), here))
        except Exception as error:
            raise AssertionError(f"after {tried} tries: {content!r}") from error
        if lines - known:
            known |= lines
            corpus.append(content)
    assert tried > 10
