"""What can happen to one space of one model: a pair (A, B).

A (merged units x the model's units) says how merged units are made of the model's; B (the model's units x
merged units) how the model's units are read back. A weight that writes the space takes A on its
axis, one that reads it takes B. Each kind stores what it is, never a matrix it does not need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isthmus.errors import InputError


@runtime_checkable
class Map(Protocol):
    """How one model's units of a space become merged units."""

    @property
    def source(self) -> int:
        """Number of the model's units."""
        ...

    @property
    def target(self) -> int:
        """Number of merged units."""
        ...

    @property
    def keeps_function(self) -> bool:
        """Whether moving a single model by it leaves its function alone."""
        ...

    def write(self, tensor: Tensor, dim: int) -> Tensor:
        """A on a dimension of a weight that writes the space."""
        ...

    def read(self, tensor: Tensor, dim: int) -> Tensor:
        """B on a dimension of a weight that reads the space."""
        ...

    def matrices(self) -> tuple[Float[Tensor, "target source"], Float[Tensor, "source target"]]:
        """A and B, dense, in float64."""
        ...


@runtime_checkable
class Mixture(Map, Protocol):
    """A map that mixes units: it also says what becomes of multipliers and of variances."""

    def scale(self, tensor: Tensor, dim: int) -> Tensor:
        """What multiplies unit by unit: a weighted mean of the multipliers, see `isthmus.maps.elementwise`."""
        ...

    def variance(self, tensor: Tensor, dim: int) -> Tensor:
        """An estimate of the merged units' variances from the units'; never negative."""
        ...


@dataclass(frozen=True, eq=False)
class Permutation:
    """Another order: merged unit k is the model's unit index[k]. A = P, B = P^T.

    Args:
        index: (units,), or (*outer units, units) where the space is within others.
    """

    index: Int[Tensor, "*within units"]
    keeps_function = True

    @property
    def source(self) -> int:
        return self.index.shape[-1]

    @property
    def target(self) -> int:
        return self.index.shape[-1]

    @property
    def moved(self) -> int:
        """How many units change place."""
        return int((self.index != torch.arange(self.source)).sum())

    def write(self, tensor: Tensor, dim: int) -> Tensor:
        if self.index.ndim != 1:
            raise InputError("a permutation per outer unit applies to whole weights, see Transport")
        return tensor.index_select(dim, self.index.to(tensor.device))

    def read(self, tensor: Tensor, dim: int) -> Tensor:
        return self.write(tensor, dim)

    def matrices(self) -> tuple[Tensor, Tensor]:
        a = torch.eye(self.source, dtype=torch.float64)[self.index]
        return a, a.mT

    def __str__(self) -> str:
        return f"permutation, {self.moved} of {self.index.numel()} units moved"


@dataclass(frozen=True, eq=False)
class ScaledPermutation:
    """Another order and scale: merged unit k is scale[k] times unit index[k]. A = DP, B = P^T D^-1.

    Args:
        index: (units,).
        scale: (units,), nonzero; positive for ReLU networks, +-1 for odd activations.
    """

    index: Int[Tensor, "units"]
    scale: Float[Tensor, "units"]
    keeps_function = True

    def __post_init__(self) -> None:
        if not bool((self.scale != 0).all()):
            raise InputError("a scale of zero cannot be undone")

    @property
    def source(self) -> int:
        return len(self.index)

    @property
    def target(self) -> int:
        return len(self.index)

    def write(self, tensor: Tensor, dim: int) -> Tensor:
        return tensor.index_select(dim, self.index.to(tensor.device)) * _along(self.scale, tensor, dim)

    def read(self, tensor: Tensor, dim: int) -> Tensor:
        return tensor.index_select(dim, self.index.to(tensor.device)) / _along(self.scale, tensor, dim)

    def matrices(self) -> tuple[Tensor, Tensor]:
        p = torch.eye(self.source, dtype=torch.float64)[self.index]
        return self.scale.double()[:, None] * p, p.mT / self.scale.double()

    def __str__(self) -> str:
        low, high = self.scale.min().item(), self.scale.max().item()
        return f"permutation with scales {low:.3g} to {high:.3g}"


