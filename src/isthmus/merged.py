"""What a merge made: weights, a module that runs them, and what was done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from isthmus import saving
from isthmus.align import Alignment, resizing
from isthmus.errors import InputError
from isthmus.measure import Finding, Kept, cost, kept
from isthmus.program import Cut, Program
from isthmus.repair import Repaired
from isthmus.repair.choosing import Trial
from isthmus.symmetry import SymmetryGraph, Verification


@dataclass(frozen=True, eq=False)
class Merged:
    """What a merge made.

    Attributes:
        weights: the merged state dict. Nothing kept apart: it loads strictly in the user's own class.
        model: a module that computes it: a copy of the first model, or the kept-apart program; None
            where only mappings were given.
        program: the graph that `weights` belong to; None for a merge of plain mappings.
        graph: the symmetries that were used.
        verification: how they were checked.
        alignment: how the models were moved.
        aligned: the moved models.
        repaired: what was repaired; None where nothing was, or where no repair helped.
        cut: what was kept apart.
        junctions: the values where kept-apart branches meet.
        settings: every option, defaults included.
        asked: names of the options that were given, not defaulted.
        trials: the repairs that were tried on validation data, with their scores.
        parents: the models as they were before anything moved.
        shares: what part of the merge each model is.
    """

    weights: dict[str, Tensor]
    model: nn.Module | None
    program: Program | None = None
    graph: SymmetryGraph | None = None
    verification: Verification | None = None
    alignment: Alignment | None = None
    aligned: tuple[Mapping[str, Tensor], ...] = ()
    repaired: Repaired | None = None
    cut: Cut = field(default_factory=Cut)
    junctions: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()
    trials: tuple[Trial, ...] = ()
    parents: tuple[Mapping[str, Tensor], ...] = ()
    shares: tuple[float, ...] = ()

    @property
    def ratios(self) -> tuple[Finding, ...]:
        """Parameters and FLOPs relative to one parent; none where no program was read."""
        if self.program is None or self.graph is None:
            return ()
        parent = self.graph.program
        example = saving.example_of(saving.inputs_of(parent))
        return cost(self.program, example).over(cost(parent, example))

    @property
    def own_program(self) -> bool:
        """Whether the weights are of a program, not of the user's class: kept apart, grown, or with new parameters."""
        new = self.repaired is not None and self.repaired.new_parameters
        return bool(self.cut) or bool(resizing(self.alignment)) or bool(new)

    def kept(self, data: Iterable[object], *, limit: int | None = 256) -> Kept:
        """How much the alignment lets the merged network keep of its parents, and how much any could.

        Args:
            data: inputs to measure on, to be read more than once.
            limit: use at most this many examples.

        Raises:
            InputError: nothing was aligned.

        Source: see `isthmus.measure.kept`.
        """
        if self.alignment is None:
            raise InputError("nothing was aligned, so there are no maps to examine", hint="merge with align=")
        return kept(self.alignment, self.parents, data, weights=self.shares, limit=limit)

    def save(self, path: str | Path) -> Path:
        """Write the merged weights as safetensors, whole or not at all.

        With something kept apart, a JSON beside it (same name, `.json`) holds what
        `isthmus.load(path, model=factory)` needs to rebuild the module: the cut, the models'
        weights, the maps and the keys.
        """
        path = Path(path)
        described = None
        if self.own_program and self.graph is not None:
            shares = self.settings["weights"]
            assert isinstance(shares, tuple)
            maps = [t.orders for t in self.alignment.transports] if self.alignment else []
            assert self.program is not None
            turned: dict[str, list[int]] = {}
            for bridge in self.program.bridges.values():
                turned[bridge.value] = sorted({*turned.get(bridge.value, ()), bridge.axis})
            own = {k: self.program.shapes[k] for k, (i, _) in self.program.sources.items() if i is not None}
            described = saving.describe(
                self.graph.program, self.cut, shares, self.junctions, self.weights, maps, turned, own
            )
            described["sizes"] = resizing(self.alignment)
        saving.save(path, self.weights, self.settings, described)
        return path

    def _tried(self) -> list[str]:
        """The repairs that were chosen from, and what became of it."""
        if not self.trials:
            return []
        kept = self.repaired.method if self.repaired is not None else "none: no repair is better than none"
        metric = self.settings.get("metric", "score")
        width = max(len(trial.name) for trial in self.trials)
        lines = [f"repair chosen by validation {metric}: {kept}"]
        for trial in self.trials:
            value = f"{trial.score:.4f}" if trial.score is not None else f"not possible: {trial.note}"
            lines.append(f"  {trial.name:<{width}}  {value}")
        return lines

    def __str__(self) -> str:
        lines = ["merged " + (f"with {self.cut}" if self.cut else "into one network")]
        if self.verification is not None:
            lines.append(f"symmetries {self.verification}")
        if self.alignment is not None:
            lines.append(str(self.alignment))
        if self.graph is not None and self.graph.unread and self.alignment is not None:
            lines.append(
                f"averaged as they are, the program does not read them: {', '.join(self.graph.unread)}"
            )
        lines += self._tried()
        if self.repaired is not None:
            lines.append(str(self.repaired))
        if self.junctions:
            lines.append(f"branches meet at {', '.join(self.junctions)}")
            lines.append(", ".join(f"{found.name} {found.value:.3f}" for found in self.ratios))
        lines.append("settings (* given, the rest are defaults):")
        width = max(map(len, self.settings), default=0)
        lines += [
            f"  {'*' if name in self.asked else ' '} {name:<{width}}  {saving.plain(value)}"
            for name, value in self.settings.items()
        ]
        return "\n".join(lines)
