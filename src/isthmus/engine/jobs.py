"""What an engine is asked to do: independent tensor jobs, as plain values that can be pickled.

A `Work` is complete: checkpoints, jobs, what the folder holds beside the tensors. Nothing in it is open or
loaded, so it can be printed, compared, hashed, sent to another machine and run there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import cast

import torch

#: The one rule that an engine knows itself: the first source, converted to the job's dtype.
COPY = "copy"


@dataclass(frozen=True)
class Adapter:
    """A low-rank addition to a source (LoRA): `scale * up @ down`.

    Args:
        checkpoint: index into `Work.checkpoints`.
        up: name of the tensor of shape (rows, rank), `lora_B` in PEFT's words.
        down: name of the tensor of shape (rank, columns), `lora_A`.
        scale: alpha / rank.
        transposed: the weight is stored as (in, out), as in GPT-2's Conv1D: `scale * (up @ down).T`.
    """

    checkpoint: int
    up: str
    down: str
    scale: float
    transposed: bool = False


@dataclass(frozen=True)
class Order:
    """Another order of the positions along one dimension of a source.

    Args:
        dim: which dimension of the stored tensor.
        checkpoint: index into `Work.checkpoints`.
        name: of the tensor there that holds, for each new position, the old one.
    """

    dim: int
    checkpoint: int
    name: str


@dataclass(frozen=True)
class Source:
    """One tensor that goes into a job, perhaps in another order of rows.

    Applied in this order: the stored tensor is reordered, `adapters` are added, `rows` are taken, missing rows
    filled, all is scaled, and converted to `dtype`. Whatever is added or scaled is so in float32 at least.

    Args:
        checkpoint: index into `Work.checkpoints`.
        name: of the tensor there.
        rows: for each row of the job (dimension 0) the row of the stored tensor, a range or one index
            each; -1 is a row that the stored tensor has not. None is all rows as they are.
        fill: where missing rows come from: the mean of these sources' same row, leaving out those that
            have it not either; zeros where none has it. Their own `fill` is not looked at.
        scale: a factor on every value; None is 1.
        adapters: low-rank additions to the stored tensor, which must then have two dimensions.
        orders: of the stored tensor, at most one per dimension; not with adapters.
        dtype: what the rule shall see, where that is not the stored dtype: a narrower one rounds as tools
            do that convert before merging, float64 makes the arithmetic float64.
    """

    checkpoint: int
    name: str
    rows: range | tuple[int, ...] | None = None
    fill: tuple[Source, ...] = ()
    scale: float | None = None
    adapters: tuple[Adapter, ...] = ()
    dtype: torch.dtype | None = None
    orders: tuple[Order, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether this is the stored tensor, bit by bit."""
        changed = self.rows is not None or self.scale is not None or self.adapters or self.orders
        return not changed and self.dtype is None


@dataclass(frozen=True)
class Job:
    """One tensor of the output.

    Args:
        name: of the output tensor; also the key of whatever is random in it.
        shape: of the output tensor, and of every source once its rows are taken.
        dtype: that it is written in.
        sources: what is combined, in the order of `weights`.
        base: what task vectors are taken from, for rules that need one.
        rule: a combination (`isthmus methods`), or "copy".
        weights: one per source, as the rule takes them; nothing is normalised here.
        options: of the rule, JSON-like values only.
        seed: of whatever is random.
        statistics: what rules read beside the models (a Fisher diagonal, say), one per source.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    sources: tuple[Source, ...]
    base: Source | None = None
    rule: str = COPY
    weights: tuple[float, ...] = ()
    options: Mapping[str, object] = field(default_factory=lambda: cast("dict[str, object]", {}))
    seed: int = 0
    statistics: tuple[Source, ...] = ()

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return self.numel * self.dtype.itemsize

    @property
    def inputs(self) -> tuple[Source, ...]:
        """Every source that is read: the sources, the base, the statistics."""
        return (*self.sources, *(() if self.base is None else (self.base,)), *self.statistics)


@dataclass(frozen=True)
class File:
    """A file of the output folder beside the tensors: copied, or written from text.

    Args:
        name: in the output folder, without a folder of its own.
        source: path of the file to copy, byte by byte; None where `text` is given.
        text: what to write, as UTF-8.
    """

    name: str
    source: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Work:
    """A whole merge.

    Args:
        checkpoints: what sources' indices mean: anything that `isthmus.weights.open` takes.
        jobs: the output's tensors, in the order in which shards are filled.
        out: the folder that shall appear.
        shard_size: bytes of tensors per file, at most, unless one tensor alone is larger.
        metadata: free text for the header of every shard.
        files: what the folder holds beside the tensors.
        stem: file names begin with it, as in `model-00001-of-00002.safetensors`.
    """

    checkpoints: tuple[str, ...]
    jobs: tuple[Job, ...]
    out: str
    shard_size: int = 5_000_000_000
    metadata: Mapping[str, str] = field(default_factory=lambda: cast("dict[str, str]", {}))
    files: tuple[File, ...] = ()
    stem: str = "model"

    @property
    def nbytes(self) -> int:
        """Bytes of all output tensors."""
        return sum(job.nbytes for job in self.jobs)


def digest(value: object) -> str:
    """SHA-256 over a value of this module: the same for equal values, in any process.

    Args:
        value: a `Work`, a `Job` or a part of one.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True, allow_nan=True).encode()).hexdigest()


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, *(_plain(getattr(value, f.name)) for f in fields(value))]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast("Mapping[object, object]", value).items()}
    if isinstance(value, range):
        return ["range", value.start, value.stop, value.step]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in cast("Sequence[object]", value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)  # dtypes
