"""The models that a recipe names, as far as a plan looks: headers, configuration, adapter, licence."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from isthmus.errors import IsthmusError, WeightsError
from isthmus.recipe.language.reference import Reference
from isthmus.recipe.language.text import parse
from isthmus.recipe.parents.headers import Checkpoint
from isthmus.recipe.parents.lora import Adapter

_CONFIG_BYTES = 10_000_000  # a configuration is read whole; one longer than this is none


@dataclass(frozen=True)
class Parent:
    """A model to be merged.

    Args:
        reference: as the recipe names it.
        path: the file or folder it was found at.
        checkpoint: its headers.
        config: its `config.json`, empty where it has none.
        adapter: what is added to it on the way, if anything.
        remote: where its weights are on the hub, `org/name@commit`, if they are not here yet; a run fetches them.
        ids: names on the hub that it and its adapter were found under; a path that looks like one is none.
    """

    reference: Reference
    path: Path
    checkpoint: Checkpoint
    config: Mapping[str, object] = field(default_factory=lambda: cast("dict[str, object]", {}))
    adapter: Adapter | None = None
    remote: str | None = None
    ids: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where its configuration and tokenizer are."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def name(self) -> str:
        """What tables and cards call it: a hub id as it is, a path by its last part."""
        return self.reference.path if self.reference.path in self.ids else Path(self.reference.path).name

    @property
    def tied(self) -> bool:
        """Whether its head is its embedding: its configuration says so, and it stores no head."""
        return (
            self.text_config.get("tie_word_embeddings", self.config.get("tie_word_embeddings")) is not False
        )

    @property
    def text_config(self) -> Mapping[str, object]:
        """The part of the configuration that the language model has."""
        inner = self.config.get("text_config")
        return cast("dict[str, object]", inner) if isinstance(inner, dict) else self.config

    @property
    def awaited(self) -> int:
        """Bytes of weights that a run fetches from the hub, the adapter's included."""
        adapter = self.adapter
        return (self.checkpoint.nbytes if self.remote is not None else 0) + (
            adapter.checkpoint.nbytes if adapter is not None and adapter.remote is not None else 0
        )

    @functools.cached_property
    def vocabulary_size(self) -> int | None:
        """Rows of the embedding, as the configuration says."""
        size = self.text_config.get("vocab_size", self.config.get("vocab_size"))
        return size if isinstance(size, int) and not isinstance(size, bool) else None

    @functools.cached_property
    def licences(self) -> tuple[str | None, ...]:
        """The `license` of its model card, and of its adapter's if it has one; None for what states none."""
        folders = [self.folder] if self.adapter is None else [self.folder, self.adapter.path.parent]
        return tuple(card_field(folder / "README.md", "license") for folder in folders)

    @property
    def licence(self) -> str | None:
        """The same in words: `mit`, or `mit + unknown` where model and adapter differ; None where none is stated."""
        told = " + ".join(dict.fromkeys(licence or "unknown" for licence in self.licences))
        return None if told == "unknown" else told


def read_json(path: Path) -> dict[str, object]:
    """A JSON object beside a model; empty where there is no such file.

    Raises:
        WeightsError: it is there, and no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            content: object = json.loads(file.read(_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not readable JSON", [str(error)]) from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is no JSON object")
    return cast("dict[str, object]", content)


def card_field(card: Path, name: str) -> str | None:
    """One plain field of a model card's front matter; None where there is none or it is not plain."""
    try:
        text = card.read_bytes()[:100_000].decode("utf-8", "replace")
    except OSError:
        return None
    match = re.match(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if match is None:
        return None
    try:
        data, _ = parse(match[1], card.name)
    except IsthmusError:
        return None
    value = cast("dict[str, object]", data).get(name) if isinstance(data, dict) else None
    if isinstance(value, list) and len(cast("list[object]", value)) == 1:
        value = cast("list[object]", value)[0]
    return value if isinstance(value, str) and value.strip() else None
