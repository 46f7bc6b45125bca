"""The tree of merges behind a model, as far back as the models at hand tell."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from isthmus import progress
from isthmus.errors import IsthmusError
from isthmus.recipe.inspection.inspecting import Recorded, recorded
from isthmus.recipe.language.text import parse
from isthmus.recipe.parents.content import content_hash
from isthmus.recipe.parents.opening import headers_of

# A merge of a merge of a merge ...: what is deeper is an attack.
_DEEPEST = 50


@dataclass(frozen=True)
class Ancestor:
    """A model in a tree of merges.

    Args:
        name: as its child calls it.
        role: base or model, as its child has it; empty for the model that was asked about.
        hash: of its content, as its child recorded it.
        licence: likewise.
        method: by which it was merged; empty where it was not, or is not here to tell.
        parents: that it was merged from.
        found: whether it was found here, with the content that its child recorded, and looked into.
        doubt: why a model of its name that is here is not taken for it.
        again: whether it was met before in this tree, where its own parents stand.
    """

    name: str
    role: str = ""
    hash: str = ""
    licence: str = ""
    method: str = ""
    parents: tuple[Ancestor, ...] = ()
    found: bool = True
    doubt: str = ""
    again: bool = False

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "role": self.role,
            "hash": self.hash,
            "licence": self.licence,
            "method": self.method,
            "found": self.found,
            "doubt": self.doubt,
            "again": self.again,
            "parents": [parent.as_dict() for parent in self.parents],
        }


def trace_back(path: Path, parents: Path | None = None) -> Ancestor:
    """Follow what a merged model tells of its parents, and what those tell of theirs.

    A name leads to a model only if its content is the recorded one.

    Args:
        path: a model.
        parents: the folder in which parents are looked for by name; beside the model where not given. What
            is written inside a file leads nowhere else.

    Raises:
        WeightsError: there is no model at `path`.
    """
    folder = parents or (path.parent if path.is_file() else path.resolve().parent)
    return _look(path, Ancestor(path.name), folder, 0, {})


def _look(
    path: Path, known: Ancestor, folder: Path, depth: int, met: dict[tuple[Path, str], str]
) -> Ancestor:
    """What a model tells of its parents; `met` is what was doubted of each that was looked into before."""
    told = recorded(headers_of(path))
    if told is None or depth >= _DEEPEST:
        return known
    grown: list[Ancestor] = []
    for entry in told.parents:
        name = entry.get("model", "?")
        parent = Ancestor(
            name, entry.get("role", ""), entry.get("hash", ""), entry.get("licence", ""), found=False
        )
        # Only the last part of a name is followed, so that it cannot lead out of the folder.
        there = folder / Path(name.partition("+")[0].partition("@")[0]).name
        if (
            there.resolve().parent == folder.resolve()
            and there.exists()
            and there.resolve() != path.resolve()
        ):
            try:
                again = (here := (there.resolve(), parent.hash)) in met
                doubt = met[here] if again else met.setdefault(here, _doubt(there, parent.hash))
                parent = dataclasses.replace(parent, found=not doubt, doubt=doubt, again=again and not doubt)
                parent = parent if doubt or again else _look(there, parent, folder, depth + 1, met)
            except IsthmusError:
                pass  # something else of that name: the model is then not here
        grown.append(parent)
    return dataclasses.replace(known, method=_method(told), parents=tuple(grown))


def _doubt(path: Path, told: str) -> str:
    """Why a model is not the one whose hash is told; empty where it is.

    Raises:
        WeightsError: there is no model at `path`.
    """
    files = headers_of(path).files
    before = told.partition(" + ")[0]  # the hash of an adapter may follow
    if not before:
        return "no content is recorded, and one of that name is here"
    with progress.task("hashing", unit="bytes") as advance:
        return "" if content_hash(files, advance, before) == before else "another of that name is here"


def _method(told: Recorded) -> str:
    if told.call is not None:
        return str(told.call.get("method", "?"))
    try:
        data, _ = parse(told.recipe, "recipe")
    except IsthmusError:
        return "?"
    return str(data.get("merge_method", "?")) if isinstance(data, dict) else "?"


def draw(ancestor: Ancestor) -> str:
    """The tree as indented lines.

    Examples:
        >>> print(draw(Ancestor("merged", method="ties", parents=(Ancestor("a", "base"), Ancestor("b", "model")))))
        merged  by ties
        |- a  base
        `- b  model
    """
    return "\n".join(_lines(ancestor, "", ""))


def _lines(ancestor: Ancestor, first: str, rest: str) -> list[str]:
    told = [ancestor.name]
    if ancestor.role:
        told.append(ancestor.role)
    if ancestor.method:
        told.append(f"by {ancestor.method}")
    if ancestor.licence not in ("", "unknown"):
        told.append(ancestor.licence)
    if not ancestor.found:
        told.append(ancestor.doubt or "not here")
    if ancestor.again:
        told.append("as above")
    lines = [first + "  ".join(told)]
    for index, parent in enumerate(ancestor.parents):
        last = index == len(ancestor.parents) - 1
        lines += _lines(parent, rest + ("`- " if last else "|- "), rest + ("   " if last else "|  "))
    return lines
