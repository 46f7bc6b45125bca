"""From a model to its symmetry graph."""

from __future__ import annotations

from torch import nn

from isthmus.program import Inputs, Program, export
from isthmus.symmetry import algebra
from isthmus.symmetry.axes import Axis, Blocks, Concat, Interleaved, Leaf
from isthmus.symmetry.graph import Fixed, Member, Space, SymmetryGraph
from isthmus.symmetry.reading import Reading, cases, collapse, settle
from isthmus.symmetry.terms import Atom, Case, Product, Term, Woven, size


def trace(model: nn.Module | Program, example: Inputs | None = None) -> SymmetryGraph:
    """Read the symmetries of a model off its program.

    Args:
        model: any module that `torch.export` takes (also on the meta device), or its program.
        example: one tensor, a tuple of positional inputs, or a mapping of keyword inputs.

    Returns:
        The spaces of the model, believed but not yet verified: see `SymmetryGraph.verify`.

    Raises:
        ExportError: the model cannot be exported.

    Examples:
        >>> import torch, isthmus
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = isthmus.trace(model, torch.randn(2, 4))
        >>> list(graph.spaces)
        ['0']
    """
    if isinstance(model, Program):
        program = model
    else:
        if example is None:
            raise TypeError("trace(model, example) needs an example input")
        program = export(model, example)
    reading = Reading(program)
    reading.run()
    return _Naming(reading).graph()


class _Naming:
    """Turns the atoms of a finished reading into named spaces."""

    def __init__(self, reading: Reading):
        self.reading = reading
        self.program = reading.program
        self.names: dict[Atom, str] = {}

    def graph(self) -> SymmetryGraph:
        weights = self._weights()
        self._settle(weights)
        terms = {
            name: [algebra.canon(t) for t in self.reading.axes(self.program.nodes[name])] for name in weights
        }
        self._name(terms)
        layout = {
            self.program.weights[name]: tuple(self._axis(t) for t in axes) for name, axes in terms.items()
        }
        values: dict[str, tuple[Axis, ...]] = {}
        for name, node in self.program.nodes.items():
            if self.program.is_tensor(name) and node.op != "output":
                values[name] = tuple(self._axis(algebra.canon(t)) for t in self.reading.axes(node))
        return SymmetryGraph(
            self.program,
            self._spaces(terms),
            layout,
            values,
            tuple(self._fixed(terms)),
            {
                name: tuple(self.program.origin[n] for n in nodes)
                for name, nodes in self.reading.unknown.items()
            },
        )

    def _weights(self) -> list[str]:
        """Placeholders of the weights that move, in order of first use."""
        moving = {
            name
            for name, key in self.program.weights.items()
            if key not in self.program.buffers or name in self.reading.statistics
        }
        ordered = dict.fromkeys(
            a.name for node in self.program.graph.nodes for a in node.all_input_nodes if a.name in moving
        )
        return [name for name in ordered if self.program.is_tensor(name)]

    def _settle(self, weights: list[str]) -> None:
        """A weight must say itself along what each of its axes differs, and along another axis it may not."""
        terms = [term for name in weights for term in self.reading.axes(self.program.nodes[name])]
        shared = [case for term in terms for case in cases(algebra.canon(term))]
        for case in shared:
            collapse(case, "differs along another axis of the weight")
        if shared:
            self.reading.settle()
        for term in terms:
            if cases(algebra.canon(term)):
                algebra.freeze(term, "differs along another axis of the weight")
        for name in weights:
            while settle(self.reading.axes(self.program.nodes[name])):
                pass

    def _name(self, terms: dict[str, list[Term]]) -> None:
        """Name spaces by the weight that writes them first; outer ones get their name first."""
        order = sorted(terms, key=lambda name: len(self.program.size(name)) < 2)
        for wanted in ("writes", "reads"):
            for name in order:
                stem = self.program.weights[name].rpartition(".")[0] or self.program.weights[name]
                for axis, term in enumerate(terms[name]):
                    role = self.reading.roles.get((name, axis), "writes")
                    free = [a for a in dict.fromkeys(algebra.atoms(term)) if not a.frozen and a.size > 1]
                    if role != wanted:
                        continue
                    for position, atom in enumerate(free):
                        if atom in self.names:
                            continue
                        base = stem if len(free) == 1 else f"{stem}/{position}"
                        label, count = base, 2
                        while label in self.names.values():
                            label, count = f"{base}~{count}", count + 1
                        self.names[atom] = label

    def _axis(self, term: Term) -> Axis:
        if isinstance(term, Atom):
            return Leaf(term.size, None if term.frozen else self.names.get(term))
        if isinstance(term, Product):
            factors: list[Axis] = []
            for axis in map(self._axis, term.factors):
                # Neighbouring fixed factors are one fixed run.
                last = factors[-1] if factors else None
                if isinstance(axis, Leaf) and isinstance(last, Leaf) and axis.space is None is last.space:
                    factors[-1] = Leaf(last.size * axis.size)
                else:
                    factors.append(axis)
            return factors[0] if len(factors) == 1 else Blocks(tuple(factors))
        if isinstance(term, Case):
            return Leaf(size(term))
        if isinstance(term, Woven):
            strands = [self._axis(part) for part in term.parts]
            if all(isinstance(strand, Leaf) and strand.space is None for strand in strands):
                return Leaf(size(term))
            return Interleaved(tuple(strands), term.order)
        parts: list[Axis] = []
        for axis in map(self._axis, term.parts):
            last = parts[-1] if parts else None
            if isinstance(axis, Leaf) and isinstance(last, Leaf) and axis.space is None is last.space:
                parts[-1] = Leaf(last.size + axis.size)
            else:
                parts.append(axis)
        return parts[0] if len(parts) == 1 else Concat(tuple(parts))

    def _spaces(self, terms: dict[str, list[Term]]) -> dict[str, Space]:
        members: dict[Atom, list[Member]] = {atom: [] for atom in self.names}
        for name, axes in terms.items():
            for axis, term in enumerate(axes):
                role = self.reading.roles.get((name, axis), "writes")
                if name in self.reading.statistics:
                    role = "statistic"
                for atom in dict.fromkeys(algebra.atoms(term)):
                    if atom in members:
                        members[atom].append(Member(self.program.weights[name], axis, role))
        found: dict[str, Space] = {}
        for atom, name in sorted(self.names.items(), key=lambda item: len(algebra.within(item[0]) or ())):
            outer = sorted(
                (a for a in algebra.within(atom) or () if a in self.names),
                key=lambda a: (len(algebra.within(a) or ()), self.names[a]),
            )
            found[name] = Space(
                name,
                atom.size,
                within=tuple(self.names[a] for a in outer),
                marks=frozenset(atom.marks),
                members=tuple(members[atom]),
            )
        return {name: found[name] for name in self.names.values()}

    def _fixed(self, terms: dict[str, list[Term]]) -> list[Fixed]:
        found = []
        for name, axes in terms.items():
            for axis, term in enumerate(axes):
                reasons: dict[str, int] = {}
                for atom in algebra.atoms(term):
                    if atom.frozen and atom.size > 1:
                        reasons[atom.reason] = reasons.get(atom.reason, 0) + atom.size
                found += [
                    Fixed(self.program.weights[name], axis, count, reason)
                    for reason, count in reasons.items()
                ]
        return found
