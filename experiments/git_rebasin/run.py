"""Git Re-Basin: the barrier over width, two networks of unlike data, and two networks that no order joins.

    python experiments/git_rebasin/run.py --fashion npz:FILE --cifar npz:FILE --models FOLDER

Trains what has no file, measures what has no number yet, writes `results/` and the tables of `README.md`. `--scale 5
--bases 16 64 256` is the same on a GPU with all images and wider residual networks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import pages
from common.bench import Bench, Images, Results, State, arguments, best, graph_of, opposite, parted
from toy import planted, trained_toy

import isthmus
from isthmus import zoo
from isthmus.measure import barrier, ensemble, evaluate
from isthmus.paths import Segment

HERE = Path(__file__).parent
PARTS = ("mlp", "resnet", "disjoint", "toy")
POINTS = 11

#: Way -> the options to choose among on validation images.
WAYS: dict[str, list[dict[str, object] | None]] = {
    "direct": [None],
    "weight matching": [{"method": "weight-matching"}],
    "activation matching": [{"method": "activation-matching"}],
    "straight-through": [
        {"method": "straight-through", "learning_rate": 0.01},
        {"method": "straight-through", "learning_rate": 0.1},
    ],
}


class Pair:
    """Two networks of one architecture, moved together in every way."""

    def __init__(self, graph: isthmus.SymmetryGraph, states: Sequence[State], images: Images):
        self.graph, self.states, self.images = graph, list(states), images

    def moved(self, by: Mapping[str, object] | None) -> list[dict[str, Tensor]]:
        if by is None:
            return self.states
        align = isthmus.align(self.graph, self.states, by, data=self.images.calibration)
        return align.apply(self.states)

    def walked(self, way: str) -> dict[str, Any]:
        """The curve of the best options: chosen by the midpoint's accuracy on validation images."""
        tried = {str(by): self.moved(by) for by in WAYS[way]}
        scores = {
            name: evaluate(self.graph.program, self.images.validation, Segment(*states).at(0.5)).accuracy
            for name, states in tried.items()
        }
        chosen = best(scores)
        curve = barrier(self.graph.program, Segment(*tried[chosen]), self.images.test, points=POINTS)
        return {
            "options": chosen,
            "validation": scores,
            "accuracy": list(curve.accuracy),
            "loss": list(curve.loss),
            "barrier": {"accuracy": curve.height("accuracy"), "loss": curve.height("loss")},
        }


def widths(
    bench: Bench, results: Results, images: Images, name: str, nets: Mapping[int, Callable[[], nn.Module]]
) -> None:
    """Every pair of every width in every way."""
    for width, factory in nets.items():
        states = [bench.trained(f"{name}-{width}", factory, images.data, seed) for seed in bench.seeds]
        graph = graph_of(factory(), images, states[0])
        for i, j in bench.pairs:
            pair = Pair(graph, [states[i], states[j]], images)
            for way in WAYS:
                results.once(f"{width}/{i}-{j}/{way}", lambda pair=pair, way=way: pair.walked(way))


def disjoint(
    bench: Bench, results: Results, images: Images, name: str, factory: Callable[[], nn.Module]
) -> None:
    """Networks that saw unlike parts of the classes, beside their ensemble and a network that saw everything."""
    graph = None
    for seed in bench.seeds:
        parts = parted(images.data, opposite(images.data.num_classes), seed)
        states = [
            bench.trained(f"{name}-part{k}", factory, part, 2 * seed + k) for k, part in enumerate(parts)
        ]
        whole = bench.trained(name, factory, images.data, seed)
        graph = graph or graph_of(factory(), images, states[0])
        pair, program = Pair(graph, states, images), graph.program

        def lines(
            program: isthmus.Program = program, states: Any = states, whole: Any = whole
        ) -> dict[str, Any]:
            both, one = ensemble(program, states, images.test), evaluate(program, images.test, whole)
            return {
                "ensemble": {"accuracy": both.accuracy, "loss": both.loss},
                "joint training": {"accuracy": one.accuracy, "loss": one.loss},
            }

        results.once(f"{name}/{seed}/lines", lines)
        for way in ("direct", "weight matching", "activation matching"):
            results.once(f"{name}/{seed}/{way}", lambda pair=pair, way=way: pair.walked(way))


def main() -> None:
    parser = arguments(__doc__, PARTS, ("fashion", "cifar"))
    parser.add_argument("--widths", nargs="*", type=int, default=[16, 32, 64, 128, 256, 512])
    parser.add_argument(
        "--bases", nargs="*", type=int, default=[4, 8, 16], help="first channels of residual networks"
    )
    parser.add_argument("--depth", type=int, default=8, help="layers of residual networks")
    options = parser.parse_args()
    bench = Bench(options, options.results or HERE / "results")

    def mlp(width: int) -> nn.Module:
        return zoo.MLP(widths=(width, width, width))

    def resnet(base: int) -> nn.Module:
        return zoo.resnet(depth=options.depth, base=base, norm="ln")

    if "toy" in options.only:
        results = bench.results("toy")
        results.once("planted", planted)
        for i, j in bench.pairs:
            results.once(f"trained/{i}-{j}", lambda i=i, j=j: trained_toy(i, j))
    if {"mlp", "disjoint"} & set(options.only):
        images = bench.images("fashion", 12000)
        if "mlp" in options.only:
            nets = {w: lambda w=w: mlp(w) for w in options.widths}
            widths(bench, bench.results("mlp"), images, "mlp3", nets)
        if "disjoint" in options.only:
            disjoint(bench, bench.results("disjoint-mlp"), images, "mlp3-256", lambda: mlp(256))
    if {"resnet", "disjoint"} & set(options.only):
        images = bench.images("cifar", 12000, halved=True)
        name = f"resnet{options.depth}ln"
        if "resnet" in options.only:
            nets = {b: lambda b=b: resnet(b) for b in options.bases}
            widths(bench, bench.results("resnet", depth=options.depth), images, name, nets)
        if "disjoint" in options.only:
            base = options.bases[len(options.bases) // 2]
            results = bench.results("disjoint-resnet", depth=options.depth, base=base)
            disjoint(bench, results, images, f"{name}-{base}", lambda: resnet(base))
    pages.write(bench)


if __name__ == "__main__":
    main()
