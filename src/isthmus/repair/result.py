"""What a repair did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from isthmus.program import Program, ProgramModule

#: "joint": all layers in one pass, each batch normalised by its own statistics on the way.
#: "sequential": layer after layer, each with the statistics of all the data.
Mode = Literal["joint", "sequential"]

#: As `Mode`, and "closed-form": from what the models' layers read, without running the merged model.
AffineMode = Literal["joint", "sequential", "closed-form"]


@dataclass(frozen=True)
class Change:
    """What was done to one layer.

    Attributes:
        value: the layer's output (of a batch norm: the norm's).
        module: name of the user's module that it belongs to.
        kind: "scale and shift", "scale", "shift", or the "statistics" of a batch norm; of repairs that look at
            no activation, "weight" or "bias".
        gain: smallest, median and largest factor of a channel; for statistics, by how much the norm's
            output changed.
        clamped: channels whose gain would have exceeded the limit.
        into: keys of the weights that changed.
        left: where a layer was fitted to a target, the part of the target's variance that is not explained.
    """

    value: str
    module: str
    kind: Literal[
        "scale and shift",
        "scale",
        "shift",
        "statistics",
        "weight",
        "bias",
        "least squares",
        "least squares without bias",
    ]
    gain: tuple[float, float, float]
    clamped: int
    into: tuple[str, ...]
    left: float | None = None


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
        mode: how statistics were measured; "none" where no activation was looked at.
        examples: how many the statistics are of.
        batch_size: of the largest batch; a joint pass depends on it. 0 where the merged model was not run.
        new_parameters: keys of the weights that the given program does not have.
        notes: what else there is to say.
        settings: values of options that were not given but found.
    """

    method: str
    weights: dict[str, Tensor]
    program: Program
    changed: dict[str, Change]
    scale_only: tuple[str, ...]
    skipped: dict[str, str]
    mode: AffineMode | Literal["none"]
    examples: int
    batch_size: int
    new_parameters: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def clamped(self) -> int:
        """Channels, in all layers, whose gain would have exceeded the limit."""
        return sum(change.clamped for change in self.changed.values())

    def module(self) -> ProgramModule:
        """The repaired model as an `nn.Module`, new parameters included."""
        return ProgramModule(self.program, self.weights)

    @property
    def _measured(self) -> str:
        if self.mode == "none":
            return "from weights alone"
        if self.mode == "closed-form":
            return f"closed form from what the models do on {self.examples} examples"
        return f"{self.mode} pass over {self.examples} examples in batches of up to {self.batch_size}"

    def __str__(self) -> str:
        changed = f"{len(self.changed)} layers changed ({len(self.scale_only)} by scale only)"
        lines = [
            f"{self.method}: {changed}, {len(self.skipped)} left, {self.clamped} gains clamped",
            self._measured,
            *self.notes,
        ]
        width = max((len(c.module or c.value) for c in self.changed.values()), default=0)
        for change in self.changed.values():
            low, middle, high = change.gain
            clamped = f", {change.clamped} clamped" if change.clamped else ""
            clamped += f", {100 * change.left:.1f}% unexplained" if change.left is not None else ""
            name = (change.module or change.value).ljust(width)
            lines.append(f"  {name}  {change.kind}, gain {low:.3g} .. {middle:.3g} .. {high:.3g}{clamped}")
        for value, reason in self.skipped.items():
            lines.append(f"  {self.program.module_of(value) or value}: left, {reason}")
        return "\n".join(lines)
