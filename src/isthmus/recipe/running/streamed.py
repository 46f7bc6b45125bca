"""Models brought to one order of units as they stream from their files, a few layers at a time.

Matching writes, for every weight that moves, the old position of each new one; the merge then reads that weight through
them. No aligned copy of a model is ever made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isthmus.errors import InputError
from isthmus.recipe.language.aligning import ByParts
from isthmus.recipe.parents.parent import Parent
from isthmus.recipe.planning.alignment import reference_of
from isthmus.recipe.planning.planned import Planned
from isthmus.recipe.running.aligned import Aligned

if TYPE_CHECKING:
    from torch import Tensor

    from isthmus.align import Alignment
    from isthmus.symmetry import SymmetryGraph
    from isthmus.weights.stored import Stored


def align(plan: Planned, file: Path, threads: int | None) -> Aligned:
    """Match every model to the reference, or take up what an interrupted run has found.

    Args:
        plan: whose recipe asks for an alignment.
        file: where orders are kept.
        threads: to match with.

    Raises:
        VerificationError: the symmetries could not be verified.
        InputError: the graph does not fit the models, or was never verified.
    """
    from isthmus import weights
    from isthmus.align.by_parts import weight_matching_by_parts

    wanted = plan.recipe.isthmus.align
    assert isinstance(wanted, ByParts)
    reference = reference_of(plan.recipe, plan.parents)
    opened = {name: weights.open(parent.path) for name, parent in plan.parents.items()}
    known = json.dumps(
        [
            wanted.model_dump(mode="json"),
            plan.recipe.isthmus.seed,
            reference,
            "" if plan.graph is None else hashlib.sha256(plan.graph.read_bytes()).hexdigest(),
            [[name, repr(weights.identify(tensors))] for name, tensors in opened.items()],
        ]
    )
    key = hashlib.sha256(known.encode()).hexdigest()
    if (found := _kept(file, key)) is not None:
        return found
    graph, said = read_graph(plan.graph, plan.parents[reference])
    names = {} if plan.graph is not None else _file_names(graph, plan.parents[reference], opened[reference])
    seen = {name: _Renamed(tensors, names) if names else tensors for name, tensors in opened.items()}
    alignment = weight_matching_by_parts(
        graph,
        list(seen.values()),
        reference=list(opened).index(reference),
        seed=plan.recipe.isthmus.seed,
        max_sweeps=wanted.max_sweeps,
        residual=wanted.residual,
        threads=threads,
    )
    lines = [f"symmetries {said}", *told(alignment, list(opened), reference)]
    lines += [note for note in alignment.notes if " stays: " in note]
    tensors, orders = _orders(alignment, seen, names)
    described = {
        "isthmus.key": key,
        "isthmus.orders": json.dumps([[*place, dims] for place, dims in orders.items()]),
        "isthmus.told": json.dumps(lines),
    }
    weights.save(tensors, file, metadata=described)
    return Aligned({"orders": file}, tuple(lines), orders)


def _kept(file: Path, key: str) -> Aligned | None:
    """What an interrupted run of the same recipe on the same files has found."""
    from isthmus import weights

    with contextlib.suppress(InputError, ValueError, KeyError, TypeError):
        notes = weights.metadata(file) if file.is_file() else {}
        if notes.get("isthmus.key") == key:
            orders = {
                (model, name): [(dim, index) for dim, index in dims]
                for model, name, dims in json.loads(notes["isthmus.orders"])
            }
            return Aligned({"orders": file}, tuple(json.loads(notes["isthmus.told"])), orders)
    return None


def read_graph(file: Path | None, parent: Parent) -> tuple[SymmetryGraph, str]:
    """The symmetries of a file or of a configuration, and how they are known to hold.

    Args:
        file: that a recipe names, if any.
        parent: whose configuration it is otherwise.

    Raises:
        VerificationError: the symmetries could not be verified.
        InputError: the file holds none, or some that were never verified.
    """
    if file is None:
        from isthmus.symmetry.from_config import symmetries_of

        graph, verification = symmetries_of(str(parent.folder))
        return graph, f"of config.json, {verification}".splitlines()[0]
    from isthmus.symmetry import saved

    graph = saved.load(file)
    said = str(getattr(graph.program, "verification", ""))
    if not said:
        raise InputError(
            f"{file} was never verified, and what it says may be wrong",
            hint="write it again without --no-check: isthmus symmetry MODEL --save FILE",
        )
    return graph, f"of {file.name}, {said}".splitlines()[0]


def _file_names(graph: SymmetryGraph, parent: Parent, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name in the model -> name in its files, where they are not the same (see `stored_names`)."""
    if all(key in tensors for key in graph.layout):
        return {}
    import torch

    from isthmus.program.pretrained import pretrained, stored_names

    with torch.device("meta"):
        model, _ = pretrained(str(parent.folder)).make({})
    return stored_names(model)


class _Renamed(Mapping[str, "Tensor"]):
    """A checkpoint under the names of the model that loads it, read as lazily."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]):
        self._tensors = tensors
        self._names = {name: stored for name, stored in names.items() if stored in tensors}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def stored(self, name: str) -> Stored:
        """A tensor as it lies in its file."""
        from isthmus.weights import stored

        return stored(self._tensors, self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def told(alignment: Alignment, names: Sequence[str], reference: str) -> Iterator[str]:
    """How well each model agrees with the reference, before and after.

    Args:
        alignment: of the models.
        names: of the models.
        reference: the name of the one that stays.
    """
    for index, name in enumerate(names):
        costs = [cost for cost in alignment.costs if cost.model == index]
        if costs:
            before, after = (
                sum(values) / len(costs) for values in zip(*((c.before, c.after) for c in costs), strict=True)
            )
            yield (
                f"{name} aligned to {reference}: {len(costs)} spaces, {costs[0].unit} {before:.4f} -> {after:.4f}, "
                f"{alignment.status}"
            )


def _orders(
    alignment: Alignment, opened: Mapping[str, Mapping[str, Tensor]], stored: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[tuple[str, str], list[tuple[int, str]]]]:
    """Index tensors, each once, and which dimension of which weight takes which."""
    import torch

    from isthmus.align.by_parts import indices

    graph = alignment.graph
    tensors: dict[str, Tensor] = {
        "none": torch.empty(0, dtype=torch.int32)
    }  # a file holds one tensor at least
    keys: dict[bytes, str] = {}
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for (model, weights), transport in zip(opened.items(), alignment.transports, strict=True):
        moved = {
            name: order
            for name, order in transport.orders.items()
            if not torch.equal(order, torch.arange(order.shape[-1]).expand_as(order))
        }
        for name in weights:
            key = graph.program.tied.get(name, name)
            for dim, index in indices(graph, moved, key).items() if key in graph.layout else ():
                narrow = index.to(torch.int32)
                digest = hashlib.sha256(narrow.numpy().tobytes()).digest()
                if digest not in keys:
                    keys[digest] = str(len(keys))
                    tensors[keys[digest]] = narrow
                found.setdefault((model, stored.get(name, name)), []).append((dim, keys[digest]))
    return tensors, found
