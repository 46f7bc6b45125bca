"""Orders made soft: matrices in the convex hull of a graph's orders, and weights moved by them, with gradients.

A space at the top has one doubly stochastic matrix P[k, k']: how much of the model's unit k' is in unit k. A space
within one other (units inside heads) has its matrix for every pair of outer units, R[k, k', i, i'] = P[k, k'] Q[i, i'],
so that a head and what is inside it move together: the corners of this set are the graph's orders, and the corner that
a linear function is largest at is found by one assignment inside every pair, then one of the outer units. What is
within several spaces has a matrix for each of their new places.

Weights are moved by what is linear in each matrix. At a corner that is a reordering; between corners a weight that
carries two spaces inside one is counted by the product of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from isthmus.align.orders.assignment import Evidence, best_order
from isthmus.symmetry import Axis, Blocks, Interleaved, Leaf, SymmetryGraph, spaces_of
from isthmus.symmetry.axes import parts_of

#: Space -> its matrix: (units, units), (outer, outer, units, units) or (*outer units, units, units).
Soft = dict[str, Tensor]


class Relaxation:
    """The soft orders of a graph.

    Args:
        graph: the symmetries.
    """

    def __init__(self, graph: SymmetryGraph):
        self.graph, self.known = graph, graph.spaces
        #: Space -> the one space that it is inside, where its orders come in pairs of that one's units.
        self.outer = {
            name: space.within[0]
            for name, space in self.known.items()
            if len(space.within) == 1 and not self.known[space.within[0]].within
        }
        self.inside: dict[str, list[str]] = {name: [] for name in self.known}
        for name, outer in self.outer.items():
            self.inside[outer].append(name)

    @property
    def degree(self) -> int:
        """How many matrices an entry of a weight is multiplied by at most."""
        return max((sum(map(_degree, axes)) for axes in self.graph.layout.values()), default=0)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a space's matrix."""
        space = self.known[name]
        sizes = [self.known[n].size for n in space.within]
        return (*sizes, *(sizes if name in self.outer else ()), space.size, space.size)

    def corner(self, orders: Mapping[str, Tensor], like: Tensor) -> Soft:
        """The matrices of hard orders, in the dtype and on the device of a tensor."""
        found: Soft = {}
        for name in self.known:
            matrix = torch.zeros(self.shape(name), dtype=like.dtype, device=like.device)
            index = orders[name].to(like.device)
            if name in self.outer:
                rows = torch.arange(len(index), device=like.device)
                chosen = torch.zeros_like(matrix[:, 0]).scatter_(-1, index[..., None], 1.0)
                matrix[rows, orders[self.outer[name]].to(like.device)] = chosen
            else:
                matrix.scatter_(-1, index[..., None], 1.0)
            found[name] = matrix
        return found

    def best(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The orders whose matrices have the largest inner product with these: a corner, or the nearest one."""
        orders: dict[str, Tensor] = {}
        for name in self.known:
            if name in self.outer:
                continue
            inner = {n: gradient[n].detach() for n in self.inside[name]}
            if self.known[name].within:
                orders[name] = best_order(gradient[name].detach())
            else:
                order, found = Evidence(gradient[name].detach(), inner).solve()
                orders |= {name: order, **found}
        return orders

    def apply(self, weights: Mapping[str, Tensor], soft: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights moved by soft orders; those that no space touches are left out.

        Args:
            weights: under the keys of the graph.
            soft: a matrix for each space.
        """
        return {
            key: self._moved(weights[key], list(axes), soft)
            for key, axes in self.graph.layout.items()
            if key in weights and any(spaces_of(axis) for axis in axes)
        }

    def _moved(self, tensor: Tensor, terms: list[Axis], soft: Mapping[str, Tensor]) -> Tensor:
        """Open the axes until each dimension is one index set; move; close them again."""
        for dim, term in enumerate(terms):
            if isinstance(term, Leaf) or not spaces_of(term):
                continue
            if isinstance(term, Blocks):
                opened = tensor.unflatten(dim, [factor.size for factor in term.factors])
                inner = [*terms[:dim], *term.factors, *terms[dim + 1 :]]
                return self._moved(opened, inner, soft).flatten(dim, dim + len(term.factors) - 1)
            if isinstance(term, Interleaved):
                gathered = torch.tensor(term.gathered, device=tensor.device)
                inner = [*terms[:dim], term.concatenated, *terms[dim + 1 :]]
                moved = self._moved(tensor.index_select(dim, gathered), inner, soft)
                return moved.index_select(dim, gathered.argsort())
            pieces = tensor.split([part.size for part in term.parts], dim)
            return torch.cat(
                [
                    self._moved(piece, [*terms[:dim], part, *terms[dim + 1 :]], soft)
                    for piece, part in zip(pieces, term.parts, strict=True)
                ],
                dim,
            )
        names = [term.space if isinstance(term, Leaf) else None for term in terms]
        return self._contract(tensor, names, soft)

    def _contract(self, tensor: Tensor, names: Sequence[str | None], soft: Mapping[str, Tensor]) -> Tensor:
        """Multiply each dimension that is a space by its matrix, outer spaces before what is within them."""
        letters = "abcdefghijklm"[: tensor.ndim]
        primes = letters.upper()
        done: set[int] = set()
        order = sorted(range(len(names)), key=lambda d: len(self.known[n].within) if (n := names[d]) else 0)
        for dim in order:
            name = names[dim]
            if name is None or dim in done:
                continue
            dims, factors = [dim], [(soft[name], letters[dim] + primes[dim])]
            within = [names.index(outer) for outer in self.known[name].within]
            paired = [d for d, n in enumerate(names) if n is not None and self.outer.get(n) == name]
            if within:
                factors = [(soft[name], "".join(letters[d] for d in within) + factors[0][1])]
            elif paired:
                pair = factors[0][1]
                dims += paired
                factors = [(soft[str(names[d])], pair + letters[d] + primes[d]) for d in paired]
            old = "".join(primes[d] if d in dims else letters[d] for d in range(tensor.ndim))
            terms = [*(subscript for _, subscript in factors), old]
            tensor = torch.einsum(f"{','.join(terms)}->{letters}", *(matrix for matrix, _ in factors), tensor)
            done |= set(dims)
        return tensor


def _degree(axis: Axis) -> int:
    if isinstance(axis, Leaf):
        return int(axis.space is not None)
    counts = [_degree(part) for part in parts_of(axis)]
    return sum(counts) if isinstance(axis, Blocks) else max(counts, default=0)
