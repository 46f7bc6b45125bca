"""The flat table: registering, finding, suggesting, scanning."""

import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.errors import InputError
from isthmus.registry import LAWS, Method, Registry


@pytest.fixture
def table() -> Registry:
    table = Registry("alignment")

    @table.register("weight-matching", needs=["graph"], claims=["seeded"], source="arXiv:2209.04836")
    def weight_matching() -> str:
        """Match units by their weights.

        More about it.
        """
        return "matched"

    @table.register("activation-matching", needs=["graph", "data"])
    def activation_matching() -> None:
        """Match units by what they answer."""

    return table


def test_a_row_holds_what_listings_need(table: Registry):
    method = table.get("weight-matching")
    assert method == Method(
        name="weight-matching",
        kind="alignment",
        summary="Match units by their weights.",
        needs=("graph",),
        claims=("seeded",),
        source="arXiv:2209.04836",
        function=method.function,
    )
    assert method.function() == "matched"


def test_rows_are_sorted_by_name(table: Registry):
    assert table.names() == ("activation-matching", "weight-matching")
    assert [row.name for row in table.rows()] == list(table.names())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("activation_matching", "did you mean 'activation-matching'?"),
        ("Activation Matching", "did you mean 'activation-matching'?"),
        ("weight-maching", "did you mean 'weight-matching'?"),
        ("zipit", "there are: activation-matching, weight-matching"),
    ],
)
def test_a_wrong_name_is_met_with_the_nearest(table: Registry, name: str, hint: str):
    with pytest.raises(InputError) as caught:
        table.get(name)
    assert str(caught.value) == f"no alignment is called {name!r}\n\nhint: {hint}"


def test_everything_wrong_with_a_registration_is_said_at_once(table: Registry):
    with pytest.raises(InputError) as caught:

        @table.register("Weight_Matching", claims=["seeded", "orderfree"])
        def undocumented() -> None: ...

    assert caught.value.where == (
        "its name is not lower-case words joined by hyphens",
        "its function has no docstring",
        "it claims 'orderfree', which is no law",
    )


def test_a_name_is_given_once(table: Registry):
    with pytest.raises(InputError, match="the name is taken by"):
        table.register("weight-matching")(len)


def test_the_laws_are_sentences():
    assert all(name == name.lower() and sentence for name, sentence in LAWS.items())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package whose table is in one module."""
    folder = tmp_path / "room_of_methods"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "table.py").write_text(
        "from isthmus.registry import Registry\nTABLE = Registry('rule', package=__package__)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


METHOD = """
from room_of_methods.table import TABLE

@TABLE.register("linear")
def linear():
    '''Average.'''
"""


def test_a_new_method_is_one_new_file(package: Path):
    (package / "linear.py").write_text(METHOD)
    from room_of_methods.table import TABLE

    assert "room_of_methods.linear" not in sys.modules, "nothing is imported before the table is asked"
    assert TABLE.names() == ("linear",)


def test_a_method_that_cannot_be_imported_is_not_passed_over(package: Path):
    (package / "broken.py").write_text("import no_such_module")
    from room_of_methods.table import TABLE

    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            TABLE.names()


def test_neither_registry_nor_progress_imports_torch():
    code = "import sys, isthmus.registry, isthmus.progress; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
