"""Two strangers per family on CIFAR-10, merged every way, the published rows beside ours.

    python experiments/first_light/run.py --checkpoints FOLDER --data cifar10:FOLDER

Each pair is two networks of one architecture trained from different seeds (`{family}_s1`, `{family}_s2` as
safetensors). The published numbers are of full-width networks trained for 160 epochs; ours are of narrow ones
trained for minutes on a CPU, so what can be compared is the *ordering* of the rows, not their values.

Writes `results/{family}.json` (everything measured), `results/{family}.html` and `README.md`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from isthmus import progress, zoo
from isthmus import weights as files
from isthmus.cli.inputs import splits
from isthmus.comparing import Comparison, compare
from isthmus.report import render
from isthmus.report.results import Published, Results

HERE = Path(__file__).parent
SEED = 0
VALIDATION = 5000
CALIBRATION = 5000

VF = "Qu & Horvath, Vanishing Feature, "

#: family -> factory, arguments, depths to keep apart, published rows: name -> (accuracy %, spread, where).
FAMILIES: dict[str, tuple[str, dict[str, object], list[int], dict[str, tuple[float, float | None, str]]]] = {
    "vgg16": (
        "vgg16",
        {"base": 16},
        [3, 6, 8, 12],
        {
            "vgg16_s1": (91.88, 0.02, "Table 1"),
            "vgg16_s2": (91.67, 0.21, "Table 1"),
            "ensemble": (92.93, 0.29, "Table 1"),
            "direct average": (10.00, None, "Table 1"),
            "activation-matching": (46.50, 1.59, "Table 1"),
            "activation-matching + repair": (39.09, 4.42, "Table 1"),
            "activation-matching + rescale": (84.68, 0.85, "Table 1"),
            "preserve-first 3 of 14, paper": (62.40, 0.64, "Table 1"),
            "preserve-first 6 of 14, paper": (85.81, 0.40, "Table 1"),
            "preserve-first 8 of 14, paper": (91.15, 0.13, "Table 1"),
            "preserve-first 12 of 14, paper": (92.88, 0.16, "Table 1"),
            "preserve-first 3 of 14 + repair, paper": (39.97, 2.55, "Table 1"),
            "preserve-first 6 of 14 + repair, paper": (50.61, 2.13, "Table 1"),
            "preserve-first 8 of 14 + repair, paper": (87.37, 1.73, "Table 1"),
            "preserve-first 12 of 14 + repair, paper": (92.85, 0.15, "Table 1"),
            "preserve-first 3 of 14 + rescale, paper": (86.77, 0.06, "Table 1"),
            "preserve-first 6 of 14 + rescale, paper": (90.88, 0.27, "Table 1"),
            "preserve-first 8 of 14 + rescale, paper": (92.43, 0.23, "Table 1"),
            "preserve-first 12 of 14 + rescale, paper": (92.87, 0.21, "Table 1"),
        },
    ),
    "vgg16bn": (
        "vgg16",
        {"base": 16, "norm": "bn"},
        [3, 6, 8, 12],
        {
            "vgg16bn_s1": (93.48, None, "section 6"),
            "vgg16bn_s2": (93.41, None, "section 6"),
            "ensemble": (94.37, None, "section 6"),
            "activation-matching": (18.71, None, "Table 4"),
            "activation-matching + reset": (89.88, 0.12, "Table 4"),
            "preserve-first 6 of 14, paper": (76.07, None, "Table 4"),
            "preserve-first 6 of 14 + reset, paper": (92.86, None, "Table 4"),
            "preserve-first 8 of 14, paper": (92.04, None, "Table 4"),
            "preserve-first 8 of 14 + reset, paper": (94.16, None, "Table 4"),
            "preserve-first 12 of 14, paper": (94.36, None, "Table 4"),
            "preserve-first 12 of 14 + reset, paper": (94.36, None, "Table 4"),
        },
    ),
    "resnet20": (
        "resnet20",
        {},
        [6, 10, 13, 16, 19],
        {
            "resnet20_s1": (91.85, None, "Table 7"),
            "resnet20_s2": (91.79, None, "Table 7"),
            "ensemble": (93.08, None, "Table 7"),
            "activation-matching": (11.65, None, "Table 7"),
            "activation-matching + reset": (64.12, 0.33, "Table 7"),
            "preserve-first 6 of 20, paper": (13.57, None, "Table 7"),
            "preserve-first 6 of 20 + reset, paper": (68.33, None, "Table 7"),
            "preserve-first 10 of 20, paper": (32.10, None, "Table 7"),
            "preserve-first 10 of 20 + reset, paper": (72.71, None, "Table 7"),
            "preserve-first 13 of 20, paper": (52.57, None, "Table 7"),
            "preserve-first 13 of 20 + reset, paper": (76.76, None, "Table 7"),
            "preserve-first 19 of 20, paper": (93.05, None, "Table 7"),
            "preserve-first 19 of 20 + reset, paper": (93.10, None, "Table 7"),
        },
    ),
}


def run(family: str, folder: Path, data: zoo.Dataset, points: int, test: int | None) -> Comparison:
    factory, arguments, depths, rows = FAMILIES[family]
    model = zoo.build(factory, **arguments).eval()
    names = [f"{family}_s{i}" for i in (1, 2)]
    states = []
    for name in names:
        found = files.load(folder / f"{name}.safetensors")
        states.append({k: found[k].to(v.dtype) for k, v in model.state_dict().items()})
    published = {
        name: Published(accuracy=value / 100, spread=None if s is None else s / 100, source=VF + where)
        for name, (value, s, where) in rows.items()
    }
    return compare(
        states,
        splits(data, CALIBRATION, None, test),
        model=model,
        names=names,
        preserve_first=depths,
        variants=("junction", "paper"),
        points=points,
        seed=SEED,
        published=published,
        title=f"{family}: two strangers on CIFAR-10",
        command="python experiments/first_light/run.py",
    )


def table(family: str, results: Results) -> list[str]:
    lines = [
        f"## {family}",
        "",
        results.verdict,
        "",
        "| way | validation % | test % | loss | parameters | FLOPs | published % |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results.rows:
        theirs = row.published
        beside = f"{100 * theirs.accuracy:.2f}" if theirs else ""
        beside += f" ± {100 * theirs.spread:.2f}" if theirs and theirs.spread else ""
        measured = f"{100 * (row.validation or 0):.2f} | {100 * (row.accuracy or 0):.2f} | {row.loss:.3f}"
        lines.append(f"| {row.name} | {measured} | {row.parameters:.2f} | {row.flops:.2f} | {beside} |")
    sizes = ", ".join(f"{count} {name}" for name, count in results.provenance.splits.items())
    chance = 100 * (results.provenance.chance or 0)
    checked = results.verification
    assert checked is not None
    lines += [
        "",
        f"Examples: {sizes}; chance {chance:.1f} %; symmetries verified to {checked.error:.1e}.",
        "",
    ]
    return lines


def write(folder: Path) -> None:
    """Put the tables of all families measured so far into the page, above what is written by hand."""
    page = HERE / "README.md"
    notes = page.read_text().split("<!-- notes -->")[-1] if page.exists() else "\n"
    lines = [
        "# First light: strangers on CIFAR-10",
        "",
        "Made by `python experiments/first_light/run.py --checkpoints FOLDER --data cifar10:FOLDER`.",
        "One pair per family, seed 0. Alignments and repairs see calibration images of the training split;",
        "validation images are kept from it; no choice is made on test. Published rows: full-width networks,",
        f"160 epochs, {VF.rstrip(', ')} (their variant of the cut is `paper`).",
        "",
    ]
    for family in FAMILIES:
        if (folder / f"{family}.json").exists():
            lines += table(family, Results.read(folder / f"{family}.json"))
    page.write_text("\n".join(lines) + "\n<!-- notes -->" + notes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--data", required=True, help="cifar10:FOLDER or npz:FILE")
    parser.add_argument("--family", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--points", type=int, default=11, help="places on the barrier curves")
    parser.add_argument("--test", type=int, default=None, help="test images; all where not given")
    options = parser.parse_args()
    progress.enable()
    data = zoo.open_data(options.data).split(validation=VALIDATION, seed=SEED)
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    for family in options.family:
        start = time.perf_counter()
        found = run(family, options.checkpoints, data, options.points, options.test)
        found.results.to_json(folder / f"{family}.json")
        render(found.results, folder / f"{family}.html")
        write(folder)
        print(f"{family}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
