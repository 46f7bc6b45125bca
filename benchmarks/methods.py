"""What every alignment costs: seconds and memory on the shapes of VGG16 and ResNet50, beside plain forwards.

    python benchmarks/methods.py [--case vgg16 resnet50] [--method zipit cca ...] [--images 64] [--limit 300]

Each method runs in a process of its own, so that its peak memory is its own; so does the baseline, which runs both
models on the same images and nothing else. Within each process the forwards are timed first, and a method's time is
also given in those. The models are strangers with random weights, in float32: nothing is to be found, the worst
case of a search. Searches are capped (`CAPS`), and the table says how: their times are those of so many steps.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).parent)]

#: Options that end a search early; what is not listed runs to its own end.
CAPS: dict[str, dict[str, object]] = {
    "weight-matching": {"max_sweeps": 2},
    "straight-through": {"max_sweeps": 1, "epochs": 1},
    "annealing": {"steps": 10, "start": "identity"},
    "sinkhorn": {"steps": 2},
    "c2m3": {"max_rounds": 2},
    "matched-averaging": {"sweeps": 1},
}

#: The side of an image.
SIDES = {"vgg16": 32, "resnet50": 64}

BASELINE = "plain forwards"


def network(case: str) -> nn.Module:
    if case == "vgg16":
        from isthmus.zoo import vgg16

        return vgg16(norm="bn")
    from tracing import resnet50

    model = resnet50()
    assert isinstance(model, nn.Module)
    return model


def child(case: str, method: str, images: int) -> dict[str, object]:
    """One method in this process: processor seconds, and the peak of its memory in MiB."""
    from isthmus.align import align
    from isthmus.symmetry import trace

    torch.set_num_threads(1)
    models: list[nn.Module] = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(network(case).eval())
    generator = torch.Generator().manual_seed(2)
    side = SIDES[case]
    batches = [torch.randn(16, 3, side, side, generator=generator) for _ in range(images // 16)]
    data = [(batch, torch.arange(len(batch)) % 10) for batch in batches]
    graph = trace(models[0], batches[0][:2]) if method != BASELINE else None

    def forwards() -> float:
        begun = time.process_time()
        with torch.no_grad():
            for model in models:
                for batch in batches:
                    model(batch)
        return time.process_time() - begun

    forwards()
    plain = forwards()
    told: dict[str, object] = {"forwards": plain}
    if graph is not None:
        begun = time.process_time()
        found = align(graph, models, {"method": method, **CAPS.get(method, {})}, data=data)
        told |= {"seconds": time.process_time() - begun, "status": found.status}
    told["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return told


def row(case: str, method: str, images: int, limit: int) -> str:
    """One line of the table, measured in a process of its own, which may take so many processor seconds."""
    command = [
        sys.executable,
        __file__,
        "--child",
        "--case",
        case,
        "--method",
        method,
        "--images",
        str(images),
    ]
    capped = ", ".join(f"{k} {v}" for k, v in CAPS.get(method, {}).items()) or "to its end"
    ran = subprocess.run([*command, "--limit", str(limit)], capture_output=True, text=True, check=False)
    if ran.returncode < 0:
        return f"| {case} | `{method}` | {capped} | over {limit}, stopped | | |"
    if ran.returncode:
        why = ran.stderr.strip().splitlines()
        raised = next((line for line in reversed(why) if "Error: " in line), why[-1] if why else "?")
        return f"| {case} | `{method}` | {capped} | refused: {raised.partition('Error: ')[2] or raised} | | |"
    told = json.loads(ran.stdout.strip().splitlines()[-1])
    if method == BASELINE:
        return f"| {case} | {method} of both models | | {told['forwards']:.2f} | 1 | {told['peak']:.0f} |"
    ratio = told["seconds"] / told["forwards"]
    return f"| {case} | `{method}` | {capped} | {told['seconds']:.2f} | {ratio:.1f} | {told['peak']:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", nargs="*", default=["vgg16", "resnet50"], choices=["vgg16", "resnet50"])
    parser.add_argument("--method", nargs="*", help="alignments; all that are registered by default")
    parser.add_argument("--images", type=int, default=64, help="a multiple of 16")
    parser.add_argument("--limit", type=int, default=300, help="processor seconds that a method may take")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        resource.setrlimit(resource.RLIMIT_CPU, (options.limit, options.limit))
        print(json.dumps(child(options.case[0], options.method[0], options.images)))
        return
    from isthmus.align import ALIGNMENTS

    print("| network | method | steps | CPU s | times the forwards | peak MiB |")
    print("|---|---|---|---|---|---|")
    for case in options.case:
        for method in [BASELINE, *(options.method or ALIGNMENTS.names())]:
            print(row(case, method, options.images, options.limit), flush=True)


if __name__ == "__main__":
    main()
