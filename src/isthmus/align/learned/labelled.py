"""What matching by a task looks at: labelled data, kept in memory, and the loss of any weights on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from isthmus.errors import DataError, InputError
from isthmus.features import explained, feed
from isthmus.program import Batch, Program, home, logits_of
from isthmus.program.outputs import check_classes

aten = torch.ops.aten

#: Cross-entropy of class indices, or what the model returned and the targets (None without) to a scalar tensor.
Loss = Literal["cross-entropy"] | Callable[[object, Tensor | None], Tensor]


class Task:
    """The loss of a program's weights on labelled data, with gradients.

    Batch norms use each batch's own statistics: running ones are of no use between two models.

    Args:
        program: of the models.
        data: yields (inputs, targets); read once and kept, so its examples are the same in every pass.
        loss: what is low where the model is good.
        held_out: share of the examples, the last ones, that choices are made on; 0 to choose on all of them.
        like: weights whose device and dtype the inputs come in.
        limit: keep at most this many examples.

    Raises:
        DataError: no data, or some that is not finite; no targets where the loss needs them, or no example left for
            either part.
        InputError: no such loss, or a share outside 0 to 1.
    """

    def __init__(
        self,
        program: Program,
        data: Iterable[object],
        loss: Loss,
        held_out: float,
        like: Mapping[str, Tensor],
        limit: int | None = None,
    ):
        if not callable(loss) and loss != "cross-entropy":
            raise InputError(
                f"no loss is called {loss!r}",
                hint='use "cross-entropy", or a function of (outputs, targets) that returns a scalar',
            )
        if not 0 <= held_out < 1:
            raise InputError(f"held_out = {held_out} is no share of the data", hint="0.2 holds a fifth out")
        self.program, self.loss = program, loss
        place = home(program.lookup(like))
        read = [batch.to(*place) for batch in feed(data, "labelled data", limit)]
        if wrong := [f"batch {i}" for i, batch in enumerate(read) if not _is_finite(batch)]:
            raise DataError("the data holds NaN or infinity", wrong)
        if not callable(loss) and any(batch.targets is None for batch in read):
            raise DataError(
                "the data has no targets, and matching by a task needs them",
                hint="yield (inputs, targets), or pass loss=, a function of what the model returns",
            )
        self.batches, self.held = _split(read, held_out)
        #: Batch norms, which look at each batch.
        self.norms = tuple(
            n.name
            for n in program.graph.nodes
            if n.target is aten.batch_norm.default and n.name in program.dynamic
        )
        self._run = program.compile(batch_statistics=self.norms)

    def __call__(self, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The loss on one batch, of as many gradients as the weights ask for."""
        with explained(self.program, batch, "a batch of the data"):
            return self.of(self._run(weights, batch), batch)

    def of(self, output: object, batch: Batch) -> Tensor:
        """The loss of what the model returned."""
        value = self.loss(output, batch.targets) if callable(self.loss) else _cross_entropy(output, batch)
        if value.numel() != 1:
            raise InputError(f"the loss is of shape {tuple(value.shape)}, not one number")
        return value.reshape(())

    def held_loss(self, weights: Mapping[str, Tensor]) -> float:
        """The mean loss over what was held out; infinite where it is not a number."""
        total = 0.0
        with torch.no_grad():
            for batch in self.held:
                total += float(self(weights, batch)) * batch.size
        mean = total / sum(batch.size for batch in self.held)
        return mean if mean == mean else float("inf")


def mean_of(models: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The plain average of models; what is no floating number is the first one's."""
    share = 1 / len(models)
    return {
        key: sum((share * m[key] for m in models[1:]), share * first) if first.is_floating_point() else first
        for key, first in models[0].items()
    }


def _cross_entropy(output: object, batch: Batch) -> Tensor:
    logits, targets = logits_of(output), batch.targets
    assert targets is not None
    if targets.shape == logits.shape[:-1]:
        logits, targets = logits.flatten(0, -2), targets.flatten()
        check_classes(targets, logits.shape[-1])
    return torch.nn.functional.cross_entropy(logits, targets.long())


def _is_finite(batch: Batch) -> bool:
    values = pytree.tree_leaves((batch.args, dict(batch.kwargs)))
    return all(bool(v.isfinite().all()) for v in values if isinstance(v, Tensor) and v.is_floating_point())


def _split(read: Sequence[Batch], held_out: float) -> tuple[list[Batch], list[Batch]]:
    """The examples before and after the cut, in the batches that they came in."""
    total = sum(batch.size for batch in read)
    if not held_out:
        return list(read), list(read)
    cut = total - max(1, round(held_out * total))
    if cut < 1:
        raise DataError(
            f"{total} examples cannot be split into some to learn from and {held_out} of them held out"
        )
    before: list[Batch] = []
    after: list[Batch] = []
    start = 0
    for batch in read:
        inside = min(max(cut - start, 0), batch.size)
        start += batch.size
        before += [_some(batch, slice(0, inside))] if inside else []
        after += [_some(batch, slice(inside, None))] if inside < batch.size else []
    return before, after


def _some(batch: Batch, which: slice) -> Batch:
    size = batch.size

    def cut(value: object) -> object:
        return value[which] if isinstance(value, Tensor) and value.shape[:1] == (size,) else value

    args, kwargs = pytree.tree_map(cut, (batch.args, batch.kwargs))
    return Batch(args, kwargs, None if batch.targets is None else batch.targets[which])
