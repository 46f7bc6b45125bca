"""The diagonal of a model's Fisher information matrix."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from isthmus.errors import DataError, InputError
from isthmus.features import explained, feed, placed
from isthmus.program import Batch, Inputs, Program, home, logits_of
from isthmus.program.outputs import IGNORED, check_classes
from isthmus.statistics.gathered import Gathered
from isthmus.statistics.gradients import Vectors, fitting, pieces, squared_gradients
from isthmus.statistics.likelihoods import LIKELIHOODS, Likelihood, Loss
from isthmus.statistics.reading import read

#: Whose targets: all, each with the model's own probability; drawn from the model; or the data's.
Variant = Literal["exact", "sampled", "empirical"]

#: What is one observation: an example with all of its positions, or each position.
Per = Literal["example", "token"]

#: What `vmap` says where an operation cannot be vectorised; also what a program says that does not fit its data,
#: and then the loop says it again.
_REFUSALS = (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError, AttributeError)


def fisher_information(
    model: nn.Module | Program,
    data: Iterable[object],
    *,
    weights: Mapping[str, Tensor] | None = None,
    example: Inputs | None = None,
    variant: Variant = "exact",
    likelihood: str | Loss = "categorical",
    per: Per = "example",
    skip: Sequence[str] = (),
    axis: int = -1,
    draws: int = 1,
    limit: int | None = None,
    microbatch: int | None = None,
    vectorised: bool | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> Gathered:
    """The mean squared gradient of log p(y | x) with respect to each weight, where y is drawn from the model.

    The model runs in eval mode, and each example has its own gradient (a batch's mean gradient, squared, is not
    Fisher information). What lives at a time is `microbatch` gradients, however long the data is and however
    many classes there are.

    Args:
        model: a module, or a program with `weights`.
        data: an iterable of inputs or (inputs, targets); 4096 training examples are usual.
        weights: a state dict to run the model with; a module's own where not given.
        example: inputs to read a module with; the first batch of `data` where not given.
        variant: "exact" takes the expectation over all classes, one backward pass each; "sampled" draws targets
            from the model, which is unbiased and needs `draws` passes; "empirical" takes the data's own, which is
            not the Fisher information but is often used in its place.
        likelihood: "categorical" (softmax), "bernoulli" (multi-label), "gaussian" (regression, variance 1), or a
            loss of one's own, (outputs, targets) -> scalar, called with one example at a time; a loss draws
            nothing, so its variant is "empirical".
        per: "example" adds up the scores of an example's positions before they are squared (a sequence is one
            observation), "token" squares each position's. The exact variant differs in the divisor only, since
            positions are independent given the input.
        skip: patterns of weights to leave out, such as a head that is not merged.
        axis: of the classes in the model's outputs; 1 for a segmentation network.
        draws: of targets per example, for "sampled".
        limit: number of examples after which to stop.
        microbatch: examples whose gradients are held at a time; by default as many as fit into 64 MiB, at most 64.
        vectorised: by `torch.func.vmap` (True), example by example (False), or whichever works (None).
        device: where to run; None for where the weights are.
        seed: of the targets that are drawn. They do not depend on batching.

    Returns:
        Weight -> diagonal, float64, of the weight's shape. Positions whose target is -100 do not count.

    Raises:
        InputError: options that do not fit each other, or a pattern that no weight has.
        DataError: data that does not fit, or gradients that are not finite.
        ExportError: the model cannot be read.

    Source:
        Matena and Raffel, arXiv:2111.09832, section 3.2 and its code, whose exact form sums over classes. Their floor
        and normalisation are options of the rule `fisher`.

    Examples:
        >>> import torch, isthmus
        >>> model = torch.nn.Linear(2, 3)
        >>> x = torch.randn(8, 2)
        >>> known = isthmus.fisher_information(model, [x])
        >>> p = model(x).softmax(1)
        >>> torch.allclose(known["bias"].float(), (p * (1 - p)).mean(0))
        True
    """
    _check(variant, likelihood, per, draws, limit, microbatch)
    program, own, data = read(model, data, weights, example)
    own = placed(program, own, device)
    keys, left = _chosen(program, own, skip)
    runner = program.compile()
    size = microbatch or fitting(program, keys)
    uniform = np.random.Generator(np.random.PCG64(seed))
    total = {key: torch.zeros(own[key].shape, dtype=torch.float64, device=own[key].device) for key in keys}
    examples, observations, together = 0, 0, vectorised is not False
    for batch in feed(data, "Fisher information", limit):
        for _, piece in pieces(batch.to(*home(own)), size):
            with explained(program, piece, "these examples"), torch.no_grad():
                returned = runner(own, piece)
            labels = _labels(returned, piece, variant, likelihood, axis, draws, uniform)
            vectors = _vectors(variant, likelihood, per, axis, draws)
            found = None
            if together:
                try:
                    found = squared_gradients(runner, own, keys, piece, labels, vectors)
                except torch.OutOfMemoryError:
                    raise
                except _REFUSALS:
                    if vectorised:
                        raise
                    together = False
            if found is None:
                found = squared_gradients(runner, own, keys, piece, labels, vectors, vectorised=False)
            for key, value in found.items():
                total[key] += value
            examples += piece.size
            observations += int(labels["kept"].sum()) if per == "token" else piece.size
    bad = [key for key, value in total.items() if not bool(value.isfinite().all())]
    if bad:
        raise DataError(
            "gradients are not finite", bad, hint="the model overflows on this data, or the data holds NaN"
        )
    if not observations:
        raise DataError("there is no observation in the data", hint=f"all targets are {IGNORED}")
    found = {key: value / observations for key, value in total.items()}
    found |= {alias: found[key] for alias, key in program.tied.items() if key in found}
    settings = {
        "kind": "fisher",
        "variant": variant,
        "likelihood": likelihood if isinstance(likelihood, str) else "own loss",
        "per": per,
        "examples": examples,
        "observations": observations,
        **({"draws": draws, "seed": seed} if variant == "sampled" else {}),
        "vectorised": together,
    }
    return Gathered(found, settings, left)


def _check(
    variant: str, likelihood: str | Loss, per: str, draws: int, limit: int | None, microbatch: int | None
) -> None:
    """Options that are wrong, all of them at once."""
    problems: list[str] = []
    if variant not in ("exact", "sampled", "empirical"):
        problems.append(f"variant={variant!r} is none of exact, sampled, empirical")
    elif not isinstance(likelihood, str) and variant != "empirical":
        problems.append(f"variant={variant!r}: of a loss only the data's targets are known (empirical)")
    if isinstance(likelihood, str) and likelihood not in LIKELIHOODS:
        problems.append(f"likelihood={likelihood!r} is none of {', '.join(LIKELIHOODS)}")
    if per not in ("example", "token"):
        problems.append(f"per={per!r} is neither example nor token")
    elif per == "token" and not isinstance(likelihood, str):
        problems.append("per='token': a loss of one's own is of an example as a whole")
    for name, value in (("draws", draws), ("limit", limit), ("microbatch", microbatch)):
        if value is not None and value < 1:
            problems.append(f"{name}={value} is not at least 1")
    if problems:
        raise InputError("Fisher information cannot be gathered like this", problems)


def _chosen(
    program: Program, weights: Mapping[str, Tensor], skip: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The weights to differentiate by, and why not the others.

    Raises:
        InputError: a pattern that no weight has.
    """
    unused = [p for p in skip if not any(fnmatch.fnmatchcase(key, p) for key in program.shapes)]
    if unused:
        raise InputError(
            f"no weight is called {', '.join(map(repr, unused))}", hint="skip= takes patterns of names"
        )
    keys: list[str] = []
    left: dict[str, str] = {}
    for key, value in weights.items():
        names = [key, *(alias for alias, first in program.tied.items() if first == key)]
        if any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in skip):
            left[key] = "left out (skip)"
        elif key not in program.buffers and value.is_floating_point():
            keys.append(key)
    if not keys:
        raise InputError("no weight is left to differentiate by")
    return tuple(keys), left


