"""The symmetries of a transformers model, from its configuration alone: no weight is read, no memory taken."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from isthmus.errors import ExportError, InputError, VerificationError
from isthmus.program import Inputs, example_of
from isthmus.program.pretrained import Pretrained, pretrained
from isthmus.symmetry.graph import SymmetryGraph
from isthmus.symmetry.stand_in import verified_by
from isthmus.symmetry.trace import trace
from isthmus.symmetry.verify import Verification

#: A model with more parameters than this is not run: float64 copies of it are. A Llama of 70 billion, whose heads must
#: keep more than one plane to turn, needs 67 million.
LARGEST = 100_000_000


def symmetries_of(path: str, *, seed: int = 0) -> tuple[SymmetryGraph, Verification]:
    """Trace a model on the meta device and verify it by a narrower one of the same structure.

    Narrower models are tried from the narrowest on. One that no model can be (its heads do not divide its width, say)
    or that is of another structure is passed over; the last that is tried is the model itself, if it is small enough.

    Args:
        path: a folder with a `config.json`, or a name on the hub.
        seed: of the weights and elements that verification draws.

    Returns:
        The graph, with what failed verification fixed, and the verification.

    Raises:
        InputError: there is no such configuration, or no inputs follow from it.
        ExportError: the model cannot be traced.
        VerificationError: neither a narrower model nor the model itself could be verified, so nothing is known to
            hold; it says for each why.
        MissingExtraError: transformers is not installed.
    """
    found = pretrained(path)
    with torch.device("meta"):
        model, example = found.make({})
    graph = trace(model, example)
    reasons: list[str] = []
    for options in (*found.narrower(), {}):
        try:
            small, inputs = _runnable(found, options)
            graph, verification = verified_by(graph, None, small, inputs, seed=seed)
        except (InputError, ExportError) as error:
            reason = error.where[0] if error.where else error.what
            reasons.append(f"{_named(options)}: {reason.splitlines()[0]}")
            continue
        if not math.isnan(verification.error):
            return graph, verification
        reasons.append(f"{_named(options)}: {verification.note}")
    raise VerificationError(
        f"the symmetries of {found.title} could not be verified",
        reasons,
        hint="isthmus symmetry hf:PATH --small KEY=VALUE --save graph.json verifies them by a model of your choice; "
        "a recipe takes the file: align: {graph: graph.json}",
    )


def _runnable(found: Pretrained, options: Mapping[str, object]) -> tuple[nn.Module, Inputs]:
    """A model with weights and its inputs, if it can be made, is small enough and runs.

    Raises:
        InputError: it cannot, is not or does not. To export it would take seconds to say so.
    """
    with torch.device("meta"):
        model, _ = found.make(options)
    count = sum(p.numel() for p in model.parameters())
    if count > LARGEST:
        raise InputError(f"{count:,} parameters, more than the {LARGEST:,} that are run in float64")
    model, inputs = found.make(options)
    batch = example_of(inputs)
    try:
        with torch.no_grad():
            model(*batch.args, **batch.kwargs)
    except Exception as error:  # widths that do not fit each other fail in each model's own way
        raise InputError(str(error) or repr(error)) from error
    return model, inputs


def _named(options: Mapping[str, object]) -> str:
    """What tells one narrower model from another: its first width."""
    widths = (f"{key}={value}" for key, value in options.items() if not key.endswith("vocab_size"))
    return next(widths, "the model itself")
