"""The variance profile: whether the units of a merged model still vary as much as those of its parents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from isthmus.errors import InputError
from isthmus.features import Moments, Request, collect
from isthmus.measure.answers import Weights
from isthmus.measure.ensemble import check_shares, even
from isthmus.measure.finding import Finding
from isthmus.measure.layers import channel_axis, shared_layers
from isthmus.measure.sequence import upper_bound
from isthmus.program import Program


@dataclass(frozen=True)
class VarianceProfile:
    """Standard deviations of a merged model over those of its parents, layer by layer.

    Attributes:
        layers: labels, in order of execution.
        ratio: mean over a layer's channels of std(merged) / sum of w_i std(parent i). Far below 1 the
            variance has collapsed.
        dead: channels of each layer that do not vary in any parent; they are left out of its mean.
        examples: size of the split.
        split: the caller's name for the data.
        left_out: layers that are not measured (kept apart, or without a batch dimension).
    """

    layers: tuple[str, ...]
    ratio: tuple[float, ...]
    dead: tuple[int, ...]
    examples: int
    split: str = "data"
    left_out: int = 0

    def bound(self, gamma: float | None = None) -> tuple[float, ...]:
        """The non-increasing bound of the ratios, whose last value says whether variance has collapsed.

        Args:
            gamma: None for the plain bound, a number for the smoothed one; see `isthmus.measure.upper_bound`.

        Source: Qu and Horváth 2025 (arXiv:2402.05966), definition 4.1, for deviations relative to the parents'.
        """
        return upper_bound(self.ratio, gamma)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The profile; its value is that of the lowest layer. None where all is kept apart."""
        if not self.layers:
            return ()
        note = f"std over the parents' weighted mean of it, before activation; {self.split}"
        note += f": {self.examples} examples"
        note += f", {sum(self.dead)} dead channels left out" if any(self.dead) else ""
        note += f", {self.left_out} layers left out" if self.left_out else ""
        by_layer = dict(zip(self.layers, self.ratio, strict=True))
        return (Finding("variance ratio", min(self.ratio), "1", "higher", (0.0, None), by_layer, note),)


def variance_ratio(
    program: Program,
    merged: Weights,
    parents: Sequence[Weights],
    data: Iterable[object],
    *,
    shares: Sequence[float] | None = None,
    merged_program: Program | None = None,
    split: str = "data",
) -> VarianceProfile:
    """Compare at the output of every linear and conv operation how much each channel varies.

    One pass over the data, all models side by side; every position of a map and every token is a sample.

    Args:
        program: the program of one parent.
        merged: weights of the merged model.
        parents: weights of each parent, aligned: channel c of each is channel c of the merged model.
        data: yields inputs, or (inputs, targets). Targets are not used.
        shares: the models' weights in the merge, summing to 1; equal by default.
        merged_program: the merged model's own program, where it keeps parts apart. What is merged is
            measured; branches and the values at which they meet are left out.
        split: what the data is, for the notes.

    Raises:
        InputError: no parent, or shares that do not fit.
        DataError: the data is empty, or activations are not finite.

    Source: Jordan et al. 2023 (arXiv:2211.08403), "variance collapse". They plot a ratio of variances; that
        of standard deviations is what REPAIR then sets to 1, channel by channel.

    Examples:
        >>> import torch
        >>> from isthmus.program import export
        >>> a, x = torch.nn.Linear(3, 2), torch.randn(8, 3)
        >>> half = {key: value / 2 for key, value in a.state_dict().items()}
        >>> round(variance_ratio(export(a, x), half, [a.state_dict()], [x]).ratio[0], 6)
        0.5
    """
    parts = even(len(parents)) if shares is None else tuple(float(share) for share in shares)
    check_shares(parts, len(parents))
    other = program if merged_program is None else merged_program
    layers = shared_layers(program, other)
    requests = [Request(name, channel_axis(program, name)) for name in layers.labels]
    programs = [other, *[program] * len(parents)]
    features = collect(programs, [merged, *parents], data, requests)
    profile = [_ratio(features[name], parts) for name in layers.labels]
    return VarianceProfile(
        layers=tuple(layers.labels.values()),
        ratio=tuple(ratio for ratio, _ in profile),
        dead=tuple(dead for _, dead in profile),
        examples=features.examples,
        split=split,
        left_out=layers.left_out,
    )


def _ratio(moments: Moments, shares: Sequence[float]) -> tuple[float, int]:
    """Mean over living channels of the ratio, and the number of dead ones."""
    merged, *parents = moments.std
    if any(parent.shape != merged.shape for parent in parents):
        raise InputError(
            "the parents are not in the merged model's coordinates",
            [f"{moments.request.value}: {len(merged)} channels merged, parents {[len(p) for p in parents]}"],
        )
    goal = torch.stack([share * std for share, std in zip(shares, parents, strict=True)]).sum(0)
    alive = goal > 0
    # A layer that varies in no parent cannot collapse.
    ratio = float((merged[alive] / goal[alive]).mean()) if alive.any() else 1.0
    return ratio, int((~alive).sum())
