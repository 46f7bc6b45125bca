"""The vanishing-feature profile: how much of the input is still seen at each layer of a merged model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.errors import InputError
from isthmus.features import explained, feed, placed, sinks, working_dtype
from isthmus.measure.answers import Weights
from isthmus.measure.finding import Finding
from isthmus.measure.layers import At, Layers, batch_dim, shared_layers
from isthmus.measure.sequence import GAMMA, upper_bound
from isthmus.program import Batch, Inputs, Program, example_of, home


@dataclass(frozen=True)
class Vanishing:
    """Feature norms of a merged model beside those of its parents, layer by layer.

    A layer's features are what of its output depends on the input: g(x) = f(x) - f(0). Norms are root
    mean squares over the units of a layer, in the units of its output, averaged over examples.

    Attributes:
        layers: labels, in order of execution.
        merged: norm of g at each layer of the merged model.
        parents: the same of each parent.
        merged_offset: norm of f(0), the bias term, at each layer of the merged model.
        parent_offsets: the same of each parent.
        examples: size of the split.
        split: the caller's name for the data.
        left_out: layers that are not measured (kept apart, or without a batch dimension).
    """

    layers: tuple[str, ...]
    merged: tuple[float, ...]
    parents: tuple[tuple[float, ...], ...]
    merged_offset: tuple[float, ...]
    parent_offsets: tuple[tuple[float, ...], ...]
    examples: int
    split: str = "data"
    left_out: int = 0

    @property
    def strength(self) -> tuple[float, ...]:
        """E_l: the merged model's norm of g over the mean of its parents', at each layer."""
        means = (sum(norms) / len(self.parents) for norms in zip(*self.parents, strict=True))
        # Where the parents see nothing either, nothing has vanished.
        return tuple(m / p if p else inf if m else 1.0 for m, p in zip(self.merged, means, strict=True))

    @property
    def dominance(self) -> tuple[float, ...]:
        """|f(0)| over the mean of |f(x) - f(0)| at each layer: above 1 the biases outweigh the input."""
        return tuple(map(_over, self.merged_offset, self.merged))

    @property
    def parent_dominance(self) -> tuple[float, ...]:
        """The same of the parents, their mean at each layer."""
        rows = [map(_over, h, g) for h, g in zip(self.parent_offsets, self.parents, strict=True)]
        return tuple(sum(values) / len(values) for values in zip(*rows, strict=True))

    def bound(self, gamma: float | None = None) -> tuple[float, ...]:
        """The bound eps_l: the strongest layer from l on; see `isthmus.measure.upper_bound`.

        Args:
            gamma: None for the plain bound; a number for the smoothed one.
        """
        return upper_bound(self.strength, gamma)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """E_l (its value: the last layer), the plain and the smoothed bound (their value: the first), the offset.

        None where all is kept apart.
        """
        if not self.layers:
            return ()
        left_out = f", {self.left_out} layers left out" if self.left_out else ""
        place = f"{self.split}: {self.examples} examples, {len(self.parents)} parents{left_out}"

        def profile(
            name: str, values: Sequence[float], at: int, better: Literal["higher", "lower"], meaning: str
        ) -> Finding:
            by_layer = dict(zip(self.layers, values, strict=True))
            return Finding(name, values[at], "1", better, (0.0, None), by_layer, f"{meaning}; {place}")

        offset = f"|f(0)| over |f(x) - f(0)|, parents {self.parent_dominance[-1]:.3g}"
        return (
            profile(
                "vanishing features", self.strength, -1, "higher", "|f(x) - f(0)| over that of the parents"
            ),
            profile("vanishing bound", self.bound(), 0, "higher", "running maximum from the last layer"),
            profile(
                "smoothed vanishing bound",
                self.bound(GAMMA),
                0,
                "higher",
                f"running maximum, gamma' = {GAMMA}",
            ),
            profile("bias dominance", self.dominance, -1, "lower", offset),
        )


def vanishing(
    program: Program,
    merged: Weights,
    parents: Sequence[Weights],
    data: Iterable[object],
    *,
    merged_program: Program | None = None,
    origin: Inputs | None = None,
    at: At = "layers",
    split: str = "data",
) -> Vanishing:
    """Measure at every layer how much of the input is left: definition 5.1.

    One pass over the data, all models side by side on the same batches; nothing is stored but sums.

    Args:
        program: the program of one parent.
        merged: weights of the merged model.
        parents: weights of each parent, aligned or not (norms do not see the order of units).
        data: yields inputs, or (inputs, targets), normalised as in training. Targets are not used.
        merged_program: the merged model's own program, where it keeps parts apart. What is merged is
            measured; branches and the values at which they meet are left out.
        origin: the input that counts as nothing, one example; None for zeros, which is the mean image
            of normalised data. Needed where an input is not floating (token ids).
        at: where to look. "layers": outputs of linear and conv operations, before the norm behind them. "norms":
            outputs of norms, which may bring back what the layer lost. "both", in order of execution, is what
            the source's code records.
        split: what the data is, for the notes.

    Raises:
        InputError: no parent, or inputs that zeros make no sense for.

    Source: Qu and Horváth 2025 (arXiv:2402.05966), the definitions of g, E and eps. Their code takes means
        of batch means; here the mean is over examples. They normalise by two parents' mean; here it is that of all.

    Examples:
        >>> import torch
        >>> from isthmus.paths import Segment
        >>> from isthmus.program import export
        >>> a, b, x = torch.nn.Linear(300, 200), torch.nn.Linear(300, 200), torch.randn(8, 300)
        >>> parents = [a.state_dict(), b.state_dict()]
        >>> found = vanishing(export(a, x), Segment(*parents).at(0.5), parents, [x])
        >>> round(found.strength[0], 1)  # 1 / sqrt(2): the mean of two strangers is shorter
        0.7
    """
    if not parents:
        raise InputError("there is no parent to compare the merged model with")
    other = program if merged_program is None else merged_program
    layers = shared_layers(program, other, at)
    watched = [_Watched(other, merged, layers), *(_Watched(program, parent, layers) for parent in parents)]
    examples = 0
    for batch in feed(data, "vanishing features"):
        if not examples:
            nothing = _zeros(batch) if origin is None else example_of(origin)
            for model in watched:
                model.start(nothing)
        for model in watched:
            model.add(batch)
        examples += batch.size
    norms = [tuple(model.norm[name] / examples for name in layers.labels) for model in watched]
    offsets = [tuple(model.offset(name) for name in layers.labels) for model in watched]
    return Vanishing(
        layers=tuple(layers.labels.values()),
        merged=norms[0],
        parents=tuple(norms[1:]),
        merged_offset=offsets[0],
        parent_offsets=tuple(offsets[1:]),
        examples=examples,
        split=split,
        left_out=layers.left_out,
    )


def _over(offset: float, features: float) -> float:
    # Nothing over nothing: a layer without biases that sees nothing is not dominated by them.
    return offset / features if features else inf if offset else 0.0


class _Watched:
    """One model: its f(0), and the sum over examples of the norm of f(x) - f(0)."""

    def __init__(self, program: Program, weights: Weights, layers: Layers):
        self.program, self.weights = program, placed(program, weights, None)
        self.norm = dict.fromkeys(layers.labels, 0.0)
        self._nothing: dict[str, Tensor] = {}
        self._run = program.compile(sinks(program, layers.labels), taps=layers.labels)

    def start(self, nothing: Batch) -> None:
        """Run the input that counts as nothing, once."""

        def keep(name: str, value: Tensor) -> None:
            self._nothing[name] = self._per_example(name, value, 1)

        self._show(nothing, keep)

    def add(self, batch: Batch) -> None:
        """Add one batch; no value outlives its layer."""

        def count(name: str, value: Tensor) -> None:
            features = self._per_example(name, value, batch.size) - self._nothing[name]
            # A mean adds up pairwise; a norm over a long axis adds up naively, or slowly in float64.
            self.norm[name] += float(features.square().mean(1).double().sqrt().sum())

        self._show(batch, count)

    def offset(self, name: str) -> float:
        """Root mean square of f(0)."""
        return float(self._nothing[name].double().square().mean().sqrt())

    def _show(self, batch: Batch, tap: Callable[[str, Tensor], None]) -> None:
        here = batch.to(*home(self.weights))
        with torch.no_grad(), explained(self.program, here, "vanishing features"):
            self._run(self.weights, here, tap=tap)

    def _per_example(self, name: str, value: Tensor, examples: int) -> Float[Tensor, "examples units"]:
        dim = batch_dim(self.program, name)
        assert dim is not None  # such layers only
        # Windows and heads folded into the batch come after their example, so they unfold into its row.
        return value.to(working_dtype(value.dtype)).movedim(dim, 0).reshape(examples, -1)


def _zeros(batch: Batch) -> Batch:
    """One example of nothing, of the shape of a batch's."""

    def zero(value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return value
        if not value.is_floating_point():
            raise InputError(
                f"an input is {value.dtype}, for which zero is not the mean of anything",
                hint="pass origin=, one example of the input that counts as nothing",
            )
        return torch.zeros_like(value[:1])

    return Batch(tuple(zero(v) for v in batch.args), {k: zero(v) for k, v in batch.kwargs.items()})
