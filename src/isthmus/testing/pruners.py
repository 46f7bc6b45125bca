"""The laws of pruners."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from isthmus.prune import Choice, masked, prunable
from isthmus.testing.calls import EXACT, Call, Weights, all_close, all_same_bytes, with_generator
from isthmus.testing.subjects import Subject, subject_of

_NETS = ("mlp", "conv-bn", "attention")
_SPARSITIES = (0.3, 0.7, 0.95)


def _prune(
    call: Call, subject: Subject, weights: Weights, sparsity: float, sizes: Sequence[int] = (24,)
) -> tuple[Choice, Weights]:
    """Prune all layers; what was chosen, and the weights."""
    cut = list(subject.data.split(list(sizes) if len(sizes) > 1 else sizes[0]))
    labelled = list(subject.targets.split([len(x) for x in cut]))
    layers, _ = prunable(subject.program)
    before = {key: value.clone() for key, value in weights.items()}
    found = call(
        subject.program,
        weights,
        layers,
        sparsity=sparsity,
        data=list(zip(cut, labelled, strict=True)),
        seed=0,
    )
    assert isinstance(found, Choice), f"it returns a {type(found).__name__}, no Choice"
    all_same_bytes(weights, before, f"{subject.name}: the given weights, after pruning at {sparsity}")
    return found, masked({**weights, **found.weights}, found.keep)


def sparsity_exact(call: Call) -> None:
    """As many weights go as asked for, counted over the network, a layer or an output unit."""
    for name in _NETS:
        subject = subject_of(name)
        layers, _ = prunable(subject.program)
        for sparsity in _SPARSITIES:
            found, weights = _prune(call, subject, subject.models[0], sparsity)
            share = Fraction(str(sparsity))
            rows = {layer.key: (~layer.rows(found.keep[layer.key])).sum(1) for layer in layers}
            per = {
                "all layers": int(sum(torch.Size(layer.shape).numel() for layer in layers) * share),
                "every layer": sum(int(torch.Size(layer.shape).numel() * share) for layer in layers),
                "every unit": sum(
                    len(rows[layer.key]) * int(layer.rows(weights[layer.key]).shape[1] * share)
                    for layer in layers
                ),
            }
            gone = int(sum(int(counts.sum()) for counts in rows.values()))
            assert gone in per.values(), f"{name} at {sparsity}: {gone} weights are pruned, none of {per}"
            for key, keep in found.keep.items():
                assert not bool(weights[key][~keep].any()), f"{name}, {key}: a pruned weight is not zero"


def unpruned_is_identity(call: Call) -> None:
    """At sparsity 0 every weight stays what it is."""
    for name in _NETS:
        subject = subject_of(name)
        _, weights = _prune(call, subject, subject.models[0], 0.0)
        all_same_bytes(weights, subject.models[0], f"{name} at sparsity 0")


def pruned_stays_pruned(call: Call) -> None:
    """What was pruned, pruned again as far, is the same."""
    for name in _NETS:
        subject = subject_of(name)
        first, once = _prune(call, subject, subject.models[0], 0.7)
        again, twice = _prune(call, subject, once, 0.7)
        all_same_bytes(again.keep, first.keep, f"{name}: the mask, pruned twice")
        all_close(twice, once, f"{name}, pruned twice", EXACT)


def batching_free(call: Call) -> None:
    """The same weights stay however the data is batched."""
    for name in _NETS:
        subject = subject_of(name)
        first, once = _prune(call, subject, subject.models[0], 0.7)
        for sizes in ((8, 16), (5, 5, 14)):
            other, weights = _prune(call, subject, subject.models[0], 0.7, sizes)
            all_same_bytes(other.keep, first.keep, f"{name}: the mask, in batches of {sizes}")
            all_close(weights, once, f"{name}, in batches of {sizes}", EXACT)


def seeded(call: Call) -> None:
    """The same data gives the same bytes, whatever torch's own generator holds."""
    subject = subject_of("mlp")

    def run() -> dict[str, Tensor]:
        return _prune(call, subject, subject.models[0], 0.7)[1]

    all_same_bytes(with_generator(2, run), with_generator(1, run), "mlp a second time")
