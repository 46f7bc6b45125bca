"""Least-squares repair beside REPAIR, RESCALE and RESET: strangers on CIFAR-10, the same images for all.

    python experiments/least_squares/run.py --data npz:FILE --checkpoints FOLDER [--more FOLDER]

Pairs are two networks of one architecture from different seeds: `{family}_s1` and `_s2` of `--checkpoints`, `_s3` and
`_s4` of `--more` (as `experiments/vanishing_feature` trains them: on 45,000 images, so that the validation split is
new to them; the first pairs were trained on all 50,000). Writes `results/` and the tables of `README.md`; what stands
in a file is not measured again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common.bench import Batches, Results
from common.page import spread, table
from torch import Tensor

import isthmus
from isthmus import progress, zoo
from isthmus import weights as files
from isthmus.measure import ensemble, evaluate

HERE = Path(__file__).parent
VALIDATION = 5000
#: Images that alignment and repair see.
SIZES = (256, 1000, 4000)
#: Those of the rows about options.
MIDDLE = 1000

FAMILIES: dict[str, tuple[str, dict[str, object], tuple[str, ...], tuple[int, ...]]] = {
    # Factory, its arguments, the usual repairs, depths to keep apart.
    "vgg16": ("vgg16", {"base": 16}, ("repair", "rescale"), (4, 6, 8)),
    "vgg16bn": ("vgg16", {"base": 16, "norm": "bn"}, ("reset",), (4, 6, 8)),
    "resnet20": ("resnet20", {}, ("reset",), (7, 13, 19)),
}

#: Options of least squares, tried on one family.
TRIED: dict[str, dict[str, object]] = {
    "default": {},
    "aim activation": {"aim": "activation"},
    "ridge 0.1": {"ridge": 0.1},
    "ridge 0.01": {"ridge": 0.01},
    "ridge 0.0001": {"ridge": 1e-4},
    "rank 0": {"rank": 0},
    "rank 1": {"rank": 1},
    "rank 4": {"rank": 4},
    "rank 16": {"rank": 16},
}
ALIGNMENTS = ("none", "weight-matching", "activation-matching", "zipit", "cca", "transport")

Repair = str | dict[str, object] | None

#: What stands below this in the page is written by hand.
NOTES = "<!-- notes -->"


class Pair:
    """Two strangers, and what their merges score on validation and test images."""

    def __init__(self, family: str, names: tuple[str, str], folder: Path, data: zoo.Dataset):
        factory, arguments, _, _ = FAMILIES[family]
        self.model = zoo.build(factory, **arguments).eval()
        self.data = data
        self.states: list[dict[str, Tensor]] = []
        for name in names:
            found = files.load(folder / f"{name}.safetensors")
            self.states.append({k: found[k].to(v.dtype) for k, v in self.model.state_dict().items()})
        example = self.images("train", 2)[0][0]
        self.graph, _ = isthmus.verified(isthmus.trace(self.model, example), example, weights=self.states[0])
        self.maps: dict[tuple[str, int], isthmus.Alignment] = {}

    def images(self, split: str, limit: int | None = None) -> Batches:
        return list(self.data.loader(split, batch_size=250, limit=limit, seed=0))

    def edges(self) -> dict[str, list[float]]:
        """Accuracies of the parents and of their ensemble, on validation and test."""
        program = self.graph.program
        found = {f"parent {i}": self._scored(program, state) for i, state in enumerate(self.states)}
        found["ensemble"] = [
            ensemble(program, self.states, self.images(split), split=split).accuracy
            for split in ("validation", "test")
        ]
        return found

    def merged(self, align: str, repair: Repair, size: int, apart: int = 0) -> dict[str, object]:
        """Accuracies of one merge, and its parameters in those of one parent."""
        seen = self.images("train", size)
        if align != "none" and (align, size) not in self.maps:
            self.maps[align, size] = isthmus.align(self.graph, self.states, align, data=seen)
        made = isthmus.merge(
            self.states,
            model=self.model,
            graph=self.graph,
            align=None if align == "none" else self.maps[align, size],
            repair=repair,
            data=seen,
            preserve_first=apart,
            verify=False,
        )
        program = made.program or self.graph.program
        learned = sum(made.weights[k].numel() for k in program.shapes if k not in program.buffers)
        own = self.graph.program
        one = sum(self.states[0][k].numel() for k in own.shapes if k not in own.buffers)
        return {"scores": self._scored(program, made.weights), "parameters": learned / one}

    def _scored(self, program: isthmus.Program, weights: Mapping[str, Tensor]) -> list[float]:
        return [
            evaluate(program, self.images(split), weights, split=split).accuracy
            for split in ("validation", "test")
        ]


def measure(family: str, pair: Pair, results: Results) -> None:
    _, _, usual, depths = FAMILIES[family]
    results.once("edges", pair.edges)
    repairs: list[Repair] = [*usual, "least-squares"]
    for align in ("none", "activation-matching"):
        results.once(
            f"{align} | | {max(SIZES)} | 0", lambda align=align: pair.merged(align, None, max(SIZES))
        )
    for size in SIZES:
        for repair in repairs:
            results.once(
                f"activation-matching | {repair} | {size} | 0",
                lambda repair=repair, size=size: pair.merged("activation-matching", repair, size),
            )
    for apart in depths:
        for repair in [None, *repairs]:
            results.once(
                f"activation-matching | {repair or ''} | {MIDDLE} | {apart}",
                lambda repair=repair, apart=apart: pair.merged("activation-matching", repair, MIDDLE, apart),
            )


def vary(pair: Pair, results: Results) -> None:
    """Options and alignments, on one pair."""
    for name, options in TRIED.items():
        asked = {"method": "least-squares", **options}
        results.once(f"option {name}", lambda asked=asked: pair.merged("activation-matching", asked, MIDDLE))
    for align in ALIGNMENTS:
        for repair in ("rescale", "repair", "least-squares"):
            results.once(
                f"align {align} | {repair}",
                lambda align=align, repair=repair: pair.merged(align, repair, MIDDLE),
            )


# The page.


def rows(found: list[dict[str, dict[str, object]]]) -> list[list[str]]:
    """Mean and deviation over pairs: way, images, kept apart, parameters, validation, test."""
    lines = [
        [name, "", "", f"{factor:.2f}", *_told([f["edges"] for f in found], names)]
        for name, factor, names in (("parents", 1, ("parent 0", "parent 1")), ("ensemble", 2, ("ensemble",)))
    ]
    for key in found[0]:
        if key == "edges":
            continue
        align, repair, size, apart = (part.strip() for part in key.split("|"))
        way = ("direct average" if align == "none" else align) + (f" + {repair}" if repair else "")
        have = [f[key] for f in found if key in f]
        scores = [[h["scores"][i] for h in have] for i in (0, 1)]
        factor = mean(h["parameters"] for h in have)
        lines.append(
            [way, size, "" if apart == "0" else apart, f"{factor:.2f}", *(spread(s) for s in scores)]
        )
    return lines


def _told(edges: list[dict[str, list[float]]], names: tuple[str, ...]) -> list[str]:
    return [spread([edge[name][i] for edge in edges for name in names]) for i in (0, 1)]


def page(every: dict[str, list[Results]], varied: Results | None) -> None:
    sections: list[list[str]] = []
    for family, results in every.items():
        found = [r.found for r in results if r.found]
        if found:
            head = ["way", "images", "first layers apart", "parameters", "validation %", "test %"]
            sections += [
                [f"## {family}: {len(found)} pair{'s' * (len(found) > 1)}"],
                table(head, rows(found)),
            ]
    if varied is not None and varied.found:
        options = [(n.removeprefix("option "), v) for n, v in varied.found.items() if n.startswith("option ")]
        sections += [
            [f"## Options of least squares: plain VGG16, one pair, {MIDDLE} images"],
            table(["option", "validation %", "test %"], [[n, *_both(v)] for n, v in options]),
            [f"## Alignments: the same pair, {MIDDLE} images, test %"],
            table(
                ["alignment", "rescale", "repair", "least squares"],
                [
                    [
                        a,
                        *(
                            _both(varied.found[k])[1] if (k := f"align {a} | {r}") in varied.found else ""
                            for r in ("rescale", "repair", "least-squares")
                        ),
                    ]
                    for a in ALIGNMENTS
                ],
            ),
        ]
    where = HERE / "README.md"
    notes = where.read_text().split(NOTES)[-1] if where.exists() else "\n"
    lines = [line for section in sections for line in (*section, "")]
    where.write_text("\n".join([HEAD.strip(), "", *lines]) + f"\n{NOTES}{notes}")


def _both(found: dict[str, object]) -> list[str]:
    return [f"{100 * score:.2f}" for score in found["scores"]]


HEAD = """
# Least squares: a merged layer fitted to its parents

    python experiments/least_squares/run.py --data npz:cifar10.npz --checkpoints FOLDER --more FOLDER

