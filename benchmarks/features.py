"""The statistics pass of activation matching against plain forward passes of the same models.

    python benchmarks/features.py [--base 64] [--batch 64] [--batches 4] [--repeats 5] [--threads 1]

Both are run on the same batches, in turn within each repeat, so that whatever else the machine does
hits both; the ratio is taken within a repeat. "reference" is what matching N models to the first needs:
all post-activation means, variances and cross-covariances with model 0.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from isthmus.features import Request, collect
from isthmus.program import export
from isthmus.zoo import VGG


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def spread(values: list[float], unit: str = "s") -> str:
    return f"{statistics.median(values):.3f}{unit} (min {min(values):.3f}, max {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=int, default=64, help="channels of VGG16's first stage")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", type=int, default=2)
    parser.add_argument("--blocks", default="reference", choices=["moments", "reference", "joint"])
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice; 1 on a busy machine")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    torch.manual_seed(0)
    data = [torch.randn(options.batch, 3, 32, 32) for _ in range(options.batches)]
    models = [VGG("vgg16", options.base).eval() for _ in range(options.models)]
    program = export(models[0], data[0][:2])
    states = [model.state_dict() for model in models]
    values = [node.name for node in program.graph.nodes if str(node.target).startswith("aten.relu")]
    requests = [Request(value, 1, options.blocks) for value in values]

    @torch.no_grad()
    def plain() -> None:
        for batch in data:
            for model in models:
                model(batch)

    def watched() -> None:
        collect(program, states, data, requests)

    plain(), watched()  # warm up: allocator, kernels
    pairs = [(seconds(plain), seconds(watched)) for _ in range(options.repeats)]
    print(
        f"VGG16 base {options.base}, {options.models} models, {options.blocks} blocks of {len(values)} values"
    )
    print(f"{options.batches} batches of {options.batch} images, {torch.get_num_threads()} threads")
    print(f"plain forwards   {spread([a for a, _ in pairs])}")
    print(f"statistics pass  {spread([b for _, b in pairs])}")
    print(f"ratio            {spread([b / a for a, b in pairs], 'x')}")


if __name__ == "__main__":
    main()
