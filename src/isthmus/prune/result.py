"""What pruning made: weights, the mask, and what was done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jaxtyping import Bool
from torch import Tensor

from isthmus import weights as files
from isthmus.errors import InputError
from isthmus.measure import Finding, reusable, score
from isthmus.measure.score import Metric
from isthmus.program import Program, ProgramModule
from isthmus.prune.masks import masked, save_mask
from isthmus.registry import Asked
from isthmus.repair import Repaired
from isthmus.repair.by_name import apply, needs_of
from isthmus.repair.choosing import Trial, choose, wanted


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
        repaired: what was repaired; None where nothing was asked for, or nothing that was tried helped.
        refilled: pruned elements that the repair had filled, and that were made zero again.
        trials: the repairs that were tried on validation data, with their scores; none without any.
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
    trials: tuple[Trial, ...] = ()

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

    def repair(
        self,
        how: Asked | Sequence[Asked],
        data: Iterable[object] = (),
        *,
        validation: Iterable[object] | None = None,
        metric: str | Metric = "accuracy",
    ) -> Pruned:
        """Repair what pruning left, with the unpruned model as the reference; pruned weights stay zero.

        Args:
            how: a repair's name, or `{"method": ..., option: ...}`; several of these, or "best" for all that there are.
            data: calibration data, an iterable of inputs or (inputs, targets) that can be read again.
            validation: (inputs, targets) held out of `data` and of the test split. With it a repair is kept only where
                it scores better than none, and the best of several.
            metric: what they are chosen by; see `isthmus.score`.

        Raises:
            InputError: options that do not fit, or that ask for new parameters; several repairs without validation.
            DataError: data that is missing, empty, or does not fit.
        """
        asked = wanted(how)
        check_chosen(asked, validation)

        def scored(program: Program, weights: Mapping[str, Tensor]) -> float:
            assert validation is not None
            return score(program, validation, metric)(self._masked(weights))

        def done(one: Asked) -> tuple[Repaired, dict[str, object]]:
            found, used = apply(
                self.program, self.program, self.unrepaired, [self.original], [1.0], one, data, score=scored
            )
            if found.new_parameters:
                raise InputError(
                    "a pruned model takes no parameters of its own", hint="leave out allow_new_parameters"
                )
            return found, used

        settings = {k: v for k, v in self.settings.items() if k not in ("repairs tried", "metric")}
        trials: tuple[Trial, ...] = ()
        kept: Asked | None = asked[0]
        if validation is None:
            found, used = done(asked[0])
        else:
            choice = choose(self.program, self.unrepaired, asked, done, scored, unfit=how == "best")
            found, kept, used, trials = choice.repaired, choice.asked, dict(choice.used), choice.trials
            settings["repairs tried"] = [str(trial) for trial in trials]
            settings["metric"] = metric if isinstance(metric, str) else getattr(metric, "__name__", "given")
        after = self.unrepaired if found is None else found.weights
        return replace(
            self,
            weights=self._masked(after),
            settings={**settings, "repair": kept, "repair options": used},
            repaired=found,
            refilled=sum(int(((after[key] != 0) & ~keep).sum()) for key, keep in self.mask.items()),
            trials=trials,
        )

    def _masked(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights with zeros where the mask is false, under every name that they have."""
        same = {key: self.mask.get(self.program.tied.get(key, key)) for key in weights}
        return masked(weights, {key: keep for key, keep in same.items() if keep is not None})

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
        if self.trials:
            said = "" if self.repaired is not None else "; none is better, so that nothing was repaired"
            lines.append(f"{self.settings['metric']} on validation: {', '.join(map(str, self.trials))}{said}")
        if self.repaired is not None:
            lines.append(str(self.repaired))
        if self.refilled:
            lines.append(f"{self.refilled} pruned weights that the repair had filled are zeros again")
        return "\n".join(lines)


def check_chosen(repairs: Sequence[Asked], validation: Iterable[object] | None) -> None:
    """Refuse no repair, and repairs that have to be chosen without validation data.

    Raises:
        InputError: as said.
    """
    if not repairs:
        raise InputError("no repair is named")
    if validation is None and (len(repairs) > 1 or "score" in needs_of(repairs[0])):
        raise InputError("what is best is chosen on validation data, and there is none", hint="validation=")
    if validation is not None:
        reusable(validation)
