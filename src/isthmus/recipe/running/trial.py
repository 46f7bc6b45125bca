"""A merged model on data: repaired where validation says that it helps, and measured on the test split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from isthmus import weights
from isthmus.align import Alignment
from isthmus.maps import Transport
from isthmus.measure import Evaluation, evaluate
from isthmus.program import Program, export
from isthmus.recipe.output.published import public_name
from isthmus.recipe.planning.afterwards import Afterwards
from isthmus.recipe.planning.planned import Planned
from isthmus.recipe.running.bench import Bench
from isthmus.recipe.running.finished import MERGED, Finished
from isthmus.recipe.running.shares import shares
from isthmus.recipe.running.texts import Text, refuse_unless_causal
from isthmus.repair import Repaired
from isthmus.repair.by_name import apply


class Trial:
    """A merged model on a bench, which is tried before the merge: what cannot be done is said then.

    Args:
        plan: whose recipe asks for a repair or an evaluation.
        bench: what its rig has become.

    Raises:
        IsthmusError: the model cannot be run on the data.
    """

    def __init__(self, plan: Planned, bench: Bench):
        assert plan.after is not None and bench.data is not None
        self._plan, self._bench = plan, bench
        self._after: Afterwards = plan.after
        self.model, self.data = bench.model, bench.data
        self.calibration = bench.calibration
        self.validation = bench.loader("validation")
        self.test = bench.loader("test")
        inputs, targets = next(iter(self.validation))
        last = torch.full_like(targets[:2], self.data.num_classes - 1)
        evaluate(
            self.model, [(inputs[:2], last)], split="validation"
        )  # the shapes fit, and there are as many classes
        if isinstance(self.data, Text):
            refuse_unless_causal(self.model, inputs, self.data.vocabulary)

    def finish(
        self,
        folder: Path,
        parents: Mapping[str, Mapping[str, Tensor]],
        dtypes: Mapping[str, torch.dtype],
        alignment: Alignment | None = None,
    ) -> Finished:
        """Repair what was merged, choose, and measure.

        Args:
            folder: of the merge as it came.
            parents: each parent's tensors under the output's names and orders, read when touched.
            dtypes: that the output's tensors are written in.
            alignment: by which parents were moved that are given as they were before.

        Raises:
            IsthmusError: as the repair and the measures.
        """
        merged = self._bench.fitted(weights.load(folder))
        validation = {MERGED: evaluate(self.model, self.validation, merged, split="validation")}
        chosen, final = MERGED, merged
        repaired: Repaired | None = None
        changed: dict[str, Tensor] = {}
        if self._after.repair is not None:
            repaired = self._repaired(merged, parents, alignment)
            changed, after = self._written(repaired, merged, dtypes)
            name = f"{MERGED} + {repaired.method}"
            validation[name] = evaluate(self.model, self.validation, after, split="validation")
            if self._better(validation[name], validation[MERGED]):
                chosen, final = name, after
            else:
                changed = {}
        scores: dict[str, Evaluation] = {}
        if self._plan.recipe.isthmus.evaluate is not None:
            for name, tensors in parents.items() if self._after.whole else ():
                state = self._bench.fitted(tensors)
                scores[self._label(name)] = evaluate(self.model, self.test, state, split="test")
            scores[MERGED] = evaluate(self.model, self.test, merged, split="test")
            if chosen != MERGED:
                scores[chosen] = evaluate(self.model, self.test, final, split="test")
        sizes = {split: len(self.data.arrays(split)[1]) for split in self.data.splits}
        if repaired is not None:
            sizes["calibration"] = repaired.examples
        text = isinstance(self.data, Text)
        return Finished(changed, scores, validation, chosen, repaired, sizes, text)

    def _repaired(
        self,
        merged: Mapping[str, Tensor],
        parents: Mapping[str, Mapping[str, Tensor]],
        alignment: Alignment | None,
    ) -> Repaired:
        images, _ = next(iter(self.calibration))
        program = export(self.model, images[:2])
        part = shares(self._plan) if self._after.goals else {}
        models = [self._bench.fitted(parents[name]) for name in part]
        transports: list[Transport] | None = None
        terms = models
        if alignment is not None and part:
            weighted = alignment.weighted([part.get(name, 0.0) for name in self._plan.parents])
            moves = [m for name, m in zip(self._plan.parents, weighted, strict=True) if name in part]
            if not alignment.keeps_functions:
                # Units are mixed: what is measured is the models as they are, and the statistics are moved.
                terms = [move.apply(model) for move, model in zip(moves, models, strict=True)]
                transports, program = moves, alignment.graph.program
            models = [move.own(model) for move, model in zip(moves, models, strict=True)]
            terms = models if transports is None else terms
        asked = self._after.repair
        assert asked is not None
        return apply(
            program,
            program,
            merged,
            models,
            list(part.values()),
            asked,
            self.calibration,
            transports=transports,
            terms=terms,
            score=self._score,
        )[0]

    def _score(self, program: Program, state: Mapping[str, Tensor]) -> float:
        """What a repair chooses by, where it has to choose: higher is better."""
        found = evaluate(program, self.validation, state, split="validation")
        return -found.loss if self._plan.recipe.isthmus.evaluate == "loss" else found.accuracy

    def _written(
        self, repaired: Repaired, merged: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the repair changed, as files have it and rounded as it is written; and the state that comes of it."""
        changed: dict[str, Tensor] = {}
        state = dict(merged)
        for name, tensor in repaired.weights.items():
            stored = self._bench.stored(name)
            if stored in dtypes and not torch.equal(tensor, merged[name]):
                changed[stored] = tensor.to(dtypes[stored]).contiguous()
                state[name] = changed[stored].to(merged[name].dtype)
        weights.check_finite(changed, "the repaired model")
        return changed, state

    def _label(self, name: str) -> str:
        """What a parent is called in public, told apart from others of that name."""
        called = [public_name(parent) for parent in self._plan.parents.values()]
        own = public_name(self._plan.parents[name])
        return own if called.count(own) == 1 else f"{own} ({list(self._plan.parents).index(name) + 1})"

    def _better(self, after: Evaluation, before: Evaluation) -> bool:
        """By what the recipe measures; the other number decides where that one is the same."""
        by = [(after.accuracy, before.accuracy), (-after.loss, -before.loss)]
        if self._plan.recipe.isthmus.evaluate == "loss":
            by.reverse()
        return [a for a, _ in by] > [b for _, b in by]
