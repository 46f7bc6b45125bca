"""What the output folder holds beside the tensors: configuration, tokenizer, side files, model card."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from isthmus.recipe.card import licence_of, model_card
from isthmus.recipe.parents import Parent, read_json
from isthmus.recipe.published import public_name, public_text
from isthmus.recipe.rows import Rows
from isthmus.recipe.schema import Recipe
from isthmus.recipe.vocabulary import HEADS, Vocabulary

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
        files["config.json"] = Beside("config.json", text=_config(recipe, donor, vocabulary, rows, notes))
    for name in TOKENIZER if vocabulary else ():
        files.pop(name, None)
        if vocabulary and (vocabulary.folder / name).is_file():
            files[name] = Beside(name, source=vocabulary.folder / name)
    if vocabulary and vocabulary.content is not None:
        _remade(files, vocabulary)
    if template is not None:
        _templated(files, template, notes)
    files["recipe.yml"] = Beside("recipe.yml", text=public_text(recipe, text))
    licence, why = licence_of(recipe, parents)
    if recipe.isthmus.licence not in (None, licence):
        notes.append(f"licence: {licence}. {why}")
    return [files[name] for name in sorted(files)]


def _travels(name: str) -> bool:
    if name.startswith(".") or name in _OWN or name.endswith((".index.json", "adapter_config.json")):
        return False
    return name.endswith(_SIDE) and name not in ("recipe.yml", "mergekit_config.yml")


def _config(
    recipe: Recipe, donor: Parent, vocabulary: Vocabulary | None, rows: Rows, notes: list[str]
) -> str:
    config = copy.deepcopy(dict(donor.config))
    old = {path: _get(config, path) for path in rows.layers}
    for path, count in rows.layers.items():
        if old[path] != count:
            _set(config, path, count)
            notes.append(f"config.json: {'.'.join(path)} {old[path]} becomes {count}")
        part = cast("dict[str, object]", _get(config, path[:-1]) if path[:-1] else config)
        _per_layer(part, cast("int", old[path]), rows.origin or [], notes)
    text = (
        cast("dict[str, object]", config["text_config"])
        if isinstance(config.get("text_config"), dict)
        else config
    )
    if vocabulary is not None:
        holder = text if "vocab_size" in text else config
        if holder.get("vocab_size") != vocabulary.size:
            notes.append(f"config.json: vocab_size {holder.get('vocab_size')} becomes {vocabulary.size}")
        holder["vocab_size"] = vocabulary.size
    heads = [row.name for row in rows.rows if HEADS.search(row.name) and row.how == "merged"]
    own = [name for name in heads if name.endswith(("lm_head.weight", "embed_out.weight"))]
    if own and donor.tied and own[0] not in donor.checkpoint.entries:
        for holder in {id(config): config, id(text): text}.values():
            if "tie_word_embeddings" in holder or holder is config:
                holder["tie_word_embeddings"] = False
        notes.append(
            "config.json: tie_word_embeddings becomes false, since some models have a head of their own"
        )
    dtype = recipe.out_dtype or recipe.dtype or next((r.dtype for r in rows.rows if r.how == "merged"), None)
    if dtype is not None:
        keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
        for key in keys:
            config[key] = dtype
        if "dtype" in text:
            text["dtype"] = dtype
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _per_layer(config: dict[str, object], count: int, origin: Sequence[int], notes: list[str]) -> None:
    """Lists with one entry per layer (`layer_types`) follow their layers."""
    for key, value in config.items():
        if (
            isinstance(value, list)
            and len(cast("list[object]", value)) == count
            and origin
            and max(origin) < count
        ):
            items = cast("list[object]", value)
            moved = [items[layer] for layer in origin]
            if moved != items:
                config[key] = moved
                notes.append(f"config.json: {key}, a list over the layers, follows them")


def _get(config: Mapping[str, object], path: Sequence[str]) -> object:
    value: object = config
    for key in path:
        value = cast("dict[str, object]", value)[key]
    return value


def _set(config: dict[str, object], path: Sequence[str], value: object) -> None:
    for key in path[:-1]:
        config = cast("dict[str, object]", config[key])
    config[path[-1]] = value


def _remade(files: dict[str, Beside], vocabulary: Vocabulary) -> None:
    """A tokenizer that no parent has: `tokenizer.json` is rewritten, and what would contradict it follows."""
    content = dict(vocabulary.content or {})
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    files["tokenizer.json"] = Beside("tokenizer.json", text=text)
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
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        files["tokenizer_config.json"] = Beside("tokenizer_config.json", text=text)


def _templated(files: dict[str, Beside], template: str, notes: list[str]) -> None:
    held = files.get("tokenizer_config.json")
    if held is None:
        notes.append("chat_template: there is no tokenizer_config.json to put it in")
        return
    settings = json.loads(held.text) if held.text is not None else read_json(cast("Path", held.source))
    settings.pop("chat_template", None)
    # transformers from 4.51 on reads the file first; older ones read the key.
    settings["chat_template"] = template
    files["tokenizer_config.json"] = Beside(
        "tokenizer_config.json", text=json.dumps(settings, indent=2) + "\n"
    )
    files["chat_template.jinja"] = Beside("chat_template.jinja", text=template)
    files.pop("chat_template.json", None)


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
