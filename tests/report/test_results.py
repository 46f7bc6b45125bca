"""The schema: what it takes, what it refuses, and that it comes back from a file as it went in."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from isthmus.errors import InputError
from isthmus.report import Curve, Profile, Provenance, Results, Row, Series, Setting, SpaceCost, Verification
from isthmus.report.write import write_text


def _empty(**more: object) -> Results:
    return Results.model_validate(
        {"title": "t", "verdict": "v", "provenance": Provenance(isthmus="0", torch="0"), **more}
    )


def test_comes_back_from_the_file_as_it_went_in(results: Results, tmp_path: Path) -> None:
    path = results.to_json(tmp_path / "results.json")
    assert Results.read(path) == results
    before = path.read_bytes()
    Results.read(path).to_json(path)
    assert path.read_bytes() == before


def test_a_file_without_the_optional_fields_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"title": "t", "verdict": "v", "provenance": {"isthmus": "0", "torch": "0"}}')
    assert Results.read(path) == _empty()


def test_the_schema_is_a_json_schema() -> None:
    schema = Results.model_json_schema()
    assert set(schema["required"]) == {"title", "verdict", "provenance"}
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_survive_the_file_as_plain_json(value: float, tmp_path: Path) -> None:
    made = _empty(
        rows=[Row(name="diverged", loss=value)],
        curves=[Curve(name="direct", t=[0.0, 1.0], loss=[0.5, value])],
        verification=Verification(error=value, bound=1e-6, spaces=1),
    )
    path = made.to_json(tmp_path / "results.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    back = Results.read(path)
    assert str(back.rows[0].loss) == str(value)
    assert back.not_finite() == [
        "rows / diverged / loss",
        "curves / direct / loss (1 of 2)",
        "verification / error",
    ]
    assert back.verification is not None
    assert not back.verification.passed


def test_not_measured_is_not_the_same_as_not_finite() -> None:
    assert _empty(rows=[Row(name="a", loss=None)]).not_finite() == []


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"name": "a", "accuracy": 84.68}, "divide percent by 100"),
        ({"name": "a", "accuracy": -0.1}, "is no fraction"),
        ({"name": "a", "flops": -1.0}, "is negative"),
        ({"name": "a", "accurracy": 0.5}, "Extra inputs are not permitted"),
        ({"name": "a", "accuracy": "0.5"}, "valid number"),
        ({"name": "a", "kind": "zip"}, "'edge', 'ensemble', 'merged', 'kept-apart' or 'pruned'"),
        ({}, "Field required"),
    ],
)
def test_a_wrong_row_is_refused_in_words(bad: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Row.model_validate(bad)


def test_lists_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="curve 'direct' has 3 t but 2 accuracy"):
        Curve(name="direct", t=[0.0, 0.5, 1.0], accuracy=[0.5, 0.5])
    with pytest.raises(ValidationError, match="not finite and ascending"):
        Curve(name="direct", t=[0.0, 1.0, 0.5])
    with pytest.raises(ValidationError, match="has 2 layers, but series 's' has 1 values"):
        Profile(name="p", quantity="q", layers=["a", "b"], series=[Series(name="s", values=[1.0])])


def test_a_value_is_frozen(results: Results) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        results.rows[0].accuracy = 1.0  # pyright: ignore[reportAttributeAccessIssue]


def test_reading_names_every_problem_at_once(results: Results, tmp_path: Path) -> None:
    raw = json.loads(results.model_dump_json())
    raw["rows"][0]["accuracy"] = 85.72
    raw["rows"][1]["los"] = 1
    del raw["verdict"]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError) as caught:
        Results.read(path)
    assert caught.value.what == f"{path} is not a results file"
    assert [line.split(":")[0] for line in caught.value.where] == ["verdict", "rows.0.accuracy", "rows.1.los"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff\xfe", b"null", b'{"format": "isthmus-results/9"}']
)
def test_what_is_no_results_file_is_an_input_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a results file"):
        Results.read(path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        Results.read(tmp_path / "other.json")


def test_parents_and_chance(results: Results) -> None:
    assert results.parents("accuracy") == pytest.approx((0.8572 + 0.8548) / 2)
    assert [row.name for row in results.rows if results.near_chance(row)] == ["direct average"]
    assert _empty().parents("loss") is None
    assert _empty(rows=[Row(name="a", kind="edge", accuracy=math.nan)]).parents("accuracy") is None


def test_the_variance_profile_is_logarithmic_where_variance_collapses() -> None:
    assert Profile.variance(["a", "b"], {"s": [0.9, 0.01]}).scale == "log"
    assert Profile.variance(["a", "b"], {"s": [0.9, 0.8]}).scale == "linear"
    assert Profile.variance(["a", "b"], {"s": [None, 0.0]}).scale == "linear"


def test_settings_hold_what_a_command_line_holds(tmp_path: Path) -> None:
    made = _empty(
        settings=[Setting(name="a", value=value) for value in (1, 1.5, True, None, "x", [1, "x", None])],
        alignment={"method": "m", "spaces": [SpaceCost(space="s", size=1, before=None, after=0.0)]},
    )
    back = Results.read(made.to_json(tmp_path / "r.json"))
    assert [type(s.value) for s in back.settings] == [int, float, bool, type(None), str, list]


def test_undecodable_bytes_of_a_command_line_are_replaced(tmp_path: Path) -> None:
    command = os.fsdecode(b"isthmus merge caf\xe9.safetensors")
    made = _empty(
        provenance=Provenance(isthmus="0", torch="0", command=command, checkpoints={command: command}),
        verification=Verification(error=0.0, bound=1.0, spaces=1, frozen=[command]),
    )
    back = Results.read(made.to_json(tmp_path / "r.json"))
    assert back.provenance.command == "isthmus merge caf?.safetensors"
    assert back == made


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"page\.html cannot be written: No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        write_text(tmp_path / "nowhere" / "page.html", "x")
