"""What `isthmus methods` says of each method: complete, and its examples are ones that are understood."""

import ast
import inspect
import shlex

import pytest
import typer

import isthmus
from isthmus import cli
from isthmus.describing import Description
from isthmus.describing import described as description_of
from isthmus.errors import InputError
from isthmus.listing import Methods
from isthmus.recipe.language.reading import examine
from isthmus.registry import Method

ROWS = {f"{row.kind} {row.name}": row for row in isthmus.methods()}


def described(name: str) -> Description:
    kind, _, method = name.partition(" ")
    return isthmus.method(method, kind)


@pytest.mark.parametrize("name", ROWS)
def test_a_method_says_what_it_needs_claims_and_costs_and_what_each_option_means(name: str):
    found, row = described(name), ROWS[name]
    assert found.needs.keys() == set(row.needs) and all(text != need for need, text in found.needs.items())
    assert found.claims.keys() == set(row.claims)
    assert found.costs == row.costs != "" and found.source == row.source != ""
    assert [option.name for option in found.options] == list(row.options)
    for option in found.options:
        assert option.meaning and option.kind not in ("", "anything"), option
    shown = str(found)
    assert all(
        part in shown for part in (found.name, "costs", "source", *(f"\n  {o.name}" for o in found.options))
    )
    assert all(len(line) <= 80 for line in shown.split("\n"))


@pytest.mark.parametrize("name", ROWS)
def test_the_command_is_one_that_the_command_line_understands(name: str):
    words = shlex.split(described(name).command.replace("\\\n", " "))
    assert words[0] == "isthmus"
    command = typer.main.get_command(cli.app).commands[words[1]]  # type: ignore[attr-defined]
    given = command.make_context(words[1], words[2:]).params
    kind, _, method = name.partition(" ")
    option = {
        "alignment": "align",
        "combination": "method",
        "repair": "repair",
        "pruner": "method",
        "search": "kind",
    }
    assert str(given[option[kind]]).strip("[]'").split()[0] == method


@pytest.mark.parametrize("name", ROWS)
def test_the_python_form_is_a_call_that_binds(name: str):
    (call,) = [node for node in ast.walk(ast.parse(described(name).python)) if isinstance(node, ast.Call)]
    assert isinstance(call.func, ast.Attribute)
    given = {str(k.arg): None for k in call.keywords}
    bound = inspect.signature(getattr(isthmus, call.func.attr)).bind(*call.args, **given)
    own = set(bound.arguments.get("options", {}))
    asked = {
        key.value
        for node in ast.walk(call)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant)
    }
    assert (own | asked) - {"method"} <= set(ROWS[name].options)


@pytest.mark.parametrize("name", [name for name in ROWS if described(name).recipe])
def test_the_recipe_is_one_that_is_read_without_a_problem(name: str):
    text = described(name).recipe
    if text.startswith("isthmus:"):
        text = f"merge_method: linear\nmodels: [{{model: a, parameters: {{weight: 1}}}}]\n{text}"
    recipe, problems = examine(f"{text}\n", "recipe.yml")
    problems.check()
    assert recipe is not None


def test_a_method_of_ones_own_is_described_as_far_as_it_says_something():
    def shaken(models: object, *, strength: "Unknown" = 3) -> None:  # type: ignore[name-defined]
        """Shake the models."""

    found = description_of(
        Method("shaken", "repair", "Shake the models.", ("luck",), (), "", shaken, ("models",))
    )
    assert found.costs == found.source == "not said" and found.needs == {"luck": "luck"}
    assert [(o.name, o.kind, o.default, o.meaning) for o in found.options] == [
        ("strength", "whole number", 3, "")
    ]
    assert "luck: luck" in str(found) and "strength = 3  (whole number)" in str(found)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("zip-it", None, ["no method, and no kind of methods, is called 'zip-it'", "did you mean zipit"]),
        ("dare_ties", None, ["did you mean dare-ties"]),
        ("alignmnet", None, ["did you mean alignment"]),
        ("zipit", "repair", ["no repair is called 'zipit'"]),
        ("qqqq", None, ["isthmus methods lists them all"]),
        ("ties", "rule", ["there is no kind of method 'rule'", "alignment, combination"]),
    ],
)
def test_a_wrong_name_is_met_with_the_nearest(name: str, kind: str | None, words: list[str]):
    with pytest.raises(InputError) as caught:
        isthmus.method(name, kind)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("columns", [80, 160])
def test_the_table_is_as_wide_as_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = str(isthmus.methods()).split("\n")
    assert 0.8 * columns < max(map(len, lines)) <= columns
    assert lines[0].split() == ["alignment", "needs"]
    (row,) = [line for line in lines if line.startswith("  straight-through ")]
    assert "  data, targets  " in row and ("…" in row) == (columns == 80)
    assert str(Methods()) == ""
