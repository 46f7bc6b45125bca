"""REPAIR: the barrier over depth and width, and networks of unlike data, with activations given their statistics back.

    python experiments/repair/run.py --fashion npz:FILE --cifar npz:FILE --models FOLDER

Trains what has no file, measures what has no number yet, writes `results/` and the tables of `README.md`. `--scale 5
--base 64 --bases 16 64 128 --resnet 20` is the published size, at half the resolution.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pages
from common.bench import (
    Bench,
    Images,
    Recipe,
    Results,
    State,
    arguments,
    graph_of,
    opposite,
    parted,
    with_weights,
)
from torch import nn

import isthmus
from isthmus import zoo
from isthmus.measure import Barrier, ensemble, evaluate

HERE = Path(__file__).parent
PARTS = ("depth", "width", "disjoint")
#: Places on the line: enough for a barrier, and for the curve of networks of unlike data.
FEW = (0.25, 0.5, 0.75)
MANY = tuple(step / 10 for step in range(1, 10))
Repair = str | dict[str, object] | None

#: Way -> order of units, repair. Without repair, batch norms have the average of both networks' statistics.
PLAIN: dict[str, tuple[str, Repair]] = {
    "direct": ("direct", None),
    "matched": ("matched", None),
    "direct, REPAIR": ("direct", "repair"),
    "matched, RESCALE": ("matched", "rescale"),
    "matched, REPAIR": ("matched", "repair"),
}
NORMED: dict[str, tuple[str, Repair]] = {
    "direct": ("direct", None),
    "matched": ("matched", None),
    "direct, RESET": ("direct", "reset"),
    "matched, RESET": ("matched", "reset"),
}
#: As published for residual networks: the outputs of blocks too, by parameters of their own.
RESIDUAL: dict[str, tuple[str, Repair]] = {
    **NORMED,
    "matched, REPAIR": (
        "matched",
        {"method": "repair", "layers": "blocks", "allow_new_parameters": True},
    ),
}

#: Plain networks are steeper: smaller batches, more steps.
STEEP = Recipe(batch_size=64)


class Pair:
    """Two networks, as they are and matched by activations."""

    def __init__(
        self, model: nn.Module, graph: isthmus.SymmetryGraph, states: Sequence[State], images: Images
    ):
        self.model, self.graph, self.images = model, graph, images
        align = isthmus.align(graph, states, "activation-matching", data=images.calibration)
        self.states = {"direct": list(states), "matched": align.apply(states)}

    def walked(self, way: tuple[str, Repair], places: Sequence[float]) -> dict[str, Any]:
        """Test accuracy and loss at both ends and between, and the barrier over these points."""
        order, repair = way
        states = self.states[order]
        inside = [
            isthmus.merge(
                states,
                model=self.model,
                graph=self.graph,
                weights=[1 - t, t],
                repair=repair,
                data=self.images.calibration,
            ).model
            for t in places
        ]
        nets = [with_weights(self.model, states[0]), *inside, with_weights(self.model, states[1])]
        told = [evaluate(net, self.images.test) for net in nets if net is not None]
        found = Barrier(
            t=(0.0, *places, 1.0),
            loss=tuple(e.loss for e in told),
            accuracy=tuple(e.accuracy for e in told),
            examples=told[0].examples,
            chance=told[0].chance,
            norms="keep" if repair is None else "repaired",
        )
        return {
            "t": list(found.t),
            "accuracy": list(found.accuracy),
            "loss": list(found.loss),
            "barrier": {"accuracy": found.height("accuracy"), "loss": found.height("loss")},
        }


def sizes(
    bench: Bench,
    results: Results,
    images: Images,
    name: str,
    nets: Mapping[int, Callable[[], nn.Module]],
    ways: Mapping[str, tuple[str, Repair]],
    recipe: Recipe | None = None,
) -> None:
    """Every pair of every size in every way."""
    for size, factory in nets.items():
        states = [bench.trained(f"{name}-{size}", factory, images.data, seed, recipe) for seed in bench.seeds]
        model = factory().eval()
        graph = graph_of(model, images, states[0])
        for i, j in bench.pairs:
            pair = Pair(model, graph, [states[i], states[j]], images)
            for label, way in ways.items():
                results.once(f"{name}/{size}/{i}-{j}/{label}", lambda p=pair, w=way: p.walked(w, FEW))


def disjoint(
    bench: Bench, results: Results, images: Images, name: str, factory: Callable[[], nn.Module]
) -> None:
    """Networks that saw unlike parts of the classes, beside their ensemble and a network that saw everything."""
    model = factory().eval()
    for seed in bench.seeds:
        parts = parted(images.data, opposite(images.data.num_classes), seed)
        states = [
            bench.trained(f"{name}-part{k}", factory, part, 2 * seed + k) for k, part in enumerate(parts)
        ]
        whole = bench.trained(name, factory, images.data, seed)
        both, one = ensemble(model, states, images.test), evaluate(model, images.test, whole)
        lines = {"ensemble": both, "joint training": one}
        told = {label: {"accuracy": e.accuracy, "loss": e.loss} for label, e in lines.items()}
        results.once(f"{name}/{seed}/lines", lambda told=told: told)
        pair = Pair(model, graph_of(model, images, states[0]), states, images)
        for label, way in RESIDUAL.items():
            results.once(f"{name}/{seed}/{label}", lambda p=pair, w=way: p.walked(w, MANY))


def main() -> None:
    parser = arguments(__doc__, PARTS, ("fashion", "cifar"))
    parser.add_argument("--base", type=int, default=8, help="first channels of VGG")
    parser.add_argument("--norms", nargs="*", default=["none"], choices=["none", "bn"], help="of VGG")
    parser.add_argument(
        "--depths", nargs="*", type=int, default=[1, 2, 3], help="convolutions a stage, of four"
    )
    parser.add_argument(
        "--bases", nargs="*", type=int, default=[4, 8, 16], help="first channels of residual networks"
    )
    parser.add_argument("--resnet", type=int, default=8, help="layers of residual networks")
    options = parser.parse_args()
    bench = Bench(options, options.results or HERE / "results")

    def vgg(times: int, norm: str) -> nn.Module:
        stages = [[width] * times for width in (1, 2, 4, 4)]
        plan = [item for stage in stages for item in (*stage, "M")][:-1]
        return zoo.VGG(plan, base=options.base, norm=norm, in_channels=1)

    def resnet(base: int) -> nn.Module:
        return zoo.resnet(depth=options.resnet, base=base)

    if "depth" in options.only:
        images = bench.images("fashion", 12000, halved=True)
        results = bench.results("depth", base=options.base)
        for norm in options.norms:
            ways = PLAIN if norm == "none" else NORMED
            nets = {4 * n + 1: lambda n=n, norm=norm: vgg(n, norm) for n in options.depths}
            sizes(bench, results, images, f"vgg {norm}" if norm != "none" else "vgg", nets, ways, STEEP)
    if {"width", "disjoint"} & set(options.only):
        images = bench.images("cifar", 12000, halved=True)
        name = f"resnet{options.resnet}"
        if "width" in options.only:
            results = bench.results("width", depth=options.resnet)
            sizes(bench, results, images, name, {b: lambda b=b: resnet(b) for b in options.bases}, RESIDUAL)
        if "disjoint" in options.only:
            base = max(options.bases)
            results = bench.results("disjoint", depth=options.resnet, base=base)
            disjoint(bench, results, images, f"{name}-{base}", lambda: resnet(base))
    pages.write(bench)


if __name__ == "__main__":
    main()
