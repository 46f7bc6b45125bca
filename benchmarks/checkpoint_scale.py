"""Merging checkpoints that lie on a disk: isthmus, a bare stream, mergekit and a plain copy, in one paired run.

    python benchmarks/checkpoint_scale.py --folder DIR [--what linear2,rules2,...] [--repeats 3] [--threads 1]
        [--gigabytes 2.2] [--sizes 0.5,2,6] [--mergekit PYTHON] [--mergekit-limit SECONDS]

In DIR the script makes siblings with the tensors of TinyLlama (bf16, in three shards; a base and models 2e-4 away
from it). It needs room for five models of --gigabytes, and for three of the largest of --sizes. What is measured,
each a table of its own, in the order given:

    linear2, linear3                     isthmus, the stream and a copy, of two or three models
    task-arithmetic2, task-arithmetic3   isthmus and the stream of as many files, the base among them
    rules2, rules3                       TIES, DARE-TIES and DELLA (mergekit's convention), with the loops of numba
                                         and without, beside isthmus' own linear merge of the same files
    sizes                                private memory of a linear merge of two and of TIES of one and a base, by size
    tensors                              the same where the whole model is one tensor

Every contestant is a process of its own, started in turn within each repeat, so that whatever else the machine
does hits all of them; start-up and `import torch` count, and all but mergekit and `copy` put the output on the
disk (fsync) before they end. Reported are medians (min .. max) of wall seconds, CPU seconds (user and system,
children included), peak resident memory (mapped files included) and peak private memory (what no file backs,
sampled).

"stream" is what this machine can do: mapped blocks in, float32 accumulation in reused buffers, positioned
writes out, no checks, no journal. "mergekit" runs `mergekit-yaml` of another environment, once per method (linear:
as often as the others), and is stopped at the limit: what it took by then is a lower bound, marked with a +.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

BLOCK = 1 << 20
HIDDEN, INNER, KEYS, VOCABULARY = 2048, 5632, 256, 32000


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama, 22 layers of which are TinyLlama (2.2 GB in bf16)."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "lm_head.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for i in range(layers):
        found |= {
            f"model.layers.{i}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"model.layers.{i}.self_attn.k_proj.weight": (KEYS, HIDDEN),
            f"model.layers.{i}.self_attn.v_proj.weight": (KEYS, HIDDEN),
            f"model.layers.{i}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"model.layers.{i}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"model.layers.{i}.mlp.up_proj.weight": (INNER, HIDDEN),
            f"model.layers.{i}.mlp.down_proj.weight": (HIDDEN, INNER),
            f"model.layers.{i}.input_layernorm.weight": (HIDDEN,),
            f"model.layers.{i}.post_attention_layernorm.weight": (HIDDEN,),
        }
    return found


def layers_of(gigabytes: float) -> int:
    ends, layer = 2 * VOCABULARY * HIDDEN, sum(a * b for a, b in [(HIDDEN, HIDDEN)] * 2)
    layer += 2 * KEYS * HIDDEN + 3 * INNER * HIDDEN
    return max(round((gigabytes * 1e9 / 2 - ends) / layer), 1)


def one_tensor(gigabytes: float) -> dict[str, tuple[int, ...]]:
    """A model that is one matrix."""
    return {"weight": (round(gigabytes * 1e9 / 2 / HIDDEN), HIDDEN)}


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "dtype": "bfloat16",
}


NAMES = ("base", "a", "b", "c")


def sibling(number: int, gigabytes: float, options: argparse.Namespace, whole: bool = False) -> Path:
    """A checkpoint, made once: by a process of its own, since a process begins with its parent's peak of memory."""
    out = options.folder / f"{gigabytes:g}-{NAMES[number]}{'-whole' if whole else ''}"
    if not out.exists():
        asked = {"who": "make", "out": str(out), "seed": number, "gigabytes": gigabytes, "whole": whole}
        measured(myself(asked, options))
    return out


