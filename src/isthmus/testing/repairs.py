"""The laws of repairs."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.program import Batch, Program, export
from isthmus.repair import Models, Repaired, goals
from isthmus.testing.calls import EXACT, Call, Weights, all_close, all_same_bytes, close, with_generator
from isthmus.testing.subjects import drawn, subject_of

_PLAIN = ("mlp", "conv", "attention")


def _repair(
    call: Call,
    program: Program,
    weights: Weights,
    to: tuple[Sequence[Weights], Sequence[float]],
    data: Sequence[Tensor],
    **extra: object,
) -> Repaired:
    """Repair towards models in given shares."""
    parents, shares = to
    offered = {**extra, "seed": 0, "parents": parents, "terms": parents, "shares": shares}
    if call.takes("goals"):
        offered["goals"] = goals(program, *to, data)
    if call.takes("models"):
        offered["models"] = Models(program, tuple(to[0]), tuple(to[1]))
    found = call(program, weights, *([list(data)] if call.takes("data") else []), **offered)
    assert isinstance(found, Repaired), f"it returns a {type(found).__name__}, no Repaired"
    return found


def _passes(call: Call, data: Tensor) -> list[tuple[dict[str, object], list[Tensor]]]:
    """How a repair is run: over one batch, and (where it can) layer after layer over several."""
    return [
        ({"mode": "joint"}, [data]),
        *([({"mode": "sequential"}, list(data.split(7)))] if call.takes("mode") else []),
    ]


def unmerged_is_identity(call: Call) -> None:
    """A model that was not merged is not changed."""
    for name in _PLAIN:
        subject = subject_of(name)
        own = subject.models[0]
        for mode, data in _passes(call, subject.data):
            found = _repair(call, subject.program, own, ([own, own], [0.3, 0.7]), data, **mode)
            what = f"{name}, {mode['mode']} over {len(data)} batches"
            all_close({key: found.weights[key] for key in own}, own, what, EXACT)
            close(subject.run(found.weights, found.program), subject.run(own), f"{what}: the output", EXACT)


def idempotent(call: Call) -> None:
    """A second repair finds nothing to do."""
    done: list[str] = []
    for name in (*_PLAIN, "conv-bn"):
        subject = subject_of(name)
        if not _fits(call, name):
            continue
        merged, to = _average(subject.models), (subject.models, [0.5, 0.3, 0.2])
        for mode, data in _passes(call, subject.data):
            once = _repair(call, subject.program, merged, to, data, **mode)
            again = _repair(call, subject.program, once.weights, to, data, **mode)
            what = f"{name}, {mode['mode']} over {len(data)} batches, a second time"
            # Where a norm reads what is repaired, its eps does not scale along.
            all_close(again.weights, once.weights, what, 1e-6)
            done.append(name)
    assert done, "it takes none of the networks"


class _Twice(nn.Module):
    """Two layers of the same weights: what is folded into one is folded into the other, unless untied."""

    def __init__(self, tied: bool):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        if tied:
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


@functools.cache
def _twice() -> tuple[Program, Program, tuple[Weights, ...], Tensor]:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(24, 5, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        tied, untied = _Twice(True).double(), _Twice(False).double()
    models = tuple(drawn(untied, generator) for _ in range(2))
    for weights in models:
        weights["second.weight"] = weights["first.weight"]
    return export(tied, data[:2]), export(untied, data[:2]), models, data


def fused_equals_unfused(call: Call) -> None:
    """Fused into the weights or kept beside them, the function is the same."""
    assert call.takes("allow_new_parameters"), "it takes no allow_new_parameters"
    tied, untied, models, data = _twice()
    merged = {key: (models[0][key] + models[1][key]) / 2 for key in models[0]}
    to = (models, [0.5, 0.5])
    for mode, batches in _passes(call, data):
        fused = _repair(call, untied, merged, to, batches, allow_new_parameters=False, **mode)
        unfused = _repair(call, tied, merged, to, batches, allow_new_parameters=True, **mode)
        what = f"{mode['mode']} over {len(batches)} batches"
        assert not fused.new_parameters and fused.weights.keys() == merged.keys(), (
            f"{what}: fused, it has new parameters {fused.new_parameters}"
        )
        assert unfused.new_parameters, f"{what}: tied layers were given no parameters of their own"
        batch = Batch((data,), {})
        with torch.no_grad():
            ours = untied.compile()(fused.weights, batch)
            theirs = unfused.program.compile()(unfused.weights, batch)
        assert isinstance(ours, Tensor) and isinstance(theirs, Tensor)
        # Goals are measured in two programs: more rounding than one network's.
        close(ours, theirs, f"{what}: the output fused and unfused", EXACT)


def batching_free(call: Call) -> None:
    """The same repair is found however the data is batched."""
    for name in _PLAIN:
        subject = subject_of(name)
        merged = _average(subject.models)
        to = (subject.models, [0.5, 0.3, 0.2])
        found = [_repair(call, subject.program, merged, to, subject.data.split(n)) for n in (24, 8, 5)]
        for size, other in zip((8, 5), found[1:], strict=True):
            all_close(other.weights, found[0].weights, f"{name}, batches of {size}", EXACT)


def seeded(call: Call) -> None:
    """The same data gives the same bytes, whatever torch's own generator holds."""
    name = "mlp" if _fits(call, "mlp") else "conv-bn"
    subject = subject_of(name)
    merged, to = _average(subject.models), (subject.models, [0.5, 0.3, 0.2])
    once, again = (
        with_generator(
            seed, lambda: _repair(call, subject.program, merged, to, subject.data.split(8)).weights
        )
        for seed in (1, 2)
    )
    all_same_bytes(again, once, f"{name} a second time")


def _fits(call: Call, name: str) -> bool:
    """Whether a repair can be done to a network at all."""
    subject = subject_of(name)
    try:
        _repair(call, subject.program, subject.models[0], (subject.models[:1], [1.0]), [subject.data])
    except InputError:
        return False
    return True


def _average(models: Sequence[Weights]) -> Weights:
    shares = (0.5, 0.3, 0.2)
    return {
        key: sum((w * m[key] for w, m in zip(shares, models, strict=True)), torch.zeros_like(models[0][key]))
        if models[0][key].is_floating_point()
        else models[0][key]
        for key in models[0]
    }
