"""Zipping units into groups: greedy complete linkage with a budget per model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from isthmus.maps import Membership


def memberships(
    groups: Int[Tensor, " units"], sizes: Sequence[int], target: int, reference: int
) -> list[Membership]:
    """Maps of N models from the group of every unit, groups in the order of the reference's units.

    Args:
        groups: a label per unit, models one after another; `target` different ones.
        sizes: units of each model.
        target: number of groups.
        reference: the model whose units number the groups.
    """
    parts = list(groups.split(list(sizes)))
    order = list(dict.fromkeys([*parts[reference].tolist(), *groups.tolist()]))
    position = {label: index for index, label in enumerate(order)}
    counts = groups.unique(return_counts=True)
    share = {int(label): 1 / int(count) for label, count in zip(*counts, strict=True)}
    return [
        Membership(
            torch.tensor([position[int(label)] for label in part]),
            torch.tensor([share[int(label)] for label in part], dtype=torch.float64),
            target,
        )
        for part in parts
    ]


def zipped(
    similarity: Float[Tensor, "units units"],
    sizes: Sequence[int],
    target: int,
    alpha: float = 0.3,
    beta: float = 0.125,
    reference: int = 0,
) -> Int[Tensor, " units"]:
    """Greedy zipping of one space.

    Args:
        similarity: of all models' units, models one after another.
        sizes: units of each model.
        target: groups to end with.
        alpha: discount of groups, as for `zipit`.
        beta: budget of merges within a model, as for `zipit`.
        reference: the model whose groups the others are completed around where more than two models leave no pair
            that the budgets allow.

    Returns:
        A group per unit.
    """
    total = sum(sizes)
    budget = [max(0, size - target) + int(beta * (total - target) / len(sizes)) for size in sizes]
    if beta == 1:
        budget = [total] * len(sizes)
    run = _Zipper(similarity.double().cpu().numpy().copy(), sizes, budget, alpha, target)
    run.zip(target)
    if run.count > target:
        # Of three models, groups AB, BC, CA leave no pair: go on with what is around one model at a time.
        run.dissolve(reference)
        anchors = [reference]
        while run.count > target and len(anchors) <= len(sizes):
            run.around(anchors[-1])
            run.zip(target)
            left = [-1 if m in anchors else run.pure(m) for m in range(len(sizes))]
            anchors.append(int(np.argmax(left)))
    return torch.from_numpy(run.labels())


class _Zipper:
    """Groups of units, how similar they are, and how often each model may still be merged with itself.

    Groups are called by one of their units.
    """

    def __init__(
        self, similarity: np.ndarray, sizes: Sequence[int], budget: Sequence[int], alpha: float, target: int
    ):
        self.linked, self.left, self.alpha = similarity, np.array(budget), alpha
        self.first = similarity.copy()
        self.group, self.size = np.arange(len(similarity)), np.ones(len(similarity))
        # So many units a group has on average: more are discounted.
        self.expected = -(-len(similarity) // target)
        # Which models a group holds units of, group by model; rows of groups that are no more hold none.
        self.model = np.repeat(np.arange(len(sizes)), sizes)
        self.holds = np.eye(len(sizes), dtype=bool)[self.model]
        self.anchor: int | None = None
        self.best, self.value = np.zeros(len(similarity), dtype=np.int64), np.zeros(len(similarity))
        self._look(np.arange(len(similarity)))

    @property
    def count(self) -> int:
        return int(self.holds.any(1).sum())

    def labels(self) -> np.ndarray:
        return self.group.astype(np.int64)

    def pure(self, model: int) -> int:
        """How many groups hold units of this model alone."""
        return int((self.holds[:, model] & (self.holds.sum(1) == 1)).sum())

    def zip(self, target: int) -> None:
        """Merge the most similar groups until so many are left, or no pair is allowed."""
        count = self.count
        while count > target:
            keep = int(np.argmax(self.value))
            if self.value[keep] == -np.inf:
                return
            self._merge(keep, int(self.best[keep]))
            count -= 1

    def _merge(self, keep: int, gone: int) -> None:
        row = np.minimum(self.linked[keep], self.linked[gone])
        self.linked[keep], self.linked[:, keep] = row, row
        self.group[self.group == gone] = keep
        both = self.holds[keep] & self.holds[gone]
        self.left[both] -= 1
        self.holds[keep] |= self.holds[gone]
        self.holds[gone] = False
        self.size[keep] += self.size[gone]
        # A group's similarities only fall, so others look again only if it was their best.
        again = np.isin(self.best, (keep, gone))
        again[[keep, gone]] = True
        closed = np.flatnonzero(both & (self.left <= 0))
        self._look(np.flatnonzero(again | self.holds[:, closed].any(1)))

    def _allowed(self, rows: np.ndarray) -> np.ndarray:
        """Which groups these groups may be merged with."""
        ours, theirs = self.holds[rows].astype(float), self.holds.astype(float)
        alive = self.holds[rows].any(1).reshape(-1, 1) & self.holds.any(1)
        alive[np.arange(len(rows)), rows] = False
        if self.anchor is None:
            return alive & (ours @ (theirs * (self.left <= 0)).T == 0)
        # Only what cannot block: a group that holds the anchor's units with one that holds one other model's alone.
        held = self.holds[:, self.anchor]
        left, right = held[rows][:, None], held
        ours_pure, theirs_pure = self.holds[rows].sum(1)[:, None] == 1, self.holds.sum(1) == 1
        around = (left & ~right & theirs_pure) | (right & ~left & ours_pure)
        forced = ours_pure & theirs_pure & (ours @ (theirs * (self.left > 0)).T > 0)
        return alive & ((around & (ours @ theirs.T == 0)) | forced)

    def _look(self, rows: np.ndarray) -> None:
        """Find the most similar group of these groups again."""
        if not len(rows):
            return
        beyond = np.maximum(self.size[rows, None] + self.size - self.expected, 0)
        linked = self.linked[rows]
        value = np.where(linked > 0, linked * self.alpha**beyond, linked)
        value = np.where(self._allowed(rows), value, -np.inf)
        self.best[rows], self.value[rows] = value.argmax(1), value.max(1)

    def dissolve(self, model: int) -> None:
        """Part the groups that hold units of several models, but none of this one, into one per model."""
        for group in np.flatnonzero((self.holds.sum(1) > 1) & ~self.holds[:, model]):
            units = np.flatnonzero(self.group == group)
            self.holds[group] = False
            for other in np.unique(self.model[units]):
                own = units[self.model[units] == other]
                self.group[own], self.size[own[0]] = own[0], len(own)
                self.holds[own[0], other] = True
        for group in np.flatnonzero(self.holds.any(1)):
            here = self.group == group
            linked = self.first[here].min(0)
            self.linked[group] = [linked[self.group == g].min(initial=1.0) for g in range(len(linked))]

    def around(self, model: int) -> None:
        """Go on with what is around one model."""
        self.anchor = model
        self._look(np.arange(len(self.linked)))
