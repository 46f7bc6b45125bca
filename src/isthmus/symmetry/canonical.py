"""Canonical terms: what has become of a term, and what can be asked of it.

Nothing here refines or unifies: that is `algebra`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from isthmus.symmetry.terms import Atom, Case, Product, Sum, Term, Woven, size


def find(atom: Atom) -> Atom:
    """The representative of an atom's class (path halving)."""
    while isinstance(atom.bound, Atom):
        if isinstance(atom.bound.bound, Atom):
            atom.bound = atom.bound.bound
        atom = atom.bound
    return atom


def canon(term: Term) -> Term:
    """What a term has turned out to be: bindings followed, nests flattened, units dropped.

    In the result a product has no factor of size one, no product as a factor, and a sum is a factor
    only where nothing behind it depends on it; otherwise the product is distributed over it.
    """
    if isinstance(term, Atom):
        root = find(term)
        return root if root.bound is None else canon(root.bound)
    if isinstance(term, Sum):
        parts: list[Term] = []
        for part in term.parts:
            flat = canon(part)
            parts.extend(flat.parts if isinstance(flat, Sum) else (flat,))
        return parts[0] if len(parts) == 1 else Sum(tuple(parts))
    if isinstance(term, Woven):
        return _canon_woven(term)
    if isinstance(term, Case):
        branches = tuple((length, canon(branch)) for length, branch in term.branches)
        first = branches[0][1]
        return first if all(same(branch, first) for _, branch in branches) else Case(find(term.key), branches)
    return _canon_product(term.factors)


def _canon_woven(term: Woven) -> Term:
    parts: list[Term] = []
    following: list[Iterator[int]] = []
    for part in term.parts:
        inside, labels = strands(canon(part))
        following.append(iter([len(parts) + label for label in labels]))
        parts.extend(inside)
    return weave(parts, [next(following[which]) for which in term.order])


def strands(term: Term) -> tuple[Sequence[Term], Sequence[int]]:
    """What a canonical term is made of, in a row or in turn, and for each index which of these it lies in."""
    if isinstance(term, Woven):
        return term.parts, term.order
    parts: list[Term] = []
    labels: list[int] = []
    for part in parts_of(term):
        inside, order = strands(part) if part is not term else ((part,), [0] * size(part))
        labels += [len(parts) + label for label in order]
        parts.extend(inside)
    return parts, labels


def weave(parts: Sequence[Term], order: Sequence[int]) -> Term:
    """Terms in turn: `order` says which of them gives the next of its indices.

    The parts are canonical and neither sums nor woven.
    """
    first = list(dict.fromkeys(order))
    if len(first) == 1:
        return parts[first[0]]
    number = {which: label for label, which in enumerate(first)}
    labels = [number[which] for which in order]
    chosen = tuple(parts[which] for which in first)
    if all(a <= b for a, b in itertools.pairwise(labels)):
        return Sum(chosen)
    return Woven(chosen, tuple(labels))


def same(left: Term, right: Term) -> bool:
    """Whether two canonical terms are one index set, built in one way."""
    if left is right or (size(left) == 1 and size(right) == 1):
        return True
    if isinstance(left, Product) and isinstance(right, Product):
        ours, theirs = left.factors, right.factors
    elif isinstance(left, Sum) and isinstance(right, Sum):
        ours, theirs = left.parts, right.parts
    elif isinstance(left, Woven) and isinstance(right, Woven):
        if left.order != right.order:
            return False
        ours, theirs = left.parts, right.parts
    elif isinstance(left, Case) and isinstance(right, Case) and find(left.key) is find(right.key):
        if [n for n, _ in left.branches] != [n for n, _ in right.branches]:
            return False
        ours, theirs = (tuple(branch for _, branch in case.branches) for case in (left, right))
    else:
        return False
    sizes = [size(term) for term in ours] == [size(term) for term in theirs]
    return sizes and all(map(same, ours, theirs))


def _canon_product(factors: Sequence[Term]) -> Term:
    flat: list[Term] = []
    factors = _spliced(factors)
    for index, factor in enumerate(factors):
        rest = factors[index + 1 :]
        behind = _differs_along(factor, rest)
        if behind is not None:
            return _join_factors([*flat, _woven_product(factors[index:], behind + 1)])
        found = [(key, start, stop) for key, start, stop, unit in keys(factor) if unit == 1]
        if any(_depends(term, key) for term in rest for key, _, _ in found) or _inside_parts(factor, rest):
            # The tail differs along this factor: distribute over its parts.
            whole = canon(factor)
            parts, offset = [], 0
            if isinstance(whole, Woven):
                made = [_canon_product([part, *rest]) for part in whole.parts]
                each = size(Product(tuple(rest)))
                order = [which for which in whole.order for _ in range(each)]
                return _join_factors([*flat, _canon_woven(Woven(tuple(made), tuple(order)))])
            for part in parts_of(whole):
                end = offset + size(part)
                narrowed = list(rest)
                for key, start, stop in found:
                    if start <= offset and end <= stop:
                        narrowed = [restrict(term, key, offset - start, end - start) for term in narrowed]
                parts.append(_canon_product([part, *narrowed]))
                offset = end
            return _join_factors([*flat, canon(Sum(tuple(parts)))])
        flat.append(canon(factor))
    return _join_factors(flat)


def _differs_along(factor: Term, rest: Sequence[Term]) -> int | None:
    """Which of the factors behind one was cut into parts along which it differs."""
    if not _has_case(factor):
        return None
    for index, later in enumerate(rest):
        if any(unit == 1 and _depends(factor, key) for key, _, _, unit in keys(later)):
            return index
    return None


