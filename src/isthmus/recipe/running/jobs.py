"""Rows of a plan to the engine's jobs: our rules and options for mergekit's methods and parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from isthmus.engine import Adapter, Job, Order, Source
from isthmus.engine.sources import reader
from isthmus.recipe.parents.sizes import NAMES
from isthmus.recipe.planning.planned import Planned
from isthmus.recipe.rows.arithmetic import arithmetic
from isthmus.recipe.rows.row import Part, Row
from isthmus.recipe.running.aligned import Aligned
from isthmus.recipe.running.padding import Padding
from isthmus.recipe.tokens.names import is_tokens

_INTEGERS = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64,
    "F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip


class Jobs:
    """All jobs of a plan.

    Args:
        plan: a checked recipe.
        padding_file: where `padding` will lie.
        aligned: how models were brought together, if they were.

    Attributes:
        checkpoints: paths, as the jobs' indices mean them; the last is `padding`'s where there is any.
        jobs: in natural order of their names.
        padding: means that are to be made first.
    """

    def __init__(self, plan: Planned, padding_file: str, aligned: Aligned | None = None):
        self._plan = plan
        self.checkpoints: list[str] = [str(parent.path.absolute()) for parent in plan.parents.values()]
        self._index = {name: i for i, name in enumerate(plan.parents)}
        self._adapters: dict[str, int] = {}
        for name, parent in plan.parents.items():
            if parent.adapter is not None:
                self._adapters[name] = len(self.checkpoints)
                self.checkpoints.append(str(parent.adapter.path.absolute()))
        self._orders: dict[tuple[str, str], tuple[Order, ...]] = {}
        self._moved: dict[tuple[str, str], tuple[int, torch.dtype]] = {}
        if aligned is not None:
            index = len(self.checkpoints)
            self.checkpoints += map(str, aligned.files.values())
            self._orders = {
                place: tuple(Order(dim, index, name) for dim, name in dims)
                for place, dims in aligned.orders.items()
            }
            self._moved = {
                (model, name): (index + offset, dtype)
                for offset, model in enumerate(aligned.files)
                for name, dtype in aligned.moved.items()
            }
        self.padding: dict[tuple[str, str], Padding] = {}
        self._padding_index = len(self.checkpoints)
        self.jobs: list[Job] = [self._job(row) for row in plan.rows]
        if self.padding:
            self.checkpoints.append(padding_file)

    def of(self, model: str) -> dict[str, Source]:
        """One parent's tensors under the output's names, as the merge reads them.

        Args:
            model: the recipe's name of it; tensors that are not merged are its own where it has them.
        """
        found: dict[str, Source] = {}
        for row in self._plan.rows:
            part = next((part for part in row.parts if part.model == model), None)
            if part is None and row.name in self._plan.parents[model].checkpoint.entries:
                part = Part(model, row.name)
            found[row.name] = self._source(row, part or row.parts[0], row.parts)
        return found

    def _job(self, row: Row) -> Job:
        if row.how != "merged":
            dtype = _INTEGERS.get(row.dtype) or cast("torch.dtype", getattr(torch, row.dtype))
            return Job(row.name, row.shape, dtype, (self._source(row, row.parts[0], row.parts[:1]),))
        rule, weights, options = arithmetic(self._plan.recipe, row)
        base = next((part for part in row.parts if part.base), None)
        parts = [part for part in row.parts if not part.base]
        if rule == "slerp" and base is not None:
            # mergekit's base is an end of the arc here, not an origin.
            parts, base = [base, *parts], None
        dtype = cast("torch.dtype", getattr(torch, row.dtype))
        sources = tuple(self._source(row, part, row.parts) for part in parts)
        if rule == "passthrough" and options.get("scale", 1.0) == 1.0:
            return Job(row.name, row.shape, dtype, sources)
        origin = self._source(row, base, row.parts) if base is not None else None
        seed = self._plan.recipe.isthmus.seed
        return Job(row.name, row.shape, dtype, sources, origin, rule, weights, options=options, seed=seed)

    def _source(self, row: Row, part: Part, parts: tuple[Part, ...]) -> Source:
        """A part as the engine reads it: adapter added, rows remade, rounded as the recipe says."""
        vocabulary = self._plan.vocabulary
        wanted = self._plan.recipe.dtype
        if (place := self._moved.get((part.model, row.name))) is not None:
            index, dtype = place
            asked = getattr(torch, wanted) if wanted else dtype
            return Source(index, row.name, dtype=None if asked == dtype else asked)
        plain = self._plain(part)
        stored = NAMES.get(self._plan.parents[part.model].checkpoint.entries[part.name].dtype)
        narrow = getattr(torch, wanted) if wanted and stored and wanted != stored else None
        if not row.tokens or vocabulary is None or not self._has_tokens(part):
            return _replace(plain, dtype=narrow)
        stored_rows = self._plan.parents[part.model].checkpoint.entries[part.name].shape[0]
        if vocabulary.unchanged(part.model):
            if stored_rows != vocabulary.size:
                plain = _replace(plain, rows=range(vocabulary.size))
            return _replace(plain, dtype=narrow)
        rows = vocabulary.rows[part.model]
        fill = tuple(
            _replace(self._plain(other), rows=vocabulary.fill[other.model])
            for other in _distinct(parts)
            if any(index >= 0 for index in vocabulary.fill[other.model])
        )
        made = _replace(plain, rows=rows, fill=fill)
        if vocabulary.size > vocabulary.used:
            key = (part.model, part.name)
            name = f"{len(self.padding)}" if key not in self.padding else self.padding[key].key
            used = vocabulary.used
            short = _replace(
                made, rows=rows[:used], fill=tuple(_replace(f, rows=_rows(f)[:used]) for f in fill)
            )
            self.padding.setdefault(key, Padding(part.model, part.name, short, name))
            behind = (-1,) * used + (0,) * (vocabulary.size - used)
            made = _replace(made, fill=(*fill, Source(self._padding_index, name, rows=behind)))
        return _replace(made, dtype=narrow)

    def _plain(self, part: Part) -> Source:
        adapter = self._plan.parents[part.model].adapter
        plain = Source(
            self._index[part.model], part.name, orders=self._orders.get((part.model, part.name), ())
        )
        if adapter is None:
            return plain
        index = self._adapters[part.model]
        if part.name in adapter.replaced:
            plain = Source(index, adapter.replaced[part.name])
        if part.name not in adapter.factors:
            return plain
        factor = adapter.factors[part.name]
        added = Adapter(index, factor.up, factor.down, factor.scale, factor.transposed)
        return _replace(plain, adapters=(added,))

    def _has_tokens(self, part: Part) -> bool:
        parent = self._plan.parents[part.model]
        shape = parent.checkpoint.entries[part.name].shape
        return is_tokens(part.name, shape[0] if shape else 0, parent.vocabulary_size)


def _distinct(parts: tuple[Part, ...]) -> list[Part]:
    return list({part.model: part for part in parts}.values())


def _rows(source: Source) -> tuple[int, ...]:
    return tuple(source.rows or ())


def _replace(source: Source, **changes: object) -> Source:
    return dataclasses.replace(source, **changes)  # type: ignore[arg-type]


class TensorsOf(Mapping[str, Tensor]):
    """A parent's tensors as the merge reads them: under the output's names, in its orders, adapters added.

    Args:
        sources: by the output's names.
        checkpoints: of the work, opened.
    """

    def __init__(self, sources: Mapping[str, Source], checkpoints: Sequence[Mapping[str, Tensor]]):
        self._sources = sources
        self._checkpoints = checkpoints

    def __getitem__(self, name: str) -> Tensor:
        found = reader(self._sources[name], self._checkpoints)
        # A copy: what is read may be the file itself, and its pages are let go.
        return found.elements(0, math.prod(found.shape)).view(found.shape).clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)
