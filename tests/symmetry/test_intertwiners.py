"""The intertwiner table: f(A x) = phi(A) f(x), for every row, in numbers."""

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isthmus.symmetry.intertwiners import INTERTWINERS, Intertwiner, clipped, power

# Rows that torch has under another name, or with arguments.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "neg": lambda x: -x,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "prelu": lambda x: F.prelu(x, torch.tensor(0.3, dtype=x.dtype)),
    "rrelu": lambda x: F.rrelu(x, training=False),
    "rbf": lambda x: torch.exp(-x.square()),
    "sqrt": lambda x: x.abs().sqrt(),  # of positive numbers
    "rsqrt": lambda x: x.abs().rsqrt(),
    "log": lambda x: x.abs().log(),
}
# What these are defined on.
POSITIVE_ONLY = {"sqrt", "rsqrt", "log"}
BOUNDED = {"asin", "atanh", "erfinv"}


def function(name: str) -> Callable[[Tensor], Tensor]:
    return FUNCTIONS.get(name) or getattr(F, name, None) or getattr(torch, name)


def matrix_of(row: Intertwiner, n: int, generator: torch.Generator) -> Tensor:
    """A random matrix of a row's group."""
    if row.linear:
        return torch.randn(n, n, generator=generator, dtype=torch.float64)
    scale = torch.ones(n, dtype=torch.float64)
    if "positive" in row.group:
        scale = torch.rand(n, generator=generator, dtype=torch.float64) + 0.5
    if row.group.startswith("signed"):
        scale = scale * torch.tensor([-1.0, 1.0]).repeat(n)[:n]
    return torch.eye(n, dtype=torch.float64)[torch.randperm(n, generator=generator)] * scale[:, None]


@pytest.mark.parametrize("name", INTERTWINERS)
def test_every_row_lets_its_group_through(name: str):
    row, f = INTERTWINERS[name], function(name)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 50, generator=generator, dtype=torch.float64)
    x = x.abs() if name in POSITIVE_ONLY else x.tanh() / 2 if name in BOUNDED else x
    for _ in range(3):
        matrix = matrix_of(row, 7, generator)
        torch.testing.assert_close(f(matrix @ x), row.image(matrix) @ f(x))


@pytest.mark.parametrize("name", INTERTWINERS)
def test_no_row_leaves_out_a_scale_or_a_sign_that_passes(name: str):
    row, f = INTERTWINERS[name], function(name)
    x = 4 * torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x.abs() if name in POSITIVE_ONLY else 0.6 * x.tanh() if name in BOUNDED else x
    before, after = f(x), f(1.5 * x)
    ratio = (after / before)[before != 0]
    appears = bool(((before == 0) & (after != 0)).any())
    assert (row.degree is None) == (appears or bool(ratio.max() - ratio.min() > 1e-6))
    if name not in POSITIVE_ONLY:
        even, odd = torch.equal(f(-x), f(x)), torch.equal(f(-x), -f(x))
        assert row.parity == ("even" if even else "odd" if odd else None)


def test_the_table_of_the_paper():
    # Godfrey et al., arXiv:2205.14258, table 1: the group, and the matrix that comes out for one that goes in.
    signs = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    scales = torch.tensor([[0.0, 3.0], [0.5, 0.0]], dtype=torch.float64)
    both = torch.tensor([[0.0, -3.0], [0.5, 0.0]], dtype=torch.float64)
    anything = torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64)
    assert INTERTWINERS["identity"].group == "invertible"
    assert torch.equal(INTERTWINERS["identity"].image(anything), anything)
    assert INTERTWINERS["sigmoid"].group == "permutation"
    assert torch.equal(INTERTWINERS["sigmoid"].image(signs.abs()), signs.abs())
    for name in ("relu", "leaky_relu"):
        assert INTERTWINERS[name].group == "permutation x positive"
        assert torch.equal(INTERTWINERS[name].image(scales), scales)
    assert INTERTWINERS["rbf"].group == "signed permutation"
    assert torch.equal(INTERTWINERS["rbf"].image(signs), signs.abs())
    for degree in (2.0, 3.0, 4.0):
        assert power(degree).group == "signed permutation x positive"
        expected = both**degree  # entry by entry
        torch.testing.assert_close(power(degree).image(both), expected)


@pytest.mark.parametrize("exponent", [3.0, 2.0, -1.0, -2.0, 0.5, 1 / 3, -0.5, 0.0, 1.0, 2.5])
def test_powers(exponent: float):
    row = power(exponent)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 20, generator=generator, dtype=torch.float64)
    x = x if exponent == int(exponent) else x.abs()
    matrix = matrix_of(row, 5, generator)
    torch.testing.assert_close((matrix @ x) ** exponent, row.image(matrix) @ x**exponent)


@pytest.mark.parametrize("exponent", [3.14159, 0.7001, float("inf"), float("nan")])
def test_a_power_that_is_no_small_fraction_is_not_taken_for_its_neighbour(exponent: float):
    assert power(exponent) == Intertwiner()


def test_a_root_has_no_sign():
    assert power(0.5) == Intertwiner(Fraction(1, 2)) and power(0.5).group == "permutation x positive"


@pytest.mark.parametrize(
    ("low", "high", "group"),
    [
        (None, None, "invertible"),
        (0.0, None, "permutation x positive"),
        (None, 0.0, "permutation x positive"),
        (-0.0, None, "permutation x positive"),
        (-2.0, 2.0, "signed permutation"),
        (2.0, -2.0, "permutation"),
        (0.0, 0.0, "permutation"),
        (0.0, 6.0, "permutation"),
        (-1.0, 2.0, "permutation"),
        (1.0, None, "permutation"),
    ],
)
def test_clipping(low: float | None, high: float | None, group: str):
    row = clipped(low, high)
    assert row.group == group
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(6, 40, generator=generator, dtype=torch.float64)
    matrix = matrix_of(row, 6, generator)

    def f(value: Tensor) -> Tensor:
        return value if low is None and high is None else value.clamp(low, high)

    torch.testing.assert_close(f(matrix @ x), row.image(matrix) @ f(x))
