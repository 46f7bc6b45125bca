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
    """Every place that a file imports from, wherever in the file, type checking included."""
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
                yield rest.partition(".")[0] or "__init__"


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
    wrong = sorted(set(imported(file)) - visible(here))
    assert not wrong, f"{here} is below {', '.join(wrong)}"


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_file_is_read_in_one_sitting(file: Path):
    assert file.stat().st_size <= 25_000, "two ideas are two files"
