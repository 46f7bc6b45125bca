"""The public index: every name is there, stays what it is, and is documented."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import isthmus
from isthmus import weights
from isthmus.recipe.parents import headers

NAMES = sorted(name for name in isthmus.__all__ if not name.startswith("_"))
REFERENCE = Path(__file__).parents[1] / "docs" / "reference.md"


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_the_thing_and_not_the_room_of_the_same_name(name: str):
    for _ in range(2):  # importing a room binds it in the package, over a verb of its name
        assert not isinstance(getattr(isthmus, name), ModuleType)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_in_the_reference(name: str):
    # Some by where they are defined: a static reader takes `isthmus.align` for the room.
    assert re.search(rf"^::: isthmus\.([a-z_]+\.)*{name}$", REFERENCE.read_text(), re.MULTILINE)


def test_names_that_are_not_there_are_attribute_errors():
    with pytest.raises(AttributeError, match="merg"):
        _ = isthmus.merg
    assert set(NAMES) <= set(dir(isthmus))


def _told() -> dict[str, str]:
    """Every name of ours that a message of the library tells a reader to use, with the file that does."""
    found: dict[str, str] = {}
    for file in sorted(Path(isthmus.__file__).parent.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            text = node.value if isinstance(node, ast.Constant) and id(node) not in docstrings else None
            if isinstance(text, str) and " " in text:  # a sentence, no key of metadata
                for name in re.findall(r"\bisthmus((?:\.[a-zA-Z_]\w*)+)", text):
                    found.setdefault(name.removeprefix("."), file.name)
    return found


def test_what_hints_name_is_there_after_importing_isthmus_alone():
    told = _told()
    assert {"weights.load", "repair.goals", "trace"} <= told.keys()
    for name, file in told.items():
        first, *rest = name.split(".")
        found = isthmus.__getattr__(first)  # as in a process where nothing has imported the room yet
        for part in rest:
            assert hasattr(found, part), f"{file} tells of isthmus.{name}"
            found = getattr(found, part)


def test_a_hint_is_code_that_runs(tmp_path: Path):
    torch.save({"w": torch.ones(2)}, tmp_path / "x.bin")
    with pytest.raises(isthmus.IsthmusError, match="convert it once: ") as caught:
        headers.read(tmp_path / "x.bin")
    code = f"import isthmus; {str(caught.value.hint).removeprefix('convert it once: ')}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert weights.load(tmp_path / "model.safetensors")["w"].tolist() == [1, 1]


@pytest.mark.parametrize("module", ["isthmus", "isthmus.cli"])
def test_the_start_is_light(module: str):
    code = f"import sys, {module}; print(*({{'torch', 'scipy', 'plotly'}} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.split() == []
