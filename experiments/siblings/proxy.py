"""The angle between task vectors beside what the means of two models gain, and how much of that is noise."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from answers import SIBLINGS, Answers
from scipy.stats import spearmanr
from torch import Tensor

import isthmus

RESAMPLES = 2000


def lines(
    paths: Sequence[Path], base: Path, states: Sequence[Mapping[str, Tensor]], answers: Answers
) -> list[str]:
    """A table of pairs, and the rank correlations of angle and of distance with the gain.

    Every image gives its own gain, of a pair's mean over the mean of the two, so that images drawn again with
    replacement say how sure an order of pairs is.

    Args:
        paths: the models.
        base: what they were trained from.
        states: their weights.
        answers: what gives logits of weights on the test images.
    """
    found = isthmus.angles(paths, base)
    pairs = list(itertools.combinations(range(len(states)), 2))
    degrees = [found.degrees[i][j] for i, j in pairs]
    distances = [found.distances[i][j] for i, j in pairs]
    gains = {
        "accuracy": _gains(states, answers, pairs, _right),
        "loss": _gains(states, answers, pairs, _told),
    }
    made = [
        "| pair | angle, ° | distance | gain in accuracy, points | gain in log-likelihood, nats / 1000 |",
        "|---|---|---|---|---|",
    ]
    for n in sorted(range(len(pairs)), key=lambda n: -degrees[n]):
        i, j = pairs[n]
        told = [
            f"{scale * g[n].mean():+.{digits}f} ± {scale * g[n].std() / len(g[n]) ** 0.5:.{digits}f}"
            for g, scale, digits in ((gains["accuracy"], 100, 2), (gains["loss"], 1000, 1))
        ]
        made.append(
            f"| {SIBLINGS[i]}, {SIBLINGS[j]} | {degrees[n]:.2f} | {distances[n]:.3f} | {' | '.join(told)} |"
        )
    made += [
        "",
        f"± is the standard error over the {len(answers.targets):,} test images. Distance: |W1 - W2|; lengths of the",
        "task vectors: "
        + ", ".join(f"{n} {length:.2f}" for n, length in zip(SIBLINGS, found.lengths, strict=True))
        + ".",
        "Rank correlations with the gain, and the middle 95 % of them where the images are drawn again with",
        f"replacement ({RESAMPLES:,} times):",
        "",
        "| | gain in accuracy | gain in log-likelihood |",
        "|---|---|---|",
    ]
    for name, proxy in (("angle", degrees), ("distance", distances)):
        made.append(f"| {name} | {_ranked(proxy, gains['accuracy'])} | {_ranked(proxy, gains['loss'])} |")
    return made


def _right(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(1) == targets).double()


def _told(logits: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(logits.double(), targets, reduction="none")


def _gains(
    states: Sequence[Mapping[str, Tensor]],
    answers: Answers,
    pairs: Sequence[tuple[int, int]],
    rate: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """(pairs, images): what the mean of two is better by than they are in the mean."""
    alone = [rate(answers.of(s), answers.targets) for s in states]
    means = [rate(answers.of(isthmus.combine([states[i], states[j]])), answers.targets) for i, j in pairs]
    return torch.stack([m - (alone[i] + alone[j]) / 2 for m, (i, j) in zip(means, pairs, strict=True)])


def _ranked(proxy: Sequence[float], gains: Tensor) -> str:
    generator = torch.Generator().manual_seed(0)
    count = gains.shape[1]
    drawn: list[float] = []
    for _ in range(RESAMPLES):
        rows = torch.randint(count, (count,), generator=generator)
        drawn.append(float(spearmanr(proxy, gains[:, rows].mean(1).numpy()).statistic))
    low, high = torch.tensor(drawn).quantile(torch.tensor([0.025, 0.975])).tolist()
    return f"{float(spearmanr(proxy, gains.mean(1).numpy()).statistic):+.2f} ({low:+.2f} to {high:+.2f})"
