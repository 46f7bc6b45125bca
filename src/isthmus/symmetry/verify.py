"""Nothing is believed until verified: random elements on redrawn weights, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from isthmus.errors import REFUSALS, VerificationError, first_line
from isthmus.program import Batch, Inputs, Program, example_of
from isthmus.symmetry.elements import Element, random_element
from isthmus.symmetry.gather import reorder
from isthmus.symmetry.graph import SymmetryGraph
from isthmus.symmetry.redraw import double, redraw

#: Relative output error allowed in float64; observed errors are rounding, near 1e-13.
BOUND = 1e-9

#: Spaces x parameters up to which each space is also moved alone by default.
EACH = 50_000_000

#: Below this share of the largest sensitivity a space counts as unseen by the output.
UNSEEN = 1e-10


@dataclass(frozen=True)
class Verification:
    """What random elements did to the outputs.

    Attributes:
        error: largest relative output error over all elements drawn; nan if nothing was run.
        bound: the error allowed.
        elements: how many elements were drawn.
        failed: spaces whose element changed the output, with the error of each; scales, signs and rotations
            (gauges) under their own names.
        unobservable: spaces whose writers may be moved alone without the output changing; their
            symmetry could not be checked.
        own_weights: the error with the model's own weights; None if they were not given.
        note: what was and was not checked.
        frozen: spaces that had failed and were fixed before this check -> the operation that moved wrongly.
    """

    error: float
    bound: float = BOUND
    elements: int = 0
    failed: dict[str, float] = field(default_factory=dict)
    unobservable: tuple[str, ...] = ()
    own_weights: float | None = None
    note: str = ""
    frozen: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every element drawn left the outputs alone."""
        return self.error <= self.bound

    def require(self) -> Verification:
        """Return self, or raise VerificationError where a space failed or nothing was checked."""
        if not self.ok:
            raise VerificationError(
                "the symmetries read off the program do not leave its outputs alone"
                if not math.isnan(self.error)
                else "the symmetries were not verified",
                [f"{name}: relative error {error:.1e}" for name, error in self.failed.items()] or [self.note],
                hint="graph, found = isthmus.verified(model, example) freezes what fails; merge(..., graph=graph)",
            )
        return self

    def __str__(self) -> str:
        if math.isnan(self.error):
            return f"unverified: {self.note}"
        state = "verified" if self.ok else "FAILED"
        text = (
            f"{state}: relative error {self.error:.1e} (bound {self.bound:.0e}) over {self.elements} elements"
        )
        if self.unobservable:
            text += f"; not seen by the output: {', '.join(self.unobservable)}"
        if self.failed:
            text += f"; failed: {', '.join(self.failed)}"
        if self.frozen:
            text += f"; fixed: {', '.join(f'{name} ({where})' for name, where in self.frozen.items())}"
        return text