@dataclass(frozen=True, eq=False)
class Dense:
    """Any linear map and its way back.

    Args:
        forward: A, (merged units, units).
        backward: B, (units, merged units).
        keeps_function: whether the space's group holds A (rotations of a linear stream, say).
    """

    forward: Float[Tensor, "target source"]
    backward: Float[Tensor, "source target"]
    keeps_function: bool = False

    def __post_init__(self) -> None:
        if self.forward.shape != self.backward.shape[::-1]:
            raise InputError(
                "A and B do not fit each other",
                [f"A {tuple(self.forward.shape)}, B {tuple(self.backward.shape)}"],
            )

    @property
    def source(self) -> int:
        return self.forward.shape[1]

    @property
    def target(self) -> int:
        return self.forward.shape[0]

    def write(self, tensor: Tensor, dim: int) -> Tensor:
        return _contract(self.forward, tensor, dim)

    def read(self, tensor: Tensor, dim: int) -> Tensor:
        return _contract(self.backward.mT, tensor, dim)

    def scale(self, tensor: Tensor, dim: int) -> Tensor:
        """(A * B^T) w, rows normalised: the diagonal of A diag(w) B. For A = B^-1 rows sum to one by themselves."""
        mixed = self.forward.double() * self.backward.double().mT
        total = mixed.sum(1, keepdim=True)
        return _contract(torch.where(total.abs() > 1e-12, mixed / total, 0.0), tensor, dim)

    def variance(self, tensor: Tensor, dim: int) -> Tensor:
        """Averages (no entry of A negative) mix units that agree: (A std)^2. Rotations mix others: A^2 variance."""
        a = self.forward.double()
        if bool((a >= 0).all()):
            return _contract(a, tensor.clamp(min=0).sqrt(), dim).square()
        return _contract(a.square(), tensor, dim)

    def matrices(self) -> tuple[Tensor, Tensor]:
        return self.forward.double(), self.backward.double()

    def __str__(self) -> str:
        return f"dense {self.target} x {self.source}"


@dataclass(frozen=True, eq=False)
class Membership:
    """Units belong to groups: a merged unit is a weighted sum of its members, each member reads it whole.

    Args:
        group: (units,) the merged unit that each of the model's units belongs to.
        share: (units,) the weight of each unit in its merged unit, not negative. In an alignment: at equal weights
            of the models; over all of them the shares of a merged unit then sum to one (or to the row mass that the
            method gives it). `weighted` says what they are at other weights.
        target: number of merged units.
    """

    group: Int[Tensor, "units"]
    share: Float[Tensor, "units"]
    target: int
    keeps_function = False

    @property
    def source(self) -> int:
        return len(self.group)

    def write(self, tensor: Tensor, dim: int) -> Tensor:
        shape = list(tensor.shape)
        shape[dim] = self.target
        weighted = tensor * _along(self.share, tensor, dim)
        return tensor.new_zeros(shape).index_add(dim, self.group.to(tensor.device), weighted)

    def read(self, tensor: Tensor, dim: int) -> Tensor:
        shape = list(tensor.shape)
        shape[dim] = self.target
        return tensor.new_zeros(shape).index_add(dim, self.group.to(tensor.device), tensor)

    def scale(self, tensor: Tensor, dim: int) -> Tensor:
        """As what is written: A diag(w) B is diagonal, since each unit reads the group that it writes."""
        return self.write(tensor, dim)

    def variance(self, tensor: Tensor, dim: int) -> Tensor:
        """The members' weighted mean."""
        return self.write(tensor, dim)

    def matrices(self) -> tuple[Tensor, Tensor]:
        b = torch.zeros(self.source, self.target, dtype=torch.float64)
        b[torch.arange(self.source), self.group] = 1
        return b.mT * self.share.double(), b

    def __str__(self) -> str:
        return f"{self.source} units in {len(self.group.unique())} of {self.target} groups"


@dataclass(frozen=True, eq=False)
class Stack:
    """Kept apart: the model's units are a block of the merged units. A = B^T = [0 I 0].

    Args:
        start: where the block begins.
        source: number of the model's units.
        target: number of merged units, of all models together.
    """

    start: int
    source: int
    target: int
    keeps_function = True

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.start + self.source <= self.target:
            raise InputError(f"units {self.start}..{self.start + self.source} lie outside {self.target}")

    def write(self, tensor: Tensor, dim: int) -> Tensor:
        shape = list(tensor.shape)
        shape[dim] = self.target
        result = tensor.new_zeros(shape)
        result.narrow(dim, self.start, self.source).copy_(tensor)
        return result

    def read(self, tensor: Tensor, dim: int) -> Tensor:
        return self.write(tensor, dim)

    def matrices(self) -> tuple[Tensor, Tensor]:
        b = torch.zeros(self.source, self.target, dtype=torch.float64)
        b[:, self.start : self.start + self.source] = torch.eye(self.source, dtype=torch.float64)
        return b.mT, b

    def __str__(self) -> str:
        return f"kept apart: units {self.start} to {self.start + self.source} of {self.target}"


