"""What a repair did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from isthmus.program import Program, ProgramModule

#: "joint": all layers in one pass, each batch normalised by its own statistics on the way.
#: "sequential": layer after layer, each with the statistics of all the data.
Mode = Literal["joint", "sequential"]


@dataclass(frozen=True)
class Change:
    """What was done to one layer.

    Attributes:
        value: the layer's output (of a batch norm: the norm's).
        module: name of the user's module that it belongs to.
        kind: "scale and shift", "scale", or the "statistics" of a batch norm.
        gain: smallest, median and largest factor of a channel; for statistics, by how much the norm's
            output changed.
        clamped: channels whose gain would have exceeded the limit.
        into: keys of the weights that changed.
    """

    value: str
    module: str
    kind: Literal["scale and shift", "scale", "statistics"]
    gain: tuple[float, float, float]
    clamped: int
    into: tuple[str, ...]


@dataclass(frozen=True)
class Repaired:
    """A repaired model.

    Attributes:
        method: its name.
        weights: the state dict, every key of the given one and, with new parameters, theirs; what did
            not change is the given tensor itself.
        program: what the weights belong to: the given program, or one with new parameters in it.
        changed: what was done, by value, in order of execution.
        scale_only: repaired values that lack a shift because they have no bias to take it.
        skipped: values that were left as they are, with the reason.
        mode: how statistics were measured.
        examples: how many the statistics are of.
        batch_size: of the largest batch; a joint pass depends on it.
        new_parameters: keys of the weights that the given program does not have.
    """

    method: str
    weights: dict[str, Tensor]
    program: Program
    changed: dict[str, Change]
    scale_only: tuple[str, ...]
    skipped: dict[str, str]
    mode: Mode
    examples: int
    batch_size: int
    new_parameters: tuple[str, ...] = ()

    @property
    def clamped(self) -> int:
        """Channels, in all layers, whose gain would have exceeded the limit."""
        return sum(change.clamped for change in self.changed.values())

    def module(self) -> ProgramModule:
        """The repaired model as an `nn.Module`, new parameters included."""
        return ProgramModule(self.program, self.weights)

    def __str__(self) -> str:
        changed = f"{len(self.changed)} layers changed ({len(self.scale_only)} by scale only)"
        lines = [
            f"{self.method}: {changed}, {len(self.skipped)} left, {self.clamped} gains clamped",
            f"{self.mode} pass over {self.examples} examples in batches of up to {self.batch_size}",
        ]
        width = max((len(c.module or c.value) for c in self.changed.values()), default=0)
        for change in self.changed.values():
            low, middle, high = change.gain
            clamped = f", {change.clamped} clamped" if change.clamped else ""
            name = (change.module or change.value).ljust(width)
            lines.append(f"  {name}  {change.kind}, gain {low:.3g} .. {middle:.3g} .. {high:.3g}{clamped}")
        for value, reason in self.skipped.items():
            lines.append(f"  {self.program.module_of(value) or value}: left, {reason}")
        return "\n".join(lines)
