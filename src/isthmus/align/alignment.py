"""What an alignment is, and the one door to all of its methods."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from isthmus import weights as files
from isthmus.errors import InputError
from isthmus.maps import Permutation, Transport
from isthmus.registry import Registry
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
    """

    method: str
    graph: SymmetryGraph
    transports: tuple[Transport, ...]
    reference: int = 0
    costs: tuple[Cost, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    status: str = "converged"

    def apply(self, models: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Move each model by its transport.

        Args:
            models: their state dicts, in the order they were aligned in.
        """
        if len(models) != len(self.transports):
            raise InputError(f"{len(models)} models for an alignment of {len(self.transports)}")
        return [t.apply(weights) for t, weights in zip(self.transports, models, strict=True)]

    def save(self, folder: str | Path) -> None:
        """Write `alignment.json`, and the maps of each model that moves as `maps-{i}.safetensors`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for index, transport in enumerate(self.transports):
            if transport.maps:
                transport.save(folder / f"maps-{index}.safetensors")
        described = {
            "method": self.method,
            "models": len(self.transports),
            "moved": [index for index, transport in enumerate(self.transports) if transport.maps],
            "reference": self.reference,
            "status": self.status,
            "notes": list(self.notes),
            "settings": {
                k: v if isinstance(v, (int, float, bool)) else str(v) for k, v in self.settings.items()
            },
            "costs": [cost.__dict__ for cost in self.costs],
        }
        with files.atomic(folder / "alignment.json") as file:
            file.write(json.dumps(described, indent=2).encode())

    @staticmethod
    def load(folder: str | Path, graph: SymmetryGraph) -> Alignment:
        """Read an alignment back, for a graph of the same model."""
        folder = Path(folder)
        described = json.loads((folder / "alignment.json").read_text())
        return Alignment(
            described["method"],
            graph,
            tuple(
                Transport.load(folder / f"maps-{i}.safetensors", graph)
                if i in described["moved"]
                else Transport(graph, {})
                for i in range(described["models"])
            ),
            described["reference"],
            tuple(Cost(**cost) for cost in described["costs"]),
            described["settings"],
            tuple(described["notes"]),
            described["status"],
        )

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

ALIGNMENTS: Registry[Aligner] = Registry("alignment", package="isthmus.align")


def align(
    graph: SymmetryGraph,
    models: Sequence[Mapping[str, Tensor] | nn.Module],
    by: str | Mapping[str, object] = "activation-matching",
    *,
    data: Iterable[object] | None = None,
    reference: int = 0,
    **options: object,
) -> Alignment:
    """Choose a map for every space of every model.

    Args:
        graph: the symmetries of the models' architecture.
        models: modules or their state dicts.
        by: a method's name, or `{"method": name, option: value, ...}`.
        data: calibration data, for methods that need it.
        reference: index of the model that stays.
        options: of the method; see its docstring.

    Raises:
        InputError: no such method or option, or data is missing.
    """
    if isinstance(by, Mapping):
        options = {**{k: v for k, v in by.items() if k != "method"}, **options}
        by = str(by.get("method", ""))
    method = ALIGNMENTS.get(by)
    if not 0 <= reference < len(models):
        raise InputError(f"reference model {reference} of {len(models)}", hint="models are counted from 0")
    if "data" in method.needs and data is None:
        raise InputError(f"{by} needs calibration data", hint="pass data=, an iterable of inputs")
    known = [
        n
        for n, p in inspect.signature(method.function).parameters.items()
        if p.kind is p.KEYWORD_ONLY and n not in ("data", "reference")
    ]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InputError(
            f"{by} has no option {', '.join(map(repr, unknown))}",
            hint=f"it takes {', '.join(known) or 'none'}",
        )
    given = {"data": data} if "data" in method.needs else {}
    states = [m.state_dict() if isinstance(m, nn.Module) else m for m in models]
    for index, state in enumerate(states):
        files.check_same(states[0], state, ("models[0]", f"models[{index}]"))
        files.check_finite(state, f"models[{index}]")
    return method.function(graph, states, reference=reference, **given, **options)


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
