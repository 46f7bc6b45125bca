"""The role of permutations: barriers over width and depth, strangers against permuted copies, the theorem's rate.

    python experiments/entezari/run.py --fashion npz:FILE --models FOLDER

Trains what has no file, measures what has no number yet, writes `results/` and the tables of `README.md`. `--scale 5
--steps 50000 --widths 16 64 256 1024 4096` is the published size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pages
import theorem
from common.bench import Batches, Bench, Images, Recipe, Results, State, arguments, graph_of
from torch import nn

import isthmus
from isthmus import zoo
from isthmus.measure import barrier
from isthmus.paths import Segment

HERE = Path(__file__).parent
PARTS = ("width", "depth", "theorem")
POINTS = 11
#: Images that annealing looks at, and of the training split that the published barrier is measured on.
SEEN, TRAINED_ON = 250, 2000
DIMENSIONS = (2, 5, 10)
HIDDEN = (16, 32, 64, 128, 256, 512, 1024, 2048)
DRAWS = 5


class Study:
    """Networks of one architecture, as strangers and as permuted copies, with and without permutations."""

    def __init__(self, images: Images, steps: int):
        self.images, self.steps = images, steps
        loader = images.data.loader("train", batch_size=500, limit=TRAINED_ON, seed=1)
        self.trained_on: Batches = list(loader)

    def ways(self) -> dict[str, Mapping[str, object] | None]:
        return {
            "none": None,
            "annealing, as published": {
                "method": "annealing",
                "variant": "entezari",
                "steps": self.steps,
                "limit": SEEN,
            },
            "annealing, scaled": {"method": "annealing", "limit": SEEN},
            "weight matching": {"method": "weight-matching"},
        }

    def measured(
        self, graph: isthmus.SymmetryGraph, states: Sequence[State], by: Mapping[str, object] | None
    ) -> dict[str, Any]:
        """The barrier on training images, as published, and on test images; and what the search says of itself."""
        moved, notes = list(states), ()
        if by is not None:
            align = isthmus.align(graph, states, by, data=self.images.calibration)
            moved, notes = align.apply(states), align.notes
        found: dict[str, Any] = {"notes": list(notes)}
        for split, data in (("train", self.trained_on), ("test", self.images.test)):
            curve = barrier(graph.program, Segment(*moved), data, points=POINTS)
            found[split] = {
                "accuracy": list(curve.accuracy),
                "barrier": {"accuracy": curve.height("accuracy"), "loss": curve.height("loss")},
            }
        return found

    def compared(
        self, bench: Bench, results: Results, name: str, nets: Mapping[int, Callable[[], nn.Module]]
    ) -> None:
        """Every size, both sets of pairs, every way."""
        for size, factory in nets.items():
            states = [
                bench.trained(f"{name}{size}", factory, self.images.data, seed, Recipe())
                for seed in bench.seeds
            ]
            graph = graph_of(factory(), self.images, states[0])
            pairs: dict[str, list[State]] = {
                f"strangers/{i}-{j}": [states[i], states[j]] for i, j in bench.pairs
            }
            for seed in bench.seeds:
                # Orders alone: the published copies are not rescaled.
                copy = graph.random_element(seed).only(graph.spaces).apply(graph, states[seed])
                pairs[f"copies/{seed}"] = [states[seed], copy]
            for label, pair in pairs.items():
                for way, by in self.ways().items():
                    results.once(
                        f"{size}/{label.replace('/', ' ')}/{way}",
                        lambda pair=pair, by=by, graph=graph: self.measured(graph, pair, by),
                    )


def main() -> None:
    parser = arguments(__doc__, PARTS, ("fashion",))
    parser.add_argument("--widths", nargs="*", type=int, default=[16, 64, 256, 1024])
    parser.add_argument("--depths", nargs="*", type=int, default=[1, 2, 4, 6])
    parser.add_argument("--width", type=int, default=64, help="units of a layer where depth varies")
    parser.add_argument("--steps", type=int, default=1000, help="of annealing as published, there 50000")
    options = parser.parse_args()
    bench = Bench(options, options.results or HERE / "results")
    if "theorem" in options.only:
        results = bench.results("theorem", points=theorem.POINTS)
        for d in DIMENSIONS:
            for h in HIDDEN:
                for seed in range(DRAWS):
                    results.once(f"{d}/{h}/{seed}", lambda d=d, h=h, seed=seed: theorem.measured(d, h, seed))
    if {"width", "depth"} & set(options.only):
        study = Study(bench.images("fashion", 12000), options.steps)
        if "width" in options.only:
            nets = {w: lambda w=w: zoo.MLP(widths=(w,)) for w in options.widths}
            results = bench.results("width", steps=options.steps)
            study.compared(bench, results, "mlp1-", nets)
        if "depth" in options.only:
            nets = {n: lambda n=n: zoo.MLP(widths=(options.width,) * n) for n in options.depths}
            results = bench.results("depth", steps=options.steps, width=options.width)
            study.compared(bench, results, f"mlp{options.width}x", nets)
    pages.write(bench)


if __name__ == "__main__":
    main()
