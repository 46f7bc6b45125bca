"""The laws, as functions that anyone can call on their own methods.

    @COMBINATIONS.register("mine", claims=("copies-give-the-model", "order-free"))
    def mine(tensors, *, weights):
        '''The first model, and a little of the others.'''

    isthmus.testing.check_combination("mine")

Each runs the laws (`isthmus.registry.LAWS`) that a method claims, in float64 and on networks of a few units,
and raises one AssertionError that says of each broken law where it broke, by how much, and what is allowed.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from isthmus.align import ALIGNMENTS, Alignment
from isthmus.combine import COMBINATIONS
from isthmus.errors import InputError
from isthmus.program import Batch, Program, export
from isthmus.registry import LAWS, Registry
from isthmus.repair import REPAIRS, Repaired, goals
from isthmus.symmetry import SymmetryGraph, reorder, trace
from isthmus.symmetry.verify import draw
from isthmus.zoo import MLP, VGG, ViT

__all__ = ["TOLERANCE", "check_alignment", "check_combination", "check_repair", "laws_checked"]

#: Relative error allowed in each dtype: what rounding does to a network, with room to spare.
TOLERANCE: dict[torch.dtype, float] = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 3e-2,
    torch.float16: 3e-3,
}

Weights = dict[str, Tensor]
Method = Callable[..., object]
F = TypeVar("F", bound=Callable[..., object])


def check_alignment(
    method: str | Callable[..., Alignment], laws: Iterable[str] | None = None, **options: object
) -> tuple[str, ...]:
    """Hold an alignment to its laws: on an MLP, a conv net with batch norms and an attention block.

    Args:
        method: a registered name, or a function `(graph, models, *, reference, ...) -> Alignment`; `data`
            and `seed` are passed where it takes them.
        laws: those to check; by default what the registered method claims.
        options: of the method.

    Returns:
        The laws that were checked, and hold.

    Raises:
        AssertionError: a law is broken.
        InputError: a law that is not checked for alignments, or a function of which no law is known.

    Examples:
        >>> from isthmus.testing import check_alignment
        >>> check_alignment("weight-matching", laws=["seeded"])
        ('seeded',)
    """
    return _check(ALIGNMENTS, method, laws, options)


def check_combination(
    method: str | Callable[..., Tensor], laws: Iterable[str] | None = None, **options: object
) -> tuple[str, ...]:
    """Hold a rule of combination to its laws: on tensors of several shapes and dtypes.

    Args:
        method: a registered name, or a function `(tensors, *, weights, ...) -> tensor`; `base` (a tensor)
            and `seed` are passed where it takes them.
        laws: those to check; by default what the registered method claims.
        options: of the method.

    Returns:
        The laws that were checked, and hold.

    Raises:
        AssertionError: a law is broken.
        InputError: a law that is not checked for combinations, or a function of which no law is known.

    Examples:
        >>> from isthmus.testing import check_combination
        >>> check_combination(lambda tensors, *, weights: tensors[0], laws=["order-free"])
        Traceback (most recent call last):
            ...
        AssertionError: <lambda> breaks 1 of 1 laws
          order-free (the order of the inputs does not matter): float64, ...
    """
    return _check(COMBINATIONS, method, laws, options)


def check_repair(
    method: str | Callable[..., Repaired], laws: Iterable[str] | None = None, **options: object
) -> tuple[str, ...]:
    """Hold a repair to its laws: on an MLP, a plain conv net and an attention block.

    Args:
        method: a registered name, or a function `(program, weights, data, ...) -> Repaired`; `goals` are
            passed where it takes them. Where it takes a `mode`, the laws hold for "joint" over one batch
            and for "sequential" over several.
        laws: those to check; by default what the registered method claims.
        options: of the method.

    Returns:
        The laws that were checked, and hold.

    Raises:
        AssertionError: a law is broken.
        InputError: a law that is not checked for repairs, or a function of which no law is known.

    Examples:
        >>> from isthmus.testing import check_repair
        >>> check_repair("rescale", laws=["fused-equals-unfused"])
        ('fused-equals-unfused',)
    """
    return _check(REPAIRS, method, laws, options)


def laws_checked(kind: str) -> tuple[str, ...]:
    """The laws that methods of a kind ("alignment", "combination", "repair") can be held to."""
    return tuple(_LAWS[kind])


# What the laws are run with.


@dataclass(frozen=True, eq=False)
class _Subject:
    """A small network: three strangers' weights for it (float64), and data."""

    name: str
    program: Program
    graph: SymmetryGraph
    models: tuple[Weights, ...]
    data: Tensor

    def run(self, weights: Mapping[str, Tensor], program: Program | None = None) -> Tensor:
        with torch.no_grad():
            out = (program or self.program).compile()(weights, Batch((self.data,), {}))
        assert isinstance(out, Tensor)
        return out

    def copies(self) -> list[Weights]:
        """A model and two copies of it in other orders."""
        found = [dict(self.models[0])]
        for seed in (1, 2):
            orders = draw(self.graph, torch.Generator().manual_seed(seed))
            found.append(
                {
                    key: reorder(t, self.graph.layout[key], orders, self.graph.spaces)
                    if key in self.graph.layout
                    else t
                    for key, t in self.models[0].items()
                }
            )
        return found


_NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(d_in=6, widths=(7, 5), num_classes=3), (6,)),
    "conv": (lambda: VGG((1, "M", 1.5), base=4, in_channels=1, num_classes=3), (1, 6, 6)),
    "conv-bn": (lambda: VGG((1, "M", 1.5), base=4, norm="bn", in_channels=1, num_classes=3), (1, 6, 6)),
    "attention": (
        lambda: ViT(
            image=4, patch=2, dim=8, depth=1, heads=2, mlp_ratio=1, pool="mean", in_channels=1, num_classes=3
        ),
        (1, 4, 4),
    ),
}


@functools.cache
def _subject(name: str) -> _Subject:
    make, shape = _NETS[name]
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        model = make().double().eval()
    data = torch.randn(24, *shape, generator=generator, dtype=torch.float64) + 0.3
    graph = trace(model, data[:2])
    models = tuple(_drawn(model, generator) for _ in range(3))
    return _Subject(name, graph.program, graph, models, data)


def _drawn(model: nn.Module, generator: torch.Generator) -> Weights:
    """Weights in which no unit is dead, no two are alike, and every path counts."""

    def draw_one(key: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.clone()
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if tensor.ndim > 1:
            return noise * (2 / max(tensor[0].numel(), 1)) ** 0.5
        scales = key.endswith("running_var") or bool(torch.all(tensor == 1))
        return 0.5 + noise.abs() if scales else 0.3 * noise

    return {key: draw_one(key, tensor) for key, tensor in model.state_dict().items()}


@dataclass(frozen=True, eq=False)
class _Call:
    """A method, and the options to call it with."""

    function: Method
    options: Mapping[str, object]

    def takes(self, name: str) -> bool:
        return name in inspect.signature(self.function).parameters

    def __call__(self, *given: object, **offered: object) -> object:
        """Call it with what it takes of the keywords offered."""
        known = {name: value for name, value in offered.items() if self.takes(name)}
        return self.function(*given, **{**known, **self.options})


Law = Callable[[_Call], None]


def _check(
    table: Registry[F], method: str | F, laws: Iterable[str] | None, options: Mapping[str, object]
) -> tuple[str, ...]:
    if isinstance(method, str):
        row = table.get(method)
    else:
        row = next((row for row in table.rows() if row.function is method), None)
    function = row.function if row is not None else method
    assert not isinstance(function, str)
    name = row.name if row is not None else getattr(function, "__name__", repr(function))
    if laws is None and row is None:
        raise InputError(
            f"{name} is not registered: nothing says which laws it keeps", hint="pass laws=[...]"
        )
    wanted = tuple(row.claims if laws is None and row is not None else laws or ())
    known = _LAWS[table.kind]
    if unknown := [law for law in wanted if law not in known]:
        raise InputError(
            f"{len(unknown)} laws cannot be checked of a {table.kind}",
            unknown,
            hint=f"there are: {', '.join(known)}",
        )
    broken: list[str] = []
    for law in wanted:
        try:
            known[law](_Call(function, options))
        except AssertionError as error:
            broken.append(f"  {law} ({LAWS[law]}): {error}")
    if broken:
        raise AssertionError("\n".join([f"{name} breaks {len(broken)} of {len(wanted)} laws", *broken]))
    return wanted


# How results are compared.


def _error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest value."""
    if ours.shape != theirs.shape or not bool(ours.isfinite().all()):
        return math.inf
    if not ours.numel():
        return 0.0
    scale = theirs.double().abs().max().item() or 1.0
    return (ours.double() - theirs.double()).abs().max().item() / scale


def _close(ours: Tensor, theirs: Tensor, what: str, tolerance: float) -> None:
    error = _error(ours, theirs)
    if not error <= tolerance:
        raise AssertionError(f"{what} differs by {error:.1e} of its largest value, {tolerance:.0e} allowed")


def _all_close(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], what: str, tolerance: float) -> None:
    if ours.keys() != theirs.keys():
        raise AssertionError(f"{what} has other keys: {sorted(ours.keys() ^ theirs.keys())}")
    for key, tensor in ours.items():
        _close(tensor, theirs[key], f"{what}, {key}", tolerance)


def _same_bytes(ours: Tensor, theirs: Tensor, what: str) -> None:
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        raise AssertionError(
            f"{what}: {ours.dtype} {tuple(ours.shape)}, then {theirs.dtype} {tuple(theirs.shape)}"
        )
    if not torch.equal(ours, theirs):
        count = int((ours != theirs).sum())
        raise AssertionError(
            f"{what}: {count} of {ours.numel()} numbers differ, by up to {_error(ours, theirs):.1e}"
        )


def _all_same_bytes(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], what: str) -> None:
    if ours.keys() != theirs.keys():
        raise AssertionError(f"{what} has other keys: {sorted(ours.keys() ^ theirs.keys())}")
    for key, tensor in ours.items():
        _same_bytes(tensor, theirs[key], f"{what}, {key}")


EXACT = TOLERANCE[torch.float64]


# Alignments.


def _align(
    call: _Call, subject: _Subject, models: Sequence[Weights], reference: int = 0, batch: int = 24
) -> Alignment:
    found = call(subject.graph, models, reference=reference, data=list(subject.data.split(batch)), seed=0)
    assert isinstance(found, Alignment), f"it returns a {type(found).__name__}, no Alignment"
    return found


def _function_kept(call: _Call) -> None:
    for name, reference in (("mlp", 0), ("conv-bn", 2), ("attention", 1)):
        subject = _subject(name)
        moved = _align(call, subject, subject.models, reference).apply(subject.models)
        for index, (before, after) in enumerate(zip(subject.models, moved, strict=True)):
            what = f"{name}, the output of model {index} (reference {reference})"
            _close(subject.run(after), subject.run(before), what, EXACT)
        _all_close(moved[reference], subject.models[reference], f"{name}, reference {reference}", 0.0)


def _planted_found(call: _Call) -> None:
    for name, reference in (("mlp", 0), ("conv", 1), ("conv-bn", 2)):
        subject = _subject(name)
        models = subject.copies()
        moved = _align(call, subject, models, reference).apply(models)
        for index, after in enumerate(moved):
            what = f"{name}, model {index}, a reordered copy of reference {reference}"
            _all_close(after, models[reference], what, EXACT)


def _copies_stay(call: _Call) -> None:
    for name in ("mlp", "conv-bn", "attention"):
        subject = _subject(name)
        models = [dict(subject.models[0]) for _ in range(3)]
        for index, after in enumerate(_align(call, subject, models).apply(models)):
            _all_close(after, models[0], f"{name}, copy {index}", EXACT)


def _inverts(call: _Call) -> None:
    for name in ("mlp", "conv-bn", "attention"):
        subject = _subject(name)
        alignment = _align(call, subject, subject.models)
        for index, (transport, model) in enumerate(zip(alignment.transports, subject.models, strict=True)):
            back = transport.inverse().apply(transport.apply(model))
            _all_close(back, model, f"{name}, model {index} there and back", EXACT)


def _aligned_by_any_batches(call: _Call) -> None:
    for name in ("mlp", "conv-bn", "attention"):
        subject = _subject(name)
        whole = _align(call, subject, subject.models).apply(subject.models)
        for batch in (1, 7):
            split = _align(call, subject, subject.models, batch=batch).apply(subject.models)
            for index, (ours, theirs) in enumerate(zip(split, whole, strict=True)):
                _all_close(ours, theirs, f"{name}, model {index} by batches of {batch}", EXACT)


def _aligned_by_seed(call: _Call) -> None:
    for name in ("mlp", "attention"):
        subject = _subject(name)
        run = functools.partial(_align, call, subject, subject.models)
        once, again = (_with_generator(seed, run).apply(subject.models) for seed in (1, 2))
        for index, (ours, theirs) in enumerate(zip(again, once, strict=True)):
            _all_same_bytes(ours, theirs, f"{name}, model {index} a second time")


R = TypeVar("R")


def _with_generator(seed: int, run: Callable[[], R]) -> R:
    """Run with torch's global generator in a state of its own: nobody's results may depend on it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return run()


# Combinations.

_SHAPES = ((), (5,), (4, 3), (2, 3, 3, 3))
_SHARES = ((0.5, 0.5), (0.1, 0.9), (0.7, 0.2, 0.1), (0.25, 0.25, 0.25, 0.25))


def _random(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _combine(call: _Call, tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    first = tensors[0]
    base = _random(tuple(first.shape), 99, first.dtype)
    found = call(list(tensors), weights=tuple(shares), base=base, seed=0)
    assert isinstance(found, Tensor), f"it returns a {type(found).__name__}, no tensor"
    return found


def _copies_give_the_model(call: _Call) -> None:
    for dtype, shape, shares in itertools.product(TOLERANCE, _SHAPES, _SHARES):
        tensor = _random(shape, 0, dtype)
        found = _combine(call, [tensor.clone() for _ in shares], shares)
        what = f"{_short(dtype)}, {len(shares)} copies of shape {shape} weighted {shares}: the result"
        _close(found, tensor, what, TOLERANCE[dtype])
        assert found.dtype == dtype, f"{what} is {_short(found.dtype)}"


def _order_free(call: _Call) -> None:
    for dtype, shape in itertools.product(TOLERANCE, _SHAPES):
        tensors, shares = [_random(shape, seed, dtype) for seed in range(3)], (0.6, 0.3, 0.1)
        first = _combine(call, tensors, shares)
        for order in itertools.permutations(range(3)):
            found = _combine(call, [tensors[i] for i in order], [shares[i] for i in order])
            _close(
                found,
                first,
                f"{_short(dtype)}, shape {shape}, in order {order}: the result",
                TOLERANCE[dtype],
            )


def _combined_by_seed(call: _Call) -> None:
    tensors = [_random((8, 6), seed) for seed in range(3)]
    once, again = (_with_generator(s, lambda: _combine(call, tensors, (0.5, 0.3, 0.2))) for s in (1, 2))
    _same_bytes(again, once, "a second time")


def _streams(call: _Call) -> None:
    for dtype in TOLERANCE:
        # Enough elements for torch to give several threads a share.
        tensors, shares = [_random((50, 700), seed, dtype) for seed in range(3)], (0.5, 0.3, 0.2)
        whole = _combine(call, tensors, shares)
        for rows in (1, 7, 32):
            blocks = zip(*(t.split(rows) for t in tensors), strict=True)
            found = torch.cat([_combine(call, block, shares) for block in blocks])
            _same_bytes(found, whole, f"{_short(dtype)}, in blocks of {rows} of 50 rows")
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(3 if threads != 3 else 2)
            found = _combine(call, tensors, shares)
        finally:
            torch.set_num_threads(threads)
        _same_bytes(found, whole, f"{_short(dtype)}, with another number of threads")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Repairs.

_PLAIN = ("mlp", "conv", "attention")


def _repair(
    call: _Call,
    program: Program,
    weights: Weights,
    to: tuple[Sequence[Weights], Sequence[float]],
    data: Sequence[Tensor],
    **extra: object,
) -> Repaired:
    """Repair towards models in given shares."""
    offered = {**extra, "seed": 0}
    if call.takes("goals"):
        offered["goals"] = goals(program, *to, data)
    found = call(program, weights, list(data), **offered)
    assert isinstance(found, Repaired), f"it returns a {type(found).__name__}, no Repaired"
    return found


def _passes(call: _Call, data: Tensor) -> list[tuple[dict[str, object], list[Tensor]]]:
    """How a repair is run: over one batch, and (where it can) layer after layer over several."""
    return [
        ({"mode": "joint"}, [data]),
        *([({"mode": "sequential"}, list(data.split(7)))] if call.takes("mode") else []),
    ]


def _unmerged_is_identity(call: _Call) -> None:
    for name in _PLAIN:
        subject = _subject(name)
        own = subject.models[0]
        for mode, data in _passes(call, subject.data):
            found = _repair(call, subject.program, own, ([own, own], [0.3, 0.7]), data, **mode)
            what = f"{name}, {mode['mode']} over {len(data)} batches"
            _all_close({key: found.weights[key] for key in own}, own, what, EXACT)
            _close(subject.run(found.weights, found.program), subject.run(own), f"{what}: the output", EXACT)


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
    models = tuple(_drawn(untied, generator) for _ in range(2))
    for weights in models:
        weights["second.weight"] = weights["first.weight"]
    return export(tied, data[:2]), export(untied, data[:2]), models, data


def _fused_equals_unfused(call: _Call) -> None:
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
        _close(ours, theirs, f"{what}: the output fused and unfused", EXACT)


def _repaired_by_any_batches(call: _Call) -> None:
    for name in _PLAIN:
        subject = _subject(name)
        merged = _average(subject.models)
        to = (subject.models, [0.5, 0.3, 0.2])
        found = [_repair(call, subject.program, merged, to, subject.data.split(n)) for n in (24, 8, 5)]
        for size, other in zip((8, 5), found[1:], strict=True):
            _all_close(other.weights, found[0].weights, f"{name}, batches of {size}", EXACT)


def _repaired_by_seed(call: _Call) -> None:
    subject = _subject("mlp")
    merged, to = _average(subject.models), (subject.models, [0.5, 0.3, 0.2])
    once, again = (
        _with_generator(
            seed, lambda: _repair(call, subject.program, merged, to, subject.data.split(8)).weights
        )
        for seed in (1, 2)
    )
    _all_same_bytes(again, once, "mlp a second time")


def _average(models: Sequence[Weights]) -> Weights:
    shares = (0.5, 0.3, 0.2)
    return {
        key: sum((w * m[key] for w, m in zip(shares, models, strict=True)), torch.zeros_like(models[0][key]))
        if models[0][key].is_floating_point()
        else models[0][key]
        for key in models[0]
    }


_LAWS: dict[str, dict[str, Law]] = {
    "alignment": {
        "function-kept": _function_kept,
        "planted-found": _planted_found,
        "copies-give-the-model": _copies_stay,
        "inverts": _inverts,
        "batching-free": _aligned_by_any_batches,
        "seeded": _aligned_by_seed,
    },
    "combination": {
        "copies-give-the-model": _copies_give_the_model,
        "order-free": _order_free,
        "streaming-equals-memory": _streams,
        "seeded": _combined_by_seed,
    },
    "repair": {
        "unmerged-is-identity": _unmerged_is_identity,
        "fused-equals-unfused": _fused_equals_unfused,
        "batching-free": _repaired_by_any_batches,
        "seeded": _repaired_by_seed,
    },
}
