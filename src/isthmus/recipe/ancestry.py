"""The tree of merges behind a model, as far back as the models at hand tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from isthmus.errors import IsthmusError
from isthmus.recipe import headers
from isthmus.recipe.inspecting import recorded
from isthmus.recipe.text import parse

# A merge of a merge of a merge ...: what is deeper is a circle or an attack.
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
        found: whether it was found here and looked into.
    """

    name: str
    role: str = ""
    hash: str = ""
    licence: str = ""
    method: str = ""
    parents: tuple[Ancestor, ...] = ()
    found: bool = True

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "role": self.role,
            "hash": self.hash,
            "licence": self.licence,
            "method": self.method,
            "found": self.found,
            "parents": [parent.as_dict() for parent in self.parents],
        }


def trace_back(path: Path, parents: Path | None = None) -> Ancestor:
    """Follow what a merged model tells of its parents, and what those tell of theirs.

    Args:
        path: a model.
        parents: the folder in which parents are looked for by name; beside the model where not given. What
            is written inside a file leads nowhere else.

    Raises:
        WeightsError: there is no model at `path`.
    """
    folder = parents or (path.parent if path.is_file() else path.resolve().parent)
    return _look(path, Ancestor(path.name), folder, 0)


def _look(path: Path, known: Ancestor, folder: Path, depth: int) -> Ancestor:
    told = recorded(headers.read(path))
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
                seen = Ancestor(name, parent.role, parent.hash, parent.licence)
                parent = _look(there, seen, folder, depth + 1)
            except IsthmusError:
                pass  # something else of that name: the model is then not here
        grown.append(parent)
    return Ancestor(
        known.name, known.role, known.hash, known.licence, _method(told.recipe), tuple(grown), known.found
    )


def _method(recipe: str) -> str:
    try:
        data, _ = parse(recipe, "recipe")
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
        told.append("not here")
    lines = [first + "  ".join(told)]
    for index, parent in enumerate(ancestor.parents):
        last = index == len(ancestor.parents) - 1
        lines += _lines(parent, rest + ("`- " if last else "|- "), rest + ("   " if last else "|  "))
    return lines
