"""`isthmus: {align: ...}`: how models are brought together before they are merged."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag

from isthmus.recipe.language.reference import Model
from isthmus.recipe.language.strict import Strict


class Brought(Strict):
    """How models are brought together before they are merged.

    Attributes:
        reference: the model whose units the others are brought to; by default the base, else the first.
        graph: a file that `isthmus symmetry MODEL --save` wrote; by default symmetries are read off the model.
    """

    reference: Model | None = None
    graph: str | None = None


class ByParts(Brought):
    """Weight matching of models as they stream from their files, a few layers at a time.

    Attributes:
        method: by weights alone.
        residual: "identity" leaves residual streams as they are, "match" moves them too.
        max_sweeps: as for weight matching.
    """

    method: Literal["weight-matching"] = "weight-matching"
    residual: Literal["identity", "match"] = "identity"
    max_sweeps: Annotated[int, Field(ge=1)] = 100


class Whole(Brought):
    """Any registered alignment, of models that are held whole; its own options stand beside these keys.

    Attributes:
        method: its name, as `isthmus methods alignment` lists it.
    """

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    method: str

    @property
    def options(self) -> dict[str, object]:
        """The method's own options, as they are written."""
        # What is added to an alignment by parts does not make it move what was left alone.
        kept = {"residual": ByParts().residual} if self.method == ByParts().method else {}
        return {**kept, **(self.model_extra or {})}


def _aligning(value: object) -> object:
    return {"method": value} if isinstance(value, str) else value


def _align_kind(value: object) -> str:
    if isinstance(value, Whole):
        return "#whole"
    given = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    by_parts = given.get("method", ByParts().method) == ByParts().method
    return "#parts" if by_parts and set(given) <= set(ByParts.model_fields) else "#whole"


Align = ByParts | Whole

Aligning = Annotated[
    Annotated[Annotated[ByParts, Tag("#parts")] | Annotated[Whole, Tag("#whole")], Discriminator(_align_kind)]
    | None,
    BeforeValidator(_aligning),
]
