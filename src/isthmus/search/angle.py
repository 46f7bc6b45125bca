"""The angle between task vectors: which pairs gain by averaging, said without evaluating any."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import combinations

import torch

from isthmus.combine import BLOCK
from isthmus.errors import InputError
from isthmus.search.members import STATISTICS, Source, gather


@dataclass(frozen=True)
class Angles:
    """How far apart models moved from their base.

    Attributes:
        names: of the models.
        degrees: angle between the task vectors of each two, 0 to 180.
        lengths: of each task vector (L2 norm).
        counted: numbers per model that went in.
        left_out: tensors that did not, running statistics and what was excluded.
    """

    names: tuple[str, ...]
    degrees: tuple[tuple[float, ...], ...]
    lengths: tuple[float, ...]
    counted: int
    left_out: tuple[str, ...] = ()

    @property
    def pairs(self) -> tuple[tuple[str, str, float], ...]:
        """Every two models and their angle, widest first: the proxy's order of gain."""
        found = [
            (self.names[i], self.names[j], self.degrees[i][j])
            for i, j in combinations(range(len(self.names)), 2)
        ]
        return tuple(sorted(found, key=lambda pair: -pair[2]))

    @property
    def distances(self) -> tuple[tuple[float, ...], ...]:
        """|W_i - W_j| of each two models, from angle and lengths: in a bowl, what the gain in loss depends on."""
        count = range(len(self.names))
        return tuple(tuple(self._distance(i, j) for j in count) for i in count)

    def _distance(self, i: int, j: int) -> float:
        a, b = self.lengths[i], self.lengths[j]
        square = a * a + b * b - 2 * a * b * math.cos(math.radians(self.degrees[i][j]))
        return math.sqrt(max(square, 0.0))

    def __str__(self) -> str:
        width = max(len(a) + len(b) for a, b, _ in self.pairs) + 3
        lines = [f"{f'{a}, {b}':<{width}} {degrees:6.2f}°" for a, b, degrees in self.pairs]
        return "\n".join(["pairs that should gain most by averaging come first", *lines])


def angles(
    models: Sequence[Source], base: Source, *, exclude: Sequence[str] = (), names: Sequence[str] | None = None
) -> Angles:
    """The angle between each two models' differences from their base.

    The wider it is, the more the mean of two models gains over the mean of their scores, as long as both lie in
    one basin; nothing is evaluated. It ranks pairs, it does not say by how much, and it does not know how far the
    models moved: where their lengths differ much, look at `distances`, too.

    Args:
        models: two or more modules, state dicts or files.
        base: what all of them were trained from.
        exclude: globs of tensors to leave out: heads that were drawn anew for the fine-tuning say nothing.
        names: what the models are called.

    Returns:
        Angles in degrees. The angle to a model that did not move is not a number.

    Raises:
        InputError: fewer than two models, or nothing is left to compare.
        MismatchError: models and base do not fit each other.

    Source: Wortsman et al. 2022 (arXiv:2203.05482), section 3.2. Running statistics and integers are left
        out; sums are in float64.

    Examples:
        >>> base = {"w": torch.zeros(2)}
        >>> found = angles([{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 2.0])}], base)
        >>> found.degrees[0][1], found.lengths
        (90.0, (1.0, 2.0))
    """
    members = gather(models, base=base, names=names)
    if len(members) < 2:
        raise InputError(f"an angle is between two or more models, got {len(members)}")
    assert members.base is not None
    out = [k for k in members.learned if k.endswith(STATISTICS) or any(fnmatchcase(k, g) for g in exclude)]
    keys = [key for key in members.learned if key not in set(out)]
    if not keys:
        raise InputError("no tensor is left to take an angle of", hint=f"excluded: {', '.join(exclude)}")
    count = len(members)
    inner = torch.zeros(count, count, dtype=torch.float64)
    for key in keys:
        start, *ends = (state[key].reshape(-1) for state in (members.base, *members.states))
        for at in range(0, start.numel(), BLOCK):  # so that files larger than memory can be compared
            origin = start[at : at + BLOCK].double()
            moved = torch.stack([end[at : at + BLOCK].to(origin) - origin for end in ends])
            inner += (moved @ moved.T).cpu()
    lengths = inner.diagonal().sqrt()
    cosines = (inner / lengths.outer(lengths)).clamp(-1, 1)
    cosines.fill_diagonal_(1.0)
    degrees = cosines.acos().mul(180 / math.pi)
    return Angles(
        members.names,
        tuple(tuple(row) for row in degrees.tolist()),
        tuple(lengths.tolist()),
        sum(members.base[key].numel() for key in keys),
        tuple(out),
    )