def verify(
    graph: SymmetryGraph,
    model: nn.Module | Mapping[str, Tensor] | None,
    example: Inputs | None,
    *,
    seed: int = 0,
    each: bool | None = None,
) -> Verification:
    """See `SymmetryGraph.verify`.

    Raises:
        InputError: the model's weights do not fit the graph.
    """
    weights = dict(model.state_dict() if isinstance(model, nn.Module) else model or {})
    if any(value.is_meta for value in (*graph.program.constants.values(), *weights.values())):
        return Verification(
            math.nan, note="taken on the meta device; verify a smaller model of the same class instead"
        )
    graph.require_folded(weights)
    program = graph.program.to("cpu", torch.float64)
    batch = batch_for(program, example, seed)
    generator = torch.Generator().manual_seed(seed)
    redrawn = redraw(graph, program, weights, batch, generator)
    run = _Outputs(program, batch)
    try:
        reference = run(redrawn)
    except REFUSALS as error:
        raise VerificationError(
            f"the program cannot be run in float64 on inputs as in the example: {first_line(error)}",
            [
                f"an input is {tuple(value.shape)} {value.dtype}"
                for value in pytree.tree_leaves((batch.args, batch.kwargs))
                if isinstance(value, Tensor)
            ],
            hint="check the example's shape and dtype (--shape, --tokens)",
        ) from error
    if not reference:
        return Verification(math.nan, note="the model returns no floating-point tensor to compare")
    drawn = random_element(graph, generator)
    element = drawn.orders
    names = list(graph.spaces)
    if not names and not drawn.values:
        return Verification(0.0, note="nothing moves")
    error = run.distance(moved(graph, redrawn, element), reference)
    failed: dict[str, float] = {}
    count = 1
    if each is None:
        # All spaces together, halved on failure, find the same faults; one by one is for cheap models.
        each = len(names) * sum(t.numel() for t in redrawn.values()) <= EACH
    if each:
        for name in names:
            alone = run.distance(moved(graph, redrawn, {name: element[name]}), reference)
            count += 1
            if alone > BOUND:
                failed[name] = alone
        error = max([error, *failed.values()])
    if error > BOUND and not failed:
        failed = _bisect(graph, redrawn, Element(element), names, run, reference)
    if drawn.values and not failed:
        richer = run.distance(drawn.apply(graph, redrawn), reference)
        count += 1
        error = max(error, richer)
        if richer > BOUND:
            failed = _bisect(graph, redrawn, drawn, list(drawn.values), run, reference)
    unobservable = _unobservable(graph, redrawn, element, run, reference)
    del redrawn  # one copy of the weights at a time, and what is moved: a stand-in of billions still fits
    own = None
    if weights:
        whole = drawn.only([*element, *(name for name in drawn.values if name not in failed)])
        own = _on_own_weights(graph, weights, whole, run)
    if own is not None:
        error = max(error, own)
        count += 1
    return Verification(
        error,
        elements=count,
        failed=failed,
        unobservable=unobservable,
        own_weights=own,
        note=f"float64, {_checked(names, len(drawn.values), each, own, bool(weights))}",
    )


def _checked(names: list[str], richer: int, each: bool, own: float | None, given: bool) -> str:
    """What was checked, in words."""
    alone = f"{len(names)} spaces together" + (" and each alone" if each else "")
    alone += f", {richer} scales, signs and rotations" if richer else ""
    if own is not None:
        return f"redrawn weights ({alone}) and own weights"
    return f"redrawn weights ({alone})" + ("; on its own weights no output is finite" if given else "")


