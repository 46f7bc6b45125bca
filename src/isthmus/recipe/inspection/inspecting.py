"""What a model is, from its headers and the files beside them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from isthmus.recipe.parents.content import content_hash
from isthmus.recipe.parents.headers import Checkpoint
from isthmus.recipe.parents.layers import layout, natural
from isthmus.recipe.parents.opening import headers_of
from isthmus.recipe.parents.parent import card_field, read_json
from isthmus.recipe.parents.places import locate
from isthmus.recipe.parents.sizes import size


@dataclass(frozen=True)
class Recorded:
    """What a merged model tells of its own making. It is told, not proven: text from inside a file.

    Args:
        recipe: the recipe, as it was written; empty where a call made the model.
        parents: name, role, hash and licence of each parent; of a call's, name and role are all that is told.
        version: of isthmus.
        afterwards: what a repair and an evaluation came to (`Finished.as_dict`), if there was one.
        call: what `isthmus.merge_files` was told, if that made the model.
    """

    recipe: str
    parents: tuple[Mapping[str, str], ...]
    version: str
    afterwards: Mapping[str, object] | None = None
    call: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Inspection:
    """A model, seen from outside.

    Args:
        path: where it is.
        checkpoint: its headers.
        config: its configuration, empty where there is none.
        licence: that its card states.
        hash: of its content.
        recorded: how it was merged, where it says so.
        stored: what ggml calls the numbers of each tensor, of GGUF alone; its dtypes are those that are read.
    """

    path: Path
    checkpoint: Checkpoint
    config: Mapping[str, object]
    licence: str | None
    hash: str
    recorded: Recorded | None
    stored: Mapping[str, str] = field(default_factory=dict[str, str])

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        entries = self.checkpoint.entries
        told = self.recorded
        return {
            "path": str(self.path),
            "tensors": len(entries),
            "parameters": sum(math.prod(e.shape) for e in entries.values() if e.learned),
            "bytes": self.checkpoint.nbytes,
            "files": [file.name for file in self.checkpoint.files],
            "architecture": _architecture(self.config),
            "layers": {stack.prefix: stack.count for stack in layout(entries).stacks.values()},
            "licence": self.licence,
            "hash": self.hash,
            "merged": None
            if told is None
            else {
                "recipe": told.recipe,
                "parents": [dict(p) for p in told.parents],
                "isthmus": told.version,
                "afterwards": told.afterwards,
                "call": told.call,
            },
            "entries": {
                name: {"dtype": e.kind, "shape": list(e.shape)}
                | ({"stored": self.stored[name]} if name in self.stored else {})
                for name, e in sorted(entries.items(), key=lambda item: natural(item[0]))
            },
        }

    def table(self) -> str:
        """One line per tensor."""
        entries = sorted(self.checkpoint.entries.items(), key=lambda item: natural(item[0]))
        width = max(len(name) for name, _ in entries)
        return "\n".join(f"{name:{width}}  {entry}" for name, entry in entries)

    def __str__(self) -> str:
        entries = self.checkpoint.entries
        count = sum(math.prod(e.shape) for e in entries.values() if e.learned)
        dtypes = Counter(e.kind for e in entries.values())
        held = ", ".join(f"{dtype} x {n}" for dtype, n in dtypes.most_common())
        files = len(self.checkpoint.files)
        held += f"), {_count(count)} parameters, {size(self.checkpoint.nbytes)} in {files} file"
        lines = [f"{self.path}", f"tensors   {len(entries)} ({held}{'s' if files > 1 else ''}"]
        if self.stored:
            kinds = ", ".join(f"{kind} x {n}" for kind, n in Counter(self.stored.values()).most_common())
            size_there = size(sum(file.stat().st_size for file in self.checkpoint.files))
            lines.append(f"stored    as GGUF ({kinds}), {size_there}")
        stacks = layout(entries).stacks.values()
        if stacks:
            lines.append("layers    " + ", ".join(f"{stack.prefix} x {stack.count}" for stack in stacks))
        if architecture := _architecture(self.config):
            lines.append(f"config    {architecture}")
        lines += [f"licence   {self.licence or 'unknown'}", f"content   {self.hash}"]
        if self.recorded is not None:
            lines.append(f"merged    by {_maker(self.recorded)} from")
            for parent in self.recorded.parents:
                told = f"{parent.get('role', '?'):5}  {parent.get('model', '?')}"
                if self.recorded.call is None:
                    told += f"  {parent.get('licence', 'unknown')}  {parent.get('hash', '')[:30]}"
                lines.append(f"          {told}")
            if self.recorded.afterwards is not None:
                lines.append(f"measured  {json.dumps(self.recorded.afterwards, ensure_ascii=False)}")
            if self.recorded.call is not None:
                lines.append(
                    f"call      {json.dumps(self.recorded.call, ensure_ascii=False)}; it is no recipe"
                )
            else:
                lines += ["recipe", *(f"  {line}" for line in self.recorded.recipe.rstrip().splitlines())]
        return "\n".join(lines)


def inspect(path: Path) -> Inspection:
    """Look at a model: headers, configuration, card and what it tells of its own making.

    Args:
        path: a folder, a file of any kind that `isthmus.weights.open` takes, an index, or the id of a model on
            the hub. Pickles and GGUF, which have no plain header, are opened; nothing in them is run.

    Raises:
        WeightsError: there is no checkpoint, or it is broken.
        MissingExtraError: it is GGUF, and what reads it is not installed.
    """
    found = locate(str(path))
    checkpoint = headers_of(found)
    folder = found if found.is_dir() else found.parent
    return Inspection(
        path,
        checkpoint,
        read_json(folder / "config.json"),
        card_field(folder / "README.md", "license"),
        content_hash(checkpoint.files),
        recorded(checkpoint),
        _stored(checkpoint),
    )


def recorded(checkpoint: Checkpoint) -> Recorded | None:
    """What a merged model tells of its making, by a recipe or by a call; None where it tells of none."""
    notes = checkpoint.metadata
    if "isthmus.recipe" not in notes:
        return _called(notes)
    try:
        parents: object = json.loads(notes.get("isthmus.parents", "[]"))
    except (ValueError, RecursionError):
        parents = []
    entries = cast("list[object]", parents) if isinstance(parents, list) else []
    told = tuple(
        {str(k): str(v) for k, v in cast("dict[object, object]", entry).items()}
        for entry in entries
        if isinstance(entry, dict)
    )
    return Recorded(
        notes["isthmus.recipe"], told, notes.get("isthmus.version", "?"), _json(notes, "isthmus.afterwards")
    )


def _called(notes: Mapping[str, str]) -> Recorded | None:
    """What `isthmus.merge_files` tells: its models and settings, neither hashes nor a recipe."""
    call = _json(notes, "isthmus.merge")
    if call is None:
        return None
    models = call.get("models")
    names = cast("list[object]", models) if isinstance(models, list) else []
    parents = [{"model": str(name), "role": "model"} for name in names]
    based = [{"model": str(call["base"]), "role": "base"}] if "base" in call else []
    settings = {name: value for name, value in call.items() if name not in ("models", "base")}
    return Recorded("", (*based, *parents), "?", call=settings)


def _maker(told: Recorded) -> str:
    return f"isthmus {told.version}" if told.call is None else "isthmus.merge_files"


def _stored(checkpoint: Checkpoint) -> dict[str, str]:
    files = [file for file in checkpoint.files if file.suffix == ".gguf"]
    if not files:
        return {}
    from isthmus.weights.gguf_file import read_gguf  # imports torch

    return {name: kind for file in files for name, kind in read_gguf(file).kinds.items()}


def _json(notes: Mapping[str, str], name: str) -> dict[str, object] | None:
    """A JSON object among the notes; None where there is none."""
    try:
        found: object = json.loads(notes.get(name, "null"))
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, object]", found) if isinstance(found, dict) else None


def _architecture(config: Mapping[str, object]) -> str:
    named = config.get("architectures")
    first = str(cast("list[object]", named)[0]) if isinstance(named, list) and named else ""
    kind = str(config.get("model_type", ""))
    return f"{first} ({kind})" if first and kind else first or kind


def _count(number: int) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return str(number)
