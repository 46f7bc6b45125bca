"""Least squares: every merged layer fitted, in closed form, to what the models do there on average."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from isthmus import progress
from isthmus.errors import InputError
from isthmus.features import feed, placed, windows
from isthmus.program import Batch, Program, home
from isthmus.repair.affine import in_order, written
from isthmus.repair.fitting import LayerPlace, Norm, NormPlace, Place, check, norm_of
from isthmus.repair.result import Change, Repaired
from isthmus.repair.selection import Layers, matching
from isthmus.repair.table import REPAIRS
from isthmus.repair.tape import HOLD, Tape
from isthmus.repair.targets import Aim, Averager, Models, target_of
from isthmus.repair.writers import Writer, kept_apart, writer_of

aten = torch.ops.aten


@REPAIRS.register(
    "least-squares",
    needs=("data", "models"),
    claims=("unmerged-is-identity", "batching-free", "seeded"),
    costs="a run of all models beside the merged network, and per layer a system of channels x kernel unknowns",
    source="isthmus; layers fitted to a teacher's as in FitNets (arXiv:1412.6550) and RegMean (arXiv:2212.09849)",
)
def least_squares(
    program: Program,
    weights: Mapping[str, Tensor],
    data: Iterable[object],
    *,
    models: Models,
    layers: Layers = "all",
    ridge: float = 1e-3,
    rank: int | None = None,
    aim: Aim = "layer",
    device: torch.device | str | None = None,
    limit: int | None = None,
) -> Repaired:
    """Fit layer after layer to the average of what the models do there, from what the merged network feeds it.

    For each linear and conv operation, in order of execution: x is what it reads in the merged network as repaired so
    far, t the weighted average of the models' values at its output. Its weights become gain * W + D, the gain of each
    row by itself first, then D, b = argmin E|(gain * W + D) x + b - t|^2 + ridge s |D|^2, where s is the mean variance
    of an input. No labels, no gradients, no new parameters; the outputs (logits) are fitted as well.

    A batch norm that alone reads the operation is part of the layer: what is fitted is the norm's output, and its
    statistics become those of the data. Other norms with a weight and bias per channel get both fitted by themselves.

    Args:
        program: of the merged model; where parts are kept apart, only merged layers are fitted.
        weights: its state dict; it is not changed.
        data: calibration data. It is held in memory, since all networks must see the same.
        models: the merged models.
        layers: "all", or names of values, or globs of module names.
        ridge: pull towards the averaged weights; positive.
        rank: of each layer's correction D, at most: 0 leaves the gains alone (and biases), None takes any.
        aim: "layer": the average of layers' outputs. "activation": where a ReLU or leaky ReLU reads the output, what
            makes its outputs their average: that of the rectified values where it is positive.
        device: where to run; None for where the weights are.
        limit: number of examples after which to stop.

    Returns:
        The new weights, and what was done. `left` of each change is the part of the target's variance that was
        not explained.

    Raises:
        InputError: an option out of range, or layers that do not exist.
        MismatchError: weights that do not fit the program.
        DataError: data that is empty or does not fit, or activations that are not finite.

    Source: ours. The pieces are old: targets from a teacher's layers (FitNets, arXiv:1412.6550), a merged layer by
        ridge regression on its inputs (RegMean, arXiv:2212.09849, with each model's own inputs in place of the
        merged network's), reduced-rank regression (Izenman 1975).
    """
    if not ridge > 0 or (rank is not None and rank < 0):
        raise InputError(
            "options of the repair are out of range",
            [f"ridge={ridge} (positive), rank={rank} (none, or not negative)"],
        )
    places, skipped = _places(program, models.program, layers, ridge, rank, aim)
    work = placed(program, weights, device)
    held = list(feed(data, "reading", limit))
    with torch.no_grad():
        changes = _fit(program, work, models, places, held, device)
    return Repaired(
        method="least-squares",
        weights=written(program, weights, work, changes, {}),
        program=program,
        changed=in_order(program, changes),
        scale_only=tuple(p.at for p in places if isinstance(p, LayerPlace) and not p.shifts),
        skipped=skipped,
        mode="sequential",
        examples=sum(batch.size for batch in held),
        batch_size=max((batch.size for batch in held), default=0),
    )


def _fit(
    program: Program,
    work: dict[str, Tensor],
    models: Models,
    places: list[Place],
    held: list[Batch],
    device: torch.device | str | None,
) -> list[Change]:
    """Measure and write one place after the other, the models' values beside the merged one's on every batch."""
    count = len(models.weights) + 1
    shown = {value for place in places for value in place.shown}
    tapes = [Tape(program, work, _on(held, work), shown, hold=HOLD // count)]
    targets = {p.target.value for p in places}
    for own, state in zip(models.programs, models.weights, strict=True):
        there = placed(own, state, device if device is not None else home(work)[0])
        tapes.append(Tape(own, there, _on(held, there), targets, hold=HOLD // count))
    changes: list[Change] = []
    for place in progress.track(places, "least squares", total=len(places), unit="layers"):
        average = Averager(models, place.target)
        wanted = place.target.value
        merged = tapes[0].advance(place.at, place.shown)
        there = [tape.advance(wanted, (wanted,)) for tape in tapes[1:]]
        for values, *others in zip(merged, *there, strict=True):
            place.add(values, average([found[wanted] for found in others]))
        check(place)
        changes.append(place.write(work))
    return changes


def _on(held: list[Batch], weights: Mapping[str, Tensor]) -> Callable[[], Iterator[Batch]]:
    where, dtype = home(weights)
    return lambda: (batch.to(where, dtype) for batch in held)


def _places(
    program: Program, parent: Program, layers: Layers, ridge: float, rank: int | None, aim: Aim
) -> tuple[list[Place], dict[str, str]]:
    """What is fitted, in order of execution, and what is left with the reason."""
    writers = {
        name: w for name in program.nodes if program.is_tensor(name) and (w := writer_of(program, name))
    }
    writers = {name: w for name, w in writers.items() if program.weights.get(w.weight) not in program.bridges}
    norms = {name: n for name, node in program.nodes.items() if (n := norm_of(program, node)) is not None}
    taken = matching(program, [name for name in program.nodes if name in writers or name in norms], layers)
    places: dict[str, Place] = {}
    skipped: dict[str, str] = {}
    behind: set[str] = set()
    for name in taken:
        if kept_apart(name):
            skipped[name] = "it is kept apart, not merged"
        elif name not in parent.nodes:
            skipped[name] = "the models have no such value"
        elif name in writers:
            found = _layer(program, writers[name], norms, ridge, rank, aim)
            if isinstance(found, str):
                skipped[name] = found
                continue
            places[name] = found
            behind |= {found.norm.value} if found.norm is not None else set()
    for name in taken:
        if name in norms and name not in behind and name not in skipped:
            target = target_of(program, name, norms[name].axis, aim)
            places[name] = NormPlace(program, norms[name], target)
    return [places[name] for name in program.nodes if name in places], skipped


def _layer(
    program: Program, writer: Writer, norms: Mapping[str, Norm], ridge: float, rank: int | None, aim: Aim
) -> LayerPlace | str:
    """How a layer is fitted; a reason where it cannot be."""
    node = program.nodes[writer.value]
    shown = windows(program, node)
    if writer.obstacle:
        return writer.obstacle
    if shown is None and node.target not in _MATRICES:
        return "a transposed convolution, or one without a batch dimension"
    source = next(
        (a for a in node.all_input_nodes if a.name in program.dynamic and program.is_tensor(a.name)), None
    )
    assert source is not None, f"{writer.value} reads an activation"
    rank_of = len(program.size(source.name))
    left = node.target in _PRODUCTS and node.args[0] is not source
    axis = 1 if shown is not None else rank_of - 2 if left else rank_of - 1
    readers = list(node.users)
    norm = norms.get(readers[0].name) if len(readers) == 1 else None
    if norm is not None and (norm.statistics is None or norm.axis != writer.axis):
        norm = None
    target = target_of(program, norm.value if norm else writer.value, writer.axis, aim)
    patches, groups = shown if shown is not None else (None, 1)
    return LayerPlace(program, writer, (source.name, axis), patches, groups, norm, target, ridge, rank)


_PRODUCTS = {aten.mm.default, aten.matmul.default}
_MATRICES = {*_PRODUCTS, aten.linear.default, aten.addmm.default}
