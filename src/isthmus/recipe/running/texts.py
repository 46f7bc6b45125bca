"""A text that language models are measured on: how well each token of a held-out part follows from those before it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from isthmus.errors import DataError, InputError, MissingExtraError

#: Tokens that a model sees at once, and predicts one by one. Perplexity depends on it: a token in the middle has half
#: of them before it.
LENGTH = 128

# Logits of a batch, at most: 256 MiB in the float64 that losses are added up in.
_LOGITS = 1 << 25


@dataclass(frozen=True, eq=False)
class Text:
    """Windows of a text, one behind the other and without overlap, in three parts: training, validation, test.

    The test part is the last tenth and validation what lies before it, so that no window of them borders on many
    of the training part.

    Args:
        tokens: of the whole text.
        vocabulary: how many different tokens there can be.
        validation: windows of the validation part, or their share of what is not the test part.
        length: tokens in a window.

    Raises:
        DataError: too few tokens for three parts.
    """

    tokens: Int[Tensor, " n"]
    vocabulary: int
    validation: float | int | None = None
    length: int = LENGTH

    def __post_init__(self):
        counts = self._counts
        if min(counts.values()) < 1:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DataError(
                f"a text of {len(self.tokens)} tokens gives no {self.length} of them to each part",
                [f"windows: {told}"],
                hint=f"take a text of {30 * self.length} tokens or more, or a smaller validation part",
            )

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the parts."""
        return tuple(self._counts)

    @property
    def num_classes(self) -> int:
        """How many tokens there are to choose from."""
        return self.vocabulary

    @property
    def _counts(self) -> dict[str, int]:
        whole = (len(self.tokens) - 1) // self.length
        test = -(-whole // 10)
        asked = 0.1 if self.validation is None else self.validation
        validation = int(asked) if asked >= 1 else math.ceil((whole - test) * asked)
        return {"train": whole - test - validation, "validation": validation, "test": test}

    def arrays(self, split: str) -> tuple[Int[Tensor, "n length"], Int[Tensor, "n length"]]:
        """Windows of a part, and for each of their tokens the one that follows."""
        names = self.splits
        first = sum(self._counts[name] for name in names[: names.index(split)]) * self.length
        count = self._counts[split] * self.length
        seen, next_ = (self.tokens[first + n : first + n + count].view(-1, self.length) for n in (0, 1))
        return seen, next_

    def loader(self, split: str, *, batch_size: int, limit: int | None = None) -> Batches:
        """Batches of a part, as many windows at a time as `batch_size` and memory allow.

        Args:
            split: "train", "validation" or "test".
            batch_size: windows in a batch, at most.
            limit: use the first so many windows.
        """
        seen, following = (windows[:limit] for windows in self.arrays(split))
        fitting = max(_LOGITS // (self.length * self.vocabulary), 1)
        return Batches(seen, following, min(batch_size, fitting))


@dataclass(frozen=True, eq=False)
class Batches:
    """(inputs, targets), the same each time they are iterated over."""

    seen: Int[Tensor, "n length"]
    following: Int[Tensor, "n length"]
    size: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(self.seen), self.size):
            yield self.seen[first : first + self.size], self.following[first : first + self.size]


def read_text(path: Path, tokenizer: str, rows: int, validation: float | int | None, longest: int) -> Text:
    """A file as a tokenizer cuts it.

    Args:
        path: UTF-8 text.
        tokenizer: content of a `tokenizer.json`.
        rows: tokens that the model knows.
        validation: as for `Text`.
        longest: text that the model can see at once, in tokens.

    Raises:
        DataError: the file is no text, or too short.
        InputError: the tokenizer cannot be read, or has tokens that the model has not.
        MissingExtraError: the package tokenizers is not installed.
    """
    try:
        library = importlib.import_module("tokenizers")
    except ImportError:
        raise MissingExtraError(
            "cutting a text into tokens needs a package", hint="pip install 'isthmus[tokenizers]'"
        ) from None
    try:
        content = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no text in UTF-8", [str(error)]) from None
    try:
        found = library.Tokenizer.from_str(tokenizer)
        found.no_truncation()
        ids = torch.tensor(found.encode(content, add_special_tokens=False).ids, dtype=torch.long)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exceptions
        raise InputError("the output's tokenizer.json cannot be used", [str(error)]) from None
    if len(ids) and int(ids.max()) >= rows:
        raise InputError(
            f"the tokenizer numbers tokens up to {int(ids.max())}, and the model has rows for {rows}",
            hint="tokenizer: {source: union} gives every token a row",
        )
    return Text(ids, rows, validation, min(LENGTH, longest))


def refuse_unless_causal(model: torch.nn.Module, windows: Int[Tensor, "n length"], rows: int) -> None:
    """Make sure that answers at a place depend on nothing behind it.

    Raises:
        InputError: they do: such a model sees what it is asked for.
    """
    other = windows[:1].clone()
    other[:, -1] = (other[:, -1] + 1) % rows
    with torch.no_grad():
        one, two = (model(tokens)[:, :-1] for tokens in (windows[:1], other))
    if not torch.allclose(one, two, rtol=1e-3, atol=1e-4):
        raise InputError(
            f"{type(model).__name__} looks at later tokens: how well it foretells the next one says nothing",
            hint="a text is for causal language models; measure others in Python: isthmus.evaluate(model, data)",
        )
