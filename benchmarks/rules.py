"""The arithmetic of rules inside one process, in nanoseconds per element: calls of torch and numpy, and compiled loops.

    python benchmarks/rules.py [--rule ties della ...] [--models 2 3] [--rows 2048] [--repeats 5]

Blocks of bfloat16 siblings, as many as the cores' caches do not hold, are measured and written by each rule, one
thread, by calls and by loops in turn within each repeat (numba, extra `fast`; without it there are calls only). Files,
start-up and compiling do not count. Reported are the medians (min .. max) of processor time, measuring + writing, and
whether both gave the same bits.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from isthmus.combine import BLOCK, Block, Place, blockwise
from isthmus.combine.compiled import loops

#: Of these in mergekit's convention, and DELLA in the paper's, which sorts.
OPTIONS: dict[str, dict[str, object]] = {
    "linear": {},
    "ties": {"density": 0.3, "convention": "mergekit"},
    "dare-ties": {"density": 0.3, "convention": "mergekit"},
    "della": {"density": 0.4, "convention": "mergekit"},
    "della-paper": {"density": 0.4, "convention": "paper"},
}
WAYS = {"calls": 1 << 62, "loops": 0}
BLOCKS = 48


def siblings(count: int, length: int) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Blocks of a base, and of each model."""
    generator = torch.Generator().manual_seed(0)
    shape = (BLOCK // length, length)
    base = [torch.randn(shape, generator=generator).mul_(0.02).bfloat16() for _ in range(BLOCKS)]
    models = [
        [(block.float() + torch.randn(shape, generator=generator) * 2e-4).bfloat16() for block in base]
        for _ in range(count)
    ]
    return base, models


def merge(name: str, base: list[Tensor], models: list[list[Tensor]]) -> tuple[float, float, list[Tensor]]:
    """Seconds of measuring and of writing, and what was written."""
    rows, length = base[0].shape
    given = [*models, base] if name == "linear" else models
    rule = blockwise(name.removesuffix("-paper"), [1.0] * len(given), OPTIONS[name])

    def cut(block: Tensor) -> Tensor:
        return block.view(-1) if rule.layout == "elements" else block

    places = [
        Place("w", (rows * BLOCKS, length), i * rows * length, (i + 1) * rows * length, 7)
        for i in range(BLOCKS)
    ]
    origin = [None] * BLOCKS if name == "linear" else [cut(block) for block in base]
    blocks = [
        Block(tuple(cut(model[i]) for model in given), place, origin[i]) for i, place in enumerate(places)
    ]
    out = [torch.empty_like(block) for block in base]
    began = time.process_time()
    for index in range(rule.passes):
        if not rule.skips(index):
            rule.reduce(index, [rule.measure(index, block) for block in blocks])
    measured = time.process_time()
    for block, into in zip(blocks, out, strict=True):
        into.view(-1).copy_(rule.write(block).view(-1))
    return measured - began, time.process_time() - measured, out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rule", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--models", nargs="+", type=int, default=[2, 3])
    parser.add_argument("--rows", type=int, default=2048, help="elements of a row")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ways = {way: worth for way, worth in WAYS.items() if way == "calls" or loops.Loops(0).after(1)}
    print("| rule | models | by | measuring | writing | both | same bits |\n|---|---|---|---|---|---|---|")
    for name in options.rule:
        for count in options.models:
            base, models = siblings(count, options.rows)
            taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            made: dict[str, list[Tensor]] = {}
            for repeat in range(options.repeats + 1):
                for way, worth in ways.items():
                    loops.LOOPS = loops.Loops(worth)
                    *seconds, made[way] = merge(name, base, models)
                    if repeat:  # the first one compiles, and fills caches
                        taken[way].append((seconds[0], seconds[1]))
            same = all(bits(made["calls"]) == bits(blocks) for blocks in made.values())
            elements = BLOCKS * base[0].numel()
            for way, runs in taken.items():
                parts = [[run[0] for run in runs], [run[1] for run in runs], [sum(run) for run in runs]]
                told = [spread([value / elements * 1e9 for value in part]) for part in parts]
                print(f"| {name} | {count} | {way} | {' | '.join(told)} | {same} |", flush=True)


def bits(blocks: list[Tensor]) -> list[bytes]:
    return [block.view(torch.int16).numpy().tobytes() for block in blocks]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} .. {max(values):.1f})"


if __name__ == "__main__":
    main()
