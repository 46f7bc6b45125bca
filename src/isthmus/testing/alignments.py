"""The laws of alignments."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from isthmus.align import Alignment
from isthmus.testing.calls import EXACT, Call, Weights, all_close, all_same_bytes, close, with_generator
from isthmus.testing.subjects import Subject, subject_of


def _align(
    call: Call, subject: Subject, models: Sequence[Weights], reference: int = 0, batch: int = 24
) -> Alignment:
    data = list(zip(subject.data.split(batch), subject.targets.split(batch), strict=True))
    found = call(subject.graph, models, reference=reference, data=data, seed=0)
    assert isinstance(found, Alignment), f"it returns a {type(found).__name__}, no Alignment"
    return found


def function_kept(call: Call) -> None:
    """Moved models compute what they did, and the reference is not moved."""
    for name, reference in (("mlp", 0), ("conv-bn", 2), ("attention", 1)):
        subject = subject_of(name)
        moved = _align(call, subject, subject.models, reference).apply(subject.models)
        for index, (before, after) in enumerate(zip(subject.models, moved, strict=True)):
            what = f"{name}, the output of model {index} (reference {reference})"
            close(subject.run(after), subject.run(before), what, EXACT)
        all_close(moved[reference], subject.models[reference], f"{name}, reference {reference}", 0.0)


def planted_found(call: Call) -> None:
    """Reordered copies of a model are moved back onto it."""
    for name, reference in (("mlp", 0), ("conv", 1), ("conv-bn", 2)):
        subject = subject_of(name)
        models = subject.copies()
        moved = _align(call, subject, models, reference).apply(models)
        for index, after in enumerate(moved):
            what = f"{name}, model {index}, a reordered copy of reference {reference}"
            all_close(after, models[reference], what, EXACT)


def planted_exact(call: Call) -> None:
    """A model merged with reordered copies of itself computes the model, also where units are grouped or mixed."""
    for name, reference in (("mlp", 0), ("conv", 1), ("conv-bn", 2), ("attention", 0)):
        subject = subject_of(name)
        models = subject.copies()
        for count, weights in ((2, (0.9, 0.1)), (2, (0.1, 0.9)), (3, (0.5, 0.3, 0.2))):
            alignment = _align(call, subject, models[:count], min(reference, count - 1))
            moved = alignment.apply(models[:count], weights)
            merged = {
                key: sum((w * m[key] for w, m in zip(weights, moved, strict=True)), torch.zeros(()).double())
                if tensor.is_floating_point()
                else tensor
                for key, tensor in moved[0].items()
            }
            what = f"{name}, the output of {count} reordered copies merged at {weights}"
            close(subject.run(merged), subject.run(models[0]), what, EXACT)


def copies_stay(call: Call) -> None:
    """Copies of a model are not moved apart."""
    for name in ("mlp", "conv-bn", "attention"):
        subject = subject_of(name)
        models = [dict(subject.models[0]) for _ in range(3)]
        for index, after in enumerate(_align(call, subject, models).apply(models)):
            all_close(after, models[0], f"{name}, copy {index}", EXACT)


def inverts(call: Call) -> None:
    """There and back is the model."""
    for name in ("mlp", "conv-bn", "attention"):
        subject = subject_of(name)
        alignment = _align(call, subject, subject.models)
        for index, (transport, model) in enumerate(zip(alignment.transports, subject.models, strict=True)):
            back = transport.inverse().apply(transport.apply(model))
            all_close(back, model, f"{name}, model {index} there and back", EXACT)


def batching_free(call: Call) -> None:
    """The same maps are found however the data is batched."""
    for name in ("mlp", "conv-bn", "attention"):
        subject = subject_of(name)
        whole = _align(call, subject, subject.models).apply(subject.models)
        for batch in (1, 7):
            split = _align(call, subject, subject.models, batch=batch).apply(subject.models)
            for index, (ours, theirs) in enumerate(zip(split, whole, strict=True)):
                all_close(ours, theirs, f"{name}, model {index} by batches of {batch}", EXACT)


def seeded(call: Call) -> None:
    """The same seed gives the same bytes, whatever torch's own generator holds."""
    for name in ("mlp", "attention"):
        subject = subject_of(name)
        run = functools.partial(_align, call, subject, subject.models)
        once, again = (with_generator(seed, run).apply(subject.models) for seed in (1, 2))
        for index, (ours, theirs) in enumerate(zip(again, once, strict=True)):
            all_same_bytes(ours, theirs, f"{name}, model {index} a second time")