def _has_case(term: Term) -> bool:
    if isinstance(term, Atom):
        return term.bound is not None and _has_case(term.bound)
    if isinstance(term, Case):
        return True
    return any(map(_has_case, term.factors if isinstance(term, Product) else term.parts))


def _woven_product(factors: Sequence[Term], key: int) -> Term:
    """A product whose first factor differs along the parts of a later one: those parts in turn."""
    before, later, behind = factors[:key], factors[key], factors[key + 1 :]
    found = [(atom, start, stop) for atom, start, stop, unit in keys(later) if unit == 1]
    parts: list[Term] = []
    turn: list[int] = []
    offset = 0
    for part in parts_of(canon(later)):
        end = offset + size(part)
        narrowed = [*before, part, *behind]
        for atom, start, stop in found:
            if start <= offset and end <= stop:
                narrowed = [restrict(term, atom, offset - start, end - start) for term in narrowed]
        turn += [len(parts)] * (size(part) * size(Product(tuple(behind))))
        parts.append(_canon_product(narrowed))
        offset = end
    return _canon_woven(Woven(tuple(parts), tuple(turn * size(Product(tuple(before))))))


def _spliced(factors: Iterable[Term]) -> list[Term]:
    """Factors of factors, so that each thing along which a later one may differ stands by itself."""
    found: list[Term] = []
    for factor in factors:
        bound = find(factor).bound if isinstance(factor, Atom) else factor
        found += _spliced(bound.factors) if isinstance(bound, Product) else [factor]
    return found


def _inside_parts(factor: Term, rest: Sequence[Term]) -> bool:
    """Whether what stands behind a sum has an order per index of one of its parts."""
    whole = canon(factor)
    if not isinstance(whole, (Sum, Woven)):
        return False
    here = set(atoms(whole))
    return any(here & (within(atom) or frozenset()) for term in rest for atom in atoms(canon(term)))


def _join_factors(factors: Iterable[Term]) -> Term:
    flat: list[Term] = []
    for factor in factors:
        if isinstance(factor, Product):
            flat.extend(factor.factors)
        elif size(factor) != 1:
            flat.append(factor)
    if not flat:
        return Atom(1)
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def parts(term: Term) -> tuple[Term, ...]:
    """What a term is, one after another."""
    return parts_of(canon(term))


def parts_of(term: Term) -> tuple[Term, ...]:
    """What a canonical term is, one after another."""
    return term.parts if isinstance(term, Sum) else (term,)


def keys(term: Term, start: int = 0, unit: int = 1) -> Iterator[tuple[Atom, int, int, int]]:
    """Every atom inside a term that was cut into a sum: (atom, start, stop, unit).

    Start and stop are positions in the term in units of `unit` indices.
    """
    if isinstance(term, Atom):
        if isinstance(term.bound, Sum):
            yield term, start, start + term.size, unit
        if term.bound is not None:
            yield from keys(term.bound, start, unit)
    elif isinstance(term, Sum):
        for part in term.parts:
            yield from keys(part, start, unit)
            start += size(part)
    elif isinstance(term, Product) and start == 0:
        inner = size(term)
        for factor in term.factors:
            inner //= size(factor)
            if size(factor) != 1:
                yield from keys(factor, 0, unit * inner)
                break


def _depends(term: Term, key: Atom) -> bool:
    if isinstance(term, Atom):
        return term.bound is not None and _depends(term.bound, key)
    if isinstance(term, Case):
        return find(term.key) is find(key) or any(_depends(branch, key) for _, branch in term.branches)
    return any(_depends(t, key) for t in (term.factors if isinstance(term, Product) else term.parts))


def restrict(term: Term, key: Atom, start: int, stop: int) -> Term:
    """What a term is where the index along `key` lies in start..stop."""
    if not _depends(term, key):
        return term
    if isinstance(term, Atom):
        assert term.bound is not None
        return restrict(term.bound, key, start, stop)
    if isinstance(term, Product):
        return Product(tuple(restrict(f, key, start, stop) for f in term.factors))
    if isinstance(term, Sum):
        return Sum(tuple(restrict(p, key, start, stop) for p in term.parts))
    if isinstance(term, Woven):
        return Woven(tuple(restrict(p, key, start, stop) for p in term.parts), term.order)
    if find(term.key) is not find(key):
        return Case(term.key, tuple((n, restrict(b, key, start, stop)) for n, b in term.branches))
    chosen: list[tuple[int, Term]] = []
    offset = 0
    for length, branch in term.branches:
        low, high = max(start, offset), min(stop, offset + length)
        if low < high:
            chosen.append((high - low, restrict(branch, key, start, stop)))
        offset += length
    if len(chosen) == 1:
        return chosen[0][1]
    if (start, stop) == (0, offset):
        return term
    part = Atom(stop - start)
    part.bound = Sum(tuple(Atom(n) for n, _ in chosen))
    return Case(part, tuple(chosen))


def atoms(term: Term) -> Iterator[Atom]:
    """The atoms of a canonical term, with repetition, left to right."""
    if isinstance(term, Atom):
        yield term
    elif isinstance(term, Case):
        for _, branch in term.branches:
            yield from atoms(branch)
    else:
        for part in term.factors if isinstance(term, Product) else term.parts:
            yield from atoms(part)


def within(atom: Atom) -> frozenset[Atom] | None:
    """The representatives of the atoms that an atom's permutation may depend on."""
    if atom.within is None:
        return None
    found = frozenset(a for outer in atom.within for a in atoms(canon(outer)) if a.size > 1)
    if found and atom.barred:
        found -= {a for outer in atom.barred for a in atoms(canon(outer))}
    return found
