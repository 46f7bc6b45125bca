"""A model's tokenizer, read from `tokenizer.json` alone."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from isthmus.errors import InputError


@dataclass(frozen=True)
class Tokens:
    """A model's tokenizer, as its `tokenizer.json` has it."""

    folder: Path
    ids: Mapping[str, int]
    content: Mapping[str, object]

    @property
    def added(self) -> list[dict[str, object]]:
        """The entries of added tokens."""
        return cast("list[dict[str, object]]", self.content.get("added_tokens") or [])

    def below(self, size: int | None) -> Tokens:
        """Without the tokens that have no row in an embedding of this size.

        Raises:
            InputError: they belong to the model of a tokenizer that cannot do without.
        """
        if size is None or all(index < size for index in self.ids.values()):
            return self
        gone = {token for token, index in self.ids.items() if index >= size}
        content = cast("dict[str, object]", json.loads(json.dumps(self.content)))
        content["added_tokens"] = [e for e in self.added if cast("int", e["id"]) < size]
        model = cast("dict[str, object]", content["model"])
        own = model.get("vocab")
        if isinstance(own, dict) and gone & set(cast("dict[str, int]", own)):
            if model.get("type") != "BPE":
                raise InputError(
                    f"{self.folder} has {len(gone)} tokens beyond the {size} rows of its embedding",
                    hint="name another tokenizer as the source",
                )
            model["vocab"] = {t: i for t, i in cast("dict[str, int]", own).items() if t not in gone}
            merges = cast("list[object]", model.get("merges") or [])
            model["merges"] = [merge for merge in merges if not gone & set(_halves(merge))]
        return Tokens(self.folder, {t: i for t, i in self.ids.items() if i < size}, content)


def _halves(merge: object) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else [str(part) for part in cast("list[object]", merge)]


@functools.lru_cache(maxsize=16)
def read_tokens(folder: Path) -> Tokens:
    """A folder's tokenizer.

    Raises:
        InputError: it has no `tokenizer.json`, or not one of the kinds that number their tokens.
    """
    content = read_json_large(folder / "tokenizer.json")
    if not content:
        raise InputError(
            f"{folder} has no tokenizer.json",
            hint="write it once: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    model = content.get("model")
    own = cast("dict[str, object]", model).get("vocab") if isinstance(model, dict) else None
    if isinstance(own, dict):
        ids = dict(cast("dict[str, int]", own))
    elif isinstance(own, list):  # Unigram: pairs of token and score, in order
        ids = {str(pair[0]): index for index, pair in enumerate(cast("list[list[object]]", own))}
    else:
        raise InputError(f"{folder / 'tokenizer.json'} lists no tokens")
    for entry in cast("list[dict[str, object]]", content.get("added_tokens") or []):
        ids[str(entry["content"])] = cast("int", entry["id"])
    if not all(isinstance(index, int) and index >= 0 for index in ids.values()):
        raise InputError(f"{folder / 'tokenizer.json'} numbers its tokens with something else than numbers")
    return Tokens(folder, ids, content)


def read_json_large(path: Path) -> dict[str, object]:
    """A tokenizer is longer than a configuration, and bounded all the same."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > 200_000_000:
            raise ValueError("it is over 200 MB long")
        content: object = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON", [str(error)]) from None
    return cast("dict[str, object]", content) if isinstance(content, dict) else {}


def with_added(tokens: Tokens, more: Sequence[tuple[str, Mapping[str, object]]]) -> Tokens:
    """A tokenizer with tokens added. Numbers continue where the `tokenizers` library would."""
    ids = dict(tokens.ids)
    model = cast("dict[str, object]", tokens.content["model"])
    count = len(cast("dict[str, int] | list[object]", model["vocab"]))
    following = max([count, *(cast("int", entry["id"]) + 1 for entry in tokens.added)])
    entries = list(tokens.added)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    for token, entry in more:
        if token not in ids:
            ids[token] = following
            following += 1
        entries.append({**plain, **entry, "id": ids[token], "content": token})
    entries.sort(key=lambda entry: cast("int", entry["id"]))
    return Tokens(tokens.folder, ids, {**tokens.content, "added_tokens": entries})
