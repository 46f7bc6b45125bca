"""What pruning and its repair came to on data, in the words of a report."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isthmus.measure import Evaluation, vanishing, variance_ratio
from isthmus.prune import PRUNERS
from isthmus.repair import REPAIRS
from isthmus.report import text
from isthmus.report.profiles import Profile
from isthmus.report.results import Provenance, Results, Row, Setting

if TYPE_CHECKING:
    from isthmus.prune import Pruned


def pruned_results(
    found: Pruned,
    scores: Mapping[str, Evaluation],
    inputs: Iterable[object],
    *,
    title: str = "",
    command: str = "",
    sizes: Mapping[str, int] | None = None,
    seeds: Mapping[str, int] | None = None,
) -> Results:
    """A pruned model beside what it was: accuracy and loss, and its features layer by layer.

    Args:
        found: the model, repaired or not.
        scores: of each of `found.stages`, on a split that nothing was chosen on.
        inputs: inputs to look at features with, or (inputs, targets): the validation split.
        title: of the report; by default what was done.
        command: the command line, for the record.
        sizes: examples per split, for the record.
        seeds: likewise.

    Raises:
        DataError: the data is empty or does not fit.
    """
    unpruned = scores["as it was"]
    how = found.settings.get("method") or "a given mask"
    return Results(
        title=title or f"Pruned by {how}",
        verdict=_verdict(found, scores),
        rows=[
            Row(
                name=name,
                kind="edge" if scores[name] is unpruned else "pruned",
                accuracy=scores[name].accuracy,
                loss=scores[name].loss,
                parameters=_nonzero(state) / _nonzero(found.original),
                note=_repaired(found) if name == "repaired" else "",
            )
            for name, state in found.stages.items()
        ],
        profiles=_profiles(found, inputs),
        settings=_settings(found),
        provenance=Provenance(
            isthmus=str(importlib.import_module("isthmus").__version__),  # the index lies above this room
            torch=torch.__version__,
            python=platform.python_version(),
            device=str(next(iter(found.original.values())).device),
            command=command,
            seeds=dict(seeds or {}),
            splits=dict(sizes or {}),
            evaluated=unpruned.split,
            chance=unpruned.chance,
        ),
    )


def _repaired(found: Pruned) -> str:
    """Which repair it was, and what of it could not stay."""
    assert found.repaired is not None
    filled = f", {found.refilled:,} weights that it had filled are zeros again" if found.refilled else ""
    return found.repaired.method + filled


def _verdict(found: Pruned, scores: Mapping[str, Evaluation]) -> str:
    """What pruning cost and what the repair gave back, in a sentence."""
    percent = {name: f"{100 * score.accuracy:.2f}%" for name, score in scores.items()}
    said = (
        f"With {100 * found.sparsity:.4g}% of the weights of {len(found.mask)} layers pruned, the model scores "
        f"{percent['pruned']} where it scored {percent['as it was']} and guessing scores "
        f"{100 * scores['pruned'].chance:.2f}%"
    )
    if "repaired" in percent:
        return f"{said}; repaired, it scores {percent['repaired']}."
    return said + ("; no repair that was tried helped on validation." if found.trials else ".")


def _profiles(found: Pruned, inputs: Iterable[object]) -> list[Profile]:
    """How much of each layer went, and what that and the repair did to features."""
    shares = {found.labels.get(key) or key: share for key, share in found.by_layer.items()}
    left = "; ".join(f"{key}, {why}" for key, why in found.left.items())
    fading: dict[str, list[float | None]] = {}
    spread: dict[str, list[float | None]] = {}
    layers: tuple[str, ...] = ()
    note = ""
    for name, state in found.stages.items():
        if name == "as it was":
            continue
        faded = vanishing(found.program, state, [found.original], inputs, split="validation")
        varied = variance_ratio(found.program, state, [found.original], inputs, split="validation")
        layers = faded.layers
        fading[name], spread[name] = [*faded.strength], [*varied.ratio]
        note = f"Before norms and activations; {faded.split}, {faded.examples:,} examples."
    repaired = found.repaired
    return [
        Profile.sparsity(shares, found.sparsity, note=f"Not pruned: {left}" if left else ""),
        Profile.vanishing(layers, fading, note=note, beside="unpruned"),
        Profile.variance(layers, spread, note=note, beside="unpruned"),
        *([Profile.gains(repaired, repaired.method)] if repaired is not None and repaired.changed else []),
    ]


def _settings(found: Pruned) -> list[Setting]:
    """How it was pruned and repaired, each option with whether it has its default."""
    said = dict(found.settings)
    used = said.pop("repair options", {})
    method = said.get("method")
    usual: dict[str, object] = {"method": None, "sparsity": None, "skip": [], "repair": None}
    usual |= PRUNERS.get(str(method)).options if method else {}
    if found.repaired is not None and isinstance(used, Mapping):
        said["repair"] = found.repaired.method
        usual |= {f"repair.{k}": v for k, v in REPAIRS.get(found.repaired.method).options.items()}
        said |= {f"repair.{k}": v for k, v in used.items()}
    return [
        Setting(
            name=name, value=text.value(value) or "none", default=name not in usual or value == usual[name]
        )
        for name, value in said.items()
    ]


def _nonzero(state: Mapping[str, Tensor]) -> int:
    """How many numbers of a model are not zero."""
    return sum(int(torch.count_nonzero(tensor)) for tensor in state.values())
