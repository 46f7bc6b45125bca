"""What the output folder holds beside the tensors: configuration, tokenizer, side files, model card."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from isthmus.recipe.language.recipe import Recipe
from isthmus.recipe.output.card import licence_of, model_card
from isthmus.recipe.output.config import config_text, unplaced
from isthmus.recipe.output.published import public_name, public_text
from isthmus.recipe.parents.parent import Parent, read_json
from isthmus.recipe.rows.row import Rows
from isthmus.recipe.tokens.vocabulary import Vocabulary

#: Files of a tokenizer, which come from the folder of the tokenizer that the output has.
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "added_tokens.json",
    "merges.txt", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip

# Kinds of side files, and those of them that describe something that the output has its own of.
_SIDE = (".json", ".txt", ".jinja", ".model", ".py")
_OWN = {"config.json", "isthmus.json", "results.json"}


@dataclass(frozen=True)
class Beside:
    """A file of the output: copied from a path, or written from text."""

    name: str
    source: Path | None = None
    text: str | None = None

    def content(self) -> str:
        """What it will hold, as text."""
        if self.text is not None:
            return self.text
        return "" if self.source is None else self.source.read_text("utf-8", "replace")


def beside(
    recipe: Recipe,
    text: str,
    parents: Mapping[str, Parent],
    vocabulary: Vocabulary | None,
    rows: Rows,
    template: str | None,
    notes: list[str],
) -> list[Beside]:
    """Every file beside the tensors, but for the card, which tells hashes that only a run knows."""
    donor = parents[str(recipe.base_model)] if recipe.base_model else next(iter(parents.values()))
    files: dict[str, Beside] = {}
    if donor.path.is_dir():
        for file in sorted(donor.folder.iterdir()):
            if file.is_file() and _travels(file.name):
                files[file.name] = Beside(file.name, source=file)
        if folders := sorted(
            p.name for p in donor.folder.iterdir() if p.is_dir() and not p.name.startswith(".")
        ):
            notes.append(f"folders of {donor.name} are not copied: {', '.join(folders)}")
    if code := sorted(name for name in files if name.endswith(".py")):
        notes.append(f"{donor.name} brings code of its own, copied and not run: {', '.join(code)}")
    if donor.config:
        content = config_text(recipe, donor, parents, vocabulary, rows, notes)
        files["config.json"] = Beside("config.json", text=content)
    for name in TOKENIZER if vocabulary else ():
        files.pop(name, None)
        if vocabulary and (vocabulary.folder / name).is_file():
            files[name] = Beside(name, source=vocabulary.folder / name)
    if vocabulary and vocabulary.content is not None:
        _remade(files, vocabulary)
    if template is not None:
        _templated(files, template, notes)
    if (held := files.get("tokenizer_config.json")) is not None:
        settings = _settings(held)
        if unplaced(settings) != settings:
            files[held.name] = Beside(held.name, text=_written(unplaced(settings)))
    files["recipe.yml"] = Beside("recipe.yml", text=public_text(recipe, text))
    licence, why = licence_of(recipe, parents)
    if recipe.isthmus.licence not in (None, licence):
        notes.append(f"licence: {licence}. {why}")
    return [files[name] for name in sorted(files)]


def _travels(name: str) -> bool:
    if name.startswith(".") or name in _OWN or name.endswith((".index.json", "adapter_config.json")):
        return False
    return name.endswith(_SIDE) and name not in ("recipe.yml", "mergekit_config.yml")


def _remade(files: dict[str, Beside], vocabulary: Vocabulary) -> None:
    """A tokenizer that no parent has: `tokenizer.json` is rewritten, and what would contradict it follows."""
    content = dict(vocabulary.content or {})
    files["tokenizer.json"] = Beside("tokenizer.json", text=_written(content))
    for name in (
        "tokenizer.model",
        "added_tokens.json",
        "merges.txt",
        "vocab.json",
        "vocab.txt",
        "spiece.model",
    ):
        files.pop(name, None)
    settings = read_json(vocabulary.folder / "tokenizer_config.json")
    if isinstance(settings.get("added_tokens_decoder"), dict):
        entries = cast("list[dict[str, object]]", content["added_tokens"])
        settings["added_tokens_decoder"] = {
            str(entry["id"]): {k: v for k, v in entry.items() if k != "id"} for entry in entries
        }
        files["tokenizer_config.json"] = Beside("tokenizer_config.json", text=_written(settings))


def _templated(files: dict[str, Beside], template: str, notes: list[str]) -> None:
    held = files.get("tokenizer_config.json")
    if held is None:
        notes.append("chat_template: there is no tokenizer_config.json to put it in")
        return
    settings = _settings(held)
    settings.pop("chat_template", None)
    # transformers from 4.51 on reads the file first; older ones read the key.
    settings["chat_template"] = template
    files["tokenizer_config.json"] = Beside("tokenizer_config.json", text=_written(settings))
    files["chat_template.jinja"] = Beside("chat_template.jinja", text=template)
    files.pop("chat_template.json", None)


def _settings(file: Beside) -> dict[str, object]:
    return json.loads(file.content()) if file.source is None else read_json(file.source)


def _written(content: Mapping[str, object]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def provenance(
    recipe: Recipe, text: str, hashes: Mapping[str, str], parents: Mapping[str, Parent]
) -> dict[str, str]:
    """What the header of each safetensors file says of how it came to be."""
    version = str(importlib.import_module("isthmus").__version__)  # the index lies above this room
    told = [
        {
            "model": public_name(parent),
            "role": "base" if recipe.base_model is not None and str(recipe.base_model) == name else "model",
            "hash": hashes.get(name, ""),
            "licence": parent.licence or "unknown",
        }
        for name, parent in parents.items()
    ]
    return {
        "format": "pt",
        "isthmus.version": version,
        "isthmus.recipe": public_text(recipe, text),
        "isthmus.parents": json.dumps(told, ensure_ascii=False),
    }


def card(
    recipe: Recipe,
    text: str,
    parents: Mapping[str, Parent],
    hashes: Mapping[str, str],
    out: Path,
    measured: Sequence[str] = (),
) -> Beside:
    """The output's README.md."""
    names = {name: public_name(parent) for name, parent in parents.items()}
    title = recipe.name or out.name
    shown = public_text(recipe, text)
    return Beside("README.md", text=model_card(recipe, shown, parents, names, hashes, title, measured))
