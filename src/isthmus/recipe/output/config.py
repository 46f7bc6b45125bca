"""The output's `config.json`: the donor's, with what the merge changes."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import cast

from isthmus.recipe.language.recipe import Recipe
from isthmus.recipe.parents.parent import Parent
from isthmus.recipe.rows.row import Rows
from isthmus.recipe.tokens.names import HEADS
from isthmus.recipe.tokens.vocabulary import Vocabulary

# Where transformers has loaded the donor from: other models' names, or paths on whoever's machine saved it.
_LOADED_FROM = {"_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file"}


def unplaced(config: Mapping[str, object]) -> dict[str, object]:
    """A copy of a configuration, of a model or a tokenizer, that does not say where it was once loaded from."""
    return {
        name: unplaced(cast("dict[str, object]", value)) if isinstance(value, dict) else copy.deepcopy(value)
        for name, value in config.items()
        if name not in _LOADED_FROM
    }


def config_text(
    recipe: Recipe, donor: Parent, vocabulary: Vocabulary | None, rows: Rows, notes: list[str]
) -> str:
    """The text of the output's `config.json`.

    Args:
        recipe: as read.
        donor: whose configuration it comes from.
        vocabulary: of the output, where rows of tokens are remade.
        rows: of the plan.
        notes: told what was changed.
    """
    config = unplaced(donor.config)
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
