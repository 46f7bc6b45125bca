"""How far two models of one architecture are from each other: structure, distance, direction, signs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from isthmus import progress, weights
from isthmus.errors import MismatchError
from isthmus.recipe.language.text import few
from isthmus.recipe.parents.layers import layout, natural

_BLOCK = 1 << 20  # elements at a time: memory stays small whatever a tensor's size


@dataclass(frozen=True)
class Distance:
    """Sums over some elements of two models, from which all else follows.

    Args:
        count: of elements; a complex one is two.
        a: sum of squares of the first.
        b: sum of squares of the second.
        product: sum of products.
        gap: sum of squared differences.
        nonzero: elements that are zero in neither.
        agree: those of them whose signs are equal.
    """

    count: int = 0
    a: float = 0.0
    b: float = 0.0
    product: float = 0.0
    gap: float = 0.0
    nonzero: int = 0
    agree: int = 0

    def __add__(self, other: Distance) -> Distance:
        return Distance(
            self.count + other.count,
            self.a + other.a,
            self.b + other.b,
            self.product + other.product,
            self.gap + other.gap,
            self.nonzero + other.nonzero,
            self.agree + other.agree,
        )

    @property
    def relative(self) -> float:
        """Distance over the root of the product of the lengths: the same from either side."""
        scale = math.sqrt(math.sqrt(self.a * self.b))
        return math.sqrt(self.gap) / scale if scale else (math.inf if self.gap else 0.0)

    @property
    def cosine(self) -> float:
        """Of the angle between them; not a number where one is zero."""
        return self.product / math.sqrt(self.a * self.b) if self.a and self.b else math.nan

    @property
    def signs(self) -> float:
        """Part of the elements that are zero in neither and have one sign in both."""
        return self.agree / self.nonzero if self.nonzero else math.nan


@dataclass(frozen=True)
class Equality:
    """A tensor of integers or bools in both models: no distance says whether it is the same.

    Args:
        dtypes: in each of them.
        count: of elements.
        unequal: how many of them differ; all where the dtypes do.
    """

    dtypes: tuple[str, str]
    count: int
    unequal: int

    @property
    def differs(self) -> bool:
        """Whether the two are not the same."""
        return self.unequal > 0 or self.dtypes[0] != self.dtypes[1]

    def __str__(self) -> str:
        if self.dtypes[0] != self.dtypes[1]:
            return " and ".join(self.dtypes)
        return f"{self.unequal} of {self.count} elements differ" if self.unequal else "equal"


@dataclass(frozen=True)
class Difference:
    """Two models side by side.

    Args:
        names: of the two, and of the base if there is one.
        tensors: distances of weights that both have in one shape, by name.
        exact: what both have in one shape and is no weight in one of them at least.
        only: tensors that only one has, by model.
        reshaped: tensors of two shapes.
    """

    names: tuple[str, ...]
    tensors: Mapping[str, Distance]
    exact: Mapping[str, Equality] = field(default_factory=dict[str, Equality])
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(
        default_factory=dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    )

    @property
    def blocks(self) -> dict[str, Distance]:
        """Distances by layer; what is outside the layers by its own name."""
        places = layout(self.tensors).place
        found: dict[str, Distance] = {}
        for name in sorted(self.tensors, key=natural):
            block = f"{places[name][0]}.{places[name][1]}" if name in places else name
            found[block] = found.get(block, Distance()) + self.tensors[name]
        return found

    @property
    def whole(self) -> Distance:
        """Over all tensors."""
        return sum(self.tensors.values(), Distance())

    def table(self, *, tensors: bool = False) -> str:
        """Lines for people: one per block, or per tensor.

        Args:
            tensors: one line per tensor.
        """
        rows = dict(self.tensors) if tensors else self.blocks
        rows = {name: rows[name] for name in sorted(rows, key=natural)} | {"all": self.whole}
        exact = sorted(self.exact, key=natural)
        width = max(len(name) for name in (*rows, *(exact if tensors else ())))
        what = "task vectors" if len(self.names) == 3 else "weights"
        lines = [
            f"{what} of {self.names[0]} and {self.names[1]}"
            + (f", from {self.names[2]}" if self.names[2:] else "")
        ]
        for model, names in self.only.items():
            lines.append(f"only in {model}: {len(names)} tensors ({few(names)})")
        for name, (one, other) in self.reshaped.items():
            lines.append(f"shapes differ: {name}  {one}  {other}")
        if exact:
            differ = [name for name in exact if self.exact[name].differs]
            told = f"{len(differ)} of {len(exact)} tensors differ" + (f" ({few(differ)})" if differ else "")
            lines.append(f"integers and bools: {told}")
        if tensors:
            lines += [f"{name:{width}}  {self.exact[name]}" for name in exact]
        if not self.tensors:
            return "\n".join(lines)
        lines.append(f"{'':{width}}  {'distance':>9}  {'cosine':>8}  {'signs':>7}")
        for name, row in rows.items():
            lines.append(f"{name:{width}}  {row.relative:9.3g}  {row.cosine:8.4f}  {100 * row.signs:6.1f}%")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""

        def one(row: Distance) -> dict[str, object]:
            values: dict[str, float] = {"distance": row.relative, "cosine": row.cosine, "signs": row.signs}
            finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
            return {"elements": row.count, **finite}

        return {
            "models": list(self.names),
            "all": one(self.whole),
            "blocks": {name: one(row) for name, row in self.blocks.items()},
            "tensors": {name: one(row) for name, row in self.tensors.items()},
            "exact": {
                name: {"dtypes": list(row.dtypes), "elements": row.count, "unequal": row.unequal}
                for name, row in self.exact.items()
            },
            "only": {model: list(names) for model, names in self.only.items()},
            "reshaped": {name: [list(a), list(b)] for name, (a, b) in self.reshaped.items()},
        }


def difference(a: Path, b: Path, *, base: Path | None = None) -> Difference:
    """Compare two models, block by block of a few megabytes.

    Weights are compared by distance, direction and signs; integers and bools, which have none, by equality.

    Args:
        a: a model.
        b: another.
        base: what both were trained from: then their differences from it are compared.

    Raises:
        WeightsError: one of them cannot be read.
        MismatchError: they have no tensor in common, or the base lacks one that both have.
    """
    paths = [a, b] if base is None else [a, b, base]
    opened = [weights.open(path) for path in paths]
    first, second = opened[0], opened[1]
    names = [path.name or str(path) for path in paths]
    common = [name for name in sorted(first, key=natural) if name in second]
    if not common:
        raise MismatchError(f"{a} and {b} have no tensor in common")
    pairs = {name: (weights.stored(first, name), weights.stored(second, name)) for name in common}
    shapes = {name: tuple(one.shape) for name, (one, _) in pairs.items()}
    reshaped = {
        name: (shapes[name], tuple(other.shape))
        for name, (_, other) in pairs.items()
        if tuple(other.shape) != shapes[name]
    }
    alike = [name for name in common if name not in reshaped]
    learned = [name for name in alike if all(_learned(one.dtype) for one in pairs[name])]
    if base is not None:
        third = opened[2]
        lacking = [n for n in learned if n not in third or tuple(weights.stored(third, n).shape) != shapes[n]]
        if lacking:
            raise MismatchError(
                f"{base} is not what {a} and {b} were trained from: it lacks tensors", lacking
            )
    found: dict[str, Distance] = {}
    exact: dict[str, Equality] = {}
    total = sum(math.prod(shapes[name]) for name in alike)
    with progress.task("comparing", total=total, unit="elements") as advance:
        for name in alike:
            count = math.prod(shapes[name])
            if name in learned:
                found[name] = _distance([weights.stored(tensors, name) for tensors in opened], count)
            else:
                exact[name] = _equality(pairs[name], count)
            advance(count)
    only = {
        names[0]: tuple(n for n in sorted(first, key=natural) if n not in second),
        names[1]: tuple(n for n in sorted(second, key=natural) if n not in first),
    }
    return Difference(tuple(names), found, exact, {k: v for k, v in only.items() if v}, reshaped)


def _learned(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _equality(pair: tuple[weights.Stored, weights.Stored], count: int) -> Equality:
    dtypes = (str(pair[0].dtype).removeprefix("torch."), str(pair[1].dtype).removeprefix("torch."))
    if dtypes[0] != dtypes[1]:
        return Equality(dtypes, count, count)
    unequal = 0
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        one, other = (tensor.elements(start, stop) for tensor in pair)
        unequal += int((one != other).sum())
        for tensor in pair:
            tensor.drop(start, stop)
    return Equality(dtypes, count, unequal)


def _distance(stored: list[weights.Stored], count: int) -> Distance:
    total = Distance()
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        a, b, *base = (_numbers(tensor.elements(start, stop)) for tensor in stored)
        if base:
            a, b = a - base[0], b - base[0]
        total += _measured(a, b)
        for tensor in stored:
            tensor.drop(start, stop)
    return total


def _numbers(tensor: Tensor) -> Tensor:
    """Real numbers that torch can subtract, none rounded."""
    if tensor.is_complex():
        return torch.view_as_real(tensor).reshape(-1)
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _measured(a: Tensor, b: Tensor) -> Distance:
    wide_a, wide_b = a.double(), b.double()
    signs = torch.sign(a) * torch.sign(b)
    return Distance(
        a.numel(),
        float(wide_a.dot(wide_a)),
        float(wide_b.dot(wide_b)),
        float(wide_a.dot(wide_b)),
        float((wide_a - wide_b).square().sum()),
        int((signs != 0).sum()),
        int((signs > 0).sum()),
    )
