"""Reading a program: one pass over its nodes that infers the term of every dimension."""

from __future__ import annotations

import importlib
import operator
import pkgutil
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx

from isthmus.program import Program
from isthmus.symmetry import algebra, rules
from isthmus.symmetry.rules import Axes
from isthmus.symmetry.terms import Atom, Case, Product, Term, size

Role = str

#: What a rule raises on arguments that it was not written for.
_UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


class Reading:
    """The terms of a program's values while it is read; what rules work with.

    Attributes:
        program: what is read.
        unknown: operations without a rule -> the nodes where they were met.
        roles: (placeholder, axis) -> "reads" for the contracted axes of a weight, "writes" for the rest.
    """

    def __init__(self, program: Program):
        self.program = program
        self.unknown: dict[str, list[str]] = {}
        self.roles: dict[tuple[str, int], Role] = {}
        self.statistics: set[str] = set()
        self._axes: dict[str, Axes | list[Axes] | None] = {}
        self._node: fx.Node | None = None

    # -- what rules use ----------------------------------------------------------------------

    def axes(self, node: object) -> Axes:
        """The terms of a tensor value, one per dimension."""
        assert isinstance(node, fx.Node), f"{node!r} is no value"
        found = self._axes[node.name]
        assert found is not None and not (found and isinstance(found[0], list)), f"{node} is no tensor"
        return list(found)  # type: ignore[arg-type]

    def results(self, node: fx.Node) -> list[Axes]:
        """The terms of each result of an operation that returns several tensors."""
        found = self._axes[node.name]
        assert found is not None
        return found  # type: ignore[return-value]

    def shape(self, node: object) -> tuple[int, ...]:
        """The sizes of a value at the example's batch size."""
        assert isinstance(node, fx.Node)
        return tuple(int(n) for n in node.meta["val"].shape)

    def unify(self, left: Term, right: Term) -> None:
        """Make two dimensions one index set; where they cannot be aligned both freeze."""
        algebra.unify(left, right, self.place)

    def unify_all(self, pairs: Iterable[tuple[Term, Term]]) -> None:
        """Unify several pairs of dimensions of the same two tensors, in an order that loses nothing.

        What has an order per head stays so only if the heads are known to be the same before it.
        """

        def depth(pair: tuple[Term, Term]) -> tuple[bool, int]:
            terms = [algebra.canon(term) for term in pair]
            found = (algebra.within(a) for term in terms for a in algebra.atoms(term))
            return any(map(cases, terms)), max(len(context or ()) for context in found)

        for left, right in sorted(pairs, key=depth):
            self.unify(left, right)

    def freeze(self, terms: Iterable[Term]) -> None:
        """Allow only the identity on these dimensions."""
        for term in terms:
            algebra.freeze(term, self.place)

    def new(self, count: int) -> Atom:
        """A dimension of which nothing is known."""
        return Atom(count)

    def alike(self, count: int) -> Atom:
        """A dimension whose indices all hold the same (copies, zeros): any order will do."""
        return Atom(count, within=None)

    def fixed(self, count: int, reason: str = "") -> Atom:
        """A dimension whose indices have names (pixels, classes, positions)."""
        return Atom(count, frozen=True, reason=reason or self.place)

    def factor(self, term: Term, outer: int) -> tuple[Term, Term]:
        """Write a dimension as outer x inner; where that is impossible it freezes."""
        halves = algebra.factor(term, outer)
        if halves is None:
            algebra.freeze(term, self.place)
            return self.fixed(outer), self.fixed(size(term) // outer)
        return halves

    def mix(self, axes: Axes, dims: Iterable[int]) -> None:
        """Note that the operation mixes values along `dims`: nothing may differ along them.

        What is inside a head may be ordered per head only as long as heads are never mixed.
        """
        chosen = {d % len(axes) for d in dims}
        mixed = frozenset(a for d in chosen for a in algebra.atoms(algebra.canon(axes[d])))
        rest = [term for index, term in enumerate(axes) if index not in chosen]
        whole = {algebra.find(key) for term in rest for key, *_ in algebra.keys(term)}
        whole -= {algebra.find(key) for d in chosen for key, *_ in algebra.keys(axes[d])}
        here: set[Atom] = set()
        for term in rest:
            for case in cases(algebra.canon(term)):
                if algebra.find(case.key) not in whole:
                    collapse(case, self.place)
            for atom in algebra.atoms(algebra.canon(term)):
                algebra.confine(atom, here, mixed)
                if not atom.frozen:
                    here.add(atom)

    def reads(self, node: object, axis: int) -> None:
        """Note that a weight's axis is contracted with its input; of what is computed of weights, theirs are."""
        if not isinstance(node, fx.Node):
            return
        self.roles[(node.name, axis)] = "reads"
        if node.op != "placeholder" and node.name not in self.program.dynamic:
            term = algebra.canon(self.axes(node)[axis])
            for argument in node.all_input_nodes:
                if not isinstance(argument.meta.get("val"), Tensor) or size(term) == 1:
                    continue
                axes = [algebra.canon(own) for own in self.axes(argument)]
                alike = [dim for dim, own in enumerate(axes) if algebra.same(own, term)]
                for dim in [axis] if axis in alike and len(alike) > 1 else alike:
                    self.reads(argument, dim)

    def mark(self, axes: Iterable[Term], name: str) -> None:
        """Note that an elementwise operation acts on these dimensions."""
        for term in axes:
            for atom in algebra.atoms(algebra.canon(term)):
                if not atom.frozen:
                    atom.marks = atom.marks | {name}

    @property
    def place(self) -> str:
        return self.program.origin[self._node.name] if self._node is not None else "input"

    # -- the pass ----------------------------------------------------------------------------

    def run(self) -> None:
        """Read every node in order."""
        for module in pkgutil.iter_modules(rules.__path__):
            importlib.import_module(f"{rules.__name__}.{module.name}")
        for node in self.program.graph.nodes:
            self._node = node
            if node.op == "placeholder":
                self._axes[node.name] = self._placeholder(node)
            elif node.op == "call_function":
                self._axes[node.name] = self._call(node)
        self._node = None
        for name in self.program.outputs:
            if name is not None and self.program.is_tensor(name):
                for term in self.axes(self.program.nodes[name]):
                    algebra.freeze(term, "output")
        self.settle()

    def _placeholder(self, node: fx.Node) -> Axes | None:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return None
        key = self.program.weights.get(node.name)
        if key is not None and (key not in self.program.buffers or self._is_statistic(node)):
            return [self.alike(n) for n in self.shape(node)]
        if key is None and node.name not in self.program.constants:
            return [Atom(n, frozen=True, reason="input") for n in self.shape(node)]
        # Constants are the program's, not the model's: they may not be reordered.
        constant = self.program.constants.get(node.name)
        return [
            self.alike(n)
            if constant is not None and not constant.is_meta and _constant_along(constant, dim)
            else Atom(n, frozen=True, reason=f"constant {key or node.name}")
            for dim, n in enumerate(self.shape(node))
        ]

    def _is_statistic(self, node: fx.Node) -> bool:
        """Whether a buffer holds running statistics of a norm: those move with their channels."""
        norms = (torch.ops.aten.batch_norm.default, torch.ops.aten.instance_norm.default)
        found = bool(node.users) and all(
            user.target in norms and node in user.args[3:5] for user in node.users
        )
        if found:
            self.statistics.add(node.name)
        return found

    def _call(self, node: fx.Node) -> Axes | list[Axes] | None:
        value = node.meta.get("val")
        if node.target is operator.getitem:
            source, index = node.args
            assert isinstance(source, fx.Node) and isinstance(index, int)
            results = self._axes[source.name]
            return None if results is None else results[index]  # type: ignore[return-value]
        if not isinstance(value, (Tensor, tuple, list)):
            return None
        function = rules.TABLE.get(node.target) or rules.TABLE.get(str(node.target))
        if function is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            function = rules.TABLE["pointwise"]
        if function is not None:
            try:
                made = function(self, node)
            except _UNFIT as error:
                # A form of the operation that its rule did not foresee: as if there were no rule.
                self.unknown.setdefault(f"{node.target} ({type(error).__name__}: {error})", []).append(
                    node.name
                )
                return self.give_up(node)
            if made is not None:
                return list(made)  # type: ignore[arg-type]
            self.unknown.setdefault(f"{node.target} (in this form)", []).append(node.name)
        else:
            self.unknown.setdefault(str(node.target), []).append(node.name)
        return self.give_up(node)

    def give_up(self, node: fx.Node) -> Axes | list[Axes] | None:
        """Freeze every dimension that a node touches."""
        for argument in node.all_input_nodes:
            if isinstance(argument.meta.get("val"), Tensor):
                self.freeze(self.axes(argument))
            elif self._axes.get(argument.name) is not None:
                for axes in self.results(argument):
                    self.freeze(axes)
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            return [self.fixed(int(n)) for n in value.shape]
        if isinstance(value, (tuple, list)):
            return [
                [self.fixed(int(n)) for n in item.shape] if isinstance(item, Tensor) else [] for item in value
            ]
        return None

    def settle(self) -> None:
        """Until nothing changes: what depends on an index set that a tensor lacks is shared."""
        tensors = [axes for axes in self._all() if any(not _plain(term) for term in axes)]
        changed = True
        while changed:
            changed = False
            for axes in tensors:
                while settle(axes):
                    changed = True

    def _all(self) -> Iterable[Axes]:
        for found in self._axes.values():
            if not found:
                continue
            if isinstance(found[0], list):
                yield from found  # type: ignore[misc]
            else:
                yield found  # type: ignore[misc]


def _plain(term: Term) -> bool:
    """Whether a term can never need settling: an atom that depends on nothing."""
    flat = algebra.canon(term)
    return isinstance(flat, Atom) and (flat.frozen or not flat.within)


def _constant_along(tensor: Tensor, dim: int) -> bool:
    return bool((tensor == tensor.narrow(dim, 0, 1)).all()) if tensor.numel() else True


def collapse(case: Case, reason: str) -> None:
    """Let a term no longer differ along its key."""
    first = case.branches[0][1]
    for _, branch in case.branches[1:]:
        algebra.unify(first, branch, reason)
    if isinstance(algebra.canon(case), Case):
        algebra.freeze(case, reason)


def settle(axes: Sequence[Term]) -> bool:
    """Share what depends on an index set that is not, unambiguously, in the same tensor.

    Returns:
        Whether anything changed.
    """
    flat = [algebra.canon(term) for term in axes]
    present = {algebra.find(key) for term in axes for key, *_ in algebra.keys(term)}
    for index, term in enumerate(flat):
        for case in cases(term):
            if algebra.find(case.key) not in present and not all(a.frozen for a in algebra.atoms(case)):
                collapse(case, "differs along a dimension that is gone")
                return True
        for atom, left, right in _with_enclosing(term, frozenset(), ()):
            context = algebra.within(atom)
            if not context or atom.frozen:
                continue
            others = [*right, *(a for i, other in enumerate(flat) if i != index for a in _digits(other))]
            kept = frozenset(a for a in context if a in left or others.count(a) == 1)
            if kept != context:
                atom.within = kept
                return True
    return False


def cases(term: Term) -> list[Case]:
    """What in a canonical term differs along another dimension."""
    if isinstance(term, Case):
        return [term]
    if isinstance(term, Atom):
        return []
    parts = term.factors if isinstance(term, Product) else term.parts
    return [case for part in parts for case in cases(part)]


def _digits(term: Term) -> list[Atom]:
    """The atoms of which every position along a canonical term says an index."""
    if isinstance(term, Atom):
        return [term]
    if isinstance(term, Product):
        return [atom for item in term.factors for atom in _digits(item)]
    return []


def _with_enclosing(
    term: Term, left: frozenset[Atom], right: tuple[Atom, ...]
) -> list[tuple[Atom, frozenset[Atom], tuple[Atom, ...]]]:
    """Each atom of a canonical term, with those before and those after it in the products around it."""
    if isinstance(term, Atom):
        return [(term, left, right)]
    if isinstance(term, Product):
        found: list[tuple[Atom, frozenset[Atom], tuple[Atom, ...]]] = []
        for index, item in enumerate(term.factors):
            behind = tuple(atom for later in term.factors[index + 1 :] for atom in _digits(later))
            found.extend(_with_enclosing(item, left, (*behind, *right)))
            left = left | frozenset(algebra.atoms(item))
        return found
    branches = [b for _, b in term.branches] if isinstance(term, Case) else term.parts
    return [triple for branch in branches for triple in _with_enclosing(branch, left, right)]
