"""The axis algebra: unify, refine and freeze terms.

Every operation is monotone: it makes index sets equal, splits them, or freezes them. What cannot
be aligned is frozen, and frozen means "identity only", so a failure here is always right, only
less.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from isthmus.symmetry.terms import Atom, Case, Product, Sum, Term, size


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
    if isinstance(term, Case):
        branches = tuple((length, canon(branch)) for length, branch in term.branches)
        first = branches[0][1]
        return first if all(same(branch, first) for _, branch in branches) else Case(term.key, branches)
    return _canon_product(term.factors)


def same(left: Term, right: Term) -> bool:
    """Whether two canonical terms are one index set, built in one way."""
    if left is right or (size(left) == 1 and size(right) == 1):
        return True
    if isinstance(left, Product) and isinstance(right, Product):
        ours, theirs = left.factors, right.factors
    elif isinstance(left, Sum) and isinstance(right, Sum):
        ours, theirs = left.parts, right.parts
    elif isinstance(left, Case) and isinstance(right, Case) and left.key is right.key:
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
        found = [(key, start, stop) for key, start, stop, unit in keys(factor) if unit == 1]
        if any(_depends(term, key) for term in rest for key, _, _ in found) or _inside_parts(factor, rest):
            # The tail differs along this factor: distribute over its parts.
            parts, offset = [], 0
            for part in _parts(canon(factor)):
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
    if not isinstance(whole, Sum):
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
    return _parts(canon(term))


def _parts(term: Term) -> tuple[Term, ...]:
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
        return term.key is key or any(_depends(branch, key) for _, branch in term.branches)
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
    if term.key is not key:
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
    return frozenset(a for outer in atom.within for a in atoms(canon(outer)) if a.size > 1)


def freeze(term: Term, reason: str) -> None:
    """Allow only the identity on every index set of a term."""
    for atom in list(atoms(canon(term))):
        if not atom.frozen:
            atom.frozen, atom.reason = True, reason


def split(atom: Atom, outer: int) -> tuple[Atom, Atom]:
    """Refine an atom into outer x inner; the inner one may differ per outer index."""
    context = within(atom)
    first = Atom(outer, context, atom.frozen, atom.reason)
    second = Atom(atom.size // outer, (context or frozenset()) | {first}, atom.frozen, atom.reason)
    first.marks = second.marks = atom.marks
    atom.bound = Product((first, second))
    for dependent in atom.dependents:
        root = find(dependent)
        if root.bound is None and root.within is not None:
            first.dependents.append(root)
            second.dependents.append(root)
    return first, second


def cut(atom: Atom, sizes: Sequence[int]) -> tuple[Atom, ...]:
    """Refine an atom into consecutive parts; what depended on it now differs part by part."""
    pieces = tuple(Atom(n, atom.within, atom.frozen, atom.reason) for n in sizes)
    for piece in pieces:
        piece.marks = atom.marks
    dependents = [d for d in dict.fromkeys(map(find, atom.dependents)) if d.bound is None and not d.frozen]
    # Outer dependents come first: a head is told apart before what is inside it.
    for dependent in sorted(dependents, key=lambda d: len(within(d) or ())):
        branches: list[tuple[int, Term]] = []
        offset = 0
        for piece in pieces:
            end = offset + piece.size
            context = {
                piece if a is atom else a
                for outer in dependent.within or ()
                for a in atoms(canon(restrict(outer, atom, offset, end)))
            }
            branch = Atom(dependent.size, frozenset(a for a in context if a.size > 1))
            branch.marks = dependent.marks
            branches.append((piece.size, branch))
            offset = end
        dependent.bound = Case(atom, tuple(branches))
    atom.bound = Sum(pieces)
    return pieces


def factor(term: Term, outer: int) -> tuple[Term, Term] | None:
    """Write a term as outer x inner, refining it; None where that is impossible."""
    term = canon(term)
    total = size(term)
    if total % outer:
        return None
    if outer in (1, total):
        return (Atom(1), term) if outer == 1 else (term, Atom(1))
    if isinstance(term, Atom):
        return split(term, outer)
    if isinstance(term, Product):
        left: list[Term] = []
        for index, item in enumerate(term.factors):
            n = size(item)
            if outer >= n and outer % n == 0:
                left.append(item)
                outer //= n
                if outer == 1:
                    return Product(tuple(left)), Product(term.factors[index + 1 :])
                continue
            halves = factor(item, outer)
            if halves is None:
                return None
            return Product((*left, halves[0])), Product((halves[1], *term.factors[index + 1 :]))
        return None
    inner = total // outer
    if isinstance(term, Sum):
        if any(size(part) % inner for part in term.parts):
            return None
        pairs = [factor(part, size(part) // inner) for part in term.parts]
        if any(pair is None for pair in pairs):
            return None
        found = [pair for pair in pairs if pair is not None]
        key = Atom(outer)
        key.bound = Sum(tuple(first for first, _ in found))
        return key, Case(key, tuple((size(first), second) for first, second in found))
    halves = [(n, factor(branch, outer)) for n, branch in term.branches]
    if any(pair is None for _, pair in halves):
        return None
    return (
        Case(term.key, tuple((n, pair[0]) for n, pair in halves if pair)),
        Case(term.key, tuple((n, pair[1]) for n, pair in halves if pair)),
    )


def cut_at(term: Term, bounds: Sequence[int]) -> list[Term] | None:
    """Write a term as consecutive parts that end at `bounds`, refining it; None where impossible.

    Args:
        term: what to cut.
        bounds: increasing positions, the last one the term's size.
    """
    term = canon(term)
    if len(bounds) == 1:
        return [term]
    sizes = [b - a for a, b in zip((0, *bounds[:-1]), bounds, strict=True)]
    if isinstance(term, Atom):
        return list(cut(term, sizes))
    if isinstance(term, Sum):
        result: list[list[Term]] = [[] for _ in bounds]
        offset = 0
        for part in term.parts:
            end = offset + size(part)
            inside = [b - offset for b in bounds if offset < b < end] + [size(part)]
            pieces = cut_at(part, inside)
            if pieces is None:
                return None
            for piece in pieces:
                where = next(i for i, b in enumerate(bounds) if offset < b)
                result[where].append(piece)
                offset += size(piece)
        return [Sum(tuple(parts)) for parts in result]
    if isinstance(term, Product):
        # A product can be cut between blocks of its leading factor, nowhere else.
        head, tail = term.factors[0], term.factors[1:]
        inner = size(term) // size(head)
        if any(bound % inner for bound in bounds):
            return None
        heads = cut_at(head, [bound // inner for bound in bounds])
        if heads is None:
            return None
        whole = canon(Product((head, *tail)))
        if isinstance(whole, Sum):
            return cut_at(whole, bounds)
        return [Product((piece, *tail)) for piece in heads]
    return None


def unify(left: Term, right: Term, reason: str) -> None:
    """Make two terms one; where they cannot be aligned, freeze both.

    Raises:
        ValueError: the sizes differ.
    """
    left, right = canon(left), canon(right)
    if size(left) != size(right):
        raise ValueError(f"{reason}: a dimension of {size(left)} meets one of {size(right)}")
    if left is right or size(left) == 1:
        return
    if isinstance(left, Atom) and isinstance(right, Atom):
        _merge(left, right)
        return
    if isinstance(left, Case) or isinstance(right, Case):
        _unify_case(left, right, reason)
        return
    if _occurs(left, right) and (isinstance(left, Atom) or isinstance(right, Atom)):
        freeze(left, reason)
        freeze(right, reason)
        return
    if isinstance(left, Sum) or isinstance(right, Sum):
        _unify_sums(left, right, reason)
        return
    _unify_products(left, right, reason)


def _occurs(left: Term, right: Term) -> bool:
    return not set(atoms(left)).isdisjoint(atoms(right))


def _merge(left: Atom, right: Atom) -> None:
    ours, theirs = within(left), within(right)
    context = theirs if ours is None else ours if theirs is None else ours & theirs
    if context is not None:
        # An index set cannot depend on itself, however indirectly.
        context = frozenset(c for c in context if not _leads_to(c, {left, right}))
    right.bound = left
    left.within = context
    for outer in context or ():
        outer.dependents.append(left)
    left.dependents.extend(right.dependents)
    left.marks = left.marks | right.marks
    if right.frozen and not left.frozen:
        left.frozen, left.reason = True, right.reason


def _leads_to(atom: Atom, targets: set[Atom]) -> bool:
    return atom in targets or any(_leads_to(outer, targets) for outer in within(atom) or ())


def _unify_case(left: Term, right: Term, reason: str) -> None:
    if isinstance(left, Case) and isinstance(right, Case):
        same_key = left.key is right.key or canon(left.key) is canon(right.key) or _same(left.key, right.key)
        if same_key and [n for n, _ in left.branches] == [n for n, _ in right.branches]:
            for (_, a), (_, b) in zip(left.branches, right.branches, strict=True):
                unify(a, b, reason)
            return
    elif isinstance(right, Case):
        left, right = right, left
    assert isinstance(left, Case)
    if isinstance(right, Atom) and right.within is None and not right.frozen:
        right.bound = left
        return
    # The other side does not differ along the key, so neither may this one.
    for _, branch in left.branches:
        unify(branch, right, reason)


def _same(left: Atom, right: Atom) -> bool:
    a, b = canon(left), canon(right)
    if isinstance(a, Sum) and isinstance(b, Sum) and len(a.parts) == len(b.parts):
        return all(x is y or (size(x) == size(y) == 1) for x, y in zip(a.parts, b.parts, strict=True))
    return False


def _bounds(term: Term) -> list[int]:
    ends, offset = [], 0
    for part in _parts(term):
        offset += size(part)
        ends.append(offset)
    return ends


def _unify_sums(left: Term, right: Term, reason: str) -> None:
    bounds = sorted({*_bounds(left), *_bounds(right)})
    ours = cut_at(left, bounds)
    theirs = cut_at(right, bounds) if ours is not None else None
    if ours is None or theirs is None:
        freeze(left, reason)
        freeze(right, reason)
        return
    for a, b in zip(ours, theirs, strict=True):
        unify(a, b, reason)


def _unify_products(left: Term, right: Term, reason: str) -> None:
    ours = list(left.factors if isinstance(left, Product) else (left,))
    theirs = list(right.factors if isinstance(right, Product) else (right,))
    while ours and theirs:
        a, b = ours.pop(0), theirs.pop(0)
        n, m = size(a), size(b)
        if n != m:
            larger, smaller = (a, m) if n > m else (b, n)
            halves = factor(larger, smaller)
            if halves is None:
                freeze(left, reason)
                freeze(right, reason)
                return
            if n > m:
                a = halves[0]
                ours.insert(0, halves[1])
            else:
                b = halves[0]
                theirs.insert(0, halves[1])
        unify(a, b, reason)
        rests = [Product((a, *ours)), Product((b, *theirs))]
        if (ours or theirs) and any(isinstance(canon(rest), Sum) for rest in rests):
            # The head turned out to be a sum along which a tail differs: compare part by part.
            unify(rests[0], rests[1], reason)
            return
