"""SIGKILL at random moments: a merge that is killed, and killed again, ends in the bytes of one that was not.

    python tests/hostile/kills.py --runs 100 [--megabytes 100] [--method ties]

Every run merges two checkpoints in a process of its own that is killed at a moment drawn from the time that an
undisturbed merge takes, up to four times, until one is let through. Nothing may lie under the output's name
unless it is whole; after the last, every byte must be right. A merge that is done before the first kill is no run.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

import isthmus
from isthmus import weights
from isthmus.engine import local, pool

METHODS: dict[str, dict[str, object]] = {"average": {}, "ties": {"density": 0.3}}


def checkpoints(folder: Path, megabytes: float) -> list[Path]:
    """Three siblings, the last one the base."""
    generator = torch.Generator().manual_seed(0)
    count = max(int(megabytes * 1e6 / 2 / 8), 1000)
    base = {f"layers.{n}.weight": torch.randn(count // 100, 100, generator=generator) for n in range(8)}
    for name in ("a", "b", "base"):
        noise = 0.0 if name == "base" else 0.01
        tensors = {
            n: (t + noise * torch.randn(t.shape, generator=generator)).bfloat16() for n, t in base.items()
        }
        weights.save(tensors, folder / name / "model.safetensors")
    return [folder / name for name in ("a", "b", "base")]


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        total.update(file.name.encode() + b"\0" + file.read_bytes())
    return total.hexdigest()


def in_a_process(work: Callable[[], object], patience: float | None) -> bool:
    """Run it in a process that is killed after so many seconds; whether it ended by itself."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            local._BYTES, local._SECONDS, pool.TICK = 1 << 18, 0.0, 0.002  # enter what is finished at once
            work()
            status = 0
        finally:
            os._exit(status)
    if patience is not None:
        time.sleep(patience)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a merge failed that was not killed")
    return os.WIFEXITED(status)


def trial(
    models: list[Path], out: Path, method: str, wanted: str, duration: float, chance: random.Random
) -> tuple[int, bool]:
    """Kill merges until one gets through.

    Returns:
        How often it was killed, and whether it went on from finished tensors.
    """

    def merge() -> None:
        base = None if method == "average" else models[2]
        isthmus.merge_files(
            models[:2], out, method=method, base=base, threads=2, shard_size="20MB", **METHODS[method]
        )

    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(weights.draft_of(out), ignore_errors=True)
    kills, resumed = 0, 0
    while not out.exists():
        patience = chance.uniform(0, 1.1 * duration) if kills < 4 else None
        in_a_process(merge, patience)
        kills += 1
        if not out.exists():
            journals = list(weights.draft_of(out).glob("*.journal")) if weights.draft_of(out).exists() else []
            resumed = max(resumed, sum(max(len(j.read_bytes().splitlines()) - 1, 0) for j in journals))
    if digest(out) != wanted:
        raise SystemExit(f"other bytes after {kills} runs: {out} is kept")
    if weights.draft_of(out).exists():
        raise SystemExit(f"{weights.draft_of(out)} was left behind")
    return kills - 1, bool(resumed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--megabytes", type=float, default=100, help="of one model")
    parser.add_argument("--method", default="average", choices=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        models = checkpoints(folder, options.megabytes)
        base = None if options.method == "average" else models[2]
        isthmus.combine  # noqa: B018 - imported before any fork
        duration = math.inf
        for name in ("cold", "whole"):
            began = time.monotonic()

            def undisturbed(name: str = name) -> None:
                isthmus.merge_files(
                    models[:2], folder / name, method=options.method, base=base, threads=2,
                    shard_size="20MB", **METHODS[options.method],
                )  # fmt: skip

            in_a_process(undisturbed, None)
            duration = min(duration, time.monotonic() - began)
        wanted, chance = digest(folder / "whole"), random.Random(options.seed)
        went: Counter[tuple[int, bool]] = Counter()
        while went.total() < options.runs:
            how = trial(models, folder / "out", options.method, wanted, duration, chance)
            if how[0]:
                went[how] += 1
        kills = sum(times * count for (times, _), count in went.items())
        print(
            f"{options.runs} runs of {duration:.2f} s each, {kills} kills; all of them ended in the same bytes:"
        )
        for (times, resumed), count in sorted(went.items()):
            print(
                f"  {count:4} killed {times} times, {'went on from finished tensors' if resumed else 'began anew'}"
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
