"""What alignment and a cluster cost at checkpoint scale: memory, processor and wall seconds, and the same bytes.

    python benchmarks/aligned_merge.py --folder DIR [--gigabytes 1.1] [--repeats 1] [--what align,ray]

In DIR, which needs about six times the gigabytes, the script makes a checkpoint with the tensors of TinyLlama (bf16,
in three shards) and a second one 2e-4 away from it. For `align`, the second one's MLP neurons and heads are put in
another order; a recipe aligns and merges the two in one process, and the output is compared, byte by byte, with
the merge of the two as they were before. For `ray`, the same average is taken by the local engine and on a
cluster of this machine alone, in turn. Every contestant is a process of its own; start-up counts. Memory is the
private memory (what no file backs, sampled) of that process: of the driver only for `ray`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from checkpoint_scale import compete, make, measured, show

ALIGN = """
import json, sys
from pathlib import Path
import isthmus
done = isthmus.plan(sys.argv[1]).run(sys.argv[2], threads=int(sys.argv[3]), shard_size=800_000_000)
print(done)
Path(sys.argv[2], "told.txt").write_text(str(done))
"""

MERGE = """
import sys
from isthmus import weights
from isthmus.engine import Job, Source, Work, local
from isthmus.engine import ray as cluster
who, out, threads, *models = sys.argv[1:]
held = weights.headers(models[0])
jobs = tuple(
    Job(n, e.shape, e.dtype, tuple(Source(i, n) for i in range(len(models))), rule="average")
    for n, e in held.items()
)
work = Work(tuple(models), jobs, out, shard_size=280_000_000)
(local if who == "local" else cluster).run(work, threads=int(threads))
"""


def scramble(model: Path, out: Path, seed: int) -> Path:
    """The same function with MLP neurons and heads in another order, written by the engine itself."""
    import torch

    from isthmus import weights
    from isthmus.align.by_parts import indices
    from isthmus.engine import File, Job, Order, Source, Work, run
    from isthmus.symmetry.elements import random_element
    from isthmus.symmetry.from_config import symmetries_of
    from isthmus.symmetry.residual import residual_streams

    if out.exists():
        return out
    graph, _ = symmetries_of(str(model))
    graph = graph.frozen(dict.fromkeys(residual_streams(graph), "stays"))
    orders = random_element(graph, torch.Generator().manual_seed(seed)).orders
    held, tensors = weights.headers(model), {"none": torch.empty(0)}
    jobs: list[Job] = []
    for name, entry in held.items():
        found = indices(graph, orders, name) if name in graph.layout else {}
        tensors |= {f"{name}.{dim}": index for dim, index in found.items()}
        taken = tuple(Order(dim, 1, f"{name}.{dim}") for dim in found)
        jobs.append(Job(name, entry.shape, entry.dtype, (Source(0, name, orders=taken),)))
    file = out.with_name(out.name + ".orders.safetensors")
    weights.save(tensors, file)
    files = (File("config.json", str(model / "config.json")),)
    run(Work((str(model), str(file)), tuple(jobs), str(out), shard_size=800_000_000, files=files))
    file.unlink()
    return out


def align(folder: Path, gigabytes: float, threads: int) -> None:
    from isthmus import weights

    a, b = make(folder, gigabytes, "base", 0), make(folder, gigabytes, "near", 1)
    moved = scramble(b, folder / f"{gigabytes:g}-moved", 3)
    out, plain = folder / "aligned", folder / "plain"
    for path in (out, plain):
        shutil.rmtree(path, ignore_errors=True)
    text = "models: [{{model: {0}}}, {{model: {1}}}]\nmerge_method: linear\nparameters: {{weight: 1}}\n{2}"
    recipes = {
        "plain": text.format(a, b, ""),
        "aligned": text.format(a, moved, "isthmus: {align: weight-matching}\n"),
    }
    costs = {}
    for name, content in recipes.items():
        (folder / f"{name}.yml").write_text(content)
        command = [sys.executable, "-c", ALIGN, str(folder / f"{name}.yml"), str(folder / name), str(threads)]
        costs[name] = [measured(command)]
    show(f"{gigabytes:g} GB, {threads} threads", costs, "plain")
    print((out / "told.txt").read_text())
    one, other = weights.open(out), weights.open(plain)
    same = sum(one[name].equal(other[name]) for name in other)
    print(f"{same} of {len(other)} tensors are those of the merge before the second model was reordered")


def cluster(folder: Path, gigabytes: float, repeats: int) -> None:
    models = [str(make(folder, gigabytes, "base", 0)), str(make(folder, gigabytes, "near", 1))]
    out = folder / "out"

    def command(who: str, threads: int) -> list[str]:
        return [sys.executable, "-c", MERGE, who, str(out), str(threads), *models]

    contestants = {"local, 2 threads": command("local", 2), "ray, 2 tasks of 1 thread": command("ray", 1)}
    show(f"{gigabytes:g} GB, an average of two", compete(contestants, out, repeats), "local, 2 threads")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=1.1, help="of one model")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--what", default="align,ray")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for what in options.what.split(","):
        if what == "align":
            align(options.folder, options.gigabytes, options.threads)
        else:
            cluster(options.folder, options.gigabytes, options.repeats)


if __name__ == "__main__":
    main()
