"""A merged model made again from what its own header tells.

That recipe comes from inside a file, so it is not trusted: it is read as any recipe (plain data, nothing is
imported), its models are looked for in one folder and nowhere else, and their contents must be the ones
that were recorded.
"""

from __future__ import annotations

from pathlib import Path

from isthmus.errors import InputError, MismatchError
from isthmus.recipe import headers
from isthmus.recipe.folder import public_name
from isthmus.recipe.inspecting import recorded
from isthmus.recipe.parents import content_hash
from isthmus.recipe.plan import Plan, plan_text


def plan_again(path: Path, parents: Path | None = None) -> Plan:
    """The plan of the merge that made a model.

    Args:
        path: the merged model: a folder or a safetensors file.
        parents: the folder that its parents are in; beside the model where not given. They are found there by
            the recipe's path, or by the last part of it.

    Raises:
        InputError: the model tells of no recipe, or the recipe does not fit what is there.
        MismatchError: a parent is not the one that was recorded.
    """
    told = recorded(headers.read(path))
    if told is None:
        raise InputError(
            f"{path} is one model, and tells of no recipe that made it",
            hint="name two or more models to merge, or a recipe (.yml)",
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
    expected = {parent.get("model"): parent.get("hash") for parent in told.parents}
    wrong: list[str] = []
    for reference, parent in plan.parents.items():
        found = content_hash(parent.checkpoint.files)
        if parent.adapter is not None:
            found += f" + {content_hash((parent.adapter.path,))}"
        before = expected.get(public_name(parent))
        if before is not None and before != found:
            wrong.append(f"{reference}    recorded {before[:24]}..., found {found[:24]}... in {parent.path}")
    if wrong:
        raise MismatchError(
            f"{len(wrong)} parents of {path} are not the ones that it was made from",
            wrong,
            hint="fetch the revisions that were merged, or write a recipe of your own",
        )
    return plan