Accuracy in per cent on 5,000 validation and 10,000 test images of CIFAR-10 (chance 10), mean and deviation over pairs.
All networks are a quarter as wide as the published ones (ResNet20: full width) and were trained for minutes. The first
pair of each family has seen the validation images in training, the second one has not. No labels are used by any row.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="cifar10:FOLDER or npz:FILE")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder of {family}_s1 and _s2")
    parser.add_argument("--more", type=Path, help="folder of {family}_s3 and _s4")
    parser.add_argument("--family", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    progress.disable()
    data = zoo.open_data(options.data).split(validation=VALIDATION, seed=0)
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    pairs = {"1": (("s1", "s2"), options.checkpoints), "2": (("s3", "s4"), options.more)}
    settings = {"validation": VALIDATION, "sizes": SIZES}
    every: dict[str, list[Results]] = {
        family: [Results(folder / f"{family}-{number}.json", settings) for number in pairs]
        for family in FAMILIES
    }
    varied = Results(folder / "options.json", settings)
    for number, (seeds, where) in pairs.items():
        for family in options.family:
            names = (f"{family}_{seeds[0]}", f"{family}_{seeds[1]}")
            if where is None or not all((where / f"{name}.safetensors").exists() for name in names):
                continue
            pair = Pair(family, names, where, data)
            measure(family, pair, every[family][int(number) - 1])
            page(every, varied)
            if family == "vgg16" and where == options.more:
                vary(pair, varied)
                page(every, varied)


if __name__ == "__main__":
    main()
