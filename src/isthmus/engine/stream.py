"""One output tensor, block by block: read, merged, checked, written."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from isthmus.combine import BLOCK, Block, BlockRule, Place, blockwise, places
from isthmus.combine.blocks import row_length
from isthmus.engine.jobs import COPY, Job
from isthmus.engine.pool import Pool
from isthmus.engine.sources import Changed, reader
from isthmus.errors import IsthmusError, WeightsError
from isthmus.weights import ShardFile, Stored, checksum

# The bits of +infinity in dtypes of 16 bits.
_INFINITY = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00}

# Elements that a thread does in one go: taking turns costs as much as the arithmetic of a small block.
_RUN = 1 << 20

# Elements behind a run that the disk is asked for before they are needed.
_AHEAD = 2 * _RUN

# Bytes of mapped inputs that stay until they are needed again, in another pass over the same tensor.
_STAYS = 128 << 20

_BUFFERS = threading.local()

_DIVERGED = "the training diverged or a cast to a narrower dtype overflowed: take another checkpoint"


@runtime_checkable
class Diary(Protocol):
    """Who is told what streams do; from any thread."""

    def began(self, name: str) -> None:
        """A tensor is begun."""
        ...

    def moved(self, count: int) -> None:
        """Bytes were read or written."""
        ...

    def spared(self, count: int) -> None:
        """Bytes will not be read after all."""
        ...

    def ended(self, name: str, check: str, count: int) -> None:
        """A tensor is written: what identifies its bytes, and how many they are."""
        ...


class Stream:
    """A job with its sources open.

    Args:
        job: what to do.
        checkpoints: opened, in the order of the work.
        rule: where several jobs share one; by default one of its own.

    Raises:
        InputError: the rule, its options or weights are wrong.
        MismatchError: a source is not there, or its rows do not fit.
        WeightsError: an adapter holds numbers that are not finite.
    """

    def __init__(self, job: Job, checkpoints: Sequence[Mapping[str, Tensor]], rule: BlockRule | None = None):
        self.job = job
        self.rule = None if job.rule == COPY else rule or rule_of(job)
        self.sources = tuple(reader(source, checkpoints) for source in job.sources)
        self.base = None if job.base is None else reader(job.base, checkpoints)
        self.statistics = tuple(reader(source, checkpoints) for source in job.statistics)
        self._lock = threading.Lock()
        self._checks = 0
        self._file: ShardFile | None = None
        self._diary: Diary | None = None

    @property
    def places(self) -> tuple[Place, ...]:
        """The blocks; not kept, since a large model has many."""
        layout = "elements" if self.rule is None else self.rule.layout
        return places(layout, self.job.shape, key=self.job.name, seed=self.job.seed)

    @property
    def inputs(self) -> tuple[Stored, ...]:
        """All that is read."""
        return (*self.sources, *(() if self.base is None else (self.base,)), *self.statistics)

    @property
    def cost(self) -> int:
        """Bytes of memory beyond what every thread holds: only blocks that could not be cut small take any."""
        largest = max((place.stop - place.start for place in self.places), default=0)
        if largest <= BLOCK or self.rule is None:
            return 0
        wide = max(4, *(r.dtype.itemsize for r in self.inputs))
        return largest * wide * (len(self.inputs) + 4)

    @property
    def traffic(self) -> int:
        """Bytes that pass by when the tensor is made, passes of its own included."""
        passes = 0 if self.rule is None or self.rule.scope == "model" else self.rule.passes
        return self._read * (passes + 1) + self.job.nbytes

    @property
    def measuring(self) -> int:
        """Bytes that pass by before, in passes over the whole model."""
        return self._read * self.rule.passes if self.rule is not None and self.rule.scope == "model" else 0

    @property
    def _read(self) -> int:
        return self.job.numel * sum(r.dtype.itemsize for r in self.inputs)

    @property
    def check(self) -> str:
        """What identifies the bytes that were written."""
        return f"{self._checks:016x}"

    def to(self, file: ShardFile, diary: Diary) -> None:
        """Say where the tensor goes, and who wants to know."""
        self._file, self._diary = file, diary

    def run(self, pool: Pool) -> None:
        """Merge the tensor."""
        assert self._diary is not None
        self._diary.began(self.job.name)
        runs, rule = self.runs, self.rule
        if rule is not None and rule.scope == "tensor" and runs:
            measure_all(pool, rule, [(self, run) for run in runs])
        for _ in pool.ordered(runs, self.write, ahead=len(runs)):
            pass
        if rule is not None and rule.scope == "tensor":
            self.rule = rule_of(
                self.job
            )  # what it has learnt of the tensor grows with it, and is of no more use
        self._diary.ended(self.job.name, self.check, self.job.nbytes)

    @property
    def runs(self) -> list[tuple[Place, ...]]:
        """Blocks that follow each other, a few at a time: what a thread does in one go."""
        blocks = self.places
        each = max(_RUN // (blocks[0].stop - blocks[0].start), 1) if blocks else 1
        return [blocks[n : n + each] for n in range(0, len(blocks), each)]

    def measure(self, index: int, run: Sequence[Place]) -> list[object]:
        """Some blocks of a measuring pass."""
        assert self.rule is not None
        partials = [self.rule.measure(index, block) for block in self._blocks(self.rule, run, check=False)]
        self._release(run, stay=self.rule.scope == "tensor" and self._read <= _STAYS)
        return partials

    def refuse_what_is_not_finite(self) -> None:
        """Look at all sources for the cause of a failure.

        Raises:
            WeightsError: it lies there.
        """
        for run in self.runs:
            first, last = run[0].start, run[-1].stop
            for source in self.inputs:
                count = math.prod(source.shape)
                begin, end = (first, last) if count >= last else (0, count)
                found = source.elements(begin, end)
                if not finite(found):
                    self._refuse_overflow(source, begin, found)
                    count = int((~_plain(found).isfinite()).sum())
                    raise WeightsError(
                        f"{source.file} holds numbers that are not finite",
                        [f"{self.job.name}    {count} of the {found.numel()} from element {begin} on"],
                        hint=_DIVERGED,
                    )
                source.drop(first, last)

    def _refuse_overflow(self, source: Stored, start: int, cast: Tensor) -> None:
        """Look at what elements were before they were cast.

        Raises:
            WeightsError: some were finite, and are no longer.
        """
        whole = source.uncast if isinstance(source, Changed) else source
        before = _plain(whole.elements(start, start + cast.numel()))
        lost = before.isfinite() & ~_plain(cast).isfinite()
        if not lost.any():
            return
        dtype, largest = str(cast.dtype).removeprefix("torch."), float(before[lost].abs().max())
        raise WeightsError(
            f"{source.file} holds numbers of {self.job.name} that {dtype} cannot hold",
            [f"{int(lost.sum())} of the {cast.numel()} from element {start} on, up to {largest:.3g}"],
            hint=f"the file is sound, and the cast to {dtype} overflows: choose a wider dtype, {_wider(cast.dtype)}",
        )

    def write(self, run: Sequence[Place]) -> None:
        """Some blocks of the writing pass."""
        rule, first, last = self.rule, run[0].start, run[-1].stop
        if rule is None:
            source = self.sources[0]
            result = source.elements(first, last).to(self.job.dtype)
            if (isinstance(source, Changed) or source.dtype != self.job.dtype) and not finite(result):
                self._refuse_overflow(source, first, result)
            self._put(first, result)
        elif last - first <= _RUN:
            out = self._buffer(last - first)
            for block in self._blocks(rule, run, check=not rule.shows):
                made = rule.write(block).reshape(-1)
                out[block.place.start - first : block.place.stop - first].copy_(made)
            self._put(first, out, check=True)
        else:
            for block in self._blocks(rule, run, check=not rule.shows):
                made = rule.write(block).reshape(-1)
                for begin in range(0, made.numel(), _RUN):
                    piece = made[begin : begin + _RUN]
                    self._put(first + begin, self._buffer(piece.numel()).copy_(piece), check=True)
        self._release(run, self.job.dtype.itemsize)

    def _buffer(self, count: int) -> Tensor:
        """Memory of the calling thread to gather output in."""
        held: dict[torch.dtype, Tensor] = _BUFFERS.__dict__.setdefault("held", {})
        if self.job.dtype not in held:
            held[self.job.dtype] = torch.empty(_RUN, dtype=self.job.dtype)
        return held[self.job.dtype][:count]

    def _put(self, start: int, piece: Tensor, check: bool = False) -> None:
        """Write elements of the output, if they are what an output may hold."""
        assert self._file is not None
        if check and not finite(piece):
            raise self._not_finite()
        self._file.write(self.job.name, start, piece)
        self._add(start, piece)

    def verify(self, file: ShardFile) -> bool:
        """Whether the file holds what an earlier run entered as finished."""
        self._checks = 0
        for run in self.runs:
            first, last = run[0].start, run[-1].stop
            for start in range(first, last, _RUN) if self.rule is not None else (first,):
                self._add(start, file.read(self.job.name, start, min(start + _RUN, last)))
        return self.check == file.checks[self.job.name]

    def _add(self, start: int, piece: Tensor) -> None:
        # An odd factor, so that no change of a block is lost, and blocks cannot change places.
        value = checksum(piece) * (2 * start + 1)
        with self._lock:
            self._checks = (self._checks + value) % 2**64

    def _blocks(self, rule: BlockRule, run: Sequence[Place], check: bool) -> Iterator[Block]:
        """The sources' blocks; `check` refuses numbers that are not finite."""
        first, last = run[0].start, run[-1].stop
        inputs = (
            self.inputs if rule.statistics == "elements" else self.inputs[: len(self.sources) + self._based]
        )
        for source in inputs:  # each page is asked for once, and what follows in a file is read soon as well
            source.expect(first + _AHEAD if first else 0, last + _AHEAD)
        flats = [source.elements(first, last) for source in inputs]
        whole = () if rule.statistics == "elements" else tuple(_all_of(source) for source in self.statistics)
        count = len(self.sources)
        for place in run:
            cuts = [_shaped(flat[place.start - first : place.stop - first], rule, place) for flat in flats]
            block = Block(
                tuple(cuts[:count]),
                place,
                cuts[count] if self._based else None,
                whole or tuple(cuts[count + self._based :]),
            )
            if check and not all(finite(cut) for cut in cuts):
                raise self._not_finite()
            yield block

    @property
    def _based(self) -> bool:
        return self.base is not None

    def _not_finite(self) -> WeightsError:
        """What to say of a result that is not finite when the sources are."""
        self.refuse_what_is_not_finite()
        dtype = str(self.job.dtype).removeprefix("torch.")
        return WeightsError(
            f"{self.job.rule} makes numbers of {self.job.name} that {dtype} cannot hold",
            hint=f"choose a wider dtype for the output, {_wider(self.job.dtype)}; or other weights",
        )

    def spare(self) -> None:
        """Say that a pass is left out."""
        if self._diary is not None:
            self._diary.spared(self._read)

    def _release(self, run: Sequence[Place], written: int = 0, stay: bool = False) -> None:
        """Let blocks go: their pages need not stay; bytes written per element count as done too."""
        first, last = run[0].start, run[-1].stop
        for source in () if stay else self.inputs:
            source.drop(first, last)
        if self._diary is not None:
            each = written + sum(r.dtype.itemsize for r in self.inputs)
            self._diary.moved(each * (last - first))


