"""Four fine-tunings of one network: soups, ensembles, WiSE-FT and the angle proxy, on images that none has seen.

    python experiments/siblings/run.py --checkpoints FOLDER --data cifar10:FOLDER --kept FOLDER

The siblings (`sib_a1` to `sib_a4`) and their base (`vgg16bn_s1`) were trained on all 50,000 training images, so
that no validation split of those can choose between them: what fits its training images best would win. So the
10,000 test images are split in halves at random: one half chooses, the other reports, for several splits. The last
table shows what a choice by training images would have been.

Writes `results/siblings.json` and the tables of `README.md`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import proxy
import torch
from answers import BASE, SEEN, SIBLINGS, Answers, State, Table, halves
from torch import Tensor

import isthmus
from isthmus import progress, weights, zoo
from isthmus.measure import cost
from isthmus.search.fitting import Fitted

HERE = Path(__file__).parent
CALIBRATION = 1000


class Siblings:
    """The models, and every search over them on one split after another."""

    def __init__(self, folder: Path, data: zoo.Dataset, learned: int, limit: int | None, kept: Path):
        self.model = zoo.build("vgg16", base=16, norm="bn").eval()
        self.paths = [folder / f"{name}.safetensors" for name in SIBLINGS]
        self.base = folder / f"{BASE}.safetensors"
        self.states = [dict(Fitted(weights.open(path), self.model)) for path in self.paths]
        self.answers = Answers(self.model, data.loader("test", batch_size=500, limit=limit), kept / "test")
        self.seen = Answers(self.model, data.loader("validation", batch_size=500, limit=limit), kept / "seen")
        self.calibration = data.loader("train", batch_size=250, limit=CALIBRATION)
        self.data, self.learned = data, learned
        self.program = isthmus.export(self.model, self.answers.batches[0].args)
        self.unit = cost(self.program, self.answers.batches[0])
        self.table = Table()
        self.ratios: dict[object, tuple[float, float]] = {}
        self.pages: list[isthmus.Searched] = []

    def split(self, seed: int) -> None:
        chosen, reported = halves(len(self.answers.targets), seed)

        def score(state: State) -> float:
            return self.answers.accuracy(self.answers.of(state), chosen)

        def both(name: str, logits: Tensor, note: str = "") -> None:
            self.table.add(
                name, self.answers.accuracy(logits, chosen), self.answers.accuracy(logits, reported), note
            )

        def search(kind: str, name: str, **options: object) -> isthmus.Searched:
            found = isthmus.soup(
                self.paths, score, kind, model=self.model, score_name=f"half {seed}", **options
            )
            both(name, self.answers.of(found.weights), _parts(found))
            return found

        singles = [score(state) for state in self.states]
        best = max(range(len(singles)), key=singles.__getitem__)
        alone = [self.answers.of(state) for state in self.states]
        means = [
            statistics.fmean(self.answers.accuracy(logits, half) for logits in alone)
            for half in (chosen, reported)
        ]
        self.table.add("mean of the four", means[0], means[1])
        both("best single", alone[best], SIBLINGS[best])
        search("uniform", "uniform soup")
        greedy = search("greedy", "greedy soup")
        iterated = search("iterated", "iterated greedy soup")
        assert greedy.score is not None and iterated.score is not None
        assert greedy.score >= singles[best], "greedy is at least the best single where it was chosen"
        assert iterated.score >= greedy.score, "iterated is at least greedy where it was chosen"
        search("with-replacement", "greedy with replacement")
        search("random", "greedy, best of 3 random orders", seed=seed)
        search("uniform", "uniform soup, statistics anew", calibration=self.calibration)
        tuned = isthmus.soup(
            [self.paths[best]], score, "wise-ft", model=self.model, base=self.base, points=6,
            score_name=f"half {seed}",
        )  # fmt: skip
        both("WiSE-FT of the best single", self.answers.of(tuned.weights), f"a = {tuned.chosen['a']:.1f}")
        self._ensembles(seed, chosen, both, [n for n, name in enumerate(SIBLINGS) if name in greedy.chosen])
        if not self.pages:
            self.pages = [greedy, iterated]

    def learn(self, seed: int) -> None:
        """Learned soups, which take longer than all other searches together."""
        chosen, reported = halves(len(self.answers.targets), seed)

        def score(state: State) -> float:
            return self.answers.accuracy(self.answers.of(state), chosen)

        images = torch.cat([b.args[0] for b in self.answers.batches if isinstance(b.args[0], Tensor)])[chosen]
        labels = self.answers.targets[chosen]
        kept = list(zip(images.split(250), labels.split(250), strict=True))  # already in random order
        for by, epochs, lr in (("model", 2, 0.1), ("tensor", 2, 0.05)):
            found = isthmus.soup(
                self.paths, score, "learned", model=self.model, data=kept, by=by, epochs=epochs, lr=lr
            )
            note = f"{_parts(found)}, temperature {found.extra['temperature']:.2f}"
            logits = self.answers.of(found.weights)
            reached = [self.answers.accuracy(logits, half) for half in (chosen, reported)]
            self.table.add(f"learned soup, by {by}", reached[0], reached[1], note)

    def _ensembles(self, seed: int, chosen: Tensor, both: Callable[..., None], members: list[int]) -> None:
        alone = [self.answers.of(state) for state in self.states]
        everyone = range(len(SIBLINGS))
        both("ensemble of logits", torch.stack(alone).mean(0))
        both("ensemble of probabilities", torch.stack([logits.softmax(1) for logits in alone]).mean(0))
        both("ensemble of features, mean head", self._features(everyone, "mean"))
        both("ensemble of features, head of the first", self._features(everyone, 0))
        told = ", ".join(SIBLINGS[i].removeprefix("sib_") for i in members)
        both("greedy soup's members, logits", torch.stack([alone[i] for i in members]).mean(0), told)
        both("greedy soup's members, features", self._features(members, "mean"), told)
        # What isthmus.greedy_ensemble does, on answers that are known already.
        half = [{"answers": logits[chosen]} for logits in alone]

        def score(state: State) -> float:
            return float((state["answers"].argmax(1) == self.answers.targets[chosen]).double().mean())

        own = isthmus.soup(half, score, "iterated", names=SIBLINGS, score_name=f"answers, half {seed}")
        picked = [i for i, name in enumerate(SIBLINGS) if name in own.chosen]
        both("own greedy ensemble", torch.stack([alone[i] for i in picked]).mean(0), _parts(own))
        for name in ("ensemble of logits", "ensemble of probabilities"):
            self._cost(name, everyone)
        self._cost("ensemble of features, mean head", everyone, of="features")
        self._cost("ensemble of features, head of the first", everyone, of="features", head=0)
        self._cost("greedy soup's members, logits", members)
        self._cost("greedy soup's members, features", members, of="features")
        self._cost("own greedy ensemble", picked)

    def _features(self, members: Sequence[int], head: str | int) -> Tensor:
        key = f"features-{'-'.join(SIBLINGS[i] for i in members)}-{head}"
        return self.answers.asked(
            key, lambda: self.answers.run(self._joined(members, of="features", head=head))
        )

    def _joined(self, members: Sequence[int], **options: object) -> isthmus.Ensemble:
        return isthmus.Ensemble(self.program, [self.states[i] for i in members], **options)  # type: ignore[arg-type]

    def _cost(self, name: str, members: Sequence[int], **options: object) -> None:
        """What an ensemble costs, beside one model."""
        key = (tuple(members), tuple(sorted(options.items(), key=str)))
        if key not in self.ratios:
            found = cost(self._joined(members, **options), self.answers.batches[0]).over(self.unit)
            self.ratios[key] = (found[0].value, found[1].value)
        self.table.costs.setdefault(name, []).append(self.ratios[key])

    def by_seen_images(self) -> list[str]:
        """What a choice by images that the models were trained on comes to."""
        everything, all_seen = torch.arange(len(self.answers.targets)), torch.arange(len(self.seen.targets))

        def score(state: State) -> float:
            return self.seen.accuracy(self.seen.of(state), all_seen)

        found = isthmus.soup(self.paths, score, "greedy", model=self.model, score_name="seen")
        rows = []
        for name, state in zip(SIBLINGS, self.states, strict=True):
            test = self.answers.accuracy(self.answers.of(state), everything)
            rows.append(f"| {name} | {100 * score(state):.2f} | {100 * test:.2f} |")
        test = self.answers.accuracy(self.answers.of(found.weights), everything)
        told = _parts(found)
        rows.append(f"| greedy soup: {told} | {100 * (found.score or 0):.2f} | {100 * test:.2f} |")
        for count in (2, 4):
            best = max(
                itertools.combinations(range(4), count),
                key=lambda c: self.answers.accuracy(self._mean(c), everything),
            )
            rows.append(
                f"| the mean of {count} that is best on test ({', '.join(SIBLINGS[i] for i in best)}) | | "
                f"{100 * self.answers.accuracy(self._mean(best), everything):.2f} |"
            )
        return ["| model | images seen in training, % | all test images, % |", "|---|---|---|", *rows]

    def _mean(self, members: Sequence[int]) -> Tensor:
        return self.answers.of(isthmus.combine([self.states[i] for i in members]))


def _parts(found: isthmus.Searched) -> str:
    parts = {name: part for name, part in found.chosen.items() if isinstance(part, float)}
    return ", ".join(f"{name.removeprefix('sib_')} {part:.2f}" for name, part in parts.items())


def write(work: Siblings, seeds: int) -> None:
    page = HERE / "README.md"
    notes = page.read_text().split("<!-- notes -->")[-1] if page.exists() else "\n"
    lines = [
        "# Siblings: four fine-tunings of one network",
        "",
        "Made by `python experiments/siblings/run.py --checkpoints FOLDER --data cifar10:FOLDER --kept FOLDER`.",
        "Narrow VGG16 with BatchNorm, fine-tuned four times from one",
        "checkpoint; CIFAR-10, chance 10 %. Half of the 10,000 test images chooses, the other half reports: mean ±",
        f"standard deviation over {seeds} random splits (learned soups: {min(work.learned, seeds)}). Parameters and",
        "FLOPs are relative to one model. Published beside: 72 CLIP ViT-B/32, ImageNet / mean of five shifts, of",
        "Wortsman et al. 2022; and ten VGG19 on CIFAR-10, Table 1 of the Rethinking paper. Those are other models:",
        "only the order of rows can be compared.",
        "",
        "## Ways",
        "",
        *work.table.lines(),
        "",
        "## The angle proxy",
        "",
        *proxy.lines(work.paths, work.base, work.states, work.answers),
        "",
        "## Chosen by images that the models have seen",
        "",
        *work.by_seen_images(),
        "",
    ]
    page.write_text("\n".join(lines) + "\n<!-- notes -->" + notes)
    results = {
        "rows": work.table.rows,
        "notes": work.table.notes,
        "parameters and FLOPs": work.table.costs,
        "searches": [found.as_dict() for found in work.pages],
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "siblings.json").write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--data", required=True, help="cifar10:FOLDER or npz:FILE")
    parser.add_argument(
        "--kept", type=Path, required=True, help="folder for logits: started again, it goes on"
    )
    parser.add_argument("--splits", type=int, default=5, help="random halves of the test images")
    parser.add_argument("--learned", type=int, default=1, help="splits on which learned soups are run")
    parser.add_argument("--test", type=int, default=None, help="test images; all where not given")
    options = parser.parse_args()
    progress.enable()
    start = time.process_time()
    data = zoo.open_data(options.data).split(validation=SEEN, seed=0)
    work = Siblings(options.checkpoints, data, options.learned, options.test, options.kept)
    for seed in range(options.splits):
        work.split(seed)
        print(f"split {seed}: {time.process_time() - start:.0f} s of CPU", flush=True)
    write(work, options.splits)
    for seed in range(min(options.learned, options.splits)):
        work.learn(seed)
        print(f"learned {seed}: {time.process_time() - start:.0f} s of CPU", flush=True)
        write(work, options.splits)


if __name__ == "__main__":
    main()
