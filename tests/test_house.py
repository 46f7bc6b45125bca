"""The layout of the house (docs/architecture.md): imports go down, files are short."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "isthmus"
ROOMS = (  # a room imports from itself and from those after it
    "cli recipe report diagnose engine federated prune search measure paths repair statistics combine align"
    " maps features symmetry program weights zoo"
).split()
# Within a room likewise; the files beside its sub-rooms see all of them, and none of them sees these files.
SUBROOMS = {"recipe": "running planning output rows tokens inspection parents language".split()}
GROUND = {"bars", "errors", "progress", "registry", "selectors"}  # under every room
# See every room; only cli sees them.
ROOF = set(
    "__init__ __main__ asking comparing describing diagnosing listing merged merging saving sweeping testing".split()
)

FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(file.relative_to(SOURCE)) for file in FILES]


def place(file: Path) -> str:
    """The room a file is in, or its own name if it stands beside the rooms."""
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(file: Path) -> Iterator[str]:
    """Everything of isthmus that a file imports, wherever in the file, type checking included: `room.file.name`."""
    package = ("isthmus", *file.relative_to(SOURCE).parent.parts)
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            names = [f"{start}{node.module or ''}".strip(".") + f".{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "isthmus":
                yield rest or "__init__"


def visible(here: str) -> set[str]:
    if here in GROUND:
        return GROUND
    return {*ROOMS[ROOMS.index(here) :], *GROUND}


def test_every_file_is_in_a_known_place():
    assert {place(file) for file in FILES} <= {*ROOMS, *GROUND, *ROOF}


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_imports_go_down_the_house(file: Path):
    here = place(file)
    if here in ROOF or here == "cli":
        return
    wrong = sorted({name.partition(".")[0] for name in imported(file)} - visible(here))
    assert not wrong, f"{here} is below {', '.join(wrong)}"


INNER = [file for file in FILES if place(file) in SUBROOMS and len(file.relative_to(SOURCE).parts) > 2]


@pytest.mark.parametrize("file", INNER, ids=[str(file.relative_to(SOURCE)) for file in INNER])
def test_imports_go_down_inside_a_room(file: Path):
    room, here = file.relative_to(SOURCE).parts[:2]
    known = SUBROOMS[room]
    assert here in known
    inside = {f"{name}.".split(".")[1] for name in imported(file) if name.split(".")[0] == room}
    wrong = sorted(inside - {*known[known.index(here) :]})
    assert not wrong, f"{room}/{here} is below {', '.join(name or room for name in wrong)}"


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_file_is_read_in_one_sitting(file: Path):
    assert file.stat().st_size <= 25_000, "two ideas are two files"
