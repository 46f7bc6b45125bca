"""Homogeneous equations, solved as they arrive."""

from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus.symmetry.linear_system import System


def test_equal_unknowns_are_one():
    system = System()
    a, b, c = system.new(), system.new(), system.new()
    system.equate(b, c)
    system.equate(a, c)
    assert system.value(a) == system.value(b) == system.value(c) == {a: 1}


def test_zero_spreads():
    system = System()
    a, b, c = (system.new() for _ in range(3))
    system.equate(a, b)
    system.add({c: Fraction(1), b: Fraction(-2)})
    system.zero(a)
    assert system.value(a) == system.value(b) == system.value(c) == {}


def test_a_power_and_its_opposite():
    system = System()
    a, b, c = (system.new() for _ in range(3))
    system.add({a: Fraction(1), b: Fraction(1)})
    system.add({c: Fraction(1), a: Fraction(-3)})
    assert system.value(b) == {a: -1} and system.value(c) == {a: 3}


def test_signs_count_modulo_two():
    system = System(2)
    a, b, c = (system.new() for _ in range(3))
    system.add({a: Fraction(1), b: Fraction(1)})  # opposite, hence equal
    system.add({c: Fraction(1), a: Fraction(-2)})  # even
    assert system.value(b) == {a: 1} and system.value(c) == {}
    system.add({a: Fraction(2)})
    assert system.value(a) == {a: 1}, "twice a sign says nothing"
    system.equate(a, a)
    assert system.value(a) == {a: 1}


def test_what_is_looked_up_may_be_changed():
    system = System()
    a, b = system.new(), system.new()
    system.equate(a, b)
    system.value(b)[a] = Fraction(99)
    assert system.value(b) == {a: 1}


rows = st.lists(
    st.dictionaries(st.integers(1, 6), st.integers(-3, 3).map(Fraction), min_size=1, max_size=4), max_size=7
)


@given(rows)
def test_the_solutions_are_all_of_the_kernel(equations: list[dict[int, Fraction]]):
    system = System()
    for _ in range(6):
        system.new()
    for equation in equations:
        system.add(equation)
    values = [system.value(n) for n in range(1, 7)]
    free = sorted({n for value in values for n in value})
    assert all(system.value(n) == {n: 1} for n in free)
    for equation in equations:
        for n in free:
            assert sum(c * values[u - 1].get(n, 0) for u, c in equation.items()) == 0
    matrix = torch.zeros(max(len(equations), 1), 6, dtype=torch.float64)
    for i, equation in enumerate(equations):
        for unknown, coefficient in equation.items():
            matrix[i, unknown - 1] = float(coefficient)
    assert len(free) == 6 - int(torch.linalg.matrix_rank(matrix))


@given(rows)
def test_modulo_two_the_solutions_solve(equations: list[dict[int, Fraction]]):
    system = System(2)
    for _ in range(6):
        system.new()
    for equation in equations:
        system.add(equation)
    values = [system.value(n) for n in range(1, 7)]
    free = sorted({n for value in values for n in value})
    for equation in equations:
        for n in free:
            assert sum(int(c) * int(values[u - 1].get(n, 0)) for u, c in equation.items()) % 2 == 0
