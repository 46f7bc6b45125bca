"""Weight matching of a ResNet50 and of a VGG16: seconds and sweeps, against one pass over the weights.

    python benchmarks/matching.py [--repeats 3]

The baseline, run in turn with the matching, is the similarity arithmetic alone: for every weight and each
of its first two axes, one product of that axis' unfolding with the other model's. A sweep cannot cost less.
Weights are random (two seeds); trained ones take fewer sweeps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from isthmus import zoo
from isthmus.align import align
from isthmus.symmetry import trace

sys.path.insert(0, str(Path(__file__).parent))
from tracing import resnet50


def products(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    for key, ours in a.items():
        for axis in range(min(ours.ndim, 2)):
            if ours.is_floating_point():
                x, y = (t.movedim(axis, 0).reshape(t.shape[axis], -1) for t in (ours, b[key]))
                x @ y.mT


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    cases: list[tuple[str, object, Tensor]] = [
        ("VGG16", zoo.vgg16, torch.zeros(2, 3, 32, 32)),
        ("ResNet50", resnet50, torch.zeros(2, 3, 64, 64)),
    ]
    for name, factory, example in cases:
        models = []
        for seed in range(2):
            torch.manual_seed(seed)
            models.append(factory())  # type: ignore[operator]
        graph = trace(models[0], example)
        assert isinstance(models[0], nn.Module)
        states = [model.state_dict() for model in models]
        times, floors, note = [], [], ""
        for _ in range(options.repeats):
            start = time.perf_counter()
            products(*states)
            floors.append(time.perf_counter() - start)
            start = time.perf_counter()
            found = align(graph, states, "weight-matching")
            times.append(time.perf_counter() - start)
            note = found.notes[0]
        sweeps = int(note.split(": ")[1].split(" ")[0])
        each = [t / sweeps / f for t, f in zip(times, floors, strict=True)]
        print(f"{name}: {statistics.median(times):.1f} s ({min(times):.1f} .. {max(times):.1f}); {note}")
        floor = f"{statistics.median(each):.1f} ({min(each):.1f} .. {max(each):.1f})"
        print(f"  a sweep costs {floor} times the bare products")


if __name__ == "__main__":
    main()