def _rows(outputs: Tensor, axis: int) -> Tensor:
    """Outputs of one example, (1, ...), as (positions, classes)."""
    if outputs.ndim < 2:
        return outputs.reshape(1, 1)
    moved = outputs.movedim(axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def _like(rows: Tensor, outputs: Tensor, axis: int) -> Tensor:
    """`_rows` undone."""
    if outputs.ndim < 2:
        return rows.reshape(outputs.shape)
    return rows.reshape(outputs.movedim(axis, -1).shape).movedim(-1, axis)


def _labels(
    returned: object,
    batch: Batch,
    variant: str,
    likelihood: str | Loss,
    axis: int,
    draws: int,
    uniform: np.random.Generator,
) -> dict[str, Tensor]:
    """What each example of a batch is scored against: its targets, or numbers to draw them by, and its positions."""
    outputs = logits_of(returned).detach()
    if outputs.shape[:1] != (batch.size,):
        raise DataError(f"the model answers {batch.size} examples with {tuple(outputs.shape)}")
    moved = outputs.unsqueeze(-1) if outputs.ndim < 2 else outputs.movedim(axis, -1)
    shape, place = (batch.size, moved[0, ..., 0].numel()), outputs.device
    labels: dict[str, Tensor] = {"kept": torch.ones(shape, dtype=torch.bool, device=place)}
    targets = batch.targets
    if isinstance(likelihood, str) and likelihood == "categorical" and targets is not None:
        fits = targets.numel() == labels["kept"].numel() and not targets.is_floating_point()
        if not fits and variant == "empirical":
            raise DataError(
                "the targets do not fit the model's outputs",
                [f"outputs {tuple(outputs.shape)}, classes along {axis}", f"targets {tuple(targets.shape)}"],
                hint="one class number per position; axis= says where the classes are",
            )
        if fits and variant == "empirical":
            check_classes(targets, moved.shape[-1])
        if fits:
            labels["kept"] = targets.reshape(shape) != IGNORED
    if variant == "empirical":
        if targets is None:
            raise DataError("the empirical variant needs targets", hint="yield (inputs, targets)")
        labels["targets"] = targets
    if variant == "sampled":
        drawn = uniform.random((batch.size, draws, shape[1], moved.shape[-1]))
        labels["uniform"] = torch.from_numpy(drawn).to(place)
    return labels


def _vectors(variant: str, likelihood: str | Loss, per: str, axis: int, draws: int) -> Vectors:
    """The vectors whose squared gradients are one example's information."""
    if not isinstance(likelihood, str):
        return _of_loss(likelihood)
    known = LIKELIHOODS[likelihood]

    def vectors(outputs: Tensor, labels: Mapping[str, Tensor]) -> Iterator[Tensor]:
        rows = _rows(outputs, axis)
        kept = labels["kept"].to(rows.dtype).unsqueeze(1)
        if variant == "exact":
            for part in range(known.parts(rows)):
                yield _like(known.expected(rows, part) * kept, outputs, axis)
            return
        for score in _scores(known, rows, labels, draws):
            score = score * kept
            if per == "example":
                yield _like(score, outputs, axis)
                continue
            for row in range(len(rows)):
                here = torch.arange(len(rows), device=rows.device) == row
                yield _like(score * here.to(rows.dtype).unsqueeze(1), outputs, axis)

    return vectors


def _scores(known: Likelihood, rows: Tensor, labels: Mapping[str, Tensor], draws: int) -> Iterator[Tensor]:
    """The gradient of log p at each set of targets of one example."""
    if "targets" in labels:
        yield known.observed(rows, labels["targets"])
        return
    for uniform in labels["uniform"].unbind(0):
        yield known.drawn(rows, uniform) / draws**0.5


def _of_loss(loss: Loss) -> Callable[[Tensor, Mapping[str, Tensor]], Iterator[Tensor]]:
    def vectors(outputs: Tensor, labels: Mapping[str, Tensor]) -> Iterator[Tensor]:
        targets = labels["targets"].unsqueeze(0)
        yield torch.func.grad(lambda given: loss(given, targets).sum())(outputs)

    return vectors
