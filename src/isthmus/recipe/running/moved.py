"""Models brought together by any registered alignment: held whole, moved, and written once to be merged from there.

What they are moved by is what `isthmus.merge` moves them by, the models' weights included where units are grouped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from isthmus import weights
from isthmus.align import ALIGNMENTS, Alignment, resizing
from isthmus.align import align as align_models
from isthmus.combine import ARITHMETIC
from isthmus.errors import InputError, WeightsError
from isthmus.recipe.planning.alignment import AVERAGES, Moving, reference_of
from isthmus.recipe.planning.planned import Planned
from isthmus.recipe.running.aligned import Aligned
from isthmus.recipe.running.bench import Bench
from isthmus.recipe.running.shares import shares
from isthmus.recipe.running.streamed import read_graph, told
from isthmus.recipe.running.texts import Batches
from isthmus.symmetry import SymmetryGraph, trace, verified
from isthmus.zoo import Loader

Weights = Mapping[str, Tensor]


def move(
    plan: Planned, file: Path, maps: Path, parents: Mapping[str, Weights], bench: Bench | None
) -> Aligned:
    """Bring models together, or take up what an interrupted run has written.

    Args:
        plan: whose models are held whole.
        file: beside which moved models lie, a file each.
        maps: where the alignment lies, if a repair asks for it once more.
        parents: each model's tensors as the merge reads them.
        bench: what they are run in and on; None where symmetries are read off a file and nothing is run.

    Raises:
        ExportError, VerificationError: the symmetries cannot be read, or not rightly.
        InputError: as the method; or the merged network would have other sizes.
        DataError: the data is empty or does not fit.
        WeightsError: a moved weight is not finite.
    """
    moving = plan.moving
    assert moving is not None
    key = _key(plan, moving, bench)
    names = list(parents)
    files = {name: file.with_suffix(f".{index}.safetensors") for index, name in enumerate(names)}
    goals = plan.after is not None and plan.after.goals
    if (lines := _kept(list(files.values()), key)) is not None and (maps.is_file() or not goals):
        known = None
        if goals:
            known = Alignment.load(
                maps, _symmetries(plan, moving, bench, _state(parents[names[0]], bench))[0]
            )
        return _aligned(files, lines, known)
    states = [_state(parents[name], bench) for name in names]
    for name, state in zip(names, states, strict=True):
        weights.check_finite(state, name)
    with _one_thread():
        graph, said = _symmetries(plan, moving, bench, states[0])
        for state in states:  # files leave out the names of tied weights
            tied = graph.program.tied.items()
            state |= {own: state[other] for other, own in tied if other in state and own not in state}
        alignment = _found(plan, moving, bench, graph, states)
        if goals:
            alignment.save(maps)
        lines = [f"symmetries {said}", *told(alignment, names, names[alignment.reference]), *alignment.notes]
        notes = {"isthmus.key": key, "isthmus.told": json.dumps(lines)}
        wanted = [row.name for row in plan.rows]
        for name, transport in zip(names, alignment.weighted(_weights(plan)), strict=True):
            found = transport.apply(states.pop(0))
            weights.check_finite(found, f"{name}, moved")
            stored = {own if bench is None else bench.stored(own): tensor for own, tensor in found.items()}
            floats = {n: stored[n].contiguous() for n in wanted if stored[n].is_floating_point()}
            weights.save(floats, files[name], metadata=notes)
    return _aligned(files, lines, alignment)


def _found(
    plan: Planned, moving: Moving, bench: Bench | None, graph: SymmetryGraph, states: Sequence[Weights]
) -> Alignment:
    """The alignment that is asked for."""
    by: dict[str, object] = {"method": moving.method, **moving.options}
    if "seed" in ALIGNMENTS.get(moving.method).options:
        by.setdefault("seed", plan.recipe.isthmus.seed)
    reference = list(plan.parents).index(reference_of(plan.recipe, plan.parents))
    data = bench.calibration if moving.data and bench is not None else None
    alignment = align_models(graph, states, by, data=data, reference=reference)
    _check(plan, alignment)
    return alignment


def _weights(plan: Planned) -> list[float]:
    """What moved models are averaged with, where they are: units of several models are made by it."""
    part = shares(plan)
    return [part.get(name, 0.0) for name in plan.parents]


def _state(tensors: Weights, bench: Bench | None) -> dict[str, Tensor]:
    """A model as it is aligned: whole, in float32 at least, under the names that its symmetries have."""
    whole = {name: tensors[name] for name in tensors}
    if bench is not None:
        return bench.fitted(whole)
    return {
        name: tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor
        for name, tensor in whole.items()
    }


def _symmetries(
    plan: Planned, moving: Moving, bench: Bench | None, state: Weights
) -> tuple[SymmetryGraph, str]:
    """The symmetries, and how they are known to hold."""
    if moving.symmetries == "program":
        assert bench is not None
        example = bench.example
        graph, verification = verified(
            trace(bench.model, example), example, weights=state, seed=plan.recipe.isthmus.seed
        )
        return graph, f"of {plan.recipe.isthmus.model or 'config.json'}, {verification}".splitlines()[0]
    return read_graph(plan.graph, plan.parents[reference_of(plan.recipe, plan.parents)])


def _check(plan: Planned, alignment: Alignment) -> None:
    """What no plan can know: how large the merged network is, and whether its units are groups.

    Raises:
        InputError: it has other sizes than its parents, or groups that do not meet by weighted average.
    """
    if grown := resizing(alignment):
        sizes = {name: space.size for name, space in alignment.graph.spaces.items()}
        raise InputError(
            f"by {alignment.method} the network changes its widths, and a merged folder holds tensors of its "
            "parents' shapes",
            [f"{name}: {sizes[name]} -> {size} units" for name, size in grown.items()],
            hint="in Python, isthmus.merge(models, align=...) returns such a network as a module of its own",
        )
    if alignment.through and plan.method.rule not in AVERAGES:
        raise InputError(
            f"{alignment.method} groups units, so the models meet by weighted average, not by "
            f"{plan.recipe.merge_method}"
        )


def _key(plan: Planned, moving: Moving, bench: Bench | None) -> str:
    """What the moved models depend on."""
    rig, files = plan.rig, [value for value in moving.options.values() if isinstance(value, Path)]
    files += [] if plan.graph is None else [plan.graph]
    paths = [path for p in plan.parents.values() for path in (p.path, p.adapter.path if p.adapter else None)]
    known = [
        plan.text,
        torch.__version__,
        ARITHMETIC,
        [] if rig is None else [rig.config, rig.tokenizer],
        "" if bench is None or bench.data is None else _content(bench.calibration),
        [hashlib.sha256(file.read_bytes()).hexdigest() for file in files],
        [repr(weights.identify(path)) for path in paths if path is not None],
    ]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _content(batches: Loader | Batches) -> str:
    """What data is, example by example."""
    digest = hashlib.sha256()
    for inputs, targets in batches:
        digest.update(weights.digest({"inputs": inputs, "targets": targets}).encode())
    return digest.hexdigest()


def _kept(files: Sequence[Path], key: str) -> list[str] | None:
    """What was told by an interrupted run of the same recipe on the same files; None where there was none."""
    with contextlib.suppress(InputError, WeightsError, ValueError, KeyError):
        notes = [weights.metadata(file) for file in files if file.is_file()]
        if len(notes) == len(files) and all(note.get("isthmus.key") == key for note in notes):
            return list(json.loads(notes[0]["isthmus.told"]))
    return None


def _aligned(files: Mapping[str, Path], lines: Sequence[str], alignment: Alignment | None) -> Aligned:
    held = weights.open(next(iter(files.values())))
    moved = {name: held[name].dtype for name in held}
    return Aligned(files, tuple(lines), moved=moved, alignment=alignment)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums over activations are rounded in another order on other numbers of threads: the bytes would tell."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