def weighted(items: Sequence[Map], weights: Sequence[float]) -> list[Map]:
    """The maps of one space in N models, with the models' weights in the rows of A.

    Whatever the models are combined by multiplies model i by its weight. Where a merged unit has one member of every
    model that is right as it is. Where it has other members, the weights of those must sum to its row's mass again:
    a unit u of model i in group g has the share s_u w_i mass_g / sum over v in g of s_v w_v in A, of which w_i is left
    to the combination. A group of members without weight gets nothing, and nothing reads it.

    Args:
        items: one map per model.
        weights: one per model, with sum 1.
    """
    groups = [item for item in items if isinstance(item, Membership)]
    if not groups:
        return list(items)
    if len(groups) != len(items) or len({item.target for item in groups}) > 1:
        raise InputError("models are grouped together or not at all", [str(item) for item in items])
    mass = torch.zeros(groups[0].target, dtype=torch.float64)
    share = mass.clone()
    for item, weight in zip(groups, weights, strict=True):
        mass.index_add_(0, item.group, item.share.double())
        share.index_add_(0, item.group, item.share.double() * weight)
    factor = torch.where(share > 0, mass / share, 0.0)
    return [Membership(m.group, m.share.double() * factor[m.group], m.target) for m in groups]


def identity(units: int) -> Permutation:
    """Every unit stays."""
    return Permutation(torch.arange(units))


def compose(first: Map, then: Map) -> Map:
    """The map that applies `first` and then `then`: A = A2 A1, B = B1 B2."""
    if first.target != then.source:
        raise InputError(f"a map to {first.target} units cannot be followed by one from {then.source}")
    if isinstance(first, Permutation) and isinstance(then, Permutation):
        if first.index.ndim == then.index.ndim == 1:
            return Permutation(first.index[then.index])
        raise InputError("permutations per outer unit compose as whole models, see Transport.then")
    scaled = (Permutation, ScaledPermutation)
    if isinstance(first, scaled) and isinstance(then, scaled):
        ours = first.scale if isinstance(first, ScaledPermutation) else torch.ones(first.source)
        theirs = then.scale if isinstance(then, ScaledPermutation) else torch.ones(then.source)
        return ScaledPermutation(first.index[then.index], theirs * ours[then.index])
    (a1, b1), (a2, b2) = first.matrices(), then.matrices()
    return Dense(a2 @ a1, b1 @ b2, first.keeps_function and then.keeps_function)


def invert(item: Map) -> Map:
    """The map back.

    Raises:
        InputError: the map loses information (groups of several units, other widths).
    """
    if isinstance(item, Permutation) and item.index.ndim == 1:
        return Permutation(item.index.argsort())
    if isinstance(item, ScaledPermutation):
        back = item.index.argsort()
        return ScaledPermutation(back, 1 / item.scale[back])
    if isinstance(item, Dense) and item.source == item.target:
        eye = torch.eye(item.source, dtype=torch.float64)
        if torch.allclose(item.backward.double() @ item.forward.double(), eye, atol=1e-6):
            return Dense(item.backward, item.forward, item.keeps_function)
    raise InputError(f"this map has no inverse: {item}")


def _along(vector: Tensor, tensor: Tensor, dim: int) -> Tensor:
    shape = [1] * tensor.ndim
    shape[dim] = -1
    return vector.to(tensor.device, tensor.dtype).view(shape)


def _contract(matrix: Tensor, tensor: Tensor, dim: int) -> Tensor:
    front = tensor.movedim(dim, 0)
    # Contiguous, so that a map read back from a file gives the same bits.
    moved = matrix.to(tensor.device, tensor.dtype).contiguous() @ front.reshape(len(front), -1)
    return moved.view(len(matrix), *front.shape[1:]).movedim(0, dim)
