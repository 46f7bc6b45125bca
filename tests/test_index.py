"""The public index: every name is there, stays what it is, and is documented."""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import isthmus

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


@pytest.mark.parametrize("module", ["isthmus", "isthmus.cli"])
def test_the_start_is_light(module: str):
    code = f"import sys, {module}; print(*({{'torch', 'scipy', 'plotly'}} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.split() == []
