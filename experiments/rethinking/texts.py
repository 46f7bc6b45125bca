"""A substitute for the survey's text tasks (GLUE): what a passage of Shakespeare is from, read as characters.

One trunk learns which of eighteen plays a passage is from. Three tasks are then set on eighteen other plays: `kind`
(comedy, history or tragedy, from few examples), `play` (which of them, from many) and `verse` (whether most of its
lines begin with a capital letter, as many as not: the lines themselves are not shown). Passages are lower case
without line ends. Each play's first 70 % is for training, what follows for validation and test, half each, so that no
neighbours of test passages are seen.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import torch
from data import Data, Pair, Task
from torch import Tensor

#: The Folio's order of plays.
KINDS = {
    "comedy": "alls_well_that_ends_well as_you_like_it comedy_of_errors loves_labours_lost measure_for_measure "
    "merchant_of_venice merry_wives_of_windsor midsummer_nights_dream much_ado_about_nothing taming_of_the_shrew "
    "tempest twelfth_night two_gentlemen_of_verona winters_tale",
    "history": "henry_iv_part_1 henry_iv_part_2 henry_v henry_vi_part_1 henry_vi_part_2 henry_vi_part_3 henry_viii "
    "john richard_ii richard_iii",
    "tragedy": "antony_and_cleopatra coriolanus cymbeline hamlet julius_caesar lear macbeth othello "
    "romeo_and_juliet timon_of_athens tragedy_of_titus_andronicus troilus_and_cressida",
}
ALPHABET = " abcdefghijklmnopqrstuvwxyz.,;:!?'-\0"
LENGTH = 192
#: Training passages of each task; the trunk takes all there are.
SIZES = {"kind": 600, "play": 1800, "verse": 1200}
#: Passages of each task's validation and test splits, at most.
KEPT = 1500


def load(path: Path) -> Data:
    """Read the archive of the works (see `experiments/groups/corpus.py`) and set the tasks."""
    works = _corpus().texts(path)
    plays = [(kind, name) for kind, names in KINDS.items() for name in names.split()]
    upstream, downstream = plays[::2], plays[1::2]
    trunk = _task("trunk", [_passages(works[name]) for _, name in upstream], list(range(len(upstream))), None)
    own = [_passages(works[name]) for _, name in downstream]
    kinds = [list(KINDS).index(kind) for kind, _ in downstream]
    tasks = {
        "kind": _task("kind", own, kinds, SIZES["kind"]),
        "play": _task("play", own, list(range(len(own))), SIZES["play"]),
        "verse": _task("verse", own, None, SIZES["verse"]),
    }
    return Data(trunk, tasks, None)


def _corpus() -> ModuleType:
    """The reader of the archive, which stands beside another experiment."""
    place = Path(__file__).parents[1] / "groups" / "corpus.py"
    spec = importlib.util.spec_from_file_location("corpus", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["corpus"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _passages(text: str) -> tuple[Tensor, Tensor]:
    """Passages side by side, (n, LENGTH) character numbers, and whether each is verse."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    number = {character: index for index, character in enumerate(ALPHABET)}
    shown: list[int] = []
    capital: list[bool] = []
    for line in lines:
        plain = re.sub(r"\s+", " ", line.lower()) + " "
        shown += [number.get(character, len(ALPHABET) - 1) for character in plain]
        capital += [line[0].isupper()] * len(plain)
    count = len(shown) // LENGTH
    rows = torch.tensor(shown[: count * LENGTH]).view(count, LENGTH)
    verse = torch.tensor(capital[: count * LENGTH]).view(count, LENGTH).double().mean(1) > 0.8
    return rows, verse.long()


def _task(name: str, own: list[tuple[Tensor, Tensor]], classes: list[int] | None, size: int | None) -> Task:
    """A task whose classes are those of the plays, or, without, verse."""
    parts: dict[str, list[Pair]] = {"train": [], "validation": [], "test": []}
    for index, (rows, verse) in enumerate(own):
        targets = verse if classes is None else torch.full((len(rows),), classes[index])
        first, second = round(0.7 * len(rows)), round(0.85 * len(rows))
        for split, place in zip(
            parts, (slice(first), slice(first, second), slice(second, None)), strict=True
        ):
            parts[split].append((rows[place], targets[place]))
    splits: dict[str, Pair] = {}
    for seed, (split, pairs) in enumerate(parts.items()):
        rows, targets = (torch.cat(list(tensors)) for tensors in zip(*pairs, strict=True))
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        if classes is None:  # as many of either
            order = torch.stack(
                [order[targets[order] == value][: min(targets.bincount())] for value in (0, 1)]
            ).T.flatten()
        order = order[: size if split == "train" else KEPT]
        splits[split] = rows[order], targets[order]
    return Task(name, splits, 2 if classes is None else max(classes) + 1)
