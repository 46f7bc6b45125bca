"""What the weights of two models say about each space, kept up to date while other spaces move.

The evidence for a space is a sum over the weights that carry it. When another space is reordered in k of its
n places, only those k columns of a weight say something new, so the sum is corrected by them, at k/n of
the cost; and where nothing that a space touches has moved, it is not asked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.align.orders.assignment import Evidence, inside, opened
from isthmus.align.orders.votes import Piece, Votes
from isthmus.symmetry import Axis, Leaf, Space, spaces_of

#: Corrections of a sum before it is taken afresh: each adds the rounding of one more product.
REFRESH = 16

#: A correction must be this much cheaper than the sum itself.
WORTH = 0.6

#: Multiplications of one task: enough to keep a processor busy, few enough to share among several. What a task
#: is does not depend on the number of threads, so neither does the rounding.
TASK = 2e10

#: Sums of one space, by what they are about: None for its own units, a name for those of a space inside it.
Sums = dict[str | None, Tensor]


@dataclass(frozen=True)
class Member:
    """One axis of one weight that says something about a space.

    Attributes:
        key: the weight.
        axis: the axis.
        twice: whether the weight carries the space on another axis too.
        apart: axes on which every unit counts by itself: the space's own, and those that tell apart the units it
            is within or that are inside it.
    """

    key: str
    axis: int
    twice: bool
    apart: frozenset[int]


@dataclass(frozen=True)
class Share:
    """A piece of a weight to take into a sum.

    Attributes:
        member: the axis that it is about.
        piece: which part of the weight.
        before: orders whose share is taken out again; None where there is none.
    """

    member: Member
    piece: Piece
    before: Mapping[str, Tensor] | None = None


@dataclass
class _Kept:
    sums: Sums
    orders: Mapping[str, Tensor]
    corrections: int = 0


class Similarity:
    """The evidence for every space.

    Args:
        votes: the weights of the two models.
        memory: bytes of sums that may be kept for correction; the spaces that gain most by it are kept.
    """

    def __init__(self, votes: Votes, memory: float = 0.0):
        self.votes, self.known = votes, votes.known
        layout, voting = votes.graph.layout, set(votes.keys)
        self.inside = {name: inside(space, self.known) for name, space in self.known.items()}
        carried = {key: [spaces_of(axis) for axis in layout[key]] for key in votes.keys}
        self.members = {
            name: [
                Member(
                    key,
                    axis,
                    sum(name in found for found in carried[key]) > 1,
                    frozenset(
                        {axis}
                        | {
                            dim
                            for dim, found in enumerate(carried[key])
                            if not found.isdisjoint((*space.within, *self.inside[name]))
                        }
                    ),
                )
                for key, axis in dict.fromkeys((m.key, m.axis) for m in space.members if m.key in voting)
            ]
            for name, space in self.known.items()
        }
        #: What is written when a space is solved, and what the solution depends on.
        self.writes = {name: {name, *self.inside[name]} for name in self.known}
        self.keys = {
            name: list(dict.fromkeys(m.key for n in (name, *self.inside[name]) for m in self.members[n]))
            for name in self.known
        }
        self.reads = {
            name: {n for key in self.keys[name] for found in carried[key] for n in found}
            for name in self.known
        }
        self._kept: dict[str, _Kept] = {}
        self._keeps = self._choose(memory)

    def size(self, name: str) -> int:
        """Bytes of the sums of one space."""
        width = torch.finfo(self.votes.dtype).bits // 8
        return width * sum(shape[0] * shape[1] * shape[2] for shape in self._shapes(name).values())

    def cost(self, share: Share) -> float:
        """Multiplications of one share."""
        return float(share.piece.size) * self.votes.graph.layout[share.member.key][share.member.axis].size

    def plan(self, name: str, orders: Mapping[str, Tensor]) -> tuple[bool, list[list[Share]]]:
        """What must be added up for a space, in tasks that may run side by side.

        Returns:
            Whether the shares correct the sums that are kept, and the shares.
        """
        whole = self._whole(name, orders)
        kept = self._kept.get(name)
        if kept is not None and kept.corrections < REFRESH:
            shares = self._corrections(name, kept.orders, orders)
            # A share that takes another out moves the weight twice, but is one product all the same.
            if sum(map(self.cost, shares)) < WORTH * sum(map(self.cost, whole)):
                return True, self._tasks(shares)
        return False, self._tasks(whole)

    def add(self, name: str, shares: list[Share], orders: Mapping[str, Tensor]) -> Sums:
        """The sum of some shares."""
        sums: Sums = {}
        for share in shares:
            self._add(sums, self.known[name], share, orders)
        return sums

    def finish(self, name: str, corrects: bool, found: list[Sums], orders: Mapping[str, Tensor]) -> Evidence:
        """Put the sums of the tasks together, in the order of the tasks.

        Args:
            name: the space.
            corrects: whether they are added to what is kept.
            found: the sums of the tasks.
            orders: those of all spaces.
        """
        kept = self._kept.get(name) if corrects else None
        total: Sums = kept.sums if kept is not None else {}
        for sums in found:
            for about, part in sums.items():
                if about in total:
                    total[about] += part
                else:
                    total[about] = part
        if name in self._keeps:
            now = {n: orders[n] for n in self._depends(name)}
            self._kept[name] = _Kept(total, now, kept.corrections + 1 if kept is not None else 0)
        return self._evidence(name, total)

    def evidence(self, name: str, orders: Mapping[str, Tensor]) -> Evidence:
        """The evidence for one space, afresh."""
        return self._evidence(name, self.add(name, self._whole(name, orders), orders))

    # -- which -------------------------------------------------------------------------------

    def _depends(self, name: str) -> set[str]:
        """The spaces whose orders the evidence depends on."""
        twice = {name} if any(m.twice for m in self.members[name]) else set[str]()
        return (self.reads[name] - self.writes[name]) | twice

    def dependencies(self, name: str, orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The orders that the evidence for a space depends on; where none is another tensor, it is the same."""
        return {n: orders[n] for n in self._depends(name)}

    def _held(
        self, name: str, member: Member, orders: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], int | None]:
        """The orders under which a weight is looked at, and the axis on which the space itself stays."""
        within = self.writes[name]
        held = {n: o for n, o in orders.items() if n not in within or (n == name and member.twice)}
        return held, member.axis if member.twice else None

    def _whole(self, name: str, orders: Mapping[str, Tensor]) -> list[Share]:
        shares: list[Share] = []
        for member in self.members[name]:
            held, skip = self._held(name, member, orders)
            index = self.votes.index(member.key, held, skip, name)
            shares += [Share(member, piece) for piece in self.votes.whole(member.key, index, member.apart)]
        return shares

    def _corrections(
        self, name: str, before: Mapping[str, Tensor], orders: Mapping[str, Tensor]
    ) -> list[Share]:
        layout = self.votes.graph.layout
        shares: list[Share] = []
        differ = {n for n, order in before.items() if order is not orders[n]}
        for member in self.members[name]:
            if not any(differ & spaces_of(axis) for axis in layout[member.key]):
                continue
            (old, skip), (new, _) = self._held(name, member, before), self._held(name, member, orders)
            pieces = self.votes.changed(
                member.key,
                self.votes.index(member.key, old, skip, name),
                self.votes.index(member.key, new, skip, name),
                member.apart,
            )
            shares += [Share(member, piece, before) for piece in pieces]
        return shares

    def _tasks(self, shares: list[Share]) -> list[list[Share]]:
        tasks: list[list[Share]] = []
        filled = TASK
        for share in shares:
            if filled >= TASK:
                tasks.append([])
                filled = 0.0
            tasks[-1].append(share)
            filled += self.cost(share)
        return tasks

    def _choose(self, memory: float) -> set[str]:
        """Spaces whose sums are kept: those first that cost most per byte."""
        shapes = self.votes.graph.layout

        def worth(name: str) -> float:
            return sum(self.votes.sizes[m.key] / shapes[m.key][m.axis].size for m in self.members[name])

        chosen: set[str] = set()
        for name in sorted(self.known, key=worth, reverse=True):
            if self.size(name) <= memory:
                memory -= self.size(name)
                chosen.add(name)
        return chosen

    # -- how much ----------------------------------------------------------------------------

    def _shapes(self, name: str) -> dict[str | None, tuple[int, int, int]]:
        space = self.known[name]
        outer = 1
        for n in space.within:
            outer *= self.known[n].size
        shapes: dict[str | None, tuple[int, int, int]] = {None: (outer, space.size, space.size)}
        for n in self.inside[name]:
            pairs = space.size * self.known[n].size
            shapes[n] = (1, pairs, pairs)
        return shapes

    def _add(self, sums: Sums, space: Space, share: Share, orders: Mapping[str, Tensor]) -> None:
        """Add the inner products of units that one piece of a weight shows."""
        votes, member = self.votes, share.member
        ours, axes = votes.piece(share.piece)
        theirs = self._moved(space.name, share, orders).to(votes.dtype)
        if share.before is not None:
            theirs = theirs - self._moved(space.name, share, share.before).to(votes.dtype)
        ours = ours.to(votes.dtype)
        if member.twice:
            # A weight that carries the space twice: its other axis stays in its present order.
            axes: list[Axis] = [a if i == member.axis else Leaf(a.size) for i, a in enumerate(axes)]
        carried = [n for n in self.inside[space.name] if any(n in spaces_of(a) for a in axes)]
        if len(carried) == 1:
            about, wanted = carried[0], [space.name, carried[0]]
        else:
            about, wanted = None, [*space.within, space.name]
        shape = self._shapes(space.name)[about]
        for mine, other in zip(opened(ours, axes, wanted), opened(theirs, axes, wanted), strict=True):
            # (*outer, units, rest): one product per outer unit. Pairs of outer units are all in one.
            mine, other = (t.reshape(shape[0], shape[1], -1) for t in (mine, other))
            if about not in sums:
                sums[about] = torch.bmm(mine, other.mT)
            else:
                sums[about].baddbmm_(mine, other.mT)

    def _moved(self, name: str, share: Share, orders: Mapping[str, Tensor]) -> Tensor:
        held, skip = self._held(name, share.member, orders)
        index = self.votes.index(share.member.key, held, skip, name)
        return self.votes.moved(share.piece, index, held, skip, name)

    def _evidence(self, name: str, sums: Mapping[str | None, Tensor]) -> Evidence:
        space = self.known[name]
        sizes = [self.known[outer].size for outer in space.within]
        direct = sums.get(None)
        if direct is None:
            direct = torch.zeros(
                *sizes, space.size, space.size, dtype=self.votes.dtype, device=self.votes.device
            )
        inner: dict[str, Tensor] = {}
        for n in self.inside[name]:
            if n in sums:
                o, i = space.size, self.known[n].size
                inner[n] = sums[n].view(o, i, o, i).permute(0, 2, 1, 3)
        return Evidence(direct.view(*sizes, space.size, space.size), inner)
