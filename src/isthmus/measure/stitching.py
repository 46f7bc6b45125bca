"""Model stitching: whether one network's layers can go on with what another one's have made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import get_args

from jaxtyping import Float
from torch import Tensor

from isthmus.errors import InputError
from isthmus.features import placed
from isthmus.measure.answers import Weights
from isthmus.measure.evaluation import evaluate
from isthmus.measure.finding import Finding
from isthmus.measure.places import At, Place, pairs_of
from isthmus.measure.seam import Norms, Seam
from isthmus.measure.stitches import Kind, rank_of
from isthmus.program import Program
from isthmus.repair.selection import norms_of


@dataclass(frozen=True, eq=False)
class Stitch:
    """The map from one network's channels to another's at one pair of places: x -> matrix x + bias.

    Attributes:
        place: where the layers that go on begin.
        source: where the layers that come before end.
        matrix: (channels of the place, channels of the source).
        bias: per channel of the place; zeros without one.
        accuracy: of the stitched network, a fraction.
    """

    place: Place
    source: Place
    matrix: Float[Tensor, "own others"]
    bias: Float[Tensor, " own"]
    accuracy: float


@dataclass(frozen=True, eq=False)
class Stitched:
    """Two networks stitched together at several places.

    Attributes:
        kind: "affine", "rank 4", "relu" (an order and positive scales), ...
        stitches: one per place, in order of execution.
        accuracies: of the two networks, fractions.
        left_out: places where the networks cannot be cut, with the reason.
        note: how it was measured.
    """

    kind: str
    stitches: tuple[Stitch, ...]
    accuracies: tuple[float, float]
    left_out: dict[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def penalties(self) -> dict[str, float]:
        """Label of a place -> mean accuracy of the two networks less that of the stitched one, in per cent."""
        mean = sum(self.accuracies) / 2
        return {stitch.place.label: 100 * (mean - stitch.accuracy) for stitch in self.stitches}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The penalties; their value is the mean."""
        found = self.penalties
        if not found:
            return ()
        mean = sum(found.values()) / len(found)
        return (
            Finding(
                f"stitching penalty ({self.kind})", mean, "%", "lower", (-100.0, 100.0), found, self.note
            ),
        )