def measure_all(pool: Pool, rule: BlockRule, runs: Sequence[tuple[Stream, Sequence[Place]]]) -> None:
    """The measuring passes of a rule, over the blocks of one tensor or of several."""
    try:
        for index in range(rule.passes):
            if rule.skips(index):
                for stream in dict.fromkeys(stream for stream, _ in runs):
                    stream.spare()
                continue
            measured = pool.ordered(runs, lambda run, index=index: run[0].measure(index, run[1]))
            rule.reduce(index, (partial for partials in measured for partial in partials))
    except (ArithmeticError, IndexError, RuntimeError, ValueError) as error:
        # Sources are looked at when they are read to be written; what they hold may show here before.
        if not isinstance(error, IsthmusError):
            for stream in dict.fromkeys(stream for stream, _ in runs):
                stream.refuse_what_is_not_finite()
        raise


def _shaped(flat: Tensor, rule: BlockRule, place: Place) -> Tensor:
    """A block in the shape that rules of its layout read."""
    if rule.layout == "elements":
        return flat
    if rule.layout == "whole":
        return flat.view(place.shape)
    return flat.view(-1, row_length(rule.layout, place.shape))


def _all_of(source: Stored) -> Tensor:
    return source.elements(0, math.prod(source.shape)).view(source.shape)