def moved(
    graph: SymmetryGraph,
    weights: Mapping[str, Tensor],
    element: Mapping[str, Tensor],
    only: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """The weights with an element applied, to all keys or only to some."""
    result = dict(weights)
    for key in graph.layout if only is None else only:
        if key in result:
            result[key] = reorder(result[key], graph.layout[key], element, graph.spaces)
    return result


class _Outputs:
    """Runs the float64 program and compares its outputs."""

    def __init__(self, program: Program, batch: Batch):
        self.run, self.batch = program.compile(), batch

    def __call__(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return self.tensors(weights)

    def tensors(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        leaves = pytree.tree_leaves(self.run(weights, self.batch))
        return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]

    def distance(self, weights: Mapping[str, Tensor], reference: list[Tensor]) -> float:
        """Largest error of an output relative to its largest magnitude."""
        worst = 0.0
        for ours, theirs in zip(self(weights), reference, strict=True):
            both = torch.isfinite(ours) & torch.isfinite(theirs)
            if not torch.equal(torch.isfinite(ours), torch.isfinite(theirs)):
                return math.inf
            ours, theirs = ours[both], theirs[both]
            if not theirs.numel() and both.numel():
                return math.nan  # nothing finite to compare: nothing was seen
            if theirs.numel():
                scale = theirs.abs().max().item() or 1.0
                worst = max(worst, (ours - theirs).abs().max().item() / scale)
        return worst


def batch_for(program: Program, example: Inputs | None, seed: int) -> Batch:
    """The example in float64, or random inputs of the traced shapes."""
    if example is not None:
        batch = example_of(example)
        return batch.to(torch.device("cpu"), torch.float64)
    generator = torch.Generator().manual_seed(seed)
    flat: list[object] = []
    for name in program.inputs:
        fake = program.nodes[name].meta.get("val")
        if not isinstance(fake, Tensor):
            flat.append(fake)
        elif fake.is_floating_point():
            flat.append(torch.randn([int(n) for n in fake.shape], generator=generator, dtype=torch.float64))
        else:
            # Tokens, masks: zero and one are valid in any vocabulary.
            flat.append(torch.randint(0, 2, [int(n) for n in fake.shape], generator=generator).to(fake.dtype))
    args, kwargs = pytree.tree_unflatten(flat, program.in_spec)
    return Batch(tuple(args), dict(kwargs))


def _on_own_weights(
    graph: SymmetryGraph, weights: Mapping[str, Tensor], element: Element, run: _Outputs
) -> float | None:
    """What an element does to the outputs at the model's own weights; None where no output is finite."""
    real = _cast(graph.program, weights)
    before = run(real)
    if not any(bool(torch.isfinite(t).any()) for t in before):
        return None
    return run.distance(element.apply(graph, real), before)


def _cast(program: Program, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = program.lookup(weights)
    return {program.weights[name]: double(tensor) for name, tensor in found.items()}


def _bisect(
    graph: SymmetryGraph,
    weights: Mapping[str, Tensor],
    element: Element,
    names: list[str],
    run: _Outputs,
    reference: list[Tensor],
) -> dict[str, float]:
    """The parts of an element that change the output, found by halving: without them, the rest does not.

    The shortest failing run of parts ends in one at fault, alone or together with one before it.
    """

    def together(chosen: list[str]) -> float:
        return run.distance(element.only(chosen).apply(graph, weights), reference)

    rest, failed = list(names), {}
    while (error := together(rest)) > BOUND:
        low, high = 0, len(rest)
        while high - low > 1:
            middle = (low + high) // 2
            part = together(rest[:middle])
            if part > BOUND:
                high, error = middle, part
            else:
                low = middle
        failed[rest.pop(high - 1)] = error
    return failed


def _unobservable(
    graph: SymmetryGraph,
    weights: Mapping[str, Tensor],
    element: Mapping[str, Tensor],
    run: _Outputs,
    reference: list[Tensor],
) -> tuple[str, ...]:
    """Spaces whose writers alone can be moved without the output changing, to first order.

    One backward pass serves all spaces: moving only the writers of a space is a displacement of the
    weights, and at weights in general position the output sees it exactly when its gradient does.
    Where an operation has no derivative, the writers of one space after another are moved.
    """
    try:
        gradient = _gradient(graph, weights, run)
    except (RuntimeError, NotImplementedError):
        gradient = None
    seen: dict[str, float] = {}
    for name, space in graph.spaces.items():
        writers = {member.key for member in space.members if member.role != "reads"}
        displaced = moved(graph, weights, {name: element[name]}, only=writers)
        if gradient is None:
            seen[name] = run.distance(displaced, reference)
            continue
        seen[name] = max(
            (
                (gradient[key] * (displaced[key] - weights[key])).abs().sum().item()
                for key in writers
                if key in gradient
            ),
            default=0.0,
        )
    largest = max(seen.values(), default=0.0)
    return tuple(name for name, value in seen.items() if value <= UNSEEN * largest)


def _gradient(graph: SymmetryGraph, weights: Mapping[str, Tensor], run: _Outputs) -> dict[str, Tensor]:
    """Derivative of a random direction of the outputs by each weight that it depends on."""
    leaves = {
        key: tensor
        if key in graph.program.buffers or not tensor.is_floating_point()
        else tensor.detach().requires_grad_()
        for key, tensor in weights.items()
    }
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=torch.float64)
    for output in run.tensors(leaves):
        finite = torch.where(torch.isfinite(output), output, torch.zeros_like(output))
        direction = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        total = total + (finite * direction).sum()
    keys = [key for key, tensor in leaves.items() if tensor.requires_grad]
    grads = torch.autograd.grad(total, [leaves[key] for key in keys], allow_unused=True)
    return {key: g for key, g in zip(keys, grads, strict=True) if g is not None}  # pyright: ignore[reportUnnecessaryComparison]
