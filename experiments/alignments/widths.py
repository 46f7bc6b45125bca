"""Networks of 64 and of 128 units, merged both ways on digits, beside cutting off or padding the other one.

    python experiments/alignments/widths.py

For each seed a narrow and a wide network are trained apart. The other model is brought to the reference's widths by
`transport` or `zipit`, or its surplus units are cut off (missing ones are zero). Midpoints, accuracy on test images;
calibration images are of the training split, nothing is chosen. Writes `results/widths.json` and `WIDTHS.md`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor, nn

import isthmus
from isthmus import progress, zoo

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
WIDTHS = (64, 128)

#: Name -> a network of that many units, epochs, largest learning rate, repair.
NETS: dict[str, tuple[Callable[[int], nn.Module], int, float, str | None]] = {
    "mlp": (lambda w: zoo.MLP(d_in=64, widths=(w, w), num_classes=10), 12, 0.05, None),
    "vgg": (
        lambda w: zoo.VGG((1, "M", 2), base=w // 2, norm="bn", in_channels=1, num_classes=10),
        3,
        0.05,
        "reset",
    ),
}
WAYS: dict[str, dict[str, object]] = {
    "transport": {"method": "transport"},
    "transport by weights": {"method": "transport", "by": "weights"},
    "zipit": {"method": "zipit"},
}


def fitted(weights: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights cut off or padded to the shapes of others."""
    found: dict[str, Tensor] = {}
    for key, wanted in like.items():
        made = torch.ones_like(wanted) if key.endswith("running_var") else torch.zeros_like(wanted)
        common = tuple(slice(min(a, b)) for a, b in zip(weights[key].shape, wanted.shape, strict=True))
        made[common] = weights[key][common]
        found[key] = made
    return found


def measure(net: str, data: zoo.Dataset, seed: int) -> dict[str, float]:
    make, epochs, rate, repair = NETS[net]
    test, calibration = data.loader("test"), list(data.loader("train", seed=seed))
    models: list[nn.Module] = []
    for offset, width in enumerate(WIDTHS):
        torch.manual_seed(2 * seed + offset)
        loader = data.loader("train", batch_size=64, shuffle=True, seed=2 * seed + offset)
        result = zoo.train(make(width), loader, epochs=epochs, lr=rate, seed=2 * seed + offset, threads=1)
        models.append(result.model.eval())
    found = {
        f"{width} units alone": isthmus.evaluate(m, test).accuracy
        for width, m in zip(WIDTHS, models, strict=True)
    }
    for reference, width in enumerate(WIDTHS):
        like = models[reference].state_dict()
        cut = [fitted(m.state_dict(), like) for m in models]
        merged = isthmus.merge(cut, model=models[reference], repair=repair, data=calibration, verify=False)
        found[f"cut off or padded -> {width}"] = isthmus.evaluate(merged.model, test).accuracy
        for way, options in WAYS.items():
            merged = isthmus.merge(
                models, align=options, reference=reference, repair=repair, data=calibration
            )
            found[f"{way} -> {width}"] = isthmus.evaluate(merged.model, test).accuracy
    return found


def main() -> None:
    progress.disable()
    torch.set_num_threads(1)
    data = zoo.open_data("digits")
    results = {net: [measure(net, data, seed) for seed in SEEDS] for net in NETS}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "widths.json").write_text(json.dumps(results, indent=1) + "\n")
    lines = [
        "# A narrow and a wide network, merged",
        "",
        "Made by `python experiments/alignments/widths.py`: digits, midpoints, test accuracy in %, mean ± standard",
        f"deviation over {len(SEEDS)} pairs trained from scratch; chance 10 %. Batch norms (of the VGG) are reset.",
        "",
        "| way | " + " | ".join(NETS) + " |",
        "|---|" + "---|" * len(NETS),
    ]
    for way in results["mlp"][0]:
        cells = [[100 * run[way] for run in results[net]] for net in NETS]
        lines.append(f"| {way} | " + " | ".join(f"{mean(c):.2f} ± {stdev(c):.2f}" for c in cells) + " |")
    (HERE / "WIDTHS.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
