"""What a merge, or a pruning, came to, as one frozen value: the schema of `results.json` and the input of the page.

Accuracies are fractions in [0, 1]; losses are in nats; a ratio is to one parent. A number that was
*not measured* is None, and shows as a dash. A number that was measured and is *not finite* is kept
as it is, shows as "n/a", and is counted on the page: a diverged loss is a result.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from isthmus.errors import InputError
from isthmus.report.profiles import Profile
from isthmus.report.record import Fraction, Number, Positive, Record
from isthmus.report.write import write_text

Count = Annotated[int, Field(ge=0)]
Kind = Literal["edge", "ensemble", "merged", "kept-apart", "pruned"]
Scalar = str | int | float | bool | None


class Published(Record):
    """The number somebody else reported for the same thing."""

    accuracy: Fraction
    spread: Positive | None = None  # in the unit of accuracy
    source: str = ""  # "Table 1 of ..."


class Row(Record):
    """One way to make one model of several: a line of the main table.

    `edge` is a parent, `ensemble` the mean of the parents' logits, `merged` a network of one
    parent's size, `kept-apart` one that keeps a part of each parent (preserve-first). `pruned` is what
    pruning left of the one parent; its parameters are those that are not zero.
    """

    name: str
    kind: Kind = "merged"
    accuracy: Fraction | None = None
    accuracy_spread: Positive | None = None  # standard deviation over pairs, where there are several
    validation: Fraction | None = None  # accuracy on the split that choices are made on
    loss: Number | None = None
    parameters: Positive | None = None  # ratio to one parent
    flops: Positive | None = None  # ratio to one parent
    published: Published | None = None
    note: str = ""


class Curve(Record):
    """Accuracy and loss along a path from the first parent (t = 0) to the second (t = 1).

    Either list may be empty, where it was not measured. The barriers are the measure's own:
    the drop of accuracy (a fraction) and the rise of loss against the ends.
    """

    name: str
    t: list[Number]
    accuracy: list[Fraction | None] = Field(default_factory=list)
    loss: list[Number | None] = Field(default_factory=list)
    accuracy_barrier: Number | None = None
    loss_barrier: Number | None = None

    @model_validator(mode="after")
    def _aligned(self) -> Curve:
        for quantity in ("accuracy", "loss"):
            values: list[float | None] = getattr(self, quantity)
            if values and len(values) != len(self.t):
                raise ValueError(f"curve {self.name!r} has {len(self.t)} t but {len(values)} {quantity}")
        if any(not math.isfinite(t) for t in self.t) or self.t != sorted(self.t):
            raise ValueError(f"the t of curve {self.name!r} are not finite and ascending")
        return self


def _image(value: str) -> str:
    try:
        content = base64.b64decode(value, validate=True)
    except ValueError as error:
        raise ValueError("a picture is not in base64") from error
    if not content.startswith(b"\x89PNG"):
        raise ValueError("a picture is no PNG file")
    return value


class Pictures(Record):
    """One model's units as pictures."""

    name: str
    images: list[Annotated[str, AfterValidator(_image)]]  # PNG files, in base64
    cosine: Number | None = None  # with what the panel says


class Panel(Record):
    """Units of a first layer as pictures: the same units of several models, a row for each."""

    name: str
    width: Count  # of a picture, in pixels
    height: Count
    rows: list[Pictures]
    read: str = ""  # one line: how to read it
    note: str = ""


class Verification(Record):
    """Whether moving the symmetries leaves the function alone, and which were not tried."""

    error: Number  # relative, of the output
    bound: Number
    spaces: Count  # how many were moved, each alone and all together
    moved: Fraction | None = None  # share of the parameters that lie in a moved axis
    unobservable: list[str] = Field(default_factory=list)
    frozen: list[str] = Field(default_factory=list)
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is a number, and within the bound."""
        return math.isfinite(self.error) and self.error <= self.bound


class SpaceCost(Record):
    """What aligning one space did to its cost."""

    space: str
    size: Count
    before: Number | None
    after: Number | None


class Alignment(Record):
    """How the models were brought together, space by space."""

    method: str
    cost: str = "cost"  # what the number is, in words
    better: Literal["lower", "higher"] = "lower"
    spaces: list[SpaceCost] = Field(default_factory=list)
    note: str = ""


class Setting(Record):
    """One setting of the run; `default` where nobody asked for it."""

    name: str
    value: Scalar | list[Scalar]
    default: bool = True


class Provenance(Record):
    """Where the numbers come from: enough to make them again."""

    isthmus: str
    torch: str
    python: str = ""
    device: str = ""
    created: str = ""  # ISO 8601, written by the caller: the same run gives the same bytes
    command: str = ""
    seeds: dict[str, int] = Field(default_factory=dict)
    splits: dict[str, Count] = Field(default_factory=dict)  # examples per split
    evaluated: str = ""  # the split that the main table was measured on
    chance: Fraction | None = None  # accuracy of guessing
    checkpoints: dict[str, str] = Field(default_factory=dict)  # name -> file or digest


class Results(Record):
    """Everything that one merge, with its comparisons, or one pruning came to."""

    format: Literal["isthmus-results/1"] = "isthmus-results/1"
    title: str
    verdict: str  # one sentence
    rows: list[Row] = Field(default_factory=list)
    curves: list[Curve] = Field(default_factory=list)
    profiles: list[Profile] = Field(default_factory=list)
    panels: list[Panel] = Field(default_factory=list)
    verification: Verification | None = None
    alignment: Alignment | None = None
    settings: list[Setting] = Field(default_factory=list)
    provenance: Provenance

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write `results.json`, whole or not at all.

        Non-finite numbers are the strings "NaN", "Infinity" and "-Infinity": JSON has no others.
        """
        return write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Results:
        """Read what `to_json` wrote.

        Raises:
            InputError: there is no such file, or it is not a results file; every problem is named.
        """
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        except ValidationError as error:
            where = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
            raise InputError(f"{path} is not a results file", where) from error

    def parents(self, quantity: Literal["accuracy", "loss"]) -> float | None:
        """The mean of a quantity over the parents; None unless each has a finite one."""
        values = [getattr(row, quantity) for row in self.rows if row.kind == "edge"]
        if not values or any(v is None or not math.isfinite(v) for v in values):
            return None
        mean = sum(values) / len(values)
        return mean if math.isfinite(mean) else None

    @property
    def pruning(self) -> bool:
        """Whether the rows are of one model, before and after it was pruned."""
        return any(row.kind == "pruned" for row in self.rows)

    def near_chance(self, row: Row) -> bool:
        """Whether a row's accuracy is less than a tenth of the way from chance to the parents' mean."""
        chance, parents = self.provenance.chance, self.parents("accuracy")
        if row.accuracy is None or chance is None or parents is None or parents <= chance:
            return False
        return row.accuracy < chance + 0.1 * (parents - chance)

    def not_finite(self) -> list[str]:
        """Where numbers were measured that are not finite: "rows / direct average / loss"."""
        return list(_not_finite(self.model_dump(exclude={"settings"}), ()))


def _not_finite(value: object, at: tuple[str, ...]) -> Iterator[str]:
    if _broken(value):
        yield " / ".join(at)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, (*at, str(key)))
    elif isinstance(value, list) and any(map(_broken, value)):
        yield f"{' / '.join(at)} ({sum(map(_broken, value))} of {len(value)})"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            named = item.get("name") or item.get("space") if isinstance(item, dict) else None
            yield from _not_finite(item, (*at, str(named or index)))


def _broken(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
