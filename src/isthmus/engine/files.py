"""Merging checkpoints that lie in files: same names, same shapes, one rule for all tensors."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from isthmus import weights as files
from isthmus.combine import ARITHMETIC, check_asked, terms_of
from isthmus.combine.blocks import BLOCK, widest
from isthmus.engine.jobs import COPY, File, Job, Source, Work
from isthmus.engine.local import Written, run
from isthmus.engine.memory import size
from isthmus.errors import InputError, MismatchError

PathLike = str | os.PathLike[str]

# What a model's folder holds beside the weights and a merged model needs as well: configuration, tokenizer,
# chat template, code of its own (copied, never run), licence. Not the card, which tells of another model.
_BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py", ".spm", ".vocab")
_NOT_BESIDE = (".index.json", "training_args.json", "trainer_state.json", "all_results.json")


def merge_files(
    models: Sequence[PathLike],
    out: PathLike,
    *,
    method: str = "average",
    weights: Sequence[float] | None = None,
    base: PathLike | None = None,
    dtype: torch.dtype | str | None = None,
    copy_from: PathLike | None = None,
    shard_size: int | str = "5GB",
    seed: int = 0,
    threads: int | None = None,
    max_memory: int | str | None = None,
    **options: object,
) -> Written:
    """Merge checkpoints of one architecture that lie in files, without holding them in memory.

    Models are merged as they are (aligned or siblings of one model); tensors stream through in blocks. The
    numbers are those of `isthmus.combine` on the same tensors, to the last bit, for any number of threads. The
    folder `out` appears when all of it is on the disk; called again after a kill, the merge goes on where it was.

    Args:
        models: two or more of anything that `isthmus.weights.open` takes: files, folders, names on the hub.
        out: the folder that shall appear, with `model.safetensors` (or shards and their index) and what
            belongs to the model: configuration, tokenizer, chat template.
        method: how tensors are combined; see `isthmus.methods()`. Tensors of integers are copied, and must be
            the same in all models.
        weights: one per model, as for `isthmus.combine`.
        base: what the models were trained from, for rules of task vectors.
        dtype: of the output ("bfloat16"); by default each tensor's widest dtype among the models.
        copy_from: whose files beside the weights are copied: by default the base's, or the first model's,
            where that is a folder.
        shard_size: bytes of tensors per file, at most, as a number or as "5GB".
        seed: for rules that draw.
        threads: how many; by default as many as the process has processors.
        max_memory: private memory of the whole process, as "512MiB"; what cannot be done with it is said
            before the work.
        options: of the rule (density, ...).

    Returns:
        What was written.

    Raises:
        InputError: too few models, a wrong rule, weight, option or dtype, or too little memory.
        MismatchError: names or shapes differ; all of them are listed.
        WeightsError: a checkpoint cannot be read or holds numbers that are not finite, or `out` cannot be
            written.

    Examples:
        >>> import tempfile, torch, isthmus
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, value in [("a", 1.0), ("b", 3.0)]:
        ...         isthmus.weights.save({"w": torch.full((2,), value)}, f"{folder}/{name}.safetensors")
        ...     done = isthmus.merge_files([f"{folder}/a.safetensors", f"{folder}/b.safetensors"], f"{folder}/out")
        ...     isthmus.weights.load(f"{folder}/out")
        {'w': tensor([2., 2.])}
    """
    wanted = _dtype(dtype)
    check_asked(method, terms_of(method), len(models), weights, options, base is not None, False)
    paths = [os.fspath(p) for p in (*models, *(() if base is None else (base,)))]
    opened = [files.open(path) for path in paths]
    headers = [files.headers(tensors) for tensors in opened]
    _check_fit(paths, headers)
    count = len(models)
    work = Work(
        checkpoints=tuple(paths),
        jobs=tuple(_job(name, headers, count, wanted, method, weights, options, seed) for name in headers[0]),
        out=os.fspath(out),
        shard_size=size(shard_size),
        metadata={"isthmus.merge": _told(paths, count, method, weights, options, seed)},
        files=beside(copy_from if copy_from is not None else paths[-1] if base is not None else paths[0]),
    )
    _check_equal(work.jobs, opened[:count])
    return run(work, threads=threads, max_memory=max_memory)


def beside(path: PathLike) -> tuple[File, ...]:
    """What a checkpoint's folder holds beside the weights and a model made of it needs as well.

    Args:
        path: as for `isthmus.weights.open`.

    Returns:
        Files to copy, by name; none for a checkpoint that is no folder of this machine.
    """
    place = files.locate(path)
    if not isinstance(place, Path) or Path(path).is_file():
        return ()
    return tuple(
        File(file.name, str(file))
        for file in sorted(place.parent.iterdir())
        if file.is_file()
        and (file.name.endswith(_BESIDE) or file.name.startswith(("LICENSE", "NOTICE")))
        and not file.name.endswith(_NOT_BESIDE)
        and not file.name.startswith(".")
    )


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise InputError(f"{dtype!r} is no dtype of weights", hint="say bfloat16, float16 or float32")
    return found


def _check_fit(paths: Sequence[str], headers: Sequence[Mapping[str, files.Entry]]) -> None:
    """Same names, same shapes, same kinds of numbers."""
    ghosts = [{n: torch.empty(e.shape, device="meta") for n, e in found.items()} for found in headers]
    for path, ghost in zip(paths[1:], ghosts[1:], strict=True):
        files.check_same(ghosts[0], ghost, (paths[0], path))
    mixed = [name for name in headers[0] if len({_learned(found[name].dtype) for found in headers}) > 1]
    if mixed:
        raise MismatchError(
            f"{len(mixed)} tensors are integers in some checkpoints and weights in others", mixed
        )


def _learned(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _job(
    name: str,
    headers: Sequence[Mapping[str, files.Entry]],
    count: int,
    dtype: torch.dtype | None,
    method: str,
    weights: Sequence[float] | None,
    options: Mapping[str, object],
    seed: int,
) -> Job:
    first = headers[0][name]
    if not _learned(first.dtype):
        return Job(name, first.shape, first.dtype, (Source(0, name),), rule=COPY)
    kept = widest([torch.empty(0, dtype=found[name].dtype) for found in headers[:count]])
    return Job(
        name,
        first.shape,
        kept if dtype is None or kept.is_complex else dtype,
        tuple(Source(index, name) for index in range(count)),
        base=Source(count, name) if len(headers) > count else None,
        rule=method,
        weights=tuple(float(w) for w in weights or ()),
        options=dict(options),
        seed=seed,
    )


def _check_equal(jobs: Iterable[Job], models: Sequence[Mapping[str, Tensor]]) -> None:
    """Integers are no weights: they are the same in all models, or there is no answer."""
    differ = [
        f"{job.name} ({str(job.dtype).removeprefix('torch.')})"
        for job in jobs
        if job.rule == COPY
        and not job.name.endswith("num_batches_tracked")
        and not all(_same(models[0], other, job) for other in models[1:])
    ]
    if differ:
        raise MismatchError(f"{len(differ)} integer tensors differ between the models", differ)


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor], job: Job) -> bool:
    one, other = files.stored(a, job.name), files.stored(b, job.name)
    count = math.prod(job.shape)
    return all(
        torch.equal(
            one.elements(start, min(start + BLOCK, count)), other.elements(start, min(start + BLOCK, count))
        )
        for start in range(0, count, BLOCK)
    )


def _told(
    paths: Sequence[str],
    count: int,
    method: str,
    weights: Sequence[float] | None,
    options: Mapping[str, object],
    seed: int,
) -> str:
    """How the output came about, without where on this machine the parents lie."""
    names = [path if "://" in path else Path(path).name for path in paths]
    told: dict[str, object] = {
        "method": method,
        "models": names[:count],
        "seed": seed,
        "arithmetic": ARITHMETIC,
    }
    if len(names) > count:
        told["base"] = names[-1]
    if weights is not None:
        told["weights"] = [float(w) for w in weights]
    if options:
        told["options"] = {
            k: v if isinstance(v, str | int | float | bool) else str(v) for k, v in options.items()
        }
    return json.dumps(told, sort_keys=True)
