"""What learning rate, weight decay and initialisation do to the barrier: appendix A.4, on small images and networks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common.bench import Results
from torch import Tensor, nn

import isthmus
from isthmus import weights as files
from isthmus import zoo
from isthmus.measure import barrier
from isthmus.paths import Segment
from isthmus.repair import goals, repair, rescale

State = dict[str, Tensor]

SEEDS = (1, 2, 3)
IMAGES = 6_000
#: The rate falls tenfold after these epochs, as in the paper, where it does so after 82 and 123 of 160.
FULL, TENTH, HUNDREDTH = 4, 1, 1
POINTS = 5


@dataclass(frozen=True)
class Condition:
    """How one group of networks is trained.

    Attributes:
        norm: "none" or "ln".
        rate: first learning rate.
        decay: weight decay.
        initial: "normal" (Kaiming's, by fan-out) or "uniform" (torch's own).
        again: rate of one more epoch, which makes the network worse: the control of equal accuracy.
    """

    norm: str = "none"
    rate: float = 0.1
    decay: float = 1e-4
    initial: str = "normal"
    again: float | None = None

    @property
    def name(self) -> str:
        again = "" if self.again is None else f", then {self.again:g}"
        return f"{self.norm}, lr {self.rate:g}{again}, wd {self.decay:g}, {self.initial}"


RATES = [Condition(rate=r) for r in (0.1, 0.03, 0.01)]
DECAYS = [Condition(decay=d) for d in (5e-4, 2e-3)]
CONTROLS = [Condition(again=0.01), Condition(decay=2e-3, again=0.1)]
NORMED = [Condition("ln", r, initial=i) for i in ("normal", "uniform") for r in (0.1, 0.01, 0.001)]


def measure(data: zoo.Dataset, results: Results, models: Path, device: str) -> None:
    """Every condition; every two of its networks are a pair."""
    small = halved(data)
    test = list(small.loader("test", batch_size=1000))
    calibration = list(small.loader("train", batch_size=250, limit=1000))
    for condition in (*RATES, *DECAYS, *CONTROLS, *NORMED):
        results.once(condition.name, lambda c=condition: group(c, small, calibration, test, models, device))


def group(
    condition: Condition,
    data: zoo.Dataset,
    calibration: Sequence[tuple[Tensor, Tensor]],
    test: Sequence[tuple[Tensor, Tensor]],
    models: Path,
    device: str,
) -> dict[str, Any]:
    """Accuracies, distances and barriers of all pairs of one condition."""
    runs = [trained(condition, seed, data, models, device) for seed in SEEDS]
    net, example = built(condition, 0), test[0][0][:2]
    graph = isthmus.verified(isthmus.trace(net, example), example, weights=runs[0][-1])[0]
    program = graph.program
    found: dict[str, Any] = {
        "accuracy": [isthmus.evaluate(net, test, run[-1]).accuracy for run in runs],
        "pairs": [],
    }
    for a, b in itertools.combinations(runs, 2):
        states = [a[-1], b[-1]]
        matched = isthmus.align(graph, states, "weight-matching").apply(states)
        row: dict[str, Any] = {
            "distance": [apart(x, y) for x, y in zip(a, b, strict=True)],
            "aligned distance": apart(*matched),
            "size": [float(norm(state)) for state in states],
        }
        for name, ends in (("direct", states), ("aligned", matched)):
            row[name] = barrier(program, Segment(*ends), test, points=POINTS).height("accuracy")
        middle = Segment(*matched).at(0.5)
        wanted = goals(program, matched, (0.5, 0.5), calibration)
        for name, how in (("repair", repair), ("rescale", rescale)):
            row[name] = isthmus.evaluate(
                net, test, how(program, middle, calibration, goals=wanted).weights
            ).accuracy
        row["midpoint"] = isthmus.evaluate(net, test, middle).accuracy
        found["pairs"].append(row)
    return found


def built(condition: Condition, seed: int) -> nn.Module:
    """A fresh network: nine convolutions and a classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = zoo.build("demo_vgg", norm=condition.norm).eval()
    return zoo.init(net, seed) if condition.initial == "normal" else net


def trained(condition: Condition, seed: int, data: zoo.Dataset, models: Path, device: str) -> list[State]:
    """A network's weights before training and after each epoch."""
    start = built(condition, seed)
    found = [{key: value.clone() for key, value in start.state_dict().items()}]
    before = replace(condition, again=None)
    rates = [condition.rate] * FULL + [condition.rate / 10] * TENTH + [condition.rate / 100] * HUNDREDTH
    rates += [] if condition.again is None else [condition.again]
    loader = data.loader("train", batch_size=64, shuffle=True, drop_last=True)
    for epoch, rate in enumerate(rates):
        owner = before if epoch < FULL + TENTH + HUNDREDTH else condition
        stem = owner.name.replace(", ", "-").replace(" ", "")
        path = models / "training" / f"{stem}_s{seed}_e{epoch + 1}.safetensors"
        net = built(condition, seed)
        if not path.exists():
            net.load_state_dict(found[-1])
            # A call of its own per epoch: momentum starts anew, which is what a look at each epoch costs. The first
            # epoch's rate rises, as in the paper's networks with layer norm.
            result = zoo.train(
                net.to(device),
                loader,
                epochs=1,
                lr=rate,
                schedule="constant" if epoch else "onecycle",
                warmup=0.99,
                weight_decay=condition.decay,
                clip=1.0,
                bf16=True,
                seed=1000 * seed + epoch,
            )
            files.save(result.model.cpu().state_dict(), path)
        loaded = files.load(path)
        found.append({key: loaded[key] for key in found[0]})
    return found


def halved(data: zoo.Dataset) -> zoo.Dataset:
    """The first so many training images, and test images, each 2 x 2 pixels averaged to one."""

    def small(x: np.ndarray) -> np.ndarray:
        wide = x.astype(np.uint16)
        return (
            (wide[:, ::2, ::2] + wide[:, 1::2, ::2] + wide[:, ::2, 1::2] + wide[:, 1::2, 1::2] + 2) // 4
        ).astype(np.uint8)

    x, y = data.arrays("train")
    return replace(
        data,
        x_train=small(x[:IMAGES]),
        y_train=y[:IMAGES],
        x_test=small(data.x_test[:5000]),
        y_test=data.y_test[:5000],
        x_validation=None,
        y_validation=None,
    )


def norm(state: State) -> Tensor:
    """Length of all parameters as one vector."""
    return torch.cat([value.double().flatten() for value in state.values()]).norm()


def apart(one: State, other: State) -> float:
    """Distance of two networks."""
    return float(norm({key: value - other[key] for key, value in one.items()}))
