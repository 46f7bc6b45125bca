"""The symmetries of a transformers model, from its configuration alone: no weight is read, no memory taken."""

from __future__ import annotations

import math

import torch

from isthmus.errors import ExportError, InputError, VerificationError
from isthmus.program.pretrained import Pretrained, pretrained
from isthmus.symmetry.graph import SymmetryGraph
from isthmus.symmetry.stand_in import verified_by
from isthmus.symmetry.trace import trace
from isthmus.symmetry.verify import Verification

#: A narrower model with more parameters than this is not tried: it is run in float64.
LARGEST = 60_000_000

#: How many narrower models are tried.
TRIES = 3


def symmetries_of(path: str, *, seed: int = 0) -> tuple[SymmetryGraph, Verification]:
    """Trace a model on the meta device and verify it by a narrower one of the same structure.

    Args:
        path: a folder with a `config.json`, or a name on the hub.
        seed: of the weights and elements that verification draws.

    Returns:
        The graph, with what failed verification fixed, and the verification.

    Raises:
        InputError: there is no such configuration, or no inputs follow from it.
        ExportError: the model cannot be traced.
        VerificationError: no narrower model could be verified, so nothing is known to hold.
        MissingExtraError: transformers is not installed.
    """
    found = pretrained(path)
    with torch.device("meta"):
        model, example = found.make({})
    graph = trace(model, example)
    reasons: list[str] = []
    for options in found.narrower():
        if len(reasons) == TRIES or not _fits(found, options):
            break
        small, inputs = found.make(options)
        try:
            graph, verification = verified_by(graph, None, small, inputs, seed=seed)
        except (InputError, ExportError) as error:
            reasons.append(error.where[0] if error.where else error.what)
            continue
        if not math.isnan(verification.error):
            return graph, verification
        reasons.append(verification.note)
    raise VerificationError(
        f"the symmetries of {found.title} could not be verified",
        reasons or ["no narrower model of the same structure follows from its configuration"],
        hint="isthmus symmetry hf:PATH --small KEY=VALUE --save graph.json verifies one of your choice",
    )


def _fits(found: Pretrained, options: dict[str, object]) -> bool:
    with torch.device("meta"):
        model, _ = found.make(options)
    return sum(p.numel() for p in model.parameters()) <= LARGEST
