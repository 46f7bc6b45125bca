"""What models answer, the halves of the test images that choose and report, and the table of ways."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from isthmus import measure, weights, zoo
from isthmus.measure import logits_of
from isthmus.program import batches

SIBLINGS = ("sib_a1", "sib_a2", "sib_a3", "sib_a4")
BASE = "vgg16bn_s1"
#: Images kept out of "train" that the models were trained on nevertheless.
SEEN = 5000

#: row -> (ImageNet, mean of five shifts) of 72 CLIP ViT-B/32; Wortsman et al. 2022 (learned: their released results).
CLIP = {
    "best single": "80.38 / 47.83",
    "uniform soup": "79.97 / 51.45",
    "greedy soup": "81.03 / 50.75",
    "learned soup, by tensor": "81.38 / -",
    "ensemble of logits": "81.19 / 50.77",
}
#: row -> CIFAR-10 of ten VGG19; "Rethinking Weight-Averaged Model-merging", Table 1.
RETHINKING = {
    "mean of the four": "92.37",
    "uniform soup": "92.90",
    "greedy soup": "92.62",
    "ensemble of logits": "93.91",
    "ensemble of features, mean head": "93.81",
    "greedy soup's members, logits": "92.63",
    "greedy soup's members, features": "92.62",
}

State = Mapping[str, Tensor]


class Answers:
    """Logits of whatever is asked, on one set of images, each computed once.

    Args:
        model: the architecture.
        loader: the images.
        kept: a folder that keeps the logits; None keeps them in memory alone.
    """

    def __init__(self, model: nn.Module, loader: zoo.Loader, kept: Path | None = None):
        self.model, self.batches, self.kept = model, list(batches(loader)), kept
        self.targets = torch.cat([b.targets for b in self.batches if b.targets is not None])
        self.known: dict[str, Tensor] = {}

    def of(self, state: State) -> Tensor:
        return self.asked(weights.digest(state), lambda: self.run(self.model, state))

    def asked(self, key: str, run: Callable[[], Tensor]) -> Tensor:
        """What is known under a key, or what is found."""
        if key not in self.known:
            path = None if self.kept is None else self.kept / f"{key}-{len(self.targets)}.safetensors"
            if path is not None and path.exists():
                self.known[key] = weights.load(path)["logits"]
            else:
                self.known[key] = run()
                if path is not None:
                    weights.save({"logits": self.known[key]}, path)
        return self.known[key]

    def run(self, model: nn.Module, state: State | None = None) -> Tensor:
        with measure.answering(model, state) as ask:
            return torch.cat([logits_of(ask(batch)) for batch in self.batches])

    def accuracy(self, logits: Tensor, chosen: Tensor) -> float:
        return float((logits[chosen].argmax(1) == self.targets[chosen]).double().mean())


class Table:
    """Accuracy where it was chosen and where it is reported, a column per split."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[float, float]]] = {}
        self.notes: dict[str, list[str]] = {}
        self.costs: dict[str, list[tuple[float, float]]] = {}

    def add(self, name: str, chosen: float, reported: float, note: str = "") -> None:
        self.rows.setdefault(name, []).append((chosen, reported))
        if note:
            self.notes.setdefault(name, []).append(note)

    def lines(self) -> list[str]:
        made = [
            "| way | chosen on, % | reported on, % | parameters | FLOPs | consists of | CLIP B/32 | VGG19 x10 |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, values in self.rows.items():
            chosen, reported = zip(*values, strict=True)
            parameters, flops = map(statistics.fmean, zip(*self.costs.get(name, [(1.0, 1.0)]), strict=True))
            told = "; ".join(dict.fromkeys(self.notes.get(name, [])))
            made.append(
                f"| {name} | {spread(chosen)} | {spread(reported)} | {parameters:.2f} | {flops:.2f} | {told} | "
                f"{CLIP.get(name, '')} | {RETHINKING.get(name, '')} |"
            )
        return made


def spread(values: Sequence[float]) -> str:
    """Fractions as per cent: their mean, and the standard deviation where there are several."""
    mean = 100 * statistics.fmean(values)
    return f"{mean:.2f}" if len(values) < 2 else f"{mean:.2f} ± {100 * statistics.stdev(values):.2f}"


def halves(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which images choose and which report: a random split in two."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: count // 2], order[count // 2 :]
