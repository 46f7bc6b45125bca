"""The axis algebra alone: what unifying, factoring, cutting and freezing promise for any terms."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.symmetry import algebra
from isthmus.symmetry.algebra import atoms, canon, confine, cut_at, factor, freeze, same, unify, within
from isthmus.symmetry.reading import settle
from isthmus.symmetry.terms import Atom, Case, Product, Sum, Term, Woven, size

#: Every term in the pool has this many indices, so that any two may be unified.
TOTAL = 24
DIVISORS = [2, 3, 4, 6, 8, 12]

Action = tuple[str, int, int]
actions = st.lists(
    st.tuples(
        st.sampled_from(["unify", "factor", "exchange", "cut", "turn", "freeze", "atom", "alike"]),
        st.integers(0, 11),
        st.integers(0, 11),
    ),
    max_size=9,
)


def spell(term: Term, position: int) -> list[tuple[Atom, int]]:
    """What a canonical term says of one index: the index into each of its atoms, outermost first."""
    if size(term) == 1:
        return []
    if isinstance(term, Atom):
        return [(term, position)]
    if isinstance(term, Sum):
        for part in term.parts:
            if position < size(part):
                return spell(part, position)
            position -= size(part)
    if isinstance(term, Woven):
        which = term.order[position]
        return spell(term.parts[which], term.order[:position].count(which))
    assert isinstance(term, Product), "differs along something that does not enclose it"
    found: list[tuple[Atom, int]] = []
    inner = size(term)
    for item in term.factors:
        inner //= size(item)
        found += spell(item, position // inner % size(item))
    return found


def spelled(term: Term) -> list[list[tuple[Atom, int]]] | None:
    """None where the term differs along something that does not enclose it."""
    flat = canon(term)
    return None if has_case(flat) else [spell(flat, position) for position in range(size(flat))]


def agree(left: Term, right: Term) -> bool:
    """Whether two terms have the same indices in the same order, as far as each of them says.

    A term that differs along something that does not enclose it says nothing: it is shared when a reading settles.
    """
    ours, theirs = spelled(left), spelled(right)
    return ours is None or theirs is None or ours == theirs


def has_case(term: Term) -> bool:
    """Whether a canonical term differs along something that does not enclose it."""
    if isinstance(term, Atom):
        return False
    return isinstance(term, Case) or any(
        map(has_case, term.factors if isinstance(term, Product) else term.parts)
    )


class Pool:
    """Terms, and the actions that programs take on them."""

    def __init__(self) -> None:
        self.terms: list[Term] = [Atom(TOTAL), Atom(TOTAL)]
        self.frozen: list[Atom] = []

    def act(self, action: Action) -> None:
        name, a, b = action
        term, other = self.terms[a % len(self.terms)], self.terms[b % len(self.terms)]
        if name == "unify":
            unify(term, other, "test")
            fixed = all(atom.frozen or atom.size == 1 for t in (term, other) for atom in atoms(canon(t)))
            assert fixed or agree(term, other), "two terms are one, or neither may move"
        elif name in ("factor", "exchange"):
            outer = DIVISORS[b % len(DIVISORS)]
            halves = factor(term, outer)
            if halves is None:
                return
            assert [size(half) for half in halves] == [outer, TOTAL // outer]
            assert agree(Product(halves), term), "the same indices in the same order"
            self.terms.append(Product(halves if name == "factor" else halves[::-1]))
        elif name in ("cut", "turn"):
            bounds = sorted({1 + 5 * a % (TOTAL - 1), 1 + 7 * b % (TOTAL - 1), TOTAL})
            pieces = cut_at(term, bounds)
            if pieces is None:
                return
            assert [size(p) for p in pieces] == [e - s for s, e in zip([0, *bounds], bounds, strict=False)]
            assert agree(Sum(tuple(pieces)), term), "the same indices in the same order"
            self.terms.append(Sum(tuple(pieces if name == "cut" else pieces[::-1])))
        elif name == "freeze":
            freeze(term, "test")
            self.frozen += [atom for atom in atoms(canon(term)) if atom.size > 1]
            assert all(atom.frozen for atom in self.frozen)
        else:
            self.terms.append(Atom(TOTAL, within=None if name == "alike" else frozenset()))


@settings(max_examples=100)
@given(actions)
def test_whatever_is_done_to_terms(steps: list[Action]):
    pool = Pool()
    for step in steps:
        pool.act(step)
        for term in pool.terms:
            flat = canon(term)
            assert size(flat) == size(term) == TOTAL
            assert same(canon(flat), flat), "canonical is canonical"
            assert _is_canonical(flat)
        for atom in pool.frozen:
            assert all(a.frozen or a.size == 1 for a in atoms(canon(atom))), "what is frozen stays frozen"


@settings(max_examples=100)
@given(actions)
def test_settling_ends_and_leaves_no_order_that_cannot_be_told(steps: list[Action]):
    pool = Pool()
    for step in steps:
        pool.act(step)
    for term in pool.terms:
        rounds = 0
        while settle([term]):
            rounds += 1
            assert rounds < 200
        _check_enclosed(canon(term), frozenset())


def _is_canonical(term: Term) -> bool:
    if isinstance(term, Atom):
        return term.bound is None
    if isinstance(term, Case):
        return all(_is_canonical(branch) for _, branch in term.branches)
    inside = term.factors if isinstance(term, Product) else term.parts
    if isinstance(term, Woven) and (
        any(isinstance(part, Sum) for part in inside) or sorted(term.order) == list(term.order)
    ):
        return False
    if len(inside) < 2 or any(type(part) is type(term) for part in inside):
        return False
    units = isinstance(term, Product) and any(size(part) == 1 for part in inside)
    return not units and all(map(_is_canonical, inside))


def _check_enclosed(term: Term, outer: frozenset[Atom]) -> None:
    """Nothing free differs along an index set that does not enclose it."""
    if isinstance(term, Atom):
        assert term.frozen or (within(term) or frozenset()) <= outer
    elif isinstance(term, Case):
        return  # told apart by another axis, or fixed where it is a weight's
    elif isinstance(term, (Sum, Woven)):
        for part in term.parts:
            _check_enclosed(part, outer)
    else:
        for index, item in enumerate(term.factors):
            behind = {later for later in term.factors[index + 1 :] if isinstance(later, Atom)}
            _check_enclosed(item, outer | behind)
            outer |= frozenset(atoms(item))


def test_an_inner_factor_has_an_order_for_each_outer_index():
    whole = Atom(12)
    heads, width = factor(whole, 3)  # type: ignore[misc]
    assert isinstance(width, Atom) and within(width) == {heads}
    # Another dimension written in the same way is the same, heads and all.
    other = Product((Atom(3), Atom(4)))
    unify(whole, other, "test")
    assert canon(other.factors[0]) is canon(heads) and canon(other.factors[1]) is canon(width)


def test_chained_factors_are_within_all_that_is_outside_them():
    """heads x 3 x d, as GPT-NeoX has it: queries, keys and values inside each head."""
    whole = Atom(4 * 3 * 5)
    heads, rest = factor(whole, 4)  # type: ignore[misc]
    three, width = factor(rest, 3)  # type: ignore[misc]
    query, key, value = cut_at(three, [1, 2, 3])  # type: ignore[misc]
    flat = canon(whole)
    assert isinstance(flat, Product) and len(flat.factors) == 2 and flat.factors[0] is canon(heads)
    parts = flat.factors[1]
    assert isinstance(parts, Sum) and [size(p) for p in parts.parts] == [5, 5, 5]
    assert len({id(p) for p in parts.parts}) == 3, "queries, keys and values apart"
    assert all(within(p) == {canon(heads)} for p in parts.parts)  # type: ignore[arg-type]
    assert size(query) == size(key) == size(value) == 1 and size(width) == 5


def test_what_is_used_without_its_outer_index_is_shared():
    whole, scale = Atom(12), Atom(4, within=None)
    heads, width = factor(whole, 3)  # type: ignore[misc]
    unify(width, scale, "test")
    assert within(canon(scale)) == {heads}, "until the weight itself says otherwise"  # type: ignore[arg-type]
    assert settle([scale]) and not settle([scale])
    assert within(canon(width)) == frozenset()  # type: ignore[arg-type]


def test_what_meets_an_order_that_does_not_depend_is_shared():
    heads, width = factor(Atom(12), 3)  # type: ignore[misc]
    plain = Atom(4)
    unify(width, plain, "test")
    assert within(canon(width)) == frozenset() and size(heads) == 3  # type: ignore[arg-type]


def test_copies_take_the_order_of_what_they_meet():
    heads, width = factor(Atom(12), 3)  # type: ignore[misc]
    copies = Atom(4, within=None)
    unify(copies, width, "test")
    assert within(canon(copies)) == {heads}  # type: ignore[arg-type]


def test_an_index_set_cannot_depend_on_itself():
    whole = Atom(16)
    heads, width = factor(whole, 4)  # type: ignore[misc]
    unify(heads, width, "test")
    atom = canon(heads)
    assert isinstance(atom, Atom) and atom is canon(width) and within(atom) == frozenset()


@pytest.mark.parametrize(("by", "free"), [(4, 4), (6, 6), (1, 1), (5, 1), (8, 4)])
def test_a_dimension_that_meets_itself_rotated_moves_in_equal_blocks(by: int, free: int):
    whole = Atom(12)
    head, tail = cut_at(whole, [by, 12])  # type: ignore[misc]
    unify(Sum((tail, head)), whole, "roll")
    sizes = {id(atom): atom.size for atom in atoms(canon(whole)) if atom.size > 1}
    assert list(sizes.values()) == ([free] if free > 1 else [])


def test_a_frozen_set_spreads_through_unification_and_says_why():
    a, b = Atom(6), Atom(6)
    freeze(a, "it has names")
    unify(b, a, "test")
    assert canon(b).frozen and canon(b).reason == "it has names"  # type: ignore[union-attr]
    outer, inner = factor(b, 2)  # type: ignore[misc]
    assert outer.frozen and inner.frozen  # type: ignore[union-attr]


def test_the_marks_of_both_sides_are_kept():
    a, b = Atom(6), Atom(6)
    a.marks, b.marks = {"relu"}, {"batch_norm"}
    unify(a, b, "test")
    outer, inner = factor(a, 3)  # type: ignore[misc]
    assert outer.marks == inner.marks == {"relu", "batch_norm"}  # type: ignore[union-attr]


def test_two_dimensions_of_different_sizes_never_meet():
    with pytest.raises(ValueError, match="layer4:add: a dimension of 3 meets one of 4"):
        unify(Atom(3), Atom(4), "layer4:add")


def test_factors_that_do_not_line_up_freeze():
    a, b = Product((Atom(4), Atom(6))), Product((Atom(3), Atom(8)))
    assert factor(Product((Atom(3), Atom(4))), 6) is not None, "3 x 4 is 3 x (2 x 2)"
    unify(a, b, "test")
    assert all(atom.frozen for term in (a, b) for atom in atoms(canon(term)))


def test_blocks_that_have_nothing_in_common_stay_where_they_are():
    """Three groups of four channels, seen as four groups of three: every index has a place of its own."""
    whole = Product((Atom(3), Atom(4)))
    groups, width = factor(whole, 4)  # type: ignore[misc]
    assert agree(Product((groups, width)), whole)
    assert all(atom.size == 1 or atom.frozen for atom in atoms(canon(whole)))


def test_groups_and_channels_exchanged_are_groups_in_turn():
    """A shuffle of a concatenation: each half keeps an order of its own, in turn with the other."""
    left, right = Atom(6), Atom(6)
    groups, width = factor(Sum((left, right)), 2)  # type: ignore[misc]
    shuffled = canon(Product((width, groups)))
    assert isinstance(shuffled, Woven) and shuffled.parts == (left, right)
    assert shuffled.order == (0, 1) * 6
    first, second = cut_at(shuffled, [6, 12])  # type: ignore[misc]
    assert (
        [atom.size for atom in atoms(canon(first))] == [3, 3] == [atom.size for atom in atoms(canon(second))]
    )
    assert agree(Sum((first, second)), shuffled)


def test_an_order_per_group_may_be_told_by_a_group_that_comes_after():
    groups, width = factor(Atom(12), 3)  # type: ignore[misc]
    exchanged = Product((width, groups))
    assert not settle([exchanged]) and within(canon(width)) == {groups}  # type: ignore[arg-type]
    assert settle([Product((width, Atom(3)))]) and within(canon(width)) == frozenset()  # type: ignore[arg-type]


def test_a_woven_term_and_a_plain_one_meet_index_by_index():
    a, b, plain = Atom(4), Atom(4), Atom(8)
    woven = Woven((a, b), (0, 1, 1, 0, 0, 1, 1, 0))
    unify(woven, plain, "test")
    assert canon(plain).parts == (canon(a), canon(b)) and agree(plain, woven)  # type: ignore[union-attr]
    other = Sum((Atom(2), Atom(6)))
    unify(woven, other, "test")
    assert agree(other, woven) and sorted(atom.size for atom in atoms(canon(woven))) == [1, 1, 3, 3]


def test_what_was_mixed_along_a_set_never_depends_on_it_again():
    """Not even where that set turns out, later, to be the one that the order depends on."""
    heads, width = factor(Atom(12), 3)  # type: ignore[misc]
    others = Atom(3)
    confine(width, [], frozenset([others]))  # type: ignore[arg-type]
    assert within(width) == {heads}  # type: ignore[arg-type]
    unify(heads, others, "test")
    assert within(canon(width)) == frozenset()  # type: ignore[arg-type]


def test_what_could_have_depended_on_anything_depends_on_what_it_stands_behind_once_it_is_mixed():
    rows, columns, last = (Atom(n, within=None) for n in (3, 4, 5))
    confine(columns, [rows], frozenset([last]))
    assert within(columns) == {rows} and within(last) is None


def test_a_product_over_a_sum_is_a_sum_of_products_where_the_rest_differs():
    """A fused projection, (q, k, v) x heads x width, once its leading factor of three is taken apart."""
    whole = Atom(3 * 2 * 4)
    three, rest = factor(whole, 3)  # type: ignore[misc]
    factor(rest, 2)
    cut_at(three, [1, 2, 3])
    flat = canon(whole)
    assert isinstance(flat, Sum) and len(flat.parts) == 3
    assert all(isinstance(part, Product) and [size(f) for f in part.factors] == [2, 4] for part in flat.parts)
    assert len({id(atom) for atom in atoms(flat)}) == 6, "each part moves by itself"


def test_a_sum_of_one_set_twice_is_cut_in_both_places():
    a = Atom(6)
    twice = Sum((a, a))
    cut_at(twice, [2, 12])
    flat = canon(twice)
    assert isinstance(flat, Sum) and [size(p) for p in flat.parts] == [2, 4, 2, 4]
    assert flat.parts[0] is flat.parts[2] and flat.parts[1] is flat.parts[3]


def test_atoms_print_their_size_and_whether_they_are_frozen():
    atom = Atom(7)
    assert repr(atom).endswith("(7)") and not repr(atom).startswith("!")
    freeze(atom, "test")
    assert repr(algebra.find(atom)).startswith("!")
