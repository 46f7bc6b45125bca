"""Errors say what, where and hint, and are caught by the situation they describe."""

import inspect

import pytest

from isthmus import errors
from isthmus.errors import IsthmusError, MismatchError, UnsafeFileError


def test_an_error_says_what_where_and_hint():
    error = MismatchError("2 tensors differ", ["a    (1,)", "b    (2,)"], hint="build both alike")
    assert str(error) == "2 tensors differ\n  a    (1,)\n  b    (2,)\n\nhint: build both alike"
    assert (error.what, error.where, error.hint) == (
        "2 tensors differ",
        ("a    (1,)", "b    (2,)"),
        "build both alike",
    )


def test_where_and_hint_may_be_left_out():
    assert str(IsthmusError("it is wrong")) == "it is wrong"


@pytest.mark.parametrize(
    "name", [n for n, c in inspect.getmembers(errors, inspect.isclass) if n != "Iterable"]
)
def test_every_error_is_ours_and_documented(name: str):
    error = getattr(errors, name)
    assert issubclass(error, IsthmusError)
    assert error.__doc__


def test_bad_input_is_a_value_error_so_that_python_habits_work():
    with pytest.raises(ValueError, match="refused"):
        raise UnsafeFileError("refused")
