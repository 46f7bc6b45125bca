"""The check of `fuzz_header.py` on inputs by chance: CI's share of what a fuzzer does for hours."""

import importlib.util
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

_SPEC = importlib.util.spec_from_file_location("fuzz_header", Path(__file__).with_name("fuzz_header.py"))
assert _SPEC is not None and _SPEC.loader is not None
fuzz = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fuzz)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "file.safetensors"


@pytest.mark.parametrize("seed", range(20))
def test_files_that_are_almost_right(seed: int, path: Path):
    chance = random.Random(seed)
    accepted = sum(fuzz.check(fuzz.built(chance.randrange), path) for _ in range(100))
    assert accepted, "a check of refusals alone would check nothing"


@given(
    st.sampled_from(fuzz.SEEDS), st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), max_size=4)
)
def test_headers_with_bytes_replaced(path: Path, header: bytes, changes: list[tuple[int, bytes]]):
    content = bytearray(header)
    for position, piece in changes:
        content[position : position + len(piece)] = piece
    fuzz.check(fuzz.of(bytes(content), bytes(10)), path)


@given(st.binary(max_size=64))
def test_bytes_by_chance(path: Path, content: bytes):
    fuzz.check(content, path)
