"""Fisher merging beside the plain average on the siblings: which information, which floor, and why not more.

    python experiments/siblings/information.py --checkpoints FOLDER --data cifar10:FOLDER

Information is gathered on training images. Of each variant, the floor and the other options are chosen on one half of
the test images and reported on the other, for several splits, as in `run.py`. Writes `results/information.json` and
`FISHER.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from answers import SEEN, SIBLINGS, Answers, halves, spread
from torch import Tensor

import isthmus
from isthmus import weights, zoo
from isthmus.search.fitting import Fitted

HERE = Path(__file__).parent
VARIANTS = ("exact", "sampled", "empirical")
FLOORS = (0.0, 1e-8, 1e-6, 1e-4)
State = Mapping[str, Tensor]


def gathered(
    model: torch.nn.Module, states: Sequence[State], data: zoo.Dataset, examples: int, folder: Path
) -> dict[str, list[Mapping[str, Tensor]]]:
    """Variant -> the information of each model, kept in files; and the Gram matrices."""
    folder.mkdir(parents=True, exist_ok=True)
    loader = data.loader("train", batch_size=100, limit=examples)
    found: dict[str, list[Mapping[str, Tensor]]] = {}
    for kind in (*VARIANTS, "gram"):
        for name, state in zip(SIBLINGS, states, strict=True):
            path = folder / f"{kind}-{examples}-{name}.safetensors"
            if not path.exists():
                known = (
                    isthmus.gram_matrices(model, loader, weights=state)
                    if kind == "gram"
                    else isthmus.fisher_information(model, loader, weights=state, variant=kind)
                )
                known.save(path)
                print(path.name, flush=True)
            found.setdefault(kind, []).append(weights.load(path))
    return found


def candidates(kind: str) -> dict[str, dict[str, Any]]:
    """What is tried: label -> options."""
    if kind == "gram":
        return {f"alpha {a:g}": {"alpha": a, "ridge": 1e-6} for a in (1.0, 0.9, 0.1)}
    made: dict[str, dict[str, Any]] = {}
    for floor in FLOORS:
        for favor in (True, False) if floor else (False,):
            for normalize in (True,) if favor or kind != "exact" else (True, False):
                told = f"floor {floor:g}" + (", first favoured" if favor else "")
                told += "" if normalize else ", not normalised"
                made[told] = {"floor": floor, "favor_target": favor, "normalize": normalize}
    return made


def described(
    known: Sequence[Mapping[str, Tensor]], merged: State, states: Sequence[State]
) -> dict[str, float]:
    """Sizes of the information, how alike the models' are, and how far the merge is from the average."""
    flat = [torch.cat([one[k].double().flatten() for k in sorted(one)]) for one in known]
    means = isthmus.combine(states)
    keys = [k for k in known[0] if k in means]
    away = sum(float((merged[k].double() - means[k].double()).square().sum()) for k in keys) ** 0.5
    spread = statistics.fmean(
        sum(float((s[k].double() - means[k].double()).square().sum()) for k in keys) ** 0.5 for s in states
    )
    cosines = [
        float(torch.nn.functional.cosine_similarity(a, b, dim=0))
        for i, a in enumerate(flat)
        for b in flat[:i]
    ]
    shares = torch.stack(flat) / torch.stack(flat).sum(0).clamp_min(1e-300)
    first = torch.stack([flat[0].clamp_min(1e-6), *flat[1:]])
    return {
        "median": statistics.fmean(float(f.median()) for f in flat),
        "below 1e-6": statistics.fmean(float((f < 1e-6).double().mean()) for f in flat),
        "cosine between models": statistics.fmean(cosines),
        "largest share of an element": float(shares.amax(0).mean()),
        "share of the first, floor 1e-6 on it": float((first[0] / first.sum(0)).mean()),
        "distance to the average over the models'": away / spread,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--data", required=True, help="cifar10:FOLDER or npz:FILE")
    parser.add_argument(
        "--kept", type=Path, required=True, help="folder for the information, which takes longest"
    )
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--splits", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = zoo.open_data(options.data).split(validation=SEEN, seed=0)
    model = zoo.build("vgg16", base=16, norm="bn").eval()
    states = [
        dict(Fitted(weights.open(options.checkpoints / f"{name}.safetensors"), model)) for name in SIBLINGS
    ]
    known = gathered(model, states, data, options.examples, options.kept)
    answers = Answers(model, data.loader("test", batch_size=500), options.kept / "test")
    splits = [halves(len(answers.targets), seed) for seed in range(options.splits)]

    def rates(state: State) -> list[tuple[float, float]]:
        logits = answers.of(state)
        return [(answers.accuracy(logits, a), answers.accuracy(logits, b)) for a, b in splits]

    average = rates(isthmus.combine(states))
    single = [rates(state) for state in states]
    best = [max((s[n] for s in single), key=lambda pair: pair[0]) for n in range(options.splits)]
    found: dict[str, Any] = {
        "average": average,
        "best single": best,
        "variants": {},
        "examples": options.examples,
    }
    for kind, own in known.items():
        method = "reg-mean" if kind == "gram" else "fisher"
        tried: dict[str, list[tuple[float, float]]] = {}
        for label, how in candidates(kind).items():
            merged = isthmus.combine(states, method, statistics=own, options=how)
            tried[label] = rates(merged)
            print(kind, label, spread([b for _, b in tried[label]]), flush=True)
        found["variants"][kind] = {"tried": tried}
        if kind != "gram":
            plain = isthmus.combine(
                states, "fisher", statistics=own, options={"floor": 0.0, "favor_target": False}
            )
            found["variants"][kind]["described"] = described(own, plain, states)
    path = HERE / "results" / "information.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    write(found)


def write(found: Mapping[str, Any]) -> None:
    """The tables; what stands below `<!-- notes -->` stays."""
    page = HERE / "FISHER.md"
    notes = page.read_text().partition("<!-- notes -->")[2] if page.exists() else "\n"
    average = found["average"]

    def row(name: str, pairs: Sequence[Sequence[float]]) -> str:
        gains = [b - own[1] for (_, b), own in zip(pairs, average, strict=True)]
        return f"| {name} | {spread([a for a, _ in pairs])} | {spread([b for _, b in pairs])} | {spread(gains)} |"

    lines = [
        "# Fisher merging of the siblings",
        "",
        "Made by `python experiments/siblings/information.py --checkpoints FOLDER --data cifar10:FOLDER --kept FOLDER`",
        f"from {found['examples']} training images. Accuracy in per cent, mean ± standard deviation over",
        f"{len(average)} random halves of the test images; *chosen*: by the first half of each.",
        "",
        "| way | chosen on | reported on | less the average, points |",
        "|---|---|---|---|",
        row("best single", found["best single"]),
        row("average (isotropic)", average),
    ]
    for kind, own in found["variants"].items():
        tried = own["tried"]
        name = "RegMean" if kind == "gram" else f"Fisher, {kind}"
        chosen = [max((t[n] for t in tried.values()), key=lambda pair: pair[0]) for n in range(len(average))]
        lines.append(row(f"**{name}: chosen**", chosen))
        lines += [row(f"{name}: {label}", pairs) for label, pairs in tried.items()]
    told = {kind: own["described"] for kind, own in found["variants"].items() if "described" in own}
    lines += ["", f"| information | {' | '.join(told)} |", "|---" * (len(told) + 1) + "|"]
    lines += [
        f"| {key} | {' | '.join(f'{own[key]:.3g}' for own in told.values())} |"
        for key in next(iter(told.values()))
    ]
    page.write_text("\n".join(lines) + "\n\n<!-- notes -->" + notes)


if __name__ == "__main__":
    main()
