"""Trace time and peak memory of a ResNet50 and of a Llama of 7B shape on the meta device.

    python benchmarks/tracing.py [--repeats 3]

Each case runs in a process of its own, whose peak resident memory is read at the end, beside that of a
process that only imports what it needs (the baseline). Nothing of a meta model is ever allocated.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

CASES = ("imports", "resnet50", "llama-7b-meta")


def resnet50() -> object:
    """ResNet50 as everybody draws it, in plain torch: no other package is needed to time this."""
    from torch import nn

    def block(cin: int, width: int, stride: int) -> nn.Module:
        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                cout = 4 * width
                self.body = nn.Sequential(
                    nn.Conv2d(cin, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                    nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                    nn.Conv2d(width, cout, 1, bias=False), nn.BatchNorm2d(cout),
                )  # fmt: skip
                self.skip = nn.Identity()
                if stride != 1 or cin != cout:
                    self.skip = nn.Sequential(
                        nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout)
                    )
                self.out = nn.ReLU()

            def forward(self, x):  # type: ignore[no-untyped-def]
                return self.out(self.body(x) + self.skip(x))

        return Block()

    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    cin = 64
    for stage, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for index in range(count):
            layers.append(block(cin, width, 2 if stage and not index else 1))
            cin = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(cin, 1000)).eval()


def measure(case: str) -> dict[str, float]:
    import torch

    from isthmus.symmetry import trace

    seconds = spaces = 0.0
    if case == "resnet50":
        model, example = resnet50(), torch.zeros(2, 3, 224, 224)
    elif case == "llama-7b-meta":
        # Where a torchvision lies beside a torch that it was not built for, transformers fails to import
        # over two operators that no language model uses; declared, they need not exist.
        for name in () if hasattr(torch.ops.torchvision, "nms") else ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)
        from transformers import LlamaConfig, LlamaForCausalLM

        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(use_cache=False)).eval()
            example = torch.zeros(2, 16, dtype=torch.long)
    else:
        import torch._dynamo
        import torch.export
        import transformers  # noqa: F401

        model = None
    if model is not None:
        start = time.perf_counter()
        graph = trace(model, example)  # type: ignore[arg-type]
        seconds, spaces = time.perf_counter() - start, len(graph.spaces)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "spaces": spaces, "peak_mib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", choices=CASES, help="measure one case in this process and print JSON")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case)))
        return
    print(f"{'case':<16}{'spaces':>8}{'seconds (min .. max)':>28}{'peak MiB':>12}")
    for case in CASES:
        runs = [
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--case", case], capture_output=True, text=True, check=True
                ).stdout.splitlines()[-1]
            )
            for _ in range(options.repeats)
        ]
        seconds = [run["seconds"] for run in runs]
        spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} .. {max(seconds):.2f})"
        peak = max(run["peak_mib"] for run in runs)
        print(f"{case:<16}{runs[0]['spaces']:>8.0f}{spread:>28}{peak:>12.0f}")


if __name__ == "__main__":
    main()
