"""YAML as plain data that remembers its lines, and the list of everything that is wrong with it.

A recipe is read from files that other people wrote, so this reader takes the plain part of YAML and no
more: no tags that make objects, no second document, no key twice, bounded size, depth and aliases.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import yaml

from isthmus.errors import InputError

#: Where something is: keys and indices from the top of the document.
Where = tuple[str | int, ...]

# A recipe is written by hand: what is beyond these is an accident or an attack (aliases of aliases).
MOST_BYTES = 1_000_000
MOST_VALUES = 100_000
DEEPEST = 50

_PLAIN = ("null", "bool", "int", "float", "str")


@dataclass
class Problems:
    """What is wrong with a recipe, gathered so that all of it is said at once.

    Args:
        name: the file, as errors call it.
        lines: line of each place in it.
        gone: what was taken out of it, being wrong: it need not be missed.
    """

    name: str
    lines: dict[Where, int] = field(default_factory=dict[Where, int])
    found: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    hints: list[str] = field(default_factory=list[str])
    gone: set[Where] = field(default_factory=set[Where])

    def line(self, where: Sequence[str | int]) -> int:
        """The line of a place, or of the nearest thing around it."""
        place = tuple(where)
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def place(self, where: Sequence[str | int]) -> str:
        """`recipe.yml:7`."""
        return f"{self.name}:{self.line(where)}"

    def add(self, where: Sequence[str | int], what: str, hint: str | None = None) -> None:
        """Note a problem at a place; the same words at the same line are kept once."""
        entry = (self.line(where), what)
        if entry not in self.found:
            self.found.append(entry)
        if hint and hint not in self.hints:
            self.hints.append(hint)

    def has(self, what: str) -> bool:
        """Whether a problem is told in these words, at whatever line."""
        return any(words == what for _, words in self.found)

    def error(self) -> InputError:
        """All that was found, in the order of the file."""
        rows = [(f"{self.name}:{line}", what) for line, what in sorted(self.found)]
        width = max((len(place) for place, _ in rows), default=0)
        count = "1 problem" if len(rows) == 1 else f"{len(rows)} problems"
        return InputError(
            f"{count} in {self.name}",
            [
                f"{place if first else '':{width}}  {line}"
                for place, what in rows
                for first, line in ((n == 0, line) for n, line in enumerate(what.split("\n")))
            ],
            hint="\n      ".join(self.hints) or None,
        )

    def check(self) -> None:
        """Stop here if anything was found.

        Raises:
            InputError: every problem, with its line.
        """
        if self.found:
            raise self.error()


def few(items: Sequence[object]) -> str:
    """The first three, and whether there are more."""
    return ", ".join(map(str, items[:3])) + (", ..." if len(items) > 3 else "")


def near(word: str, known: Iterable[str]) -> str | None:
    """The known word that is nearest, if one is near: hyphens, underscores and capitals are alike."""
    plain = {name.lower().replace("-", "_"): name for name in sorted(set(known))}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), plain, n=1)
    return plain[found[0]] if found else None


def nearest(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'density'?`, or what there is where nothing is near."""
    names = sorted(set(known))
    if (found := near(word, names)) is not None:
        return f", did you mean {found!r}?"
    return f"; there are: {', '.join(names)}" if names else ""


def read_file(path: Path) -> str:
    """The text of a recipe.

    Raises:
        InputError: it does not exist, cannot be read, is too long or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read", [str(error.strerror or error)]) from None
    if len(content) > MOST_BYTES:
        raise InputError(f"{path} is over {MOST_BYTES:,} bytes long: it is no recipe")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8", [str(error)]) from None


def parse(text: str, name: str) -> tuple[object, Problems]:
    """Read YAML into dicts, lists, strings, numbers, booleans and None.

    Args:
        text: the document.
        name: what errors call it.

    Returns:
        The data, and an account with the line of every place in it, to note problems in. Keys that stand
        twice and tags that are not plain are in that account already.

    Raises:
        InputError: it is no YAML, has more than one document, or is beyond all bounds.
    """
    try:
        root = _compose(text, name)
    except yaml.YAMLError as error:
        raise InputError(f"{name} is not YAML", [_said(error, name)]) from None
    problems = Problems(name)
    if root is None:
        return None, problems
    try:
        return _Reader(problems).value(root, ()), problems
    except _TooMuchError:
        raise InputError(f"{name} stands for over {MOST_VALUES:,} values: it is no recipe") from None


def _compose(text: str, name: str) -> yaml.Node | None:
    """The one document as nodes. Depth is bounded first, on the flat list of events."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise InputError(f"{name} is nested deeper than {DEEPEST} levels: it is no recipe")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
    if documents > 1:
        raise InputError(
            f"{name} holds {documents} recipes",
            hint="write one per file; a later one names the folder of an earlier",
        )
    return cast("yaml.Node | None", yaml.compose(text, Loader=yaml.SafeLoader))


def _said(error: yaml.YAMLError, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return f"{name}:{mark.line + 1}  {what}" if mark is not None else f"{name}  {what}"


class _TooMuchError(Exception):
    pass


class _Reader:
    """Nodes to values. Aliases are followed each time they are met, and each meeting is counted."""

    def __init__(self, problems: Problems):
        self._problems = problems
        self._scalars = yaml.SafeLoader("")
        self._count = 0

    def value(self, node: yaml.Node, where: Where) -> object:
        self._count += 1
        # Each level of an alias of an alias multiplies: bounded by count, and a cycle by depth.
        if self._count > MOST_VALUES or len(where) > DEEPEST:
            raise _TooMuchError
        self._problems.lines.setdefault(where, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, where)
        if isinstance(node, yaml.SequenceNode):
            self._plain(node, ("seq",), where)
            return [self.value(item, (*where, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, where)

    def _mapping(self, node: yaml.MappingNode, where: Where) -> dict[str, object]:
        self._plain(node, ("map",), where)
        result: dict[str, object] = {}
        inherited: dict[str, object] = {}
        for key, value in node.value:
            if key.tag.endswith(":merge"):
                parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for part in parts:
                    if isinstance(part, yaml.MappingNode):
                        given = cast("dict[str, object]", self.value(part, where))
                        inherited = {**given, **inherited}
                    else:
                        self._problems.add(where, "'<<' takes a mapping, or a list of mappings")
                continue
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self._problems.lines[(*where, "?")] = line
                self._problems.add((*where, "?"), "a key is a list or a mapping, not a word")
                continue
            place = (*where, str(key.value))
            if key.value in result:
                first = self._problems.lines[place]
                self._problems.lines[(*place, "again")] = line
                self._problems.add((*place, "again"), f"{key.value!r} stands here again, after line {first}")
                continue
            self._problems.lines[place] = line
            result[str(key.value)] = self.value(value, place)
        return {**inherited, **result}

    def _scalar(self, node: yaml.ScalarNode, where: Where) -> object:
        text = str(node.value)
        if node.tag.endswith(":timestamp"):  # a date is what a revision may be called, never a time
            return text
        if not self._plain(node, _PLAIN, where):
            return text
        try:
            return cast("object", self._scalars.construct_object(node))
        # PyYAML indexes into what it is told to be a number or a truth value.
        except (ValueError, LookupError, yaml.YAMLError):
            self._problems.add(where, f"{text[:40]!r} is not {node.tag.rpartition(':')[2]}")
            return text

    def _plain(self, node: yaml.Node, kinds: Sequence[str], where: Where) -> bool:
        if node.tag in {f"tag:yaml.org,2002:{kind}" for kind in kinds}:
            return True
        self._problems.add(where, f"the tag {node.tag!r} is not read: a recipe is plain data")
        return False
