"""A pair of strangers: merged by every method, with some layers kept apart, repaired, and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from nets import FAMILIES, Shelf, State
from torch import Tensor

import isthmus
from isthmus.align import Alignment
from isthmus.features import Features
from isthmus.measure import Evaluation, ensemble
from isthmus.program import Program
from isthmus.repair import REPAIRS, Repaired, goals_of, moments
from isthmus.repair.by_name import apply as repair_by_name

SEED = 0
HALVES = (0.5, 0.5)
#: Methods of the tables by the paper's words, with our options. "direct" merges the networks as they are.
METHODS: dict[str, dict[str, object] | None] = {
    "direct": None,
    "weight-matching": {"method": "weight-matching"},
    "weight-matching, biases follow": {"method": "weight-matching", "biases": "follow"},
    "activation-matching": {"method": "activation-matching"},
    "zipit": {"method": "zipit"},
    "cca": {"method": "cca"},
    "transformer-transport": {"method": "transformer-transport"},
}

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Splits:
    """Batches for matching and repair, for choices, and for the numbers.

    Attributes:
        bf16: whether answers are computed in bfloat16.
    """

    calibration: Batches
    validation: Batches
    test: Batches
    bf16: bool

    @staticmethod
    def of(shelf: Shelf, calibration: int, validation: int, test: int | None, bf16: bool) -> Splits:
        def read(split: str, limit: int | None, size: int) -> Batches:
            loader = shelf.data.loader(split, batch_size=size, limit=limit, seed=SEED)
            # Convolutions in bfloat16 are four times as fast on channels that lie side by side.
            return [
                (x.to(shelf.device, memory_format=torch.channels_last), y.to(shelf.device)) for x, y in loader
            ]

        held = read("validation", validation, 500), read("test", test, 500)
        return Splits(read("train", calibration, 250), *held, bf16)


@dataclass(frozen=True, eq=False)
class Merge:
    """Weights and the program that runs them."""

    program: Program
    weights: Mapping[str, Tensor]
    repaired: Repaired | None = None


class Pair:
    """Two networks of one family and everything that is asked of them more than once."""

    def __init__(self, shelf: Shelf, family: str, index: int, splits: Splits):
        self.family, self.index, self.splits, self.device = family, index, splits, shelf.device
        self.model = shelf.build(family).to(shelf.device)
        self.states: list[State] = [
            {key: value.to(shelf.device) for key, value in state.items()}
            for state in shelf.pair(family, index)
        ]
        self._alignments: dict[str, Alignment | None] = {}
        self._moments: dict[str, Features] = {}

    @cached_property
    def graph(self) -> isthmus.SymmetryGraph:
        """The symmetries, verified."""
        example = self.splits.calibration[0][0][:2]
        return isthmus.verified(isthmus.trace(self.model, example), example, weights=self.states[0])[0]

    def alignment(self, method: str) -> Alignment | None:
        """The maps of a method; None for "direct"."""
        if method not in self._alignments:
            by = METHODS[method]
            found = None
            if by is not None:
                found = isthmus.align(self.graph, self.states, by, data=self.splits.calibration)
            self._alignments[method] = found
        return self._alignments[method]

    def kept(self, depth: int) -> dict[str, Any]:
        """The cut that keeps the first so many layers (blocks, where the family counts those)."""
        if not depth:
            return {}
        block = FAMILIES[self.family].block
        if block:
            return {"preserve_first": 1 + block * depth}
        return {"preserve_first": depth, "variant": "paper"}

    def merge(
        self,
        method: str,
        cut: Mapping[str, Any] | None = None,
        shares: Sequence[float] = HALVES,
    ) -> Merge:
        """Merge by a method, with a part kept apart."""
        found = isthmus.merge(
            self.states,
            model=self.model,
            align=self.alignment(method),
            weights=shares,
            graph=self.graph,
            verify=False,
            data=self.splits.calibration,
            **(cut or {}),
        )
        assert found.program is not None
        return Merge(found.program, found.weights)

    def repair(
        self,
        merge: Merge,
        method: str,
        repair: str | Mapping[str, object],
        shares: Sequence[float] = HALVES,
        data: Batches | None = None,
    ) -> Merge:
        """Repair a merge by a method; options that are "best" are chosen on validation images.

        Goals are measured once for all merges by a method, unless there is other data.
        """
        asked: dict[str, Any] = {"method": repair} if isinstance(repair, str) else dict(repair)
        row, given = REPAIRS.get(asked["method"]), self.splits.calibration if data is None else data
        if row.needs == ("data", "goals") and asked.get("mode") != "closed-form":
            found = self._seen(method) if data is None else self._measured(method, data)
            options = {name: value for name, value in asked.items() if name != "method"}
            goals = goals_of(found, shares)
            repaired = row.function(merge.program, merge.weights, given, goals=goals, **options)
        else:
            parents, transports = self._parents(method, shares)
            align = self.alignment(method)
            terms = None if align is None else align.apply(self.states, shares)
            repaired, _ = repair_by_name(
                self.graph.program, merge.program, merge.weights, parents, tuple(shares), asked, given,
                transports=transports, terms=terms, score=self._validated,
            )  # fmt: skip
        return Merge(repaired.program, repaired.weights, repaired)

    def _validated(self, program: Program, weights: Mapping[str, Tensor]) -> float:
        return self.answers(Merge(program, weights), self.splits.validation).accuracy

    def add(self, name: str, alignment: Alignment) -> None:
        """Let maps that were made elsewhere be a method of this pair."""
        self._alignments.setdefault(name, alignment)

    def _parents(
        self, method: str, shares: Sequence[float] = HALVES
    ) -> tuple[list[Mapping[str, Tensor]], Any]:
        """The models in common coordinates; where units are mixed, as they are, with the maps of their statistics."""
        align = self.alignment(method)
        if align is None:
            return list(self.states), None
        if align.keeps_functions:
            return list(align.apply(self.states)), None
        transports = align.weighted(shares)
        return [t.own(state) for t, state in zip(transports, self.states, strict=True)], transports

    def _seen(self, method: str) -> Features:
        if method not in self._moments:
            self._moments[method] = self._measured(method, self.splits.calibration)
        return self._moments[method]

    def _measured(self, method: str, data: Batches) -> Features:
        parents, transports = self._parents(method)
        return moments(self.graph.program, parents, data, transports=transports)

    def answers(self, merge: Merge | State, data: Batches) -> Evaluation:
        """Accuracy and loss."""
        program, weights = (
            (merge.program, merge.weights) if isinstance(merge, Merge) else (self.graph.program, merge)
        )
        with self._autocast():
            return isthmus.evaluate(program, data, {key: _laid_out(value) for key, value in weights.items()})

    def logits(self, merge: Merge | State, data: Batches) -> Tensor:
        """Every example's logits, (examples, classes), in float32."""
        program, weights = (
            (merge.program, merge.weights) if isinstance(merge, Merge) else (self.graph.program, merge)
        )
        run, rows = program.compile(), []
        with torch.no_grad():
            for x, _ in data:
                out = run(weights, isthmus.program.Batch((x,), {}))
                assert isinstance(out, Tensor)
                rows.append(out.float().cpu())
        return torch.cat(rows)

    def parents(self) -> list[float]:
        """Test accuracy of each network."""
        return [self.answers(state, self.splits.test).accuracy for state in self.states]

    def together(self) -> float:
        """Test accuracy of the mean of their logits."""
        with self._autocast():
            return ensemble(self.graph.program, self.states, self.splits.test).accuracy

    def _autocast(self) -> torch.autocast:
        kind = "cuda" if self.device.startswith("cuda") else "cpu"
        return torch.autocast(kind, torch.bfloat16, enabled=self.splits.bf16)


def _laid_out(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
