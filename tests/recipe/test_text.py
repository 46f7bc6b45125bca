"""YAML as plain data with lines."""

import pytest

from isthmus.errors import InputError
from isthmus.recipe.language.text import MOST_BYTES, parse, read_file


def test_values_and_their_lines():
    data, problems = parse("a: 1\nb:\n  - x: 1e-5\n  - [true, ~, 2.5]\n", "r.yml")
    assert data == {"a": 1, "b": [{"x": "1e-5"}, [True, None, 2.5]]}
    assert problems.line(("b", 0, "x")) == 3
    assert problems.line(("b", 1, 2)) == 4
    assert problems.place(("b", 7, "nowhere")) == "r.yml:2"
    assert not problems.found


def test_dates_and_numbers_of_keys_stay_text():
    data, _ = parse("revision: 2024-01-01\ntokens: {1: x, true: y}\n", "r.yml")
    assert data == {"revision": "2024-01-01", "tokens": {"1": "x", "true": "y"}}


def test_merge_keys_and_aliases_are_read():
    data, problems = parse("a: &p {w: 1, d: 2}\nb: {<<: *p, d: 3}\nc: {<<: [*p, {e: 4}]}\n", "r.yml")
    assert data == {"a": {"w": 1, "d": 2}, "b": {"w": 1, "d": 3}, "c": {"w": 1, "d": 2, "e": 4}}
    assert not problems.found


def test_a_key_twice_is_a_problem_with_both_lines():
    _, problems = parse("a: 1\nb: 2\na: 3\n", "r.yml")
    with pytest.raises(InputError, match=r"r\.yml:3  'a' stands here again, after line 1"):
        problems.check()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1\n", r"r\.yml:2"),
        ("a: 1\n---\nb: 2\n", "2 recipes"),
        ("[" * 60 + "]" * 60, "nested deeper"),
        ("a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 8)}]\n" for i in range(8)
        ), "100,000 values"),
        ("a: &a [*a]\n", "100,000 values"),
        ("a: \x00", "not YAML"),
        ("a: *nothing", "undefined alias"),
    ],
)  # fmt: skip
def test_what_is_no_recipe(text: str, words: str):
    with pytest.raises(InputError, match=words):
        parse(text, "r.yml")


def test_tags_that_make_objects_are_not_followed():
    data, problems = parse("a: !!python/object/apply:os.system [echo]\nb: !!set {x}\nc: !mine 3\n", "r.yml")
    assert len(problems.found) == 3
    assert all("plain data" in what for _, what in problems.found)
    assert isinstance(data, dict)


def test_files_are_bounded_and_text(tmp_path):
    for name, content, words in (
        ("long.yml", b"#" * (MOST_BYTES + 1), "bytes long"),
        ("bytes.yml", b"a: \xff\xfe", "UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=words):
            read_file(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        read_file(tmp_path / "gone.yml")
