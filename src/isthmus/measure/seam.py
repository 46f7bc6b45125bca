"""Two networks joined at one place: the one runs up to it, the other goes on behind it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from isthmus.errors import DataError
from isthmus.features import explained, feed
from isthmus.measure.answers import Weights, logits_of
from isthmus.measure.evaluation import Tally
from isthmus.measure.layers import batch_dim
from isthmus.measure.places import Place
from isthmus.measure.stitches import Kind, Sums
from isthmus.program import Batch, Program, Runner, home
from isthmus.repair.passes import joint
from isthmus.repair.selection import below, norms_of
from isthmus.repair.sites import norm_sites

#: What batch norms behind the seam normalise with: statistics of what reaches them there, or their own.
Norms = Literal["refresh", "keep"]


class Seam:
    """Two networks at one pair of places.

    Attributes:
        behind: weights of the layers that go on: their own but for what `refresh` has written.
        norms: batch norms among them, to be refreshed.
    """

    def __init__(
        self, a: Program, own: Weights, place: Place, b: Program, other: Weights, source: Place, norms: Norms
    ):
        self.a, self.own, self.place, self.b, self.other, self.source = a, own, place, b, other, source
        later = below(a, [place.value])
        self.norms = tuple(name for name in norms_of(a) if name in later) if norms == "refresh" else ()
        self.behind: Weights = own
        self.head = b.compile([source.value])
        self.reference = a.compile([place.value])
        self.tail = a.compile(given=[place.value])

    def rows(self, batch: Batch, *, reference: bool) -> Tensor:
        """Activations of a batch: examples, channels, positions as they are."""
        program, weights, run, place = (
            (self.a, self.own, self.reference, self.place)
            if reference
            else (self.b, self.other, self.head, self.source)
        )
        dim = batch_dim(program, place.value)
        assert dim is not None, "places have one"
        here = batch.to(*home(weights))
        with torch.no_grad(), explained(program, here, "stitching"):
            found = run(weights, here)
        assert isinstance(found, dict)
        return found[place.value].movedim((dim, place.axis), (0, 1))

    def sums(self, data: Iterable[object], limit: int | None) -> tuple[Sums, int]:
        """Second moments of both networks' channels."""
        sums, examples = Sums(), 0
        for batch in feed(data, f"stitching {self.place.label}", limit):
            sums.add(self.fitting(self.rows(batch, reference=False)), self.rows(batch, reference=True))
            examples += batch.size
        return sums, examples

    def fitting(self, value: Tensor) -> Tensor:
        """The source's map, of as many positions as the place has."""
        apart = (batch_dim(self.a, self.place.value), self.place.axis)
        size = [n for i, n in enumerate(self.a.size(self.place.value)) if i not in apart]
        if len(value.shape) == 2 or list(value.shape[2:]) == size:
            return value
        return functional.interpolate(value, size=size, mode="nearest")

    def mapped(self, matrix: Tensor, shift: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What the place is given in the stitched network."""
        value = self.fitting(self.rows(batch, reference=False))
        mapped = torch.einsum("oc,nc...->no...", matrix.to(value), value)
        mapped = mapped + shift.to(value).view(-1, *[1] * (value.ndim - 2))
        dim = batch_dim(self.a, self.place.value)
        assert dim is not None, "places have one"
        return {self.place.value: mapped.movedim((0, 1), (dim, self.place.axis))}

    def answer(self, matrix: Tensor, shift: Tensor, batch: Batch, run: Runner) -> Tensor:
        """Logits of the stitched network, by one way to run what is behind the seam."""
        given = self.mapped(matrix, shift, batch)
        with explained(self.a, batch, "stitching"):
            return logits_of(run(self.behind, batch.to(*home(self.own)), given=given))

    def refresh(self, matrix: Tensor, shift: Tensor, data: Iterable[object], limit: int | None) -> None:
        """Take the statistics of batch norms behind the seam anew."""
        if not self.norms:
            return
        behind = dict(self.own)
        with torch.no_grad():
            joint(
                self.a,
                behind,
                norm_sites(self.a, self.norms),
                self.norms,
                data,
                limit,
                what=f"batch norms behind {self.place.label}",
                given=[self.place.value],
                start=lambda batch: self.mapped(matrix, shift, batch),
            )
        self.behind = behind

    def accuracy(self, matrix: Tensor, shift: Tensor, data: Iterable[object]) -> float:
        tally = Tally()
        with torch.no_grad():
            for batch in feed(data, f"stitched at {self.place.label}"):
                tally.add(self.answer(matrix, shift, batch, self.tail), batch)
        return tally.result("validation").accuracy

    def trained(
        self,
        matrix: Tensor,
        shift: Tensor,
        data: Iterable[object],
        limit: int | None,
        kind: tuple[Kind, int | None],
        bias: bool,
        epochs: int,
        learning_rate: float,
    ) -> tuple[Tensor, Tensor]:
        """The map after some epochs of Adam on the cross-entropy, within its kind."""
        parts = _parameters(matrix, kind)
        leaves = [*parts, *([shift.float()] if bias else [])]
        leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        tail = self.a.compile(given=[self.place.value], batch_statistics=self.norms)
        moving = torch.optim.Adam(leaves, learning_rate)

        def current() -> tuple[Tensor, Tensor]:
            own = leaves[: len(parts)]
            if kind[0] == "relu":
                made = (matrix != 0).float() * own[0].clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
            else:
                made = own[0] if len(own) == 1 else own[0] @ own[1]
            return made, leaves[-1] if bias else shift.float()

        for _ in range(epochs):
            for batch in feed(data, f"training the stitch at {self.place.label}", limit):
                if batch.targets is None:
                    raise DataError(
                        "a stitch is trained on targets", hint="yield (inputs, targets), or epochs=0"
                    )
                logits = self.answer(*current(), batch, tail)
                loss = functional.cross_entropy(logits, batch.targets.to(logits.device))
                moving.zero_grad(set_to_none=True)
                loss.backward()
                moving.step()
        done = current()
        return done[0].detach().double(), done[1].detach().double()


def _parameters(matrix: Tensor, kind: tuple[Kind, int | None]) -> list[Tensor]:
    """What of a map is trained: all of it, two factors, or one scale per row."""
    name, rank = kind
    if name == "relu":
        return [matrix.sum(1).float()]
    if rank is None:
        return [matrix.float()]
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return [(u[:, :rank] * root).float(), (root.unsqueeze(1) * v[:rank]).float()]
