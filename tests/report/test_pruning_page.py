"""The report of a pruned model: its rows, its profiles, and the page made of them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isthmus.measure import evaluate
from isthmus.prune import Pruned, prune
from isthmus.report import Profile, Results, render
from isthmus.report.page import page
from isthmus.report.pruning import pruned_results
from isthmus.report.terminal import table
from isthmus.report.ways import columns, ways
from isthmus.zoo import MLP

DATA = [
    (torch.randn(40, 6, generator=torch.Generator().manual_seed(seed)), torch.arange(40) % 3)
    for seed in (1, 2)
]


def made(repair: str | None = "rescale") -> Pruned:
    torch.manual_seed(0)
    model = MLP(d_in=6, widths=(12, 10), num_classes=3).eval()
    return prune(model, "wanda", sparsity=0.75, scope="layer", data=DATA, repair=repair, skip=["layers.2.*"])


def results_of(pruned: Pruned) -> Results:
    scores = {
        name: evaluate(pruned.program, DATA, state, split="test") for name, state in pruned.stages.items()
    }
    return pruned_results(
        pruned, scores, DATA, title="MLP <b>, pruned", command="isthmus prune a", sizes={"test": 80}
    )


@pytest.fixture
def results() -> Results:
    return results_of(made())


def test_rows_are_the_model_before_and_after(results: Results) -> None:
    pruned = made()
    assert [(row.name, row.kind, row.note) for row in results.rows] == [
        ("as it was", "edge", ""), ("pruned", "pruned", ""), ("repaired", "pruned", "rescale"),
    ]  # fmt: skip
    for row, state in zip(results.rows, pruned.stages.values(), strict=True):
        assert row.accuracy == evaluate(pruned.program, DATA, state).accuracy
        nonzero = sum(int((v != 0).sum()) for v in state.values())
        assert row.parameters == nonzero / sum(v.numel() for v in pruned.original.values())
    assert f"{100 * (results.rows[2].accuracy or 0):.2f}%" in results.verdict
    assert results_of(made(None)).verdict.count(";") == 0
    judged = made(None).repair("rescale", DATA, validation=DATA, metric=lambda outputs, targets: 0.0)
    assert results_of(judged).verdict.endswith("; no repair that was tried helped on validation.")


def test_profiles_say_what_went_and_what_came_back(results: Results) -> None:
    pruned = made()
    sparsity, fading, spread, gains = results.profiles
    assert sparsity.layers == ["layers.0", "layers.1"]
    assert sparsity.series[0].values == [100 * share for share in pruned.by_layer.values()]
    assert sparsity.reference == pytest.approx(75) and "layers.2.weight, left out (skip)" in sparsity.note
    for profile in (fading, spread):
        assert [series.name for series in profile.series] == ["pruned", "repaired"]
        assert profile.layers == ["layers.0", "layers.1", "layers.2"]
        assert "unpruned" in profile.read and "parents" not in profile.quantity + profile.read + profile.note
    # RESCALE gives a unit its spread back, unless nothing is left of it (one of twelve).
    before, after = (series.values[:2] for series in spread.series)
    assert all(value is not None and value < 0.8 for value in before)
    assert all(value is not None and 0.9 < value < 1.001 for value in after)
    assert pruned.repaired is not None
    for index, series in enumerate(gains.series):
        assert series.values == [change.gain[index] for change in pruned.repaired.changed.values()]
    assert "rescale on 80 examples" in gains.note
    assert len(results_of(made(None)).profiles) == 3


def test_what_a_repair_filled_in_vain_is_said() -> None:
    pruned = made("least-squares")
    assert pruned.refilled
    shown = results_of(pruned)
    assert (
        shown.rows[2].note == f"least-squares, {pruned.refilled} weights that it had filled are zeros again"
    )
    good, bad = (shown.rows[i].model_copy(update={"accuracy": a}) for i, a in ((0, 1.0), (2, 0.36)))
    shown = shown.model_copy(update={"rows": [good, bad]})
    assert ways(shown)[1].remarks == ["near chance", bad.note]
    assert '<span class="remark bad">near chance</span> <span class="remark">' in page(shown)


def test_settings_tell_what_was_asked_for_from_defaults(results: Results) -> None:
    found = {setting.name: (setting.value, setting.default) for setting in results.settings}
    assert found["scope"] == ("layer", False) and found["skip"] == ("layers.2.*", False)
    assert found["repair"] == ("rescale", False) and found["repair.mode"] == ("joint", True)


def test_the_page_speaks_of_pruning(results: Results, tmp_path: Path) -> None:
    assert Results.read(results.to_json(tmp_path / "results.json")) == results
    source = re.sub(r"<(script|style)\b.*?</\1>", "", page(results), flags=re.DOTALL)
    words = " ".join(re.sub(r"<[^>]*>", " ", source).split())
    for said in (
        "Before and after",
        "vs unpruned",
        "nonzero",
        "Sparsity",
        "What the repair did",
        "isthmus prune a",
    ):
        assert said in words, said
    for said in ("Ways to merge", "vs parents", "Verification", "MLP <b>"):
        assert said not in words, said
    assert [c.heading for c in columns(results)] == ["accuracy %", "vs unpruned", "loss", "nonzero"]
    assert "vs\nunpruned" in [str(column.header) for column in table(results).columns]
    # Each plot has its table and its line on how to read it.
    figures = source.split("<figure ")[1:]
    assert len(figures) == 4
    assert all("How to read this: " in f and "<table" in f for f in figures)
    assert render(results, tmp_path / "report.html").stat().st_size > 100_000


def test_gains_that_differ_much_are_on_a_logarithmic_axis() -> None:
    pruned = made()
    assert pruned.repaired is not None
    changed = {
        value: replace(change, gain=(0.5, 2.0, 50.0)) for value, change in pruned.repaired.changed.items()
    }
    assert Profile.gains(replace(pruned.repaired, changed=changed), "x").scale == "log"
    negative = {value: replace(change, gain=(-1.0, 2.0, 50.0)) for value, change in changed.items()}
    assert Profile.gains(replace(pruned.repaired, changed=negative), "x").scale == "linear"
