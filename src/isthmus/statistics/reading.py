"""A model, its weights and its data, however they are given."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from isthmus.errors import InputError
from isthmus.program import Batch, Inputs, Program, batches, export


def read(
    model: nn.Module | Program,
    data: Iterable[object],
    weights: Mapping[str, Tensor] | None,
    example: Inputs | None,
) -> tuple[Program, Mapping[str, Tensor], Iterable[object]]:
    """The program, the weights to run it with, and the data with what was read of it put back.

    Raises:
        InputError: a program without weights.
        DataError: there is no data.
        ExportError: the model cannot be read.
    """
    if isinstance(model, Program):
        if weights is None:
            raise InputError("a program has no weights of its own", hint="pass weights=, a state dict")
        return model, weights, data
    if example is None:
        source = iter(data)
        first = list(itertools.islice(source, 1))
        batch = next(batches(first))
        args, kwargs = pytree.tree_map(
            lambda v: v[:2] if isinstance(v, Tensor) else v, (batch.args, batch.kwargs)
        )
        example = Batch(args, kwargs)
        if source is data:  # an iterator gives each batch once
            data = itertools.chain(first, source)
    with torch.no_grad():
        program = export(model, example)
    return (
        program,
        {k: v.detach() for k, v in model.state_dict().items()} if weights is None else weights,
        data,
    )
