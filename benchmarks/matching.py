"""Weight matching against the plain algorithm: every space solved in every sweep, from all of its weights.

    python benchmarks/matching.py [--repeats 3] [--case resnet50 ...] [--threads 2]
    python benchmarks/matching.py --case unet --base 160       # SDXL's UNet at half its channels; 320: SDXL

Pairs are `strangers` (random weights of two seeds: nothing to be found, the worst case) and `siblings` (a reordered
copy with noise of the weights' own size: something to be found, as in trained networks of one recipe).
The plain algorithm is kept below and runs in turn with ours where --plain says so (by default for all but
the UNet). Both must end at objectives that agree, since ours visits spaces in the same order.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from isthmus import progress, zoo
from isthmus.align.alignment import identity_orders
from isthmus.align.orders.assignment import Evidence, agreement, inside, opened
from isthmus.align.orders.matching import Matching
from isthmus.symmetry import Leaf, SymmetryGraph, reorder, spaces_of, trace
from isthmus.symmetry.elements import random_orders

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "experiments" / "zoo")]
from own import UNet  # noqa: E402
from tracing import resnet50  # noqa: E402

Weights = dict[str, Tensor]


class Plain:
    """Git Re-Basin's algorithm 1 as it is written, with heads on two levels: the baseline."""

    def __init__(self, graph: SymmetryGraph, reference: Mapping[str, Tensor], model: Mapping[str, Tensor]):
        self.graph, self.known = graph, graph.spaces
        voting = [key for key in graph.layout if key not in graph.program.buffers]
        self.ours = {key: reference[key].float() for key in voting}
        self.theirs = {key: model[key].float() for key in voting}
        self.members = {
            name: list(dict.fromkeys((m.key, m.axis) for m in space.members if m.key in self.ours))
            for name, space in graph.spaces.items()
        }
        self.orders, self.sweeps = identity_orders(graph), 0
        self.generator = torch.Generator().manual_seed(0)

    def run(self, max_sweeps: int) -> Plain:
        names, changed = list(self.known), True
        while changed and self.sweeps < max_sweeps:
            self.sweeps += 1
            order = torch.randperm(len(names), generator=self.generator).tolist()
            changed = sum(self.step(names[i]) for i in order) > 0
        self.objective = self.value(self.ours)
        return self

    def step(self, name: str) -> bool:
        evidence = self.evidence(name)
        order, orders = evidence.solve()
        if not evidence.inner:
            old = agreement(evidence.direct, self.orders[name]).sum().item()
            new = agreement(evidence.direct, order).sum().item()
            if new <= old + 1e-7 * max(abs(old), abs(new)) + 1e-12:
                return False
            self.orders[name] = order
            return True
        keys = {key for n in (name, *orders) for key, _ in self.members[n]}
        before, saved = self.value(keys), dict(self.orders)
        self.orders |= {name: order, **orders}
        after = self.value(keys)
        if after <= before + 1e-7 * max(abs(before), abs(after)) + 1e-12:
            self.orders = saved
            return False
        return True

    def evidence(self, name: str) -> Evidence:
        space, within = self.known[name], inside(self.known[name], self.known)
        sizes = [self.known[outer].size for outer in space.within]
        held = {n: o for n, o in self.orders.items() if n != name and n not in within}
        direct, inner = torch.zeros(*sizes, space.size, space.size), {}
        for key, axis in self.members[name]:
            axes = self.graph.layout[key]
            theirs = reorder(self.theirs[key], axes, held, self.known)
            if sum(name in spaces_of(a) for a in axes) > 1:
                theirs = reorder(theirs, axes, {name: self.orders[name]}, self.known, skip=axis)
                axes = [a if i == axis else Leaf(a.size) for i, a in enumerate(axes)]
            carried = [n for n in within if any(n in spaces_of(a) for a in axes)]
            wanted = [name, carried[0]] if len(carried) == 1 else [*space.within, name]
            pairs = zip(opened(self.ours[key], axes, wanted), opened(theirs, axes, wanted), strict=True)
            for mine, other in pairs:
                if len(carried) == 1:
                    o, i, _ = mine.shape
                    found = (mine.flatten(0, 1) @ other.flatten(0, 1).mT).view(o, i, o, i).permute(0, 2, 1, 3)
                    inner[carried[0]] = inner[carried[0]] + found if carried[0] in inner else found
                else:
                    direct += mine @ other.mT
        return Evidence(direct, inner)

    def value(self, keys: object) -> float:
        total = 0.0
        for key in keys:  # type: ignore[attr-defined]
            moved = reorder(self.theirs[key], self.graph.layout[key], self.orders, self.known)
            total += torch.dot(self.ours[key].flatten(), moved.flatten()).item()
        return total