def make(out: Path, gigabytes: float, seed: int, whole: bool) -> None:
    """One checkpoint: the base for seed 0, else the base and a little noise; of one tensor if `whole`."""
    import torch

    from isthmus import weights

    layers = layers_of(gigabytes)
    tensors = one_tensor(gigabytes) if whole else shapes(layers)
    plan = weights.lay_out(
        [(key, torch.bfloat16, shape) for key, shape in tensors.items()],
        shard_size=int(gigabytes * 1e9 / 2.7),
    )
    draft = weights.Draft(out, plan, f"{out.name} {seed}")
    draft.copy("config.json", None, json.dumps({**CONFIG, "num_hidden_layers": layers}))
    # Blocks are cut from one run of normal numbers at places of their own: drawing all would take most of the time.
    drawn = torch.randn(16 * BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    noise = torch.randn(16 * BLOCK, generator=torch.Generator().manual_seed(seed)).mul_(2e-4 if seed else 0)
    for file in draft.files:
        for key, entry in file.shard.entries.items():
            for start in range(0, entry.numel, BLOCK):
                count = min(BLOCK, entry.numel - start)
                at, other = (zlib.crc32(f"{key} {start} {s}".encode()) % (15 * BLOCK) for s in (0, seed))
                values = drawn[at : at + count] + noise[other : other + count]
                file.write(key, start, values.bfloat16())
        file.enter(dict.fromkeys(file.shard.entries, ""))
    draft.publish()


# The contestants: each is a process that ends when its output is there.


def stream(models: list[Path], out: Path, threads: int) -> None:
    """The least that a linear merge has to do."""
    import mmap
    import threading

    import torch

    torch.set_num_threads(1)
    out.mkdir()
    opened = [{f.name: _mapped(f, mmap) for f in sorted(m.glob("*.safetensors"))} for m in models]
    work: list[tuple[str, int, int]] = []
    handles = {}
    for name, (file, start, size) in opened[0].items():
        handles[name] = os.open(out / name, os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(handles[name], 0, size)
        os.pwrite(handles[name], file[:start], 0)
        work += [(name, at, min(2 * BLOCK, size - at)) for at in range(start, size, 2 * BLOCK)]

    def run() -> None:
        torch.set_num_threads(1)
        total, term = torch.empty(BLOCK), torch.empty(BLOCK)
        result = torch.empty(BLOCK, dtype=torch.bfloat16)
        while work:
            try:
                name, at, count = work.pop(0)
            except IndexError:
                return
            n = count // 2
            for index, model in enumerate(opened):
                block = torch.frombuffer(model[name][0], dtype=torch.bfloat16, count=n, offset=at)
                if index == 0:
                    total[:n].copy_(block).mul_(1 / len(models))
                else:
                    total[:n].add_(term[:n].copy_(block), alpha=1 / len(models))
            result[:n].copy_(total[:n])
            os.pwrite(handles[name], result[:n].view(torch.uint8).numpy().data, at)

    own = [threading.Thread(target=run) for _ in range(threads)]
    for thread in own:
        thread.start()
    for thread in own:
        thread.join()
    for handle in handles.values():
        os.fsync(handle)


def _mapped(path: Path, mmap) -> tuple[object, int, int]:
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        flags = mmap.MAP_PRIVATE | 0x4000
        found = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return found, start, len(found)


def copy(models: list[Path], out: Path, threads: int) -> None:
    """A copy of as many bytes as the output has."""
    del threads
    out.mkdir()
    for file in sorted(models[0].glob("*.safetensors")):
        shutil.copyfile(file, out / file.name)


def ours(
    models: list[Path], base: Path | None, out: Path, method: str, options: dict[str, object], threads: int
):
    import isthmus

    isthmus.merge_files(
        models,
        out,
        method=method,
        base=base,
        threads=threads,
        max_memory="480MiB",
        shard_size="800MB",
        **options,
    )


OPTIONS: dict[str, dict[str, object]] = {
    "ties": {"density": 0.3},
    "dare-ties": {"density": 0.3},
    "dare-linear": {"density": 0.3},
    "della": {"density": 0.4},
    "della-linear": {"density": 0.4},
}


#: Where the same word means another arithmetic, mergekit's is measured.
CONVENTION = {"convention": "mergekit"}
CONVENTIONS: dict[str, dict[str, object]] = dict.fromkeys(("ties", "della", "dare-ties"), CONVENTION)


def recipe(models: list[Path], base: Path | None, method: str, options: dict[str, object]) -> str:
    """mergekit's words for the same."""
    listed = "\n".join(
        f"  - model: {m}\n    parameters: {json.dumps({'weight': 1 if base else 1 / len(models), **options})}"
        for m in models
    )
    head = f"merge_method: {method.replace('-', '_')}\ndtype: bfloat16\n"
    return head + (f"base_model: {base}\n" if base else "") + f"models:\n{listed}\n"


# mergekit's command. It imports torchvision, and wheels for CUDA do not import beside a torch for CPUs: the two
# operators that they miss are declared, as nothing here uses them.
MERGEKIT = """
import importlib.util, pathlib, torch
spec = importlib.util.find_spec("torchvision")
for library in pathlib.Path(spec.origin).parent.glob("_C*") if spec and spec.origin else []:
    try:
        torch.ops.load_library(library)
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from mergekit.scripts.run_yaml import main
main()
"""


@dataclass
class Cost:
    """Of one process; at least so much if it was stopped."""

    wall: float
    cpu: float
    resident: float
    private: float
    stopped: bool = False


def measured(command: list[str], limit: float = float("inf")) -> Cost:
    """Run a process and watch what it takes, for so many seconds at most; memory in MiB."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    with tempfile.TemporaryFile() as errors:  # a pipe that nobody reads would stop a process that says much
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        private, stopped = 0, False
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            try:
                text = Path(f"/proc/{process.pid}/status").read_text()
                private = max(private, int(text.partition("RssAnon:")[2].split()[0]))
            except (OSError, IndexError):
                pass
            if not stopped and time.monotonic() - began > limit:
                stopped = True
                process.kill()
            time.sleep(0.01)
        wall = time.monotonic() - began
        if status and not stopped:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{errors.read().decode()[-3000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, private / 1024, stopped)


def spread(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} .. {max(values):.{digits}f})"


def compete(contestants: dict[str, list[str]], out: Path, repeats: int) -> dict[str, list[Cost]]:
    costs: dict[str, list[Cost]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(repeats):
        # Who comes first finds the files on the disk, not in memory: everyone is first in turn.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            command = contestants[name]
            shutil.rmtree(out, ignore_errors=True)
            costs[name].append(measured(command))
    shutil.rmtree(out, ignore_errors=True)
    return costs


def show(title: str, costs: dict[str, list[Cost]], baseline: str) -> None:
    """A table; who did not run as often as the baseline is compared with the baseline's median."""
    print(f"\n{title}; load {os.getloadavg()[0]:.1f}\n")
    print(f"| who | CPU s | to {baseline} | wall s | wall to {baseline} | RSS MiB | private MiB |")
    print("|---|---|---|---|---|---|---|")
    for name, runs in costs.items():
        beside = costs[baseline]
        if len(beside) != len(runs):
            middle = sorted(beside, key=lambda cost: cost.cpu)[len(beside) // 2]
            beside = [middle] * len(runs)
        pairs = list(zip(runs, beside, strict=True))
        more = "+" if any(c.stopped for c in runs) else ""
        print(
            f"| {name} | {spread([c.cpu for c in runs])}{more} | {spread([a.cpu / b.cpu for a, b in pairs], 2)}{more} "
            f"| {spread([c.wall for c in runs])}{more} | {spread([a.wall / b.wall for a, b in pairs], 2)}{more} "
            f"| {max(c.resident for c in runs):.0f} | {max(c.private for c in runs):.0f} |",
            flush=True,
        )


#: In the order of their importance.
CASES = ("linear2", "rules2", "task-arithmetic2", "sizes", "linear3", "task-arithmetic3", "rules3", "tensors")
RULES = ("ties", "dare-ties", "della")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="on the disk that is measured")
    parser.add_argument("--what", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gigabytes", type=float, default=2.2, help="of one model")
    parser.add_argument("--sizes", default="0.5,2,6", help="gigabytes of one model, for sizes and tensors")
    parser.add_argument("--mergekit", type=Path, help="the Python of an environment that has mergekit")
    parser.add_argument("--mergekit-limit", type=float, default=300, help="seconds of one of its merges")
    parser.add_argument("--run", help="used by the script itself: one contestant, as JSON")
    options = parser.parse_args()
    if options.run:
        run_one(json.loads(options.run))
        return
    asked = options.what.split(",")
    if unknown := [what for what in asked if what not in CASES]:
        parser.error(f"--what {','.join(unknown)}: there is {', '.join(CASES)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    for what in asked:
        if what in ("sizes", "tensors"):
            for gigabytes in options.sizes.split(","):
                measure_size(float(gigabytes), what == "tensors", options)
        else:
            measure(what[:-1], int(what[-1]), options)


def run_one(asked: dict) -> None:
    out = Path(asked["out"])
    if asked["who"] == "make":
        make(out, asked["gigabytes"], asked["seed"], asked["whole"])
        return
    if asked["plain"]:
        os.environ["NUMBA_DISABLE_JIT"] = "1"  # isthmus then does without its loops
    models = [Path(m) for m in asked["models"]]
    base = Path(asked["base"]) if asked["base"] else None
    if asked["who"] == "isthmus":
        method = asked["method"]
        chosen = {**OPTIONS.get(method, {}), **CONVENTIONS.get(method, {})}
        ours(models, base, out, method, chosen, asked["threads"])
    else:
        {"stream": stream, "copy": copy}[asked["who"]](models, out, asked["threads"])


def command(
    who: str,
    models: list[Path],
    method: str,
    base: Path | None,
    options: argparse.Namespace,
    plain: bool = False,
) -> list[str]:
    """A contestant as a process."""
    asked = {
        "who": who,
        "models": [str(m) for m in models],
        "base": str(base) if base else None,
        "out": str(options.folder / "out"),
        "method": method,
        "threads": options.threads,
        "plain": plain,
    }
    return myself(asked, options)


def myself(asked: dict[str, object], options: argparse.Namespace) -> list[str]:
    """This script as another process."""
    return [sys.executable, __file__, "--folder", str(options.folder), "--run", json.dumps(asked)]


def measure(what: str, count: int, options: argparse.Namespace) -> None:
    """One table of merges of `count` models."""
    folder, out = options.folder, options.folder / "out"
    models = [sibling(number, options.gigabytes, options) for number in range(1, count + 1)]
    base = None if what == "linear" else sibling(0, options.gigabytes, options)
    every = [*models, *([base] if base else [])]
    if what == "rules":
        methods, baseline = RULES, "isthmus linear"
        rows = {baseline: command("isthmus", every, "linear", None, options)}
    else:
        methods, baseline = (what,), "stream"
        # Task arithmetic reads the base too: the stream of as many files.
        rows = {baseline: command("stream", every, what, None, options)}
    rows |= {f"isthmus {method}": command("isthmus", models, method, base, options) for method in methods}
    if what == "rules":
        rows |= {f"{m}, no loops": command("isthmus", models, m, base, options, plain=True) for m in methods}
    if what == "linear":
        rows["copy"] = command("copy", models, what, None, options)
    costs = compete(rows, out, options.repeats)
    title = f"{what}: {count} x {options.gigabytes:g} GB{' and a base' if base else ''}"
    show(title, costs, baseline)
    if options.mergekit:
        for method in methods:
            written = folder / "recipe.yml"
            written.write_text(recipe(models, base, method, OPTIONS.get(method, {})))
            theirs = [str(options.mergekit), "-c", MERGEKIT, str(written), str(out)]
            repeats = options.repeats if method == "linear" else 1
            costs[f"mergekit {method}"] = [measured(theirs, options.mergekit_limit) for _ in range(repeats)]
            shutil.rmtree(out, ignore_errors=True)
        show(f"{title}, mergekit beside", costs, baseline)


def measure_size(gigabytes: float, whole: bool, options: argparse.Namespace) -> None:
    """One table of what a merge of models of one size takes; the models are removed again."""
    pair = [sibling(number, gigabytes, options, whole) for number in (1, 2)]
    rows = {
        "linear of two": command("isthmus", pair, "linear", None, options),
        "TIES of one and a base": command("isthmus", pair[1:], "ties", pair[0], options),
    }
    title = f"{gigabytes:g} GB models{' of one tensor' if whole else ''}"
    show(title, compete(rows, options.folder / "out", 1), "linear of two")
    if gigabytes != options.gigabytes or whole:
        for path in pair:
            shutil.rmtree(path)


if __name__ == "__main__":
    main()
