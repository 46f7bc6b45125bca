"""Quantities layer by layer: what is plotted of a network's depth, each with one line on how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from isthmus.report.record import Number, Record

if TYPE_CHECKING:  # this room imports no torch before it is needed
    from isthmus.repair import Repaired

#: What a merged or a pruned network is compared with: the parents' mean, or what it was.
Beside = Literal["parents", "unpruned"]

# How the reference line is named, and whose the healthy value is.
_NAMED = {
    "parents": ("parents’ mean", "the parents’"),
    "unpruned": ("as it was", "the unpruned model’s"),
}


class Series(Record):
    """One named line of a profile: a value per layer."""

    name: str
    values: list[Number | None]


def _lines(values: Mapping[str, Sequence[float | None]]) -> list[Series]:
    return [Series(name=name, values=list(each)) for name, each in values.items()]


class Profile(Record):
    """One quantity at every layer, for several models, in order of execution."""

    name: str
    quantity: str  # the axis, with its unit
    layers: list[str]
    series: list[Series]
    reference: Number | None = None  # where the healthy value lies
    reference_name: str = ""
    scale: Literal["linear", "log"] = "linear"
    read: str = ""  # one line: how to read it
    note: str = ""  # how it was measured

    @model_validator(mode="after")
    def _aligned(self) -> Profile:
        for series in self.series:
            if len(series.values) != len(self.layers):
                raise ValueError(
                    f"profile {self.name!r} has {len(self.layers)} layers, "
                    f"but series {series.name!r} has {len(series.values)} values"
                )
        return self

    @classmethod
    def vanishing(
        cls,
        layers: Sequence[str],
        series: Mapping[str, Sequence[float | None]],
        *,
        note: str = "",
        beside: Beside = "parents",
    ) -> Profile:
        """Vanishing features: how much of its response to the input a model keeps at each layer.

        Args:
            layers: names, in order of execution.
            series: for each model, ||f(x) - f(0)|| at each layer over the parents' mean of it.
            note: how it was measured (split, number of examples).
            beside: what it is compared with.

        Source: the definition in "Vanishing feature", E_l; unsmoothed.
        """
        name, whose = _NAMED[beside]
        return cls(
            name="Vanishing features",
            quantity=f"response to the input (ratio to {beside})",
            layers=list(layers),
            series=_lines(series),
            reference=1.0,
            reference_name=name,
            read=f"1 is a layer as responsive as {whose}; a line that sinks towards 0 tells its inputs "
            "apart less and less, and what is lost early does not come back.",
            note=note,
        )

    @classmethod
    def variance(
        cls,
        layers: Sequence[str],
        series: Mapping[str, Sequence[float | None]],
        *,
        note: str = "",
        beside: Beside = "parents",
    ) -> Profile:
        """Variance ratio: the standard deviation of the activations over the parents' mean of it, at each layer.

        The axis is logarithmic where a layer falls below a tenth.

        Args:
            layers: names, in order of execution.
            series: for each model, the ratio at each layer.
            note: how it was measured (split, number of examples, before or after the nonlinearity).
            beside: what it is compared with.

        Source: variance collapse, Jordan et al. 2023 (arXiv:2211.08403); the mean over a layer's channels.
        """
        positive = [v for values in series.values() for v in values if v is not None and v > 0]
        name, whose = _NAMED[beside]
        return cls(
            name="Variance ratio",
            quantity=f"standard deviation (ratio to {beside})",
            layers=list(layers),
            series=_lines(series),
            reference=1.0,
            reference_name=name,
            scale="log" if min(positive, default=1.0) < 0.1 else "linear",
            read=f"1 is {whose} spread of activations; far below it the activations have collapsed, which repair "
            "(REPAIR, RESCALE, RESET) is there to undo.",
            note=note,
        )

    @classmethod
    def kept(
        cls, spaces: Sequence[str], series: Mapping[str, Sequence[float | None]], *, note: str = ""
    ) -> Profile:
        """Information kept: how much of what the parents' units tell can be read back from the merged ones.

        Args:
            spaces: names, in order of execution.
            series: the alignment's share in each space, and the best that any map to as many units reaches.
            note: how it was measured (number of examples).

        Source: `isthmus.measure.kept`; the bound is the theorem of Eckart and Young.
        """
        return cls(
            name="Information kept",
            quantity="share of the parents’ variance",
            layers=list(spaces),
            series=_lines(series),
            reference=1.0,
            reference_name="all of it",
            read="The gap to the bound is what another alignment could win; what the bound lacks is lost to every map "
            "to as few units, unless these layers are kept apart.",
            note=note,
        )

    @classmethod
    def sparsity(cls, layers: Mapping[str, float], overall: float, *, note: str = "") -> Profile:
        """Sparsity: how much of each layer was pruned.

        Args:
            layers: name -> share of its weights that are zero (0 to 1), in order of execution.
            overall: the same of all of them together.
            note: what was left out.
        """
        return cls(
            name="Sparsity",
            quantity="weights that were pruned (%)",
            layers=list(layers),
            series=[Series(name="pruned", values=[100 * share for share in layers.values()])],
            reference=100 * overall,
            reference_name="all layers",
            read="the higher, the more of a layer is gone; a scope of the whole network spares layers whose weights "
            "matter, and may empty others.",
            note=note,
        )

    @classmethod
    def gains(cls, repaired: Repaired, name: str) -> Profile:
        """What a repair did: by how much it multiplied the channels of each layer.

        The axis is logarithmic where gains are positive and differ by more than ten times.

        Args:
            repaired: with at least one layer changed.
            name: of what was repaired.
        """
        gains = [change.gain for change in repaired.changed.values()]
        least, most = min(gain[0] for gain in gains), max(gain[2] for gain in gains)
        data = f" on {repaired.examples:,} examples" if repaired.mode != "none" else ", from weights alone"
        return cls(
            name="What the repair did",
            quantity="factor of a channel",
            layers=[change.module or value for value, change in repaired.changed.items()],
            series=[
                Series(name=named, values=[gain[index] for gain in gains])
                for index, named in enumerate(("smallest factor", "median factor", "largest factor"))
            ],
            reference=1.0,
            reference_name="unchanged",
            scale="log" if 0 < 10 * least < most else "linear",
            read="1 leaves a channel as it is; the further above, the more of its signal was gone and was given back. "
            "Lines far apart are channels that were hurt unequally.",
            note=f"{name}{data}; factors clamped: {repaired.clamped}, layers left: {len(repaired.skipped)}.",
        )
