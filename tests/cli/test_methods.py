"""`isthmus methods`: the table, one method whole, and both as JSON."""

import json
from pathlib import Path

from command_line import run


def test_the_table_fits_a_terminal_and_says_how_to_see_more(tmp_path: Path):
    shown = run("methods", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 80 and lines[0].split() == ["alignment", "needs"]
    assert any(line.split()[:2] == ["zipit", "data"] for line in lines)
    assert "isthmus methods with-replacement" in shown.stderr
    only = run("methods", "repair", cwd=tmp_path)
    assert only.stdout.startswith("repair ") and "zipit" not in only.stdout
    assert "isthmus methods repair reshift" in only.stderr


def test_one_method_is_shown_whole(tmp_path: Path):
    shown = run("methods", "zipit", cwd=tmp_path).stdout
    for words in (
        "zipit, an alignment", "data: calibration data (--data)", "planted-exact: a model merged",
        "costs    one pass over the data", "arXiv:2305.03053", "alpha = 0.3  (number)", "lower keeps groups small",
        "pairing = greedy  (greedy, optimal)", "--align 'zipit alpha=0.3'",
        "isthmus.merge([a, b], align={'method': 'zipit', 'alpha': 0.3}, data=loader)",
        "align: {method: zipit, alpha: 0.3}",
    ):  # fmt: skip
        assert words in shown, words
    # A name that is a kind as well.
    assert run("methods", "repair", "repair", cwd=tmp_path).stdout.startswith("repair, a repair\n")


def test_all_of_it_is_json_too(tmp_path: Path):
    one = json.loads(run("methods", "ties", "--json", cwd=tmp_path).stdout)
    assert one["options"][0] == {
        "name": "density",
        "kind": "number, list",
        "default": 0.2,
        "meaning": "the part of each task vector that is kept, in (0, 1]; one number, or one per model.",
    }
    assert (
        set(one["needs"]) == {"base", "passes"} and one["costs"] and one["recipe"].startswith("merge_method")
    )
    rows = json.loads(run("methods", "combination", "--json", cwd=tmp_path).stdout)
    assert [row for row in rows if row["name"] == "ties"] == [one]


def test_a_typing_error_is_met_with_close_names(tmp_path: Path):
    shown = run("methods", "weigth-matching", cwd=tmp_path)
    assert shown.returncode == 2 and "did you mean weight-matching" in shown.stderr
    shown = run("methods", "alignment", "tiess", cwd=tmp_path)
    assert shown.returncode == 2 and "no alignment is called 'tiess'" in shown.stderr
