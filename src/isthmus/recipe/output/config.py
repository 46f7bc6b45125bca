"""The output's `config.json`: the donor's, with what the merge changes."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import cast

from isthmus.recipe.language.recipe import Recipe
from isthmus.recipe.output.depth import follow_layers
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
    recipe: Recipe,
    donor: Parent,
    parents: Mapping[str, Parent],
    vocabulary: Vocabulary | None,
    rows: Rows,
    notes: list[str],
) -> str:
    """The text of the output's `config.json`.

    Args:
        recipe: as read.
        donor: whose configuration it comes from.
        parents: by the recipe's own names.
        vocabulary: of the output, where rows of tokens are remade.
        rows: of the plan.
        notes: told what was changed.
    """
    config = unplaced(donor.config)
    follow_layers(config, donor, parents, rows.rows, notes)
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
