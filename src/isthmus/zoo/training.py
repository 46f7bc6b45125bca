"""A short, exact trainer: enough to make the strangers that the merging experiments need."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from isthmus.errors import InputError

from .data.dataset import Dataset
from .data.loader import Loader
from .initial import Model, init

# Two plain `demo_vgg` of the digits take 7 s of one processor core. Test accuracy over 16 seeds is 98.1 to
# 99.4%, mean 98.9%; that of their direct average, over 8 pairs, 9.7 to 20%, where chance is 10%. With
# norm="bn", 6 seeds: 98.6 to 99.7%, and 9.7 to 10%.
DEMO_RECIPE: Mapping[str, Any] = MappingProxyType(  # Any: arguments of `strangers` of several types
    {"epochs": 20, "batch_size": 64, "lr": 0.15, "weight_decay": 1e-3, "clip": 1.0, "threads": 1}
)
SCHEDULES = ("onecycle", "constant")
OPTIMIZERS = ("sgd", "adam")


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data.

    Args:
        number: from 1.
        loss: mean over the samples, as trained on (smoothed labels, augmented images).
        accuracy: share of the samples named rightly while training, 0 to 1.
        seconds: since training began.
    """

    number: int
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class TrainingResult(Generic[Model]):
    """A trained network and how it came about.

    Args:
        model: the trained copy, in evaluation mode.
        history: every epoch.
        seed: what it was trained with.
        seconds: wall time.
    """

    model: Model
    history: tuple[Epoch, ...]
    seed: int
    seconds: float


