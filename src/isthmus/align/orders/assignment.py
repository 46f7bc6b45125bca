"""Linear assignment over a space, and over the two levels of a space and what is inside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from isthmus.symmetry import Axis, Blocks, Leaf, Space, spaces_of
from isthmus.symmetry.axes import Interleaved


def best_order(similarity: Float[Tensor, "*within units units"]) -> Int[Tensor, "*within units"]:
    """The order that maximises the summed similarity of new unit i and old unit order[i]."""
    flat = similarity.reshape(-1, *similarity.shape[-2:]).cpu().numpy()
    found = [torch.from_numpy(linear_sum_assignment(s, maximize=True)[1]) for s in flat]
    return torch.stack(found).view(similarity.shape[:-1])


def agreement(
    similarity: Float[Tensor, "*within units units"], order: Int[Tensor, "*within units"]
) -> Float[Tensor, "*within"]:
    """Summed similarity under an order."""
    return similarity.gather(-1, order.to(similarity.device)[..., None])[..., 0].sum(-1)


@dataclass
class Evidence:
    """What speaks for moving the units of one space.

    Attributes:
        direct: similarity of each reference unit and each unit of the model, per outer unit.
        inner: for each space inside this one, the similarity of its units for every pair of outer ones.
    """

    direct: Float[Tensor, "*within units units"]
    inner: dict[str, Float[Tensor, "units units inside inside"]] = field(default_factory=dict)

    def solve(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The best order of the space; with it, of what is inside, pair by pair of outer units."""
        if not self.inner:
            return best_order(self.direct), {}
        total = self.direct.clone()
        orders: dict[str, Tensor] = {}
        for name, similarity in self.inner.items():
            orders[name] = best_order(similarity)
            total += agreement(similarity, orders[name]).to(total)
        order = best_order(total)
        rows = torch.arange(len(order))
        return order, {name: found[rows, order] for name, found in orders.items()}


#: What chooses the element of a space's group: from the evidence to orders, of the space and of what is inside.
Solver = Callable[[Space, Evidence], dict[str, Tensor]]


def best(space: Space, evidence: Evidence) -> dict[str, Tensor]:
    """The permutation that the evidence speaks for most, of a space and of what is inside it."""
    order, inner = evidence.solve()
    return {space.name: order, **inner}


def inside(space: Space, known: Mapping[str, Space]) -> list[str]:
    """The spaces whose order may differ per unit of this one, and of nothing else."""
    return [name for name, other in known.items() if other.within == (space.name,)]


def opened(tensor: Tensor, axes: Sequence[Axis], wanted: Sequence[str]) -> Iterator[Tensor]:
    """Views of a weight with a dimension of its own for each wanted space, in that order, then the rest.

    A concatenation gives one view per part. Weights in which a wanted space has no or more than one
    axis give none.

    Yields:
        Tensors of shape (*sizes of the wanted spaces, rest).
    """
    terms = list(axes)
    for dim, term in enumerate(terms):
        if isinstance(term, Leaf) or not spaces_of(term) & set(wanted):
            continue
        if isinstance(term, Blocks):
            shape = [factor.size for factor in term.factors]
            yield from opened(
                tensor.unflatten(dim, shape), [*terms[:dim], *term.factors, *terms[dim + 1 :]], wanted
            )
            return
        if isinstance(term, Interleaved):
            # In turn is one after another, once the positions are taken strand by strand.
            tensor = tensor.index_select(dim, torch.tensor(term.gathered, device=tensor.device))
            term = term.concatenated
        start = 0
        for part in term.parts:
            if spaces_of(part) & set(wanted):
                piece = tensor.narrow(dim, start, part.size)
                yield from opened(piece, [*terms[:dim], part, *terms[dim + 1 :]], wanted)
            start += part.size
        return
    places = [[d for d, t in enumerate(terms) if isinstance(t, Leaf) and t.space == name] for name in wanted]
    if all(len(found) == 1 for found in places):
        front = [found[0] for found in places]
        rest = [d for d in range(len(terms)) if d not in front]
        yield tensor.permute(*front, *rest).flatten(len(front)) if rest else tensor.permute(*front)[..., None]
