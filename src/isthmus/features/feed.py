"""Calibration data, batch by batch, where and as the models want it; and what to say when it does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from isthmus import progress
from isthmus.errors import REFUSALS, DataError, InputError, IsthmusError, MismatchError, first_line
from isthmus.program import Batch, Program, batches


def placed(
    program: Program, weights: Mapping[str, Tensor], device: torch.device | str | None
) -> dict[str, Tensor]:
    """Only the program's own weights, on one device (by default that of the first).

    Raises:
        MismatchError: weights are missing or of another shape than the program's.
    """
    own = program.lookup(weights)
    shapes = {program.weights[name]: tuple(weight.shape) for name, weight in own.items()}
    wrong = [
        f"{key}: {shape}, the program has {program.shapes[key]}"
        for key, shape in shapes.items()
        if shape != program.shapes[key]
    ]
    if wrong:
        raise MismatchError(f"{len(wrong)} weights do not fit the program: shapes differ", wrong)
    target = torch.device(device) if device is not None else next((w.device for w in own.values()), None)
    return {program.weights[name]: weight.detach().to(target) for name, weight in own.items()}


def feed(data: Iterable[object], label: str, limit: int | None = None) -> Iterator[Batch]:
    """Each batch of `data`, cut off after `limit` examples, with its progress shown as `label`.

    Raises:
        InputError: a limit below 1.
        DataError: the data or a batch is empty, or a batch is not what `program.batches` reads.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit} leaves no example")
    seen = 0
    total = len(data) if isinstance(data, Sized) and limit is None else None
    for index, batch in enumerate(progress.track(batches(data), label, total=total, unit="batches")):
        if not batch.size:
            raise DataError(f"batch {index} of the data holds no example")
        whole = batch if limit is None or seen + batch.size <= limit else first(batch, limit - seen)
        seen += whole.size
        yield whole
        if limit is not None and seen >= limit:
            return


def first(batch: Batch, count: int) -> Batch:
    """The first `count` examples of a batch."""
    return part(batch, 0, count)


def part(batch: Batch, start: int, stop: int) -> Batch:
    """The examples of a batch from `start` to before `stop`."""
    size, here = batch.size, slice(start, stop)

    def cut(value: object) -> object:
        return value[here] if isinstance(value, Tensor) and value.shape[:1] == (size,) else value

    args, kwargs = pytree.tree_map(cut, (batch.args, batch.kwargs))
    return Batch(args, kwargs, None if batch.targets is None else batch.targets[here])


@contextmanager
def explained(program: Program, batch: Batch, where: str) -> Iterator[None]:
    """Turn what torch says about inputs that do not fit into what the user can act on.

    Args:
        program: what is run; it knows the inputs that it was traced with.
        batch: what it is run on.
        where: "batch 3", "model 1, batch 3", ...

    Raises:
        DataError: the batch does not fit.
    """
    try:
        yield
    except (IsthmusError, torch.OutOfMemoryError):
        raise
    except REFUSALS as error:
        raise DataError(
            f"the model cannot be run on the data: {first_line(error)}",
            [f"{where}: {line}" for line in _inputs(program, batch)],
            hint="give inputs of the shape and dtype that it was traced with; only the batch size is free",
        ) from error


def _inputs(program: Program, batch: Batch) -> Iterator[str]:
    values = pytree.tree_leaves((batch.args, dict(batch.kwargs)))
    for name, value in zip(program.inputs, values, strict=False):
        got = f"{_shape(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        if program.is_tensor(name):
            fake = program.value(name)
            yield f"input {name} is {got}, the model was traced with {_shape(fake.shape)} {fake.dtype}"
        else:
            yield f"input {name} is {got}"


def _shape(sizes: Iterable[object]) -> str:
    # A free dimension prints as "batch"; export's own name for it (s77) says nothing.
    return "(" + ", ".join(str(n) if isinstance(n, int) else "batch" for n in sizes) + ")"


def sinks(program: Program, values: Iterable[str]) -> tuple[str, ...]:
    """Those of the values that no other of them is computed from: running to these computes all."""
    wanted = set(values)
    below: set[str] = set()
    for name in wanted:
        stack = list(program.nodes[name].all_input_nodes)
        while stack:
            node = stack.pop()
            if node.name not in below:
                below.add(node.name)
                stack.extend(node.all_input_nodes)
    return tuple(name for name in program.nodes if name in wanted - below)
