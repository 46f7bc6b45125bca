"""Weights against features: uniform and greedy soups, ensembles of logits and of features, under two protocols.

`correct`: every network in eval mode, choices made on a validation split that no model was trained on, inputs
normalised as in training, batch-norm statistics of soups estimated again from training images. `rethink`: as the
released code does it. Nothing is put in eval mode for testing, so batch norm uses each test batch's own statistics and
dropout is on; the split that choices are made on is mostly training images; CIFAR-10 is normalised by CIFAR-100's
moments; the greedy soup goes through the models in the order given, counts positions instead of members, and begins
with the first model. The models are the same under both: what differs is how they are merged and measured.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nets
import numpy as np
import torch
from data import CIFAR100, Task
from nets import Narrow
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import isthmus
from isthmus.measure import not_finite
from isthmus.repair import reset

Protocol = Literal["correct", "rethink"]
State = dict[str, Tensor]

#: Columns of the tables: the paper's, then ours.
WAYS = (
    "single",
    "uniform",
    "greedy",
    "logits",
    "features",
    "features, head 1",
    "greedy logits",
    "greedy features",
)
BATCH = 128


def score(task: Task, outputs: Tensor, targets: Tensor) -> float:
    """Per cent: accuracy, or the mean AUROC of the labels, from all examples together.

    A label that all or no examples have has no AUROC and is left out. Where logits are not finite, `argmax` says
    what it says: that is what the released code counts.
    """
    if not task.many:
        return 100 * (outputs.argmax(1) == targets).double().mean().item()
    told = outputs.double().sigmoid().nan_to_num(0.5).numpy()
    known = targets.numpy()
    both = [k for k in range(known.shape[1]) if 0 < known[:, k].sum() < len(known)]
    return 100 * float(np.mean([roc_auc_score(known[:, k], told[:, k]) for k in both]))


@dataclass
class Bench:
    """One network and task under one protocol.

    Attributes:
        name: of the network.
        task: what is tested.
        base: channels of its first layer.
        protocol: see above.
        seed: of dropout and of the split, under "rethink".
        scores: a folder that keeps the scores of soups: those of the first models are asked for again and again.
    """

    name: str
    task: Task
    base: int
    protocol: Protocol = "correct"
    seed: int = 0
    scores: Path | None = None
    _program: isthmus.Program | None = None

    def net(self, state: Mapping[str, Tensor], training: bool | None = None) -> Narrow:
        made = nets.build(self.name, self.task.outputs, self.base)
        dtype = next(v.dtype for v in state.values() if v.is_floating_point())
        made.to(dtype).load_state_dict(dict(state))
        return made.train(self.protocol == "rethink" if training is None else training)

    def inputs(self, split: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Normalised images and targets of a split."""
        if split == "validation" and self.protocol == "rethink":
            parts = [self.task.splits[s] for s in ("train", "validation")]
            images, targets = (torch.cat([p[i] for p in parts]) for i in (0, 1))
            rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
            rows = rows[: len(images) // 10]
            images, targets = images[rows], targets[rows]
        else:
            images, targets = self.task.splits[split]
        moments = CIFAR100 if self.protocol == "rethink" and self.task.name == "cifar10" else None
        return self.task.normalised(images[:limit], moments), targets[:limit]

    @torch.no_grad()
    def features(self, state: Mapping[str, Tensor], images: Tensor, training: bool | None = None) -> Tensor:
        """What the head reads, batch by batch."""
        torch.manual_seed(self.seed)
        net = self.net(state, training)
        images = images.to(next(net.parameters()).dtype) if images.is_floating_point() else images
        return torch.cat([net.features(part) for part in images.split(BATCH)])

    def logits(self, state: Mapping[str, Tensor], images: Tensor, training: bool | None = None) -> Tensor:
        return headed(self.features(state, images, training), [state])

    def reset(self, state: State) -> State:
        """Batch-norm statistics from 2000 training images; a network without is handed through."""
        if not any(key.endswith("running_var") for key in state):
            return state
        images = self.task.normalised(self.task.splits["train"][0][:2000])
        if self._program is None:
            self._program = isthmus.export(self.net(state, False), images[:2])
        return dict(reset(self._program, state, [images]).weights)


def headed(features: Tensor, states: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Features answered by the mean of some models' heads."""
    weight = torch.stack([s["head.weight"] for s in states]).mean(0)
    bias = torch.stack([s["head.bias"] for s in states]).mean(0)
    return nn.functional.linear(features, weight, bias)


def greedy(bench: Bench, states: Sequence[State]) -> tuple[State, list[int]]:
    """The greedy soup of a protocol, and who is in it."""
    images, targets = bench.inputs("validation")

    def rate(weights: Mapping[str, Tensor]) -> float:
        return score(bench.task, bench.logits(weights, images, training=False), targets)

    if bench.protocol == "correct":

        def repaired(weights: Mapping[str, Tensor]) -> float:
            return rate(bench.reset(dict(weights)))

        numbers = [str(i) for i in range(len(states))]
        found = isthmus.soup(
            states, repaired, "greedy", names=numbers, folder=bench.scores, score_name="validation"
        )
        members = sorted(int(name) for name in found.chosen)
        return bench.reset(isthmus.combine([states[i] for i in members])), members
    soup, best, members = dict(states[0]), rate(states[0]), [0]
    for position, state in enumerate(states[1:], start=1):
        share = 1 / (position + 1)  # of the position, whoever was accepted before
        candidate = isthmus.combine([soup, state], weights=[1 - share, share])
        if (found := rate(candidate)) >= best:
            soup, best = candidate, found
            members.append(position)
    return soup, members


def compared(bench: Bench, states: Sequence[State], rows: Sequence[Tensor] | None = None) -> dict[str, Any]:
    """Scores of every way on the test split, per cent.

    Args:
        bench: network, task and protocol.
        states: the models that are merged.
        rows: their features of the test images, where they are known already.
    """
    images, targets = bench.inputs("test")
    rows = [bench.features(s, images) for s in states] if rows is None else rows
    singles = [headed(r, [s]) for r, s in zip(rows, states, strict=True)]
    uniform = isthmus.combine(states)
    merged = bench.reset(uniform) if bench.protocol == "correct" else uniform
    soup, members = greedy(bench, states)
    found: dict[str, Any] = {
        "single": float(np.mean([score(bench.task, s, targets) for s in singles])),
        "spread": float(np.std([score(bench.task, s, targets) for s in singles], ddof=1)),
        "uniform": score(bench.task, bench.logits(merged, images), targets),
        "greedy": score(bench.task, bench.logits(soup, images), targets),
        "members": members,
    }
    if bench.protocol == "correct" and any(k.endswith("running_var") for k in uniform):
        found["uniform, averaged statistics"] = score(bench.task, bench.logits(uniform, images), targets)
    for prefix, chosen in (("", range(len(states))), ("greedy ", members)):
        own = [states[i] for i in chosen]
        mean = torch.stack([rows[i] for i in chosen]).mean(0)
        found[f"{prefix}logits"] = score(
            bench.task, torch.stack([singles[i] for i in chosen]).mean(0), targets
        )
        found[f"{prefix}features"] = score(bench.task, headed(mean, own), targets)
        if not prefix:
            found["features, head 1"] = score(bench.task, headed(mean, own[:1]), targets)
    return found


def table(bench: Bench, states: Sequence[State], numbers: Sequence[int]) -> dict[str, Any]:
    """`compared` for the first 2, 3, 5, ... models."""
    images, _ = bench.inputs("test")
    rows = [bench.features(s, images) for s in states]
    return {str(n): compared(bench, states[:n], rows[:n]) for n in numbers if n <= len(states)}


def per_batch(task: Task, soup: Tensor, ensemble: Tensor, targets: Tensor, size: int = 25) -> dict[str, Any]:
    """Accuracy of a soup and of an ensemble on the same batches: the paper's scatter plot, and what it says."""
    pairs = [
        (score(task, a, t), score(task, b, t))
        for a, b, t in zip(soup.split(size), ensemble.split(size), targets.split(size), strict=True)
    ]
    x, y = np.array(pairs).T
    varies = x.std() > 0 and y.std() > 0
    return {
        "pairs": pairs,
        "correlation": float(np.corrcoef(x, y)[0, 1]) if varies else None,
        "ensemble above": float((y > x).mean()),
        "soup above": float((x > y).mean()),
        "not finite": [not_finite(soup), not_finite(ensemble)],
    }


def cross_task(bench: Bench, first: State, others: Mapping[str, State]) -> dict[str, dict[str, float]]:
    """A model of this task merged with models of other tasks, all answered by the first model's head."""
    images, targets = bench.inputs("test")
    found: dict[str, dict[str, float]] = {}
    own = bench.features(first, images)
    for name, other in others.items():
        theirs = bench.features({**other, **{k: first[k] for k in ("head.weight", "head.bias")}}, images)
        merged = isthmus.merge([first, other], skip=["head.*"]).weights
        merged = bench.reset(merged) if bench.protocol == "correct" else merged
        found[name] = {
            "first": score(bench.task, headed(own, [first]), targets),
            "second": score(bench.task, headed(theirs, [first]), targets),
            "uniform": score(bench.task, bench.logits(merged, images), targets),
            "logits": score(bench.task, (headed(own, [first]) + headed(theirs, [first])) / 2, targets),
            "features": score(bench.task, headed((own + theirs) / 2, [first]), targets),
        }
    return found


def scaled_copy(state: Mapping[str, Tensor], dtype: torch.dtype) -> State:
    """The same weights in another precision."""
    return {k: v.to(dtype) if v.is_floating_point() else copy.copy(v) for k, v in state.items()}
