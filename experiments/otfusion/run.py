"""OT fusion: a class that only one network has seen, networks of two widths, several networks, and training on.

    python experiments/otfusion/run.py --fashion npz:FILE --models FOLDER

Trains what has no file, measures what has no number yet, writes `results/` and the tables of `README.md`. `--scale 5
--widths 400 200 100 --base 64` is wide as published, with all images.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pages
from common.bench import Bench, Images, Recipe, Results, State, arguments, parted, with_weights
from fusion import WAYS, Fusion
from torch import nn

from isthmus import zoo

HERE = Path(__file__).parent
PARTS = ("specialist", "widths", "several")
#: Classes that only the first network sees (coat, bag), and which part of the other classes' images it sees.
SPECIALS, PARTLY = (4, 8), (0.10, 0.05)
COUNTS = (2, 3, 4)
#: Training on after a merge: the same for every row; the rate is a tenth of training's.
TUNING = Recipe(epochs=2, lr=0.01)
TUNED = ("direct", "activations, exact", "weights, exact")

#: How many times the first width -> a network.
Make = Callable[[int], nn.Module]


def network(bench: Bench, images: zoo.Dataset, name: str, make: Make, times: int, seed: int) -> nn.Module:
    """A trained network of so many times the width."""
    state = bench.trained(f"{name}-x{times}", lambda: make(times), images, seed)
    return with_weights(make(times), state)


def specialist(bench: Bench, results: Results, images: Images, make: Make) -> None:
    """One network has seen all of a class and little else, the other one the rest; it is as wide, or twice as wide."""
    for special_class, part in itertools.product(SPECIALS, PARTLY):
        shares = {n: 1.0 if n == special_class else part for n in range(images.data.num_classes)}
        for seed in bench.seeds:
            special, rest = parted(images.data, shares, seed)
            # As published, units are compared on the second network's images, and carried to its units.
            seen = list(rest.loader("train", batch_size=200, limit=400, seed=seed))
            whole = network(bench, images.data, "joint", make, 1, seed)
            for times in (1, 2):
                models = [
                    network(bench, special, "special", make, 1, 2 * seed),
                    network(bench, rest, "rest", make, times, 2 * seed + 1),
                ]
                fusion, label = Fusion(models, images, seen), f"{special_class}/{part}/{times}/{seed}"
                results.once(f"{label}/alone", fusion.alone)
                results.once(f"{label}/joint", lambda f=fusion, w=whole: f.score(w.state_dict(), 0))
                for way in WAYS:
                    results.once(f"{label}/{way}", lambda f=fusion, way=way: f.swept(way, 1))


def widths(
    bench: Bench, results: Results, images: Images, nets: Mapping[str, tuple[Make, str | None]]
) -> None:
    """A network and one of twice its width, merged into either's widths."""
    for name, (make, repair) in nets.items():
        for seed in bench.seeds:
            models = [
                network(bench, images.data, name, make, times, 2 * seed + times - 1) for times in (1, 2)
            ]
            fusion = Fusion(models, images, images.calibration, repair)
            results.once(f"{name}/both/{seed}/alone", fusion.alone)
            for anchor, into in enumerate(("narrow", "wide")):
                for way in WAYS:
                    results.once(
                        f"{name}/{into}/{seed}/{way}", lambda f=fusion, way=way, a=anchor: f.midpoint(way, a)
                    )


def several(
    bench: Bench, results: Results, images: Images, nets: Mapping[str, tuple[Make, str | None]]
) -> None:
    """Two to four networks of one width, each in turn the anchor; of two, training on from merges and anchor."""
    for name, (make, repair) in nets.items():
        models = [network(bench, images.data, name, make, 1, 2 * seed) for seed in range(max(COUNTS))]
        for count in COUNTS:
            for first in bench.seeds:
                chosen = [models[(first + k) % len(models)] for k in range(count)]
                fusion, label = Fusion(chosen, images, images.calibration, repair), f"{name}/{count}/{first}"
                results.once(f"{label}/alone", fusion.alone)
                for way in WAYS:
                    results.once(f"{label}/{way}", lambda f=fusion, way=way: f.midpoint(way, 0))
                if count == min(COUNTS):
                    results.once(f"{label}/anchor, tuned", lambda f=fusion: tuned(bench, f, f.states[0]))
                    for way in TUNED:
                        results.once(
                            f"{label}/{way}, tuned",
                            lambda f=fusion, way=way: tuned(bench, f, f.merged(f.moved(WAYS[way][0], 0), 0)),
                        )


def tuned(bench: Bench, fusion: Fusion, state: State) -> float:
    """Test accuracy of some weights that are trained on."""
    net = copy.deepcopy(fusion.models[0])
    return fusion.score(bench.trained("tuned", lambda: net, fusion.images.data, 0, TUNING, start=state), 0)


def main() -> None:
    parser = arguments(__doc__, PARTS, ("fashion",))
    parser.add_argument(
        "--widths", nargs="*", type=int, default=[64, 64, 64], help="hidden layers of perceptrons"
    )
    parser.add_argument("--base", type=int, default=8, help="first channels of convolutional networks")
    options = parser.parse_args()
    bench = Bench(options, options.results or HERE / "results")

    def mlp(times: int, pixels: int = 784) -> nn.Module:
        return zoo.MLP(d_in=pixels, widths=tuple(times * w for w in options.widths))

    def vgg(times: int) -> nn.Module:
        return zoo.VGG((1, "M", 2, "M", 4, 4), base=times * options.base, norm="bn", in_channels=1)

    settings = {"widths": options.widths, "base": options.base}
    if "specialist" in options.only:
        results = bench.results("specialist", widths=options.widths)
        specialist(bench, results, bench.images("fashion", 12000), mlp)
    if {"widths", "several"} & set(options.only):
        images = bench.images("fashion", 12000, halved=True)
        nets: dict[str, tuple[Make, str | None]] = {
            "mlp": (lambda times: mlp(times, 196), None),
            "vgg": (vgg, "reset"),
        }
        if "widths" in options.only:
            widths(bench, bench.results("widths", **settings), images, nets)
        if "several" in options.only:
            several(bench, bench.results("several", **settings), images, nets)
    pages.write(bench)


if __name__ == "__main__":
    main()
