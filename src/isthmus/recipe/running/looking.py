"""What is looked at before a merge and after it: integers that agree, tokens in their rows, tensors as planned."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from pathlib import Path
from typing import cast

import torch

from isthmus import weights
from isthmus.errors import InputError, MismatchError, WeightsError
from isthmus.recipe.parents import headers
from isthmus.recipe.parents.sizes import size
from isthmus.recipe.planning import costs
from isthmus.recipe.planning.planned import Planned


def check_agreed(plan: Planned) -> None:
    """Integers are no weights: where models store the same ones they are kept, else there is no right answer.

    Args:
        plan: whose models are there.

    Raises:
        MismatchError: they differ; all such tensors are listed.
    """
    rows = [row for row in plan.rows if row.how == "agreed" and len(row.parts) > 1]
    if not rows:
        return
    opened = {name: weights.open(parent.path) for name, parent in plan.parents.items()}
    wrong: list[str] = []
    for row in rows:
        first, *others = (opened[part.model][part.name] for part in row.parts)
        if not all(torch.equal(first, other) for other in others) and "num_batches_tracked" not in row.name:
            wrong.append(f"{row.name}    {row.dtype} {row.shape}")
    if wrong:
        raise MismatchError(
            f"{len(wrong)} integer tensors differ between the models and cannot be merged",
            wrong,
            hint="take them from the base: isthmus: {skip: [NAME, ...]}",
        )


def look(plan: Planned, out: Path) -> list[str]:
    """Read back what was written and compare it with the plan.

    Args:
        plan: what was to be written.
        out: the folder.

    Returns:
        What was looked at, in words.

    Raises:
        WeightsError: it is not what was planned.
    """
    held = headers.read(out).entries
    wrong = [
        f"{row.name}    planned {row.dtype} {row.shape}, written {held.get(row.name, 'nothing')}"
        for row in plan.rows
        if row.name not in held
        or held[row.name].shape != row.shape
        or row.dtype not in (held[row.name].dtype, headers.NAMES.get(held[row.name].dtype))
    ]
    if wrong or len(held) != len(plan.rows):
        raise WeightsError(f"{out} is not what was planned", wrong or [f"{len(held)} tensors"])
    looked = [f"{len(held)} tensors, {size(sum(e.nbytes for e in held.values()))}, as planned"]
    if plan.vocabulary is not None:
        looked.append(_look_at_tokens(plan, out / "tokenizer.json"))
    return looked


def _look_at_tokens(plan: Planned, file: Path, text: str | None = None) -> str:
    """Load a tokenizer: every token has the row that the plan gave it.

    Args:
        plan: with a vocabulary.
        file: what errors call it, and where it is.
        text: its content, where it is not written yet.

    Raises:
        WeightsError: it does not load, or has other rows.
    """
    assert plan.vocabulary is not None
    if importlib.util.find_spec("tokenizers") is None:
        return "the tokenizer was not loaded back: pip install 'isthmus[tokenizers]'"
    library = importlib.import_module("tokenizers")
    try:
        loaded = library.Tokenizer.from_file(str(file)) if text is None else library.Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exceptions
        raise WeightsError(f"{file} does not load", [str(error)]) from None
    ids = cast("dict[str, int]", loaded.get_vocab(with_added_tokens=True))
    wrong = [
        f"{token!r}    planned row {row}, read {ids.get(token, 'nothing')}"
        for token, row in plan.vocabulary.ids.items()
        if ids.get(token) != row
    ]
    wrong += [
        f"{token!r}    not planned, read row {row}"
        for token, row in ids.items()
        if token not in plan.vocabulary.ids
    ]
    if wrong:
        raise WeightsError(f"{file} numbers {len(wrong)} tokens otherwise than planned", wrong[:10])
    said = "An isthmus joins two lands. 1234"
    back = loaded.decode(loaded.encode(said, add_special_tokens=False).ids)
    same = "".join(back.split()) == "".join(said.split())
    return f"the tokenizer loads, {len(ids)} tokens in their rows{', text comes back as it went in' if same else ''}"


def check_tokens(plan: Planned) -> None:
    """Look at the output's tokenizer before the work, which is long.

    Args:
        plan: of the work.

    Raises:
        WeightsError: it does not load, or has other rows than planned.
    """
    for file in plan.files:
        if plan.vocabulary is not None and file.name == "tokenizer.json":
            path = file.source or plan.vocabulary.folder / file.name
            _look_at_tokens(plan, path, file.text)


def check_room(plan: Planned, out: Path) -> None:
    """Make sure that the output fits on its disk and may be written there, before any work.

    Raises:
        InputError: it does not, or may not.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} exists and is not empty", hint="name another folder, or remove it")
    folder = out.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"--out {out}: {folder} cannot be written")
    free = shutil.disk_usage(folder).free
    needed = costs.disk(plan) + 50_000_000
    if needed > free:
        raise InputError(
            f"--out {out}: {size(needed)} are needed and {size(free)} are free",
            hint="name a folder on another disk, or write a narrower out_dtype",
        )
