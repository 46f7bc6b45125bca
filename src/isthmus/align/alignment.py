"""What an alignment is, and the one door to all of its methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from isthmus import weights as files
from isthmus.align.choices import checked
from isthmus.errors import InputError, MismatchError
from isthmus.maps import Membership, Permutation, Transport, weighted
from isthmus.program import Inputs, first_example
from isthmus.registry import Registry, numbers
from isthmus.symmetry import SymmetryGraph


@dataclass(frozen=True)
class Cost:
    """How well one space of one model agrees with the reference, before and after.

    Attributes:
        model: index of the model that was moved.
        space: the space.
        before, after: the method's similarity under the identity and under the map, higher is better.
        unit: what the similarity is ("mean correlation", "mean inner product").
    """

    model: int
    space: str
    before: float
    after: float
    unit: str


@dataclass(frozen=True, eq=False)
class Alignment:
    """How every model is moved to where the models agree.

    Attributes:
        method: the method's name.
        graph: the symmetries moved along.
        transports: one per model; the reference's is the identity.
        reference: index of the model that stays.
        costs: agreement per model and space.
        settings: every option of the method, defaults included.
        notes: what a user should know (unconverged, dead units, ...).
        status: "converged", or why not.
        digests: what each model is (`isthmus.weights.digest`), where it is known.
    """

    method: str
    graph: SymmetryGraph
    transports: tuple[Transport, ...]
    reference: int = 0
    costs: tuple[Cost, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    status: str = "converged"
    digests: tuple[str, ...] = ()

    @property
    def keeps_functions(self) -> bool:
        """Whether each moved model computes what it did, so that any rule may combine them."""
        return all(m.keeps_function for t in self.transports for m in t.maps.values())

    @property
    def through(self) -> bool:
        """Whether the moved models mean something only as terms of a weighted sum (groups of units)."""
        return any(isinstance(m, Membership) for t in self.transports for m in t.maps.values())

    def weighted(self, weights: Sequence[float] | None = None) -> tuple[Transport, ...]:
        """The transports with the models' weights in the rows of their maps; see `isthmus.maps.weighted`.

        Args:
            weights: one per model, with sum 1; uniform where not given.
        """
        if not self.through:
            return self.transports
        count = len(self.transports)
        shares = [1 / count] * count if weights is None else list(weights)
        maps = [dict(transport.maps) for transport in self.transports]
        for name in {n for own in maps for n, m in own.items() if isinstance(m, Membership)}:
            for own, item in zip(maps, weighted([m[name] for m in maps], shares), strict=True):
                own[name] = item
        return tuple(replace(t, maps=own) for t, own in zip(self.transports, maps, strict=True))

    def apply(
        self, models: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None
    ) -> list[dict[str, Tensor]]:
        """Move each model by its transport.

        Args:
            models: their state dicts, in the order they were aligned in.
            weights: what the moved models will be averaged with, one each, with sum 1; uniform where not given. It
                matters where units are grouped (`through`): their weighted average is then the merged model.
        """
        if len(models) != len(self.transports):
            raise InputError(f"{len(models)} models for an alignment of {len(self.transports)}")
        return [t.apply(own) for t, own in zip(self.weighted(weights), models, strict=True)]

    def save(self, path: str | Path) -> None:
        """Write the maps of every model and how they were found as one safetensors file, whole or not at all.

        Args:
            path: of the file, ending in `.safetensors`.
        """
        from isthmus.align import saved  # it makes alignments

        saved.save(self, path)

    @staticmethod
    def load(path: str | Path, graph: SymmetryGraph | Sequence[SymmetryGraph]) -> Alignment:
        """Read an alignment back, for a graph of the same model (of each model, where their widths differ).

        Nothing in the file is run, and all of it is checked against the graph first.

        Raises:
            InputError: the file holds no alignment, or one of other models; all problems are listed.
        """
        from isthmus.align import saved

        return saved.load(path, graph)

    def __str__(self) -> str:
        width = max((len(cost.space) for cost in self.costs), default=5)
        unit = self.costs[0].unit if self.costs else ""
        lines = [f"{self.method}, reference model {self.reference}, {self.status} ({unit})"]
        lines += [
            f"  model {c.model}  {c.space:<{width}}  {c.before:>8.4f} -> {c.after:>8.4f}" for c in self.costs
        ]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


#: An alignment method: (graph, models, data, reference, options) -> Alignment.
Aligner = Callable[..., Alignment]

ALIGNMENTS: Registry[Aligner] = Registry(
    "alignment", package="isthmus.align.methods", supplied=("data", "reference", "graphs")
)


def align(
    graph: SymmetryGraph | Sequence[SymmetryGraph | nn.Module | Mapping[str, Tensor]],
    models: Sequence[Mapping[str, Tensor] | nn.Module] | None = None,
    by: str | Mapping[str, object] = "activation-matching",
    *,
    data: Iterable[object] | None = None,
    example: Inputs | None = None,
    reference: int | str = 0,
    score: Callable[[Mapping[str, Tensor]], float] | None = None,
    **options: object,
) -> Alignment:
    """Choose a map for every space of every model.

    Args:
        graph: the symmetries of the models' architecture; one per model where their widths differ, which `transport`,
            `zipit` and `matched-averaging` take. The result has the widths of the reference. Or the models alone, as
            modules: their symmetries are read and verified first, `isthmus.align([a, b], data=loader)`.
        models: modules or their state dicts.
        by: a method's name, or `{"method": name, option: value, ...}`, which may say `reference` and `score` too.
        data: calibration data, for methods that need it.
        example: inputs as for `isthmus.trace`, to read the symmetries of modules with; by default those of `data`.
        reference: index of the model that stays, or how it is chosen: "first"; "best", by `score`; "medoid", which the
            others agree with most once they are aligned to it; "universe": none stays, every model is aligned to the
            mean of the others in turn (MergeMany; in an order drawn by the method's `seed`, 0 where it has none), and
            all are then turned so that the first one's map is the identity.
        score: a function of weights, higher is better, for "best"; made by `isthmus.score` on validation data.
        options: of the method; see its docstring.

    Raises:
        InputError: no such method or option, an option of another kind, or data is missing.
    """
    if isinstance(by, Mapping):
        said = dict(by)
        by = str(said.pop("method", ""))
        reference, score = said.pop("reference", reference), said.pop("score", score)  # type: ignore[assignment]
        options = {**said, **options}
    method = ALIGNMENTS.get(by)
    graph, models = _read(graph, models, example, data)
    if isinstance(reference, int) and not 0 <= reference < len(models):
        raise InputError(f"reference model {reference} of {len(models)}", hint="models are counted from 0")
    if "data" in method.needs and data is None:
        raise InputError(f"{by} needs calibration data", hint="pass data=, an iterable of inputs")
    parameters = inspect.signature(method.function).parameters
    method.check_options(options)
    options = numbers(method.function, checked(by, method.function, options))
    given: dict[str, object] = {"data": data} if "data" in parameters and data is not None else {}
    states = [m.state_dict() if isinstance(m, nn.Module) else m for m in models]
    graphs = [graph] * len(states) if isinstance(graph, SymmetryGraph) else list(graph)
    if not isinstance(graph, SymmetryGraph):
        given["graphs"] = graphs
        check_graphs(by, method.function, graphs, states)
    for index, state in enumerate(states):
        if "graphs" not in given:
            files.check_same(states[0], state, ("models[0]", f"models[{index}]"))
        files.check_finite(state, f"models[{index}]")

    def run(chosen: Sequence[Mapping[str, Tensor]], stays: int) -> Alignment:
        return method.function(graphs[stays], chosen, reference=stays, **given, **options)

    if isinstance(reference, int):
        return run(states, reference)
    from isthmus.align.references import by_reference  # it makes alignments of alignments

    if reference == "universe" and "graphs" in given:
        raise InputError("models of several widths have no mean", hint="choose a model as the reference")
    return by_reference(reference, run, states, score, int(str(options.get("seed", 0))))


def _read(
    graph: SymmetryGraph | Sequence[SymmetryGraph | nn.Module | Mapping[str, Tensor]],
    models: Sequence[Mapping[str, Tensor] | nn.Module] | None,
    example: Inputs | None,
    data: Iterable[object] | None,
) -> tuple[SymmetryGraph | list[SymmetryGraph], Sequence[Mapping[str, Tensor] | nn.Module]]:
    """Graphs and models, also where the models came alone.

    Raises:
        InputError: there is no graph and it cannot be read.
    """
    several = [] if isinstance(graph, SymmetryGraph) else list(graph)
    graphs = [one for one in several if isinstance(one, SymmetryGraph)]
    modules = [one for one in several if isinstance(one, nn.Module)]
    if isinstance(graph, SymmetryGraph) or (graphs and len(graphs) == len(several)):
        if models is None:
            raise InputError("there are symmetries but no models", hint="align(graph, models)")
        return graph if isinstance(graph, SymmetryGraph) else graphs, models
    if models is not None or not modules or len(modules) < len(several):
        raise InputError(
            "neither symmetries nor modules to read them off",
            hint="align(graph, models), graph from isthmus.trace(model, example); or align(modules, data=...)",
        )
    from isthmus.align.reading import read_symmetries  # it looks at alignments

    if example is None:
        if data is None:
            raise InputError(
                "the symmetries of modules are read with inputs, and there are none",
                hint="pass example= or data=; or a graph, isthmus.trace(model, example)",
            )
        example = first_example(data)
    return read_symmetries(modules, [module.state_dict() for module in modules], example)[0], modules


def of_several_widths() -> list[str]:
    """The methods that bring models of several widths together."""
    return [row.name for row in ALIGNMENTS.rows() if "graphs" in inspect.signature(row.function).parameters]


def check_graphs(
    by: str,
    function: Aligner,
    graphs: Sequence[SymmetryGraph],
    models: Sequence[Mapping[str, Tensor]],
) -> None:
    """Refuse graphs that are not of one structure, or a method that cannot take models of several widths.

    Raises:
        InputError: the method takes one graph only, or there is not one graph per model.
        MismatchError: the graphs do not have the same spaces and keys; all differences are listed.
    """
    if len(graphs) != len(models):
        raise InputError(
            f"{len(graphs)} graphs for {len(models)} models", hint="one graph each, or one for all"
        )
    if "graphs" not in inspect.signature(function).parameters:
        able = ", ".join(of_several_widths())
        raise InputError(f"{by} takes models of equal widths", hint=f"of other widths: {able}")
    problems: list[str] = []
    for index, other in enumerate(graphs[1:], start=1):
        for what, ours, theirs in (
            ("space", graphs[0].spaces, other.spaces),
            ("weight", graphs[0].layout, other.layout),
        ):
            problems += [f"{what} {name}: in models[0] only" for name in ours if name not in theirs]
            problems += [f"{what} {name}: in models[{index}] only" for name in theirs if name not in ours]
    if problems:
        raise MismatchError("the models are not of one structure", problems)


def permutations(graph: SymmetryGraph, orders: Mapping[str, Tensor]) -> Transport:
    """A transport out of index vectors."""
    return Transport(graph, {name: Permutation(index) for name, index in orders.items()})


def identity_orders(graph: SymmetryGraph) -> dict[str, Tensor]:
    """The order of every space that moves nothing."""
    orders: dict[str, Tensor] = {}
    for name, space in graph.spaces.items():
        sizes = [graph.spaces[outer].size for outer in space.within]
        orders[name] = torch.arange(space.size).expand(*sizes, -1).clone()
    return orders
