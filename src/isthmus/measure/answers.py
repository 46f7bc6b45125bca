"""What a model answers under given weights; a user's module is left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from isthmus import program
from isthmus.errors import REFUSALS, DataError, InputError, IsthmusError, MismatchError, first_line
from isthmus.program import Batch, Program, Runner, home
from isthmus.program.evaluating import evaluating

#: What can be measured: a module (with its own weights, or others), or a program with weights.
Model = nn.Module | Program | Runner
Weights = Mapping[str, Tensor]

#: The way out for outputs and targets that are no classification.
OWN_METRIC = "score it yourself: isthmus.score(model, data, metric=f), f(outputs, targets) -> float"


@contextmanager
def answering(model: Model, weights: Weights | None = None) -> Iterator[Callable[[Batch], object]]:
    """Make a function from batches to what the model returns, in eval mode and without gradients.

    Args:
        model: a module, a program or a compiled program.
        weights: the weights to run it with; None for a module's own.

    Yields:
        The function. It moves each batch to the device and dtype of the weights.

    Raises:
        InputError: a program without weights.
        MismatchError: the weights do not fit the model; every key is named.
        DataError: when called, of inputs that the model cannot be run on.
    """
    if isinstance(model, nn.Module):
        with evaluating(model), torch.no_grad():
            yield _of_module(model, weights)
        return
    if weights is None:
        raise InputError("a program has no weights of its own", hint="pass weights=, a state dict")
    run = model.compile() if isinstance(model, Program) else model
    given, place = weights, home(weights)

    def ask(batch: Batch) -> object:
        with _explained(batch):
            return run(given, batch.to(*place))

    with torch.no_grad():
        yield ask


def _of_module(model: nn.Module, weights: Weights | None) -> Callable[[Batch], object]:
    if weights is None:
        here = home(model.state_dict())

        def ask(batch: Batch) -> object:
            moved = batch.to(*here)
            with _explained(batch):
                return model(*moved.args, **moved.kwargs)

        return ask
    fitted = _fit(model, weights)
    place = home(fitted)

    def ask_with(batch: Batch) -> object:
        moved = batch.to(*place)
        with _explained(batch):
            return torch.func.functional_call(model, fitted, moved.args, moved.kwargs)

    return ask_with


def _fit(model: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """The weights under the module's keys, a tied weight once."""
    own = {k: v for k, v in model.state_dict(keep_vars=True).items() if isinstance(v, torch.Tensor)}
    wrong = [f"{key}    unexpected" for key in weights if key not in own]
    fitted: dict[str, Tensor] = {}
    tied: dict[int, str] = {}
    for key, mine in own.items():
        if key not in weights:
            continue
        if weights[key].shape != mine.shape:
            wrong.append(f"{key}    model {tuple(mine.shape)}    weights {tuple(weights[key].shape)}")
        elif tied.setdefault(id(mine), key) == key:
            fitted[key] = weights[key]
    wrong += [f"{key}    missing" for key, mine in own.items() if key not in weights and id(mine) not in tied]
    if wrong:
        raise MismatchError(f"{len(wrong)} weights do not fit {type(model).__name__}", wrong)
    return fitted


@contextmanager
def _explained(batch: Batch) -> Iterator[None]:
    """Say which inputs a model could not be run on."""
    try:
        yield
    except (IsthmusError, torch.OutOfMemoryError):
        raise
    except REFUSALS as error:
        values = pytree.tree_leaves((batch.args, batch.kwargs))
        shapes = [f"{tuple(v.shape)} {v.dtype}" for v in values if isinstance(v, torch.Tensor)]
        raise DataError(f"the model cannot be run on the data: {first_line(error)}", shapes) from error


def logits_of(output: object) -> Tensor:
    """The logits in what a model returned: itself, its `logits`, or the first tensor in it.

    Raises:
        DataError: there is no tensor in it.
    """
    return program.logits_of(output, hint=OWN_METRIC)