def stitch(
    a: Program,
    weights_a: Weights,
    b: Program,
    weights_b: Weights,
    data: Iterable[object],
    validation: Iterable[object],
    *,
    at: Sequence[At | tuple[At, At]] | None = None,
    kinds: Sequence[Kind] = ("affine", "relu"),
    bias: bool = True,
    ridge: float = 1e-6,
    norms: Norms = "refresh",
    epochs: int = 0,
    learning_rate: float = 1e-3,
    limit: int | None = None,
) -> tuple[Stitched, ...]:
    """Run network b up to a place, map its channels, and go on with network a; the map alone is fitted.

    The map is the least-squares solution from b's activations to a's, over examples and positions: affine; affine of a
    rank; or what ReLU lets through, an order (by correlation) with positive scales. With `epochs` it is then trained on
    the cross-entropy of the stitched network, an order staying as it is.

    Args:
        a: the program whose layers go on.
        weights_a: its weights.
        b: the program whose layers come first, perhaps of another architecture.
        weights_b: its weights.
        data: calibration data: inputs, or (inputs, targets) to train on.
        validation: (inputs, targets) that the penalty is measured on.
        at: places; see `isthmus.measure.places.pairs_of`. Both must be cuts: all paths from the input go through them,
            so that a residual stream can be cut between blocks and not inside one.
        kinds: "affine", "rank 1" (any whole number), "relu", and "identity", which fits nothing.
        bias: whether the map adds something per channel.
        ridge: added to the diagonal of b's second moments, relative to its mean.
        norms: what batch norms behind the seam normalise with: "refresh": statistics taken anew from what reaches them
            there, batch by batch, as RESET does (while training, the batch's own); "keep": those of a.
        epochs: passes over the data to train for, by Adam.
        learning_rate: of that.
        limit: number of calibration examples after which to stop.

    Returns:
        One result per kind.

    Raises:
        InputError: places that are not there, an unknown kind, widths that do not fit it, or no place to cut.
        DataError: data that is empty or does not fit, or activations that are not finite.

    Source: Bansal et al. 2021 (arXiv:2106.07682) for stitching and its penalty; Godfrey et al. 2022 (arXiv:2205.14258),
        section 4, for G_ReLU. There maps are trained only, for 20 epochs and without bias, the order by a doubly
        stochastic matrix; batch norms go on moving their statistics, as here with norms="refresh".

    Examples:
        >>> import torch
        >>> from isthmus.program import export
        >>> from isthmus.zoo import MLP
        >>> net, x = MLP(d_in=3, widths=(5, 4), num_classes=2), torch.randn(64, 3)
        >>> data = [(x, net(x).argmax(1))]
        >>> program, weights = export(net, x), net.state_dict()
        >>> (found,) = stitch(program, weights, program, weights, data, data, kinds=["identity"])
        >>> found.findings[0].value
        0.0
    """
    ranks = {kind: rank_of(kind) for kind in kinds}
    if ridge < 0 or epochs < 0 or not learning_rate > 0 or not kinds or norms not in get_args(Norms):
        raise InputError(
            "options of the stitching are out of range",
            [
                f"{ridge=} (not negative), {epochs=} (not negative), {learning_rate=} (positive), {len(kinds)} kinds",
                f"{norms=} ({' or '.join(get_args(Norms))})",
            ],
        )
    pairs, left = _cuts(a, b, pairs_of(a, b, at))
    own, other = placed(a, weights_a, None), placed(b, weights_b, None)
    ends = evaluate(a, validation, own).accuracy, evaluate(b, validation, other).accuracy
    found: dict[Kind, list[Stitch]] = {kind: [] for kind in kinds}
    examples = 0
    for place, source in pairs:
        seam = Seam(a, own, place, b, other, source, norms)
        sums, examples = seam.sums(data, limit)
        for kind in kinds:
            matrix, shift = sums.fitted(kind, ranks[kind], bias=bias, ridge=ridge, where=place.label)
            if epochs and kind != "identity":
                matrix, shift = seam.trained(
                    matrix, shift, data, limit, (kind, ranks[kind]), bias, epochs, learning_rate
                )
            seam.refresh(matrix, shift, data, limit)
            found[kind].append(Stitch(place, source, matrix, shift, seam.accuracy(matrix, shift, validation)))
    how = f"least squares, {examples} examples" + (f", {epochs} epochs of Adam" if epochs else "")
    how += f", {'with' if bias else 'without'} bias"
    if norms_of(a):
        how += f", batch norms {'taken anew' if norms == 'refresh' else 'as they were'}"
    return tuple(Stitched(kind, tuple(stitches), ends, left, how) for kind, stitches in found.items())


def _cuts(
    a: Program, b: Program, pairs: Sequence[tuple[Place, Place]]
) -> tuple[list[tuple[Place, Place]], dict[str, str]]:
    """The pairs at which both networks can be cut, and why not at the others."""
    kept, left = [], {}
    for place, source in pairs:
        if _passes(a, place.value):
            left[place.label] = "other paths lead past it"
        elif len(a.size(place.value)) != len(b.size(source.value)):
            left[place.label] = f"{a.size(place.value)} and {b.size(source.value)} are of different kinds"
        else:
            kept.append((place, source))
    if not kept:
        raise InputError(
            "there is no place to cut", [f"{k}: {why}" for k, why in left.items()], hint="see at="
        )
    return kept, left


def _passes(program: Program, value: str) -> bool:
    """Whether the outputs can be reached from the inputs past a value."""
    stack = [program.nodes[name] for name in program.outputs if name is not None]
    seen: set[str] = set()
    while stack:
        node = stack.pop()
        if node.name in seen or node.name == value:
            continue
        seen.add(node.name)
        if node.name in program.inputs and program.is_tensor(node.name):
            return True
        stack.extend(n for n in node.all_input_nodes if program.is_tensor(n.name))
    return False
