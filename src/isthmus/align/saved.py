"""An alignment as one file: the maps of every model, and how they were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor

from isthmus import weights as files
from isthmus.align.alignment import Alignment, Cost
from isthmus.errors import InputError, MismatchError
from isthmus.maps import saved
from isthmus.symmetry import SymmetryGraph


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Cost(_Part):
    model: Annotated[int, Field(ge=0)]
    space: str
    before: float
    after: float
    unit: str


class _About(_Part):
    method: str
    reference: Annotated[int, Field(ge=0)]
    status: str
    notes: list[str]
    settings: dict[str, JsonValue]
    costs: list[_Cost]
    models: list[str]


def save(alignment: Alignment, path: str | Path) -> None:
    """Write an alignment; see `Alignment.save`."""
    about = _About(
        method=alignment.method,
        reference=alignment.reference,
        status=alignment.status,
        notes=list(alignment.notes),
        settings={
            k: v if isinstance(v, (int, float, bool)) else str(v) for k, v in alignment.settings.items()
        },
        costs=[_Cost(**cost.__dict__) for cost in alignment.costs],
        models=list(alignment.digests),
    )
    saved.save(alignment.transports, path, about.model_dump(mode="json"))


def load(path: str | Path, graph: SymmetryGraph | Sequence[SymmetryGraph]) -> Alignment:
    """Read an alignment back; see `Alignment.load`."""
    transports, about = saved.load(path, graph)
    try:
        said = _About.model_validate(about)
    except ValidationError as error:
        where = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise InputError(f"{path} does not say how its maps were found", where) from None
    if said.reference >= len(transports) or len(said.models) not in (0, len(transports)):
        raise InputError(
            f"{path} contradicts itself",
            [f"{len(transports)} models, reference {said.reference}, {len(said.models)} digests"],
        )
    return Alignment(
        said.method,
        transports[said.reference].graph,
        transports,
        said.reference,
        tuple(Cost(**cost.model_dump()) for cost in said.costs),
        said.settings,
        tuple(said.notes),
        said.status,
        tuple(said.models),
    )


def check_models(alignment: Alignment, models: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> None:
    """Refuse models that are not those that were aligned, or stand in another order.

    Args:
        alignment: with digests; one without says nothing.
        models: state dicts.
        names: what the models are called.

    Raises:
        MismatchError: the number differs, or some are others; all are listed.
    """
    if len(models) != len(alignment.transports):
        raise MismatchError(f"{len(models)} models for an alignment of {len(alignment.transports)}")
    if not alignment.digests:
        return
    places = {digest: f"aligned as model {i}" for i, digest in enumerate(alignment.digests)}
    wrong = [
        f"{name}: {places.get(own, 'not aligned')}"
        for name, own, known in zip(names, map(files.digest, models), alignment.digests, strict=True)
        if own != known
    ]
    if wrong:
        raise MismatchError(
            "these are not the models that were aligned, in that order", wrong, hint="align them again"
        )