def train(
    model: Model,
    loader: Loader | Iterable[tuple[Tensor, Tensor]],
    *,
    epochs: int,
    lr: float,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    label_smoothing: float = 0.0,
    schedule: str = "onecycle",
    warmup: float = 0.3,
    clip: float | None = None,
    bf16: bool = False,
    threads: int | None = None,
    seed: int = 0,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> TrainingResult[Model]:
    """Train a copy of a classifier by cross-entropy, where the model's parameters are.

    The same arguments give the same weights, on the same machine and thread count.

    Args:
        model: left as it is.
        loader: yields (inputs, targets) and has a length. Of a `Loader` each epoch takes its own reshuffling,
            drawn from `seed`; anything else is iterated as it is.
        epochs: passes over the loader, at least 1.
        lr: the largest learning rate of the schedule.
        optimizer: "sgd" (Nesterov momentum) or "adam" (decoupled weight decay).
        momentum: of "sgd", or the first beta of "adam".
        weight_decay: on every parameter, biases and norms included.
        label_smoothing: 0 to 1.
        schedule: "onecycle" (each batch a step, linear up from lr / 25, linear down to zero) or "constant".
        warmup: share of all steps that "onecycle" rises for.
        clip: largest norm of the gradient, or None.
        bf16: autocast to bfloat16; helps where the processor multiplies it natively.
        threads: processor threads to use, torch's setting if None. Small networks want 1: a second one gains
            little on an idle machine and costs tenfold on a busy one.
        seed: of the order of the data and of what the model itself draws (dropout).
        on_epoch: called after each epoch.

    Raises:
        InputError: a setting out of range, a loader without batches, or a loss that is no longer finite.
    """
    _check(epochs, lr, optimizer, schedule, label_smoothing, warmup)
    if not isinstance(loader, Sized) or len(loader) == 0:
        raise InputError("training needs a loader with a length of at least one batch")
    # Channels last: a fifth faster on processors.
    trained = _laid_out(copy.deepcopy(model).train(), torch.channels_last)
    place = next(trained.parameters()).device
    if optimizer == "sgd":
        moving = torch.optim.SGD(
            trained.parameters(), lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0
        )
    else:
        moving = torch.optim.AdamW(trained.parameters(), lr, (momentum, 0.999), weight_decay=weight_decay)
    steps = _schedule(moving, schedule, lr, epochs * len(loader), warmup)
    history: list[Epoch] = []
    began = time.perf_counter()
    with _threads(threads), torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(seed)
        for number in range(1, epochs + 1):
            loss_sum, hits, samples = torch.zeros((), device=place), torch.zeros((), device=place), 0
            for inputs, targets in _epoch(loader, number - 1, seed):
                inputs, targets = inputs.to(place), targets.to(place)
                with torch.autocast(place.type, torch.bfloat16, enabled=bf16):
                    logits = trained(inputs)
                logits = logits.float()
                loss = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
                moving.zero_grad(set_to_none=True)
                loss.backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(trained.parameters(), clip)
                moving.step()
                steps.step()
                loss_sum += loss.detach() * len(targets)
                hits += (logits.detach().argmax(1) == targets).sum()
                samples += len(targets)
            mean = loss_sum.item() / samples
            if not math.isfinite(mean):
                raise InputError(f"training diverged in epoch {number}: the loss is {mean}", hint="lower lr")
            history.append(Epoch(number, mean, hits.item() / samples, time.perf_counter() - began))
            if on_epoch is not None:
                on_epoch(history[-1])
    trained = _laid_out(trained.eval(), torch.contiguous_format)
    return TrainingResult(trained, tuple(history), seed, time.perf_counter() - began)


def strangers(
    data: Dataset,
    factory: Callable[[], Model],
    n: int = 2,
    *,
    seeds: Sequence[int] | None = None,
    batch_size: int = 128,
    augment: bool = False,
    **recipe: Any,  # passed on to `train`, which names and checks each
) -> tuple[TrainingResult[Model], ...]:
    """n networks of one architecture that share nothing but the data: other initial weights, other order.

    Args:
        data: its "train" split is trained on.
        factory: makes one network.
        n: how many.
        seeds: one per network, each of its initial weights and of its training; by default 1 to n.
        batch_size: images in a batch.
        augment: whether to use the data set's own augmentation.
        recipe: the other arguments of `train`: epochs, lr, weight_decay, ...

    Raises:
        InputError: seeds that are not n different ones, or as `train`.
    """
    chosen = tuple(range(1, n + 1)) if seeds is None else tuple(seeds)
    if len(chosen) != n or len(set(chosen)) != n:
        raise InputError(f"{n} strangers need {n} different seeds, got {chosen}")
    loader = data.loader("train", batch_size=batch_size, augment=augment, shuffle=True, drop_last=True)
    return tuple(train(init(factory(), seed), loader, seed=seed, **recipe) for seed in chosen)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _laid_out(model: Model, layout: torch.memory_format) -> Model:
    """The model itself, its convolutions' weights stored in another order of axes."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    return model


def _check(
    epochs: int, lr: float, optimizer: str, schedule: str, label_smoothing: float, warmup: float
) -> None:
    problems: list[str] = []
    if epochs < 1:
        problems.append(f"epochs={epochs}: at least 1")
    if not 0 < lr < math.inf:
        problems.append(f"lr={lr}: positive and finite")
    if optimizer not in OPTIMIZERS:
        problems.append(f"optimizer={optimizer!r}: one of {', '.join(OPTIMIZERS)}")
    if schedule not in SCHEDULES:
        problems.append(f"schedule={schedule!r}: one of {', '.join(SCHEDULES)}")
    if not 0 <= label_smoothing < 1:
        problems.append(f"label_smoothing={label_smoothing}: 0 to 1")
    if not 0 < warmup < 1:
        problems.append(f"warmup={warmup}: between 0 and 1")
    if problems:
        raise InputError("these training settings are out of range", where=problems)


def _schedule(
    moving: torch.optim.Optimizer, schedule: str, lr: float, steps: int, warmup: float
) -> LRScheduler:
    if schedule == "constant":
        return LambdaLR(moving, lambda _: 1.0)
    # One step more than is taken, so that the last step still moves; momentum is left where it is.
    return OneCycleLR(
        moving, lr, total_steps=steps + 1, pct_start=warmup, anneal_strategy="linear", cycle_momentum=False
    )


def _epoch(
    loader: Loader | Iterable[tuple[Tensor, Tensor]], index: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    return loader.epoch(index, seed) if isinstance(loader, Loader) else iter(loader)
