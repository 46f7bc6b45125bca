"""One call: choose what goes, set it to zero, repair what that broke."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from isthmus import weights as files
from isthmus.errors import InputError, MismatchError
from isthmus.features import placed
from isthmus.measure import reusable
from isthmus.measure.score import Metric
from isthmus.program import Inputs, Program, export
from isthmus.prune.layers import Layer, prunable
from isthmus.prune.masks import Mask, load_mask, masked
from isthmus.prune.result import Pruned, check_chosen
from isthmus.prune.table import PRUNERS, Choice
from isthmus.registry import Asked, numbers
from isthmus.repair.by_name import needs_of
from isthmus.repair.choosing import wanted
from isthmus.statistics.reading import read


def prune(
    model: nn.Module | Program,
    method: str | None = None,
    *,
    sparsity: float | None = None,
    mask: Mask | str | Path | None = None,
    data: Iterable[object] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    example: Inputs | None = None,
    skip: Sequence[str] = (),
    repair: Asked | Sequence[Asked] | None = None,
    validation: Iterable[object] | None = None,
    metric: str | Metric = "accuracy",
    **options: object,
) -> Pruned:
    """Prune a model in one shot, without training, and repair it with the unpruned model as the reference.

    Weights of linear and conv operations are pruned, wherever they are in the graph; biases and norms are not.

    Args:
        model: a module, or a program with `weights`; it is not changed.
        method: a pruner's name, see `isthmus.methods("pruner")`; "magnitude" where neither it nor a mask is given.
        sparsity: share of the weights to prune, 0 to below 1. Of n weights that are compared, floor(n sparsity) go.
        mask: a mask to put on instead of choosing one, or the file of one.
        data: calibration data, an iterable of inputs or (inputs, targets) that can be read again. The pruner and the
            repair both read it.
        weights: a state dict to prune; a module's own where not given.
        example: inputs to read a module with; the first batch of `data` where not given.
        skip: patterns of weights to leave whole ("classifier.*"); the logit layer is pruned like any other.
        repair: how to give activations their statistics back: a name, `{"method": ..., option: ...}`, a list of these
            to choose from, "best" for all that there are, or None. What it measures as the goal is the unpruned model.
            With `validation` a repair is kept only where it scores better than none; without, it is not judged.
        validation: (inputs, targets) held out of `data` and of the test split, by which repairs are chosen.
        metric: what they are chosen by: "accuracy", "loss", or a function of outputs and targets; see `isthmus.score`.
        options: of the pruner (scope, damping, ...).

    Returns:
        The weights, the mask and what was done.

    Raises:
        InputError: an unknown method, options that do not fit, nothing to prune.
        MismatchError: a mask that does not fit the model.
        WeightsError: weights that are not finite, or a mask that cannot be read.
        DataError: data that is missing, empty, or does not fit.
        ExportError: the model cannot be read.

    Source: Qu and Horváth 2025 (arXiv:2402.05966), section 6, for the repair of pruned networks.

    Examples:
        >>> import torch, isthmus
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(32, 4)
        >>> pruned = isthmus.prune(model, "magnitude", sparsity=0.5, data=[x], repair="rescale")
        >>> pruned.sparsity
        0.5
        >>> pruned.module()(x).shape
        torch.Size([32, 2])
    """
    method = "magnitude" if method is None and mask is None else method
    repairs = wanted(repair)
    _check(method, sparsity, mask, data, repairs, options)
    if repair is not None:
        check_chosen(repairs, validation)
    if data is None:
        if isinstance(model, nn.Module):
            if example is None:
                raise InputError(
                    "to read the model, example inputs are needed", hint="pass example= or data="
                )
            program: Program = export(model, example)
            given = model.state_dict() if weights is None else weights
        else:
            program, given, _ = read(model, (), weights, example)
    else:
        program, given, _ = read(model, data, weights, example)
    own = {key: value.detach() for key, value in given.items()}
    files.check_finite(own, "the model")
    inner = {**own, **placed(program, own, None)}
    layers, left = prunable(program, skip)
    used: dict[str, object] = {}
    if mask is not None:
        choice = Choice(_fitting(load_mask(mask) if isinstance(mask, str | Path) else mask, layers))
    else:
        assert method is not None and sparsity is not None
        pruner = PRUNERS.get(method)
        used = {**pruner.options, **numbers(pruner.function, options)}
        extra = {"data": data} if "data" in pruner.needs else {}
        choice = pruner.function(program, inner, layers, sparsity=sparsity, **extra, **used)
    if not choice.keep:
        raise InputError(
            "no layer could be pruned", [f"{k}: {why}" for k, why in {**left, **choice.left}.items()]
        )
    done = masked({**inner, **choice.weights}, choice.keep)
    # A tied weight has every name that it had.
    weights = {key: done.get(program.tied.get(key, key), value) for key, value in own.items()}
    pruned = Pruned(
        weights=weights,
        original=own,
        unrepaired=weights,
        mask=dict(choice.keep),
        program=program,
        labels={layer.key: program.module_of(layer.values[0]) for layer in layers},
        left=left | dict(choice.left),
        settings={
            "method": method if mask is None else None,
            "sparsity": sparsity,
            "skip": list(skip),
            "repair": None,
            **used,
        },
        notes=choice.notes,
    )
    if repair is None:
        return pruned
    return pruned.repair(repair, () if data is None else data, validation=validation, metric=metric)


def _check(
    method: str | None,
    sparsity: float | None,
    mask: object,
    data: Iterable[object] | None,
    repairs: Sequence[Asked],
    options: Mapping[str, object],
) -> None:
    """Refuse what does not fit together, all of it at once."""
    problems: list[str] = []
    if mask is not None:
        given = {"method": method, "sparsity": sparsity, **options}
        problems += [f"{k}={v!r} beside a mask" for k, v in given.items() if v is not None]
    else:
        assert method is not None
        needs, known = PRUNERS.get(method).needs, PRUNERS.get(method).options
        problems += [f"{method} has no option {name!r}" for name in options if name not in known]
        problems += [
            f"{name}={options[name]!r} is none of {', '.join(words)}"
            for name, words in _words(method).items()
            if name in options and options[name] not in words
        ]
        if sparsity is None:
            problems.append("how sparse the model shall be is not known: sparsity=, or mask=")
        elif not 0 <= sparsity < 1:
            problems.append(f"sparsity={sparsity} is not from 0 to below 1")
        if "data" in needs and data is None:
            problems.append(f"{method} needs data")
    if data is None and any("data" in needs_of(one) for one in repairs):
        problems.append("the repair needs data")
    if problems:
        raise InputError("the model cannot be pruned like this", problems)
    if data is not None:
        reusable(data)


def _words(method: str) -> dict[str, tuple[str, ...]]:
    """The options of a pruner that are words of a list."""
    hints = get_type_hints(PRUNERS.get(method).function)
    return {
        name: get_args(hints[name])
        for name in PRUNERS.get(method).options
        if get_origin(hints[name]) is Literal
    }


def _fitting(mask: Mask, layers: Sequence[Layer]) -> Mask:
    """A mask of nothing but layers that can be pruned."""
    shapes = {layer.key: layer.shape for layer in layers}
    wrong = [f"{key}: no layer that can be pruned" for key in mask if key not in shapes]
    wrong += [
        f"{key}: mask {tuple(keep.shape)}, weight {shapes[key]}"
        for key, keep in mask.items()
        if key in shapes and tuple(keep.shape) != tuple(shapes[key])
    ]
    if wrong:
        raise MismatchError(f"{len(wrong)} tensors of the mask do not fit the model", wrong)
    return mask
