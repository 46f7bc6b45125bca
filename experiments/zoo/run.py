"""Trace and verify the symmetries of the zoos: results.csv, one row per architecture, and results.md.

    python run.py                          # what has no row yet
    python run.py --source hf --source own
    python run.py --retry failed           # what did not export, verify, or finish
    python run.py --retry below=0.97       # what moves less than that
    python run.py timm:xcit_nano_12_p8_224 # these, again

Each architecture runs in a worker process that is ended after `--timeout` seconds. Every model is checked
in float64 on redrawn weights and on its own, with a batch of two of the smallest inputs that it takes.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import select
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
FIELDS = (
    "architecture",
    "source",
    "parameters",
    "input",
    "exported",
    "error",
    "verified",
    "moved",
    "spaces",
    "unobservable",
    "seconds",
    "fixed",
    "unknown",
    "failed",
    "note",
)


# -- in the worker -----------------------------------------------------------------------------


def examine(full: str) -> dict[str, object]:
    """One architecture: its row."""
    import torch
    import zoo

    import isthmus
    from isthmus.errors import ExportError

    source, _, name = full.partition(":")
    row: dict[str, object] = {"architecture": name, "source": source, "exported": False}
    started = time.perf_counter()
    torch.manual_seed(0)
    model = example = None
    problem = ""
    for size, build in zoo.candidates(full):
        try:
            model, example = build()
            model.eval()
            with torch.no_grad():
                run = model(**example) if isinstance(example, dict) else model(*_tuple(example))
            del run
        except Exception as error:  # noqa: BLE001 - whatever it raises, the next input is tried
            problem = f"{type(error).__name__}: {error}"
            model = None
            continue
        row["input"] = size
        break
    if model is None:
        return row | {"note": f"not built: {_short(problem)}"}
    row["parameters"] = sum(p.numel() for p in model.parameters())
    try:
        graph = isthmus.trace(model, example)
    except ExportError as error:
        return row | {
            "note": f"not exported: {_short(' '.join(str(error).split()))}",
            "seconds": _since(started),
        }
    row |= {
        "exported": True,
        "moved": round(graph.coverage, 4),
        "spaces": len(graph.spaces),
        "fixed": reasons(graph),
        "unknown": " ".join(graph.unknown),
    }
    if full in zoo.STAND_INS:
        _, found = isthmus.verified(graph, small=zoo.STAND_INS[full]())
    else:
        found = graph.verify(model, example, each=False)
    return row | {
        "error": float(f"{found.error:.2g}"),
        "verified": found.ok,
        "unobservable": len(found.unobservable),
        "failed": " ".join(list(found.failed)[:6]),
        "note": found.note if math.isnan(found.error) else "",
        "seconds": _since(started),
    }


def reasons(graph: object) -> str:
    """Why the parameters that do not move stay: share of all parameters by operation."""
    from isthmus.symmetry import spaces_of

    program = graph.program
    counts: Counter[str] = Counter()
    total = 0
    for key, axes in graph.layout.items():
        if key in program.buffers:
            continue
        size = math.prod(program.shapes[key])
        total += size
        if not any(spaces_of(axis) for axis in axes):
            found = [f for f in graph.fixed if f.key == key]
            why = max(found, key=lambda f: f.size).reason.rpartition(":")[2] if found else "size one"
            counts[why] += size
    shown = [f"{why} {count / total:.1%}" for why, count in counts.most_common(3) if count / total >= 0.0005]
    return ", ".join(shown)


def _tuple(example: object) -> tuple[object, ...]:
    return example if isinstance(example, tuple) else (example,)


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 1)


def _short(text: str, length: int = 200) -> str:
    return " ".join(text.split())[:length]


def work() -> None:
    """Read names, write rows, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        try:
            row = examine(line.strip())
        except Exception as error:  # noqa: BLE001 - a row, not the end of the run
            source, _, name = line.strip().partition(":")
            import traceback

            traceback.print_exc()
            where = traceback.extract_tb(error.__traceback__)[-1]
            note = f"error: {type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {_short(str(error))}"
            row = {
                "architecture": name,
                "source": source,
                "exported": "not exported" not in note,
                "note": note,
            }
        print(json.dumps(row), file=answers, flush=True)


# -- in the parent -----------------------------------------------------------------------------


class Worker:
    """A process that examines architectures one after another."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.done = 0

    def ask(self, full: str, timeout: float) -> dict[str, object]:
        if self.process is None or self.process.poll() is not None or self.done >= 40:
            self.stop()
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=HERE,
            )
            self.done = 0
        assert self.process.stdin is not None and self.process.stdout is not None
        self.done += 1
        source, _, name = full.partition(":")
        row: dict[str, object] = {"architecture": name, "source": source, "exported": ""}
        self.process.stdin.write(full + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        if not ready:
            self.stop()
            return row | {"note": f"not done after {timeout:.0f} s", "seconds": timeout}
        line = self.process.stdout.readline()
        if not line:
            return row | {"note": f"the worker died ({self.process.wait()})"}
        return json.loads(line)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process = None


def load(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    with path.open() as file:
        return {f"{row['source']}:{row['architecture']}": row for row in csv.DictReader(file)}


def save(path: Path, rows: dict[str, dict[str, object]]) -> None:
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for row in rows.values():
            writer.writerow({field: row.get(field, "") for field in FIELDS})
    temporary.replace(path)


def wanted(names: list[str], rows: dict[str, dict[str, str]], retry: list[str]) -> list[str]:
    chosen = []
    for name in names:
        row = rows.get(name)
        if row is None:
            chosen.append(name)
            continue
        for rule in retry:
            moved = float(row.get("moved") or 0)
            unverified = "meta device" in row.get("note", "")
            if (
                rule == "all"
                or (rule == "failed" and row.get("verified") != "True" and not unverified)
                or (rule == "unknown" and row.get("unknown"))
                or (rule.startswith("below=") and moved < float(rule[6:]))
            ):
                chosen.append(name)
                break
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="source:name, tried again whatever is known")
    parser.add_argument("--source", action="append", choices=("own", "hf", "torchvision", "timm"))
    parser.add_argument("--retry", action="append", default=[], help="failed, unknown, below=0.97, all")
    parser.add_argument("--timeout", type=float, default=240, help="seconds per architecture")
    parser.add_argument("--out", type=Path, default=HERE / "results.csv")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))
    if options.worker:
        work()
        return
    import table
    import zoo

    rows: dict[str, dict[str, object]] = dict(load(options.out))
    sources = options.source or zoo.SOURCES
    everything = [f"{source}:{name}" for source in sources for name in zoo.names(source)]
    todo = options.names or wanted(everything, load(options.out), options.retry)
    worker = Worker()
    try:
        for count, name in enumerate(todo, 1):
            row = worker.ask(name, options.timeout)
            # Another run may have written meanwhile: read what is there, add ours.
            rows = {**load(options.out), name: row}
            save(options.out, rows)
            print(
                f"[{count}/{len(todo)}] {name}: exported {row.get('exported')}, error {row.get('error', '-')}, "
                f"moved {row.get('moved', '-')}, {row.get('seconds', '-')} s {row.get('unknown', '')} "
                f"{row.get('failed', '')} {row.get('note', '')}",
                flush=True,
            )
    finally:
        worker.stop()
    table.write(load(options.out), options.out.with_suffix(".md"))


if __name__ == "__main__":
    main()