def build(case: str, base: int) -> SymmetryGraph:
    """The graph of a network, traced on the meta device."""
    with torch.device("meta"):
        if case == "vgg16":
            return trace(zoo.vgg16(), torch.zeros(2, 3, 32, 32))
        if case == "resnet50":
            model = resnet50()
            assert isinstance(model, nn.Module)
            return trace(model, torch.zeros(2, 3, 64, 64))
        # SDXL at another width: 5 heads at its first level, 10 and 20 below, and groups of as many channels.
        groups = next(n for n in (32, 16, 10, 8, 4) if base % n == 0)
        head = next(n for n in (base // 5, base // 4, base // 2) if base % n == 0)
        model = UNet(base, (1, 2, 4), (0, 2, 10), context=2048, head=head, groups=groups, blocks=2)
        return trace(model, (torch.randn(2, 4, 32, 32), torch.ones(2), torch.randn(2, 77, 2048)))


def drawn(graph: SymmetryGraph, seed: int, dtype: torch.dtype) -> Weights:
    """Weights as they are initialised: matrices by their fan-in, vectors around one."""
    generator = torch.Generator().manual_seed(seed)
    found: Weights = {}
    for key in graph.layout:
        shape = graph.program.shapes[key]
        values = torch.randn(shape, generator=generator)
        fan_in = values[0].numel() if len(shape) > 1 else 0
        found[key] = (values / fan_in**0.5 if fan_in else 1 + 0.1 * values).to(dtype)
    return found


def sibling(graph: SymmetryGraph, weights: Weights) -> Weights:
    """A reordered copy, with noise as large as the weights' own spread."""
    generator = torch.Generator().manual_seed(1)
    orders = random_orders(graph, generator)
    found: Weights = {}
    for key, tensor in weights.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.numel() > 1:
            noise *= tensor.float().std()
        moved = reorder(tensor, graph.layout[key], orders, graph.spaces)
        found[key] = (moved.float() + noise).to(tensor.dtype)
    return found


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} .. {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", choices=("vgg16", "resnet50", "unet"))
    parser.add_argument("--pair", action="append", choices=("strangers", "siblings"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--base", type=int, default=32, help="channels of the UNet; SDXL has 320")
    parser.add_argument("--half", action="store_true", help="weights in bfloat16")
    parser.add_argument("--plain", choices=("yes", "no", "auto"), default="auto")
    parser.add_argument("--sweeps", type=int, default=100)
    parser.add_argument("--memory", type=float, default=1.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.progress:
        progress.enable()
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    for case in options.case or ["vgg16", "resnet50", "unet"]:
        graph = build(case, options.base)
        for pair in options.pair or ["strangers", "siblings"]:
            dtype = torch.bfloat16 if options.half else torch.float32
            a = drawn(graph, 0, dtype)
            b = drawn(graph, 1, dtype) if pair == "strangers" else sibling(graph, a)
            plainly = options.plain == "yes" or (options.plain == "auto" and options.base < 64)
            ours, theirs, busy, found, plain = [], [], [], None, None
            for _ in range(options.repeats):
                if plainly:
                    start = time.perf_counter()
                    plain = Plain(graph, a, b).run(options.sweeps)
                    theirs.append(time.perf_counter() - start)
                start, busy_start = time.perf_counter(), time.process_time()
                found = Matching(graph, a, b, 0, memory=options.memory).run(options.sweeps)
                ours.append(time.perf_counter() - start)
                busy.append(time.process_time() - busy_start)
            assert found is not None
            size = sum(t.numel() for t in a.values())
            visits = found.sweeps * len(graph.spaces)
            print(f"{case}, {pair}: {size / 1e6:.0f} M parameters, {len(graph.spaces)} spaces")
            print(
                f"  ours   {shown(ours)} s ({shown(busy)} s of processor time), "
                f"{found.sweeps} sweeps, {found.solved} of {visits} visits solved, "
                f"objective {found.objective:.8g}"
            )
            if plain is not None:
                ratio = [p / o for p, o in zip(theirs, ours, strict=True)]
                print(
                    f"  plain  {shown(theirs)} s, {plain.sweeps} sweeps, objective {plain.objective:.8g}; "
                    f"ours is {shown(ratio)} times as fast"
                )
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
