"""The axis algebra: unify, refine and freeze terms.

Every operation is monotone: it makes index sets equal, splits them, or freezes them. What cannot
be aligned is frozen, and frozen means "identity only", so a failure here is always right, only
less.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from isthmus.symmetry.canonical import (
    atoms,
    canon,
    find,
    keys,
    parts,
    parts_of,
    restrict,
    same,
    strands,
    within,
)
from isthmus.symmetry.terms import Atom, Case, Product, Sum, Term, Woven, size

__all__ = [
    "atoms", "canon", "confine", "cut", "cut_at", "factor", "find", "freeze", "keys", "parts", "restrict", "same",
    "sort", "split", "unify", "within",
]  # fmt: skip

#: Blocks into which a term is taken apart, one by one, where they have no common structure.
APART = 64


def confine(atom: Atom, here: Iterable[Atom], mixed: frozenset[Atom]) -> None:
    """Let an atom no longer depend on those of `mixed`, nor on what they will turn out to be.

    Args:
        atom: an index set of a tensor.
        here: what else the tensor has before it: all that an index set which could have depended on
            anything may depend on from now on.
        mixed: index sets along which an operation mixed the tensor.
    """
    if atom.frozen:
        return
    if atom.within is None:
        atom.within = frozenset(a for a in here if a not in mixed and not _leads_to(a, {atom}))
        for outer in atom.within:
            outer.dependents.append(atom)
    if atom.within:
        atom.barred |= mixed


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
    first.barred = second.barred = atom.barred
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
        piece.marks, piece.barred = atom.marks, atom.barred
    dependents = [
        d
        for d in dict.fromkeys(map(find, atom.dependents))
        if d.bound is None and not d.frozen and atom in (within(d) or ())
    ]
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
            branch.marks, branch.barred = dependent.marks, dependent.barred
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
    if isinstance(term, Case):
        halves = [(n, factor(branch, outer)) for n, branch in term.branches]
        if any(pair is None for _, pair in halves):
            return None
        return (
            Case(term.key, tuple((n, pair[0]) for n, pair in halves if pair)),
            Case(term.key, tuple((n, pair[1]) for n, pair in halves if pair)),
        )
    if all(atom.frozen for atom in atoms(term)) and not isinstance(term, Product):
        return None
    if isinstance(term, Product):
        found = _factor_product(term, outer)
    elif isinstance(term, Sum):
        found = _factor_sum(term, total // outer)
    else:
        found = _factor_woven(term, outer)
    return found or _apart(term, outer)


def _factor_product(term: Product, outer: int) -> tuple[Term, Term] | None:
    left: list[Term] = []
    for index, item in enumerate(term.factors):
        n = size(item)
        if outer >= n and outer % n == 0:
            left.append(item)
            outer //= n
            if outer == 1:
                return Product(tuple(left)), Product(term.factors[index + 1 :])
            continue
        if n % outer:
            return None
        halves = factor(item, outer)
        if halves is None:
            return None
        return Product((*left, halves[0])), Product((halves[1], *term.factors[index + 1 :]))
    return None


def _factor_sum(term: Sum, inner: int) -> tuple[Term, Term] | None:
    if any(size(part) % inner for part in term.parts):
        return None
    pairs = [factor(part, size(part) // inner) for part in term.parts]
    found = [pair for pair in pairs if pair is not None]
    return (
        _by_part([first for first, _ in found], [second for _, second in found])
        if len(found) == len(pairs)
        else None
    )


def _by_part(heads: Sequence[Term], tails: Sequence[Term]) -> tuple[Term, Term]:
    """Outer x inner, where the inner term differs along the parts of the outer one."""
    key = Atom(sum(map(size, heads)))
    key.bound = Sum(tuple(heads))
    return key, Case(key, tuple((size(head), tail) for head, tail in zip(heads, tails, strict=True)))


def _factor_woven(term: Woven, outer: int) -> tuple[Term, Term] | None:
    """Blocks that are all woven alike, if they are; blocks then move together, in every part."""
    inner = len(term.order) // outer
    turn = term.order[:inner]
    if turn * outer != term.order:
        return None
    pairs = [factor(part, outer) for part in term.parts]
    found = [pair for pair in pairs if pair is not None]
    if len(found) < len(pairs):
        return None
    for head, _ in found[1:]:
        unify(found[0][0], head, "woven")
    return found[0][0], Woven(tuple(tail for _, tail in found), turn)


def _apart(term: Term, outer: int) -> tuple[Term, Term] | None:
    """Blocks that have nothing in common: each has its place, and inside an order of its own."""
    if outer > APART or all(atom.frozen for atom in atoms(term)):
        return None
    inner = size(term) // outer
    pieces = cut_at(term, [inner * (block + 1) for block in range(outer)])
    return None if pieces is None else _by_part([Atom(1) for _ in pieces], pieces)


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
    if isinstance(term, Woven):
        return _cut_woven(term, bounds)
    if isinstance(term, Case):
        branches = [(n, cut_at(branch, bounds)) for n, branch in term.branches]
        if any(pieces is None for _, pieces in branches):
            return None
        return [
            Case(term.key, tuple((n, pieces[index]) for n, pieces in branches if pieces))
            for index in range(len(bounds))
        ]
    return _cut_product(term, bounds)


def _cut_product(term: Product, bounds: Sequence[int]) -> list[Term] | None:
    """Between blocks of the leading factor; a block in which a bound falls stands alone, and is cut itself."""
    head, tail = term.factors[0], term.factors[1:]
    inner = size(term) // size(head)
    blocks = sorted({block for bound in bounds for block in (bound // inner, -(-bound // inner))} - {0})
    heads = cut_at(head, blocks)
    if heads is None:
        return None
    whole = canon(term)
    if isinstance(whole, (Sum, Woven)):
        return cut_at(whole, bounds)
    if all(bound % inner == 0 for bound in bounds):
        return [Product((piece, *tail)) for piece in heads]
    return cut_at(Sum(tuple(Product((piece, *tail)) for piece in heads)), bounds)


def _cut_woven(term: Woven, bounds: Sequence[int]) -> list[Term] | None:
    turns = [term.order[start:stop] for start, stop in zip((0, *bounds[:-1]), bounds, strict=True)]
    return _sorted_parts(term, [piece for piece, turn in enumerate(turns) for _ in turn], turns)


def _sorted_parts(
    term: Sum | Woven, labels: Sequence[int], turns: Sequence[Sequence[int]]
) -> list[Term] | None:
    """The indices of each label, by part: what `sort` does with a term that has parts.

    Args:
        term: the term.
        labels: one for each index.
        turns: for each label, the parts that its indices lie in, in order.
    """
    parts, where = strands(term)
    inside: list[list[int]] = [[] for _ in parts]
    for part, label in zip(where, labels, strict=True):
        inside[part].append(label)
    pieces: list[dict[int, Term]] = []
    for part, found in zip(parts, inside, strict=True):
        made = sort(part, found)
        if made is None:
            return None
        pieces.append(dict(zip(dict.fromkeys(found), made, strict=True)))
    result: list[Term] = []
    for label, turn in enumerate(turns):
        here = list(dict.fromkeys(turn))
        number = {part: position for position, part in enumerate(here)}
        result.append(
            Woven(tuple(pieces[part][label] for part in here), tuple(number[part] for part in turn))
        )
    return result


def sort(term: Term, labels: Sequence[int]) -> list[Term] | None:
    """Write a term as the indices of each label, in turn, refining it; None where that is impossible.

    Args:
        term: what to take apart.
        labels: one for each index.

    Returns:
        A term for each label, in the order of their first indices.
    """
    term = canon(term)
    number = {label: position for position, label in enumerate(dict.fromkeys(labels))}
    labels = [number[label] for label in labels]
    if len(number) == 1:
        return [term]
    if all(a <= b for a, b in itertools.pairwise(labels)):
        return cut_at(
            term, [*(i + 1 for i, (a, b) in enumerate(itertools.pairwise(labels)) if a < b), len(labels)]
        )
    if isinstance(term, Atom):
        return list(_scatter(term, labels))
    if isinstance(term, (Sum, Woven)):
        turns: list[list[int]] = [[] for _ in number]
        for part, label in zip(strands(term)[1], labels, strict=True):
            turns[label].append(part)
        return _sorted_parts(term, labels, turns)
    if isinstance(term, Case):
        return None
    head, tail = term.factors[0], Product(term.factors[1:])
    inner = size(tail)
    rows = [labels[start : start + inner] for start in range(0, len(labels), inner)]
    if all(len(set(row)) == 1 for row in rows):
        heads = sort(head, [row[0] for row in rows])
        whole = canon(term)
        if heads is None or isinstance(whole, (Sum, Woven)):
            return None if heads is None else sort(whole, labels)
        return [Product((piece, tail)) for piece in heads]
    if all(row == rows[0] for row in rows):
        tails = sort(tail, rows[0])
        whole = canon(term)
        if tails is None or isinstance(whole, (Sum, Woven)):
            return None if tails is None else sort(whole, labels)
        return [Product((head, piece)) for piece in tails]
    if size(head) > APART:
        return None
    heads = cut_at(head, range(1, size(head) + 1))
    whole = canon(term)
    if heads is None or isinstance(whole, (Sum, Woven)):
        return None if heads is None else sort(whole, labels)
    return sort(Sum(tuple(tail for _ in heads)), labels)


def _scatter(atom: Atom, labels: Sequence[int]) -> tuple[Atom, ...]:
    """Refine an atom into parts that lie scattered in it; what depended on it no longer does."""
    for dependent in dict.fromkeys(map(find, atom.dependents)):
        if dependent.bound is None and dependent.within is not None:
            dependent.barred |= {atom}
    pieces = tuple(
        Atom(labels.count(label), atom.within, atom.frozen, atom.reason) for label in dict.fromkeys(labels)
    )
    for piece in pieces:
        piece.marks, piece.barred = atom.marks, atom.barred
    atom.bound = Woven(pieces, tuple(labels))
    return pieces


def unify(left: Term, right: Term, reason: str) -> None:
    """Make two terms one; where they cannot be aligned, freeze both.

    Raises:
        ValueError: the sizes differ.
    """
    roots = [find(term) for term in (left, right) if isinstance(term, Atom)]
    left, right = canon(left), canon(right)
    if size(left) != size(right):
        raise ValueError(f"{reason}: a dimension of {size(left)} meets one of {size(right)}")
    if left is right or size(left) == 1:
        return
    if isinstance(left, Atom) and isinstance(right, Atom):
        _merge(left, right)
        return
    if all(atom.frozen for term in (left, right) for atom in atoms(term)):
        return
    if isinstance(left, Case) or isinstance(right, Case):
        _unify_case(left, right, reason)
        return
    if _occurs(left, right) and (isinstance(left, Atom) or isinstance(right, Atom)):
        freeze(left, reason)
        freeze(right, reason)
        return
    if isinstance(left, Woven) or isinstance(right, Woven):
        _unify_woven(left, right, reason)
        return
    if isinstance(left, Sum) or isinstance(right, Sum):
        _unify_sums(left, right, reason)
        if len(roots) == 2:
            _join_keys(*roots)
        return
    _unify_products(left, right, reason)


def _join_keys(left: Atom, right: Atom) -> None:
    """Two atoms that were cut into the same parts are one: what differs along one differs along the other."""
    if (
        left is not right
        and isinstance(left.bound, Sum)
        and isinstance(right.bound, Sum)
        and _same(left, right)
    ):
        right.bound = left


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
    left.barred = left.barred | right.barred if context else frozenset()
    if right.frozen and not left.frozen:
        left.frozen, left.reason = True, right.reason


def _leads_to(atom: Atom, targets: set[Atom]) -> bool:
    return atom in targets or any(_leads_to(outer, targets) for outer in within(atom) or ())


def _unify_case(left: Term, right: Term, reason: str) -> None:
    if isinstance(left, Case) and isinstance(right, Case):
        same_key = find(left.key) is find(right.key) or _same(left.key, right.key)
        if same_key and [n for n, _ in left.branches] == [n for n, _ in right.branches]:
            for (_, a), (_, b) in zip(left.branches, right.branches, strict=True):
                unify(a, b, reason)
            return
    elif isinstance(right, Case):
        left, right = right, left
    assert isinstance(left, Case)
    if isinstance(right, Atom) and right.within is None and not right.frozen and not _occurs(left, right):
        right.bound = left
        return
    # The other side does not differ along the key, so neither may this one.
    for _, branch in left.branches:
        unify(branch, right, reason)


def _same(left: Atom, right: Atom) -> bool:
    a, b = canon(left), canon(right)
    if isinstance(a, Sum) and isinstance(b, Sum) and len(a.parts) == len(b.parts):
        return all(x is y for x, y in zip(a.parts, b.parts, strict=True))
    return a is b


def _bounds(term: Term) -> list[int]:
    ends, offset = [], 0
    for part in parts_of(term):
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
        # Where two dimensions were cut into units, those are the same places of one dimension.
        one, other = canon(a), canon(b)
        if size(one) == 1 and one is not other and isinstance(one, Atom) and isinstance(other, Atom):
            one.frozen |= other.frozen
            other.bound = one


def _unify_woven(left: Term, right: Term, reason: str) -> None:
    """Index by index: what lies in one part on the left and in one on the right is one term."""
    labels = list(zip(strands(left)[1], strands(right)[1], strict=True))
    number = {label: position for position, label in enumerate(dict.fromkeys(labels))}
    cells = [number[label] for label in labels]
    ours = sort(left, cells)
    theirs = sort(right, cells) if ours is not None else None
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
        if (ours or theirs) and any(isinstance(canon(rest), (Sum, Woven)) for rest in rests):
            # The head turned out to be a sum along which a tail differs: compare part by part.
            unify(rests[0], rests[1], reason)
            return