def rule_of(job: Job) -> BlockRule:
    """The arithmetic of a job."""
    return blockwise(job.rule, job.weights or len(job.sources), job.options)


def finite(tensor: Tensor) -> bool:
    """Whether no number in it is NaN or infinite, at less than the cost of converting it."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or not tensor.numel():
        return True
    if tensor.dtype in _INFINITY and tensor.is_contiguous():
        # The bits of what is not finite are above all others of their sign.
        bits, infinity = tensor.view(torch.int16).numpy(), _INFINITY[tensor.dtype]
        return bool(bits.max() < infinity and bits.view(np.uint16).max() < infinity + 0x8000)
    values = _plain(tensor)
    # A sum is finite only if all its terms are; the converse may fail, and then each is looked at.
    return math.isfinite(float(values.sum())) or bool(values.isfinite().all())


def _wider(dtype: torch.dtype) -> str:
    """Dtypes that hold larger numbers."""
    far = torch.finfo(dtype).max >= torch.finfo(torch.bfloat16).max
    return "float64" if far else "bfloat16 or float32"


def _plain(tensor: Tensor) -> Tensor:
    """Numbers that torch can add and compare."""
    if tensor.is_complex():
        return torch.view_as_real(tensor)
    return tensor.float() if tensor.element_size() == 1 else tensor
