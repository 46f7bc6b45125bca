"""What pruning made: weights, the mask, and what was done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from jaxtyping import Bool
from torch import Tensor

from isthmus import weights as files
from isthmus.errors import InputError
from isthmus.measure import Finding
from isthmus.program import Program, ProgramModule
from isthmus.prune.masks import masked, save_mask
from isthmus.registry import Asked
from isthmus.repair import Repaired
from isthmus.repair.by_name import apply


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned model.

    Attributes:
        weights: the state dict, repaired where that was asked for; zero where the mask is false. It loads strictly in
            the user's own class.
        original: the state dict before it was pruned.
        unrepaired: the state dict as pruning left it.
        mask: weight -> which of its elements stay.
        program: the graph.
        labels: weight -> the module that it is of.
        left: weight -> why it was not pruned.
        settings: how it was pruned and repaired.
        notes: what was seen of the data.
        repaired: what was repaired; None where nothing was asked for.
        refilled: pruned elements that the repair had filled, and that were made zero again.
    """

    weights: dict[str, Tensor]
    original: dict[str, Tensor]
    unrepaired: dict[str, Tensor]
    mask: dict[str, Bool[Tensor, "..."]]
    program: Program
    labels: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    notes: Mapping[str, object] = field(default_factory=dict)
    repaired: Repaired | None = None
    refilled: int = 0

    @property
    def sparsity(self) -> float:
        """Share of the weights of all pruned layers that the mask prunes, 0 to 1."""
        total = sum(keep.numel() for keep in self.mask.values())
        return sum(int((~keep).sum()) for keep in self.mask.values()) / total

    @property
    def by_layer(self) -> dict[str, float]:
        """Weight -> share of it that the mask prunes, 0 to 1."""
        return {key: int((~keep).sum()) / keep.numel() for key, keep in self.mask.items()}

    @property
    def stages(self) -> dict[str, dict[str, Tensor]]:
        """The state dicts "as it was", "pruned", and "repaired" where a repair was asked for."""
        found = {"as it was": self.original, "pruned": self.unrepaired}
        return found if self.repaired is None else {**found, "repaired": self.weights}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The sparsity, and that of every layer, in per cent."""
        layers = {self.labels.get(key) or key: 100 * share for key, share in self.by_layer.items()}
        parameters = sum(keep.numel() for keep in self.mask.values())
        note = f"share of zeros among {parameters} weights of {len(self.mask)} layers"
        return (Finding("sparsity", 100 * self.sparsity, "%", None, (0.0, 100.0), layers, note),)

    def repair(self, how: Asked, data: Iterable[object] = ()) -> Pruned:
        """Repair what pruning left, with the unpruned model as the reference; pruned weights stay zero.

        Args:
            how: a repair's name, or `{"method": ..., option: ...}`.
            data: calibration data, an iterable of inputs or (inputs, targets) that can be read again.

        Raises:
            InputError: options that do not fit, or that ask for new parameters.
            DataError: data that is missing, empty, or does not fit.
        """
        found, used = apply(self.program, self.program, self.unrepaired, [self.original], [1.0], how, data)
        if found.new_parameters:
            raise InputError(
                "a pruned model takes no parameters of its own", hint="leave out allow_new_parameters"
            )
        same = {key: self.mask.get(self.program.tied.get(key, key)) for key in found.weights}
        return replace(
            self,
            weights=masked(found.weights, {key: keep for key, keep in same.items() if keep is not None}),
            settings={**self.settings, "repair": how, "repair options": used},
            repaired=found,
            refilled=sum(int(((found.weights[key] != 0) & ~keep).sum()) for key, keep in self.mask.items()),
        )

    def module(self) -> ProgramModule:
        """The pruned model as an `nn.Module`."""
        return ProgramModule(self.program, self.weights)

    def save(self, path: str | Path) -> Path:
        """Write the weights as safetensors, whole or not at all, with the settings in the header.

        Raises:
            WeightsError: the file cannot be written.
        """
        path = Path(path)
        said = json.dumps(dict(self.settings), sort_keys=True, default=str)
        files.save(self.weights, path, {"isthmus.prune": said})
        return path

    def save_mask(self, path: str | Path) -> Path:
        """Write the mask; see `isthmus.prune.save_mask`."""
        return save_mask(self.mask, path, self.settings)

    def __str__(self) -> str:
        method = self.settings.get("method") or "a given mask"
        total = sum(keep.numel() for keep in self.mask.values())
        lines = [
            f"pruned by {method}: {100 * self.sparsity:.4g}% of {total} weights in {len(self.mask)} layers"
        ]
        names = {key: self.labels.get(key) or key for key in self.mask}
        width = max(map(len, names.values()))
        lines += [f"  {names[key]:<{width}}  {100 * share:6.2f}%" for key, share in self.by_layer.items()]
        lines += [f"  not pruned: {key}, {why}" for key, why in self.left.items()]
        if self.repaired is not None:
            lines.append(str(self.repaired))
        if self.refilled:
            lines.append(f"{self.refilled} pruned weights that the repair had filled are zeros again")
        return "\n".join(lines)
