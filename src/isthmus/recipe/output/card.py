"""The model card of a merge: what it was made of and how, in the words of the Hugging Face hub.

Source: the hub's documentation of model cards (`base_model`, `base_model_relation: merge`, `tags`, `license`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from isthmus.recipe.language.recipe import Recipe
from isthmus.recipe.parents.parent import Parent

# What stands for a licence without saying which: two cards with it need not mean the same one.
_VAGUE = {None, "other", "unknown"}


def licence_of(recipe: Recipe, parents: Mapping[str, Parent]) -> tuple[str | None, str]:
    """The output's licence and the sentence that says why; nothing is invented.

    It is the parents' own where all of them, adapters included, have the same one; else it is what the recipe says, and
    where it says nothing it is left out: which licence a mixture may have is for a person to decide. A recipe that
    contradicts its parents changes nothing, and the sentence says so.
    """
    stated = recipe.isthmus.licence
    known = {licence for parent in parents.values() for licence in parent.licences}
    if len(known) == 1 and not known & _VAGUE:
        common = next(iter(known))
        unused = "" if stated in (None, common) else f" The recipe states {_cell(stated)}, which goes unused."
        return common, f"All parents have this licence.{unused}"
    if stated:
        return stated, "The licence is the one that the recipe states."
    listed = ", ".join(
        f"{_cell(parent.name)}: {_cell(parent.licence or 'unknown')}" for parent in parents.values()
    )
    return (
        None,
        f"The parents' licences cannot be summed up ({listed}), so none is stated here: check each before use.",
    )


def model_card(
    recipe: Recipe,
    text: str,
    parents: Mapping[str, Parent],
    names: Mapping[str, str],
    hashes: Mapping[str, str],
    title: str,
    measured: Sequence[str] = (),
) -> str:
    """The text of README.md.

    Args:
        recipe: as read.
        text: as it is published.
        parents: by the recipe's own names.
        names: how each is called in public.
        hashes: of their contents, where known.
        title: of the card.
        measured: what was found on data, a line each.
    """
    licence, why = licence_of(recipe, parents)
    ids = [name for parent in parents.values() for name in parent.ids]
    front = ["---"]
    if ids:
        front += ["base_model:", *(f"- {json.dumps(name)}" for name in dict.fromkeys(ids))]
        front.append("base_model_relation: merge")
    front += ["tags:", "- merge", "- isthmus", f"- {json.dumps(recipe.merge_method)}"]
    if licence:
        front.append(f"license: {json.dumps(licence)}")
    if any((parent.folder / "tokenizer.json").is_file() for parent in parents.values()):
        front.append("library_name: transformers")
    front.append("---")
    base = str(recipe.base_model) if recipe.base_model else None
    table = [
        f"| {_cell(names[name])} | {'base' if name == base else 'model'} | {_cell(parent.licence or 'unknown')} "
        f"| `{hashes.get(name, 'not taken')}` |"
        for name, parent in parents.items()
    ]
    found = ["## Measured", "", *(f"- {line}" for line in measured), ""] if measured else []
    fence = "```" if "```" not in text else "`````"
    lines = [
        *front, "", f"# {' '.join(title.split()) or 'merged'}", "",
        f"Merged by isthmus with `{recipe.merge_method}`.", "",
        "| model | role | licence | content |", "|---|---|---|---|", *table, "", why, "", *found,
        "## Recipe", "", f"{fence}yaml", text.rstrip("\n"), fence, "",
    ]  # fmt: skip
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
