"""The tables and figures of "Vanishing Feature: Diagnosing Model Merging and Beyond", on small strangers.

    python experiments/vanishing_feature/run.py --data npz:cifar10.npz --fashion npz:fmnist.npz --models FOLDER

Networks that are in `--checkpoints FOLDER` are taken from there, others are trained into `--models`. One JSON file
per stage and pair stands in `results/`; what is in it is not measured again, so that a run that is stopped goes on.
The page of tables is written after every file. `--device cuda --scale full` is the paper's own scale: full widths,
160 epochs. Given CIFAR-100 as the data, the published rows beside are those of its tables 9 to 11.

Source: Qu and Horváth 2025 (arXiv:2402.05966).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import apart
import curves
import features
import linear
import page
import repairs
import tables
import training_effects
from common.bench import Results
from nets import FAMILIES, Shelf
from pairs import Pair, Splits

from isthmus import progress, zoo

HERE = Path(__file__).parent
SEED = 0
VALIDATION = 5000

#: Stage -> what measures it, and the families it is about.
STAGES: dict[str, tuple[Callable[[Pair, Results], None], tuple[str, ...]]] = {
    "tables": (tables.measure, tuple(FAMILIES)),
    "curves": (curves.measure, ("vgg16",)),
    "apart": (apart.measure, ("vgg16",)),
    "repairs": (repairs.measure, ("vgg16", "vgg16scratch")),
    "features": (features.measure, ("vgg16", "vgg16bn", "resnet20")),
}
FASHION: dict[str, Callable[[zoo.Dataset, Results, Path, str], None]] = {
    "linear": linear.measure,
    "training": training_effects.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", required=True, help="CIFAR-10 or CIFAR-100, as isthmus.zoo.open_data takes it"
    )
    parser.add_argument("--fashion", help="Fashion-MNIST, for linear networks and the effects of training")
    parser.add_argument("--checkpoints", type=Path, help="folder of networks {family}_s{1,2}.safetensors")
    parser.add_argument("--models", type=Path, required=True, help="folder of networks trained here")
    parser.add_argument("--family", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument(
        "--pairs", type=int, nargs="*", default=[1, 2, 3], help="pair i has the seeds 2i-1 and 2i"
    )
    parser.add_argument("--only", nargs="*", default=[*STAGES, *FASHION], choices=[*STAGES, *FASHION])
    parser.add_argument("--no-training", action="store_true", help="leave out pairs that are not trained yet")
    parser.add_argument("--calibration", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=2000)
    parser.add_argument("--test", type=int, default=5000, help="test images; 0 for all")
    parser.add_argument("--float32", action="store_true", help="answers in float32, not bfloat16")
    parser.add_argument("--scale", default="small", choices=["small", "full"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    progress.disable()
    options.results.mkdir(parents=True, exist_ok=True)
    data = zoo.open_data(options.data).split(validation=VALIDATION, seed=SEED)
    shelf = Shelf(data, options.checkpoints, options.models, options.scale, options.device)
    settings = {
        "scale": options.scale,
        "classes": data.num_classes,
        "calibration": options.calibration,
        "validation": options.validation,
        "test": options.test or None,
        "precision": "float32" if options.float32 else "bfloat16",
    }
    splits: Splits | None = None
    for index in options.pairs:
        for family in options.family:
            wanted = [s for s in STAGES if s in options.only and family in STAGES[s][1]]
            if not wanted or (options.no_training and not shelf.ready(family, index)):
                continue
            splits = splits or Splits.of(
                shelf, options.calibration, options.validation, options.test or None, not options.float32
            )
            pair = Pair(shelf, family, index, splits)
            for stage in wanted:
                path = options.results / f"{stage}-{family}-{index}.json"
                STAGES[stage][0](pair, Results(path, settings))
                page.write(options.results)
    for stage in (s for s in FASHION if s in options.only and options.fashion):
        fashion = zoo.open_data(options.fashion).split(validation=VALIDATION, seed=SEED)
        results = Results(options.results / f"{stage}.json", {"scale": options.scale})
        FASHION[stage](fashion, results, options.models, options.device)
        page.write(options.results)


if __name__ == "__main__":
    main()
