"""A merged model made again from what its own header tells.

That recipe comes from inside a file, so it is not trusted: it is read as any recipe (plain data, nothing is
imported), its models are looked for in one folder and nowhere else, and their contents must be the ones
that were recorded.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from isthmus.errors import InputError, MismatchError
from isthmus.recipe.inspection.inspecting import recorded
from isthmus.recipe.parents.content import content_hash
from isthmus.recipe.parents.opening import headers_of
from isthmus.recipe.parents.parent import Parent
from isthmus.recipe.plan import Plan, plan_text


def plan_again(path: Path, parents: Path | None = None) -> Plan:
    """The plan of the merge that made a model.

    Args:
        path: the merged model: a folder or a safetensors file.
        parents: the folder that its parents are in; beside the model where not given. They are found there by
            the recipe's path, or by the last part of it.

    Raises:
        InputError: the model tells of no recipe, or the recipe does not fit what is there or what is told of parents.
        MismatchError: a parent is not the one that was recorded.
    """
    told = recorded(headers_of(path))
    if told is None or told.call is not None:
        what = "and tells of no recipe that made it" if told is None else "and a call made it, not a recipe"
        raise InputError(
            f"{path} is one model, {what}", hint="name two or more models to merge, or a recipe (.yml)"
        )
    folder = parents or (path.parent if path.is_file() else path.resolve().parent)
    if not folder.is_dir():
        raise InputError(f"--parents {folder} is no folder")
    name = f"the recipe in {path.name}"
    try:
        plan = plan_text(told.recipe, name, path, (folder,), inside=folder)
    except InputError as error:
        hint = error.hint or f"parents are looked for in {folder}: --parents names another folder"
        raise InputError(error.what, error.where, hint) from None
    if len(plan.parents) != len(told.parents):
        raise InputError(
            f"{path} tells of {len(told.parents)} parents, and its recipe names {len(plan.parents)}",
            hint="its header was changed after it was written: write a recipe of your own",
        )
    wrong: list[str] = []
    parents_found: dict[str, Parent] = {}
    for (reference, parent), entry in zip(plan.parents.items(), told.parents, strict=True):
        before = entry.get("hash", "")
        found = _content(parent, before)
        if before != found:
            wrong.append(f"{reference}    recorded {before[:24]}..., found {found[:24]}... in {parent.path}")
        parents_found[reference] = dataclasses.replace(parent, ids=_ids(parent, entry.get("model", "")))
    if wrong:
        raise MismatchError(
            f"{len(wrong)} parents of {path} are not the ones that it was made from",
            wrong,
            hint="fetch the revisions that were merged, or write a recipe of your own",
        )
    return dataclasses.replace(plan, parents=parents_found)


def _content(parent: Parent, recorded: str) -> str:
    """The hash of a model and its adapter, of the kinds that were recorded."""
    model, _, adapter = recorded.partition(" + ")
    found = content_hash(parent.checkpoint.files, like=model)
    return (
        found if parent.adapter is None else f"{found} + {content_hash((parent.adapter.path,), like=adapter)}"
    )


def _ids(parent: Parent, recorded: str) -> tuple[str, ...]:
    """What of a model was found on the hub, which its recorded name tells: a path is recorded by its last part."""
    named = {part.partition("@")[0] for part in recorded.split("+")}
    said = (parent.reference.path, parent.reference.lora)
    return tuple(name for name in said if name is not None and "/" in name and name in named)
