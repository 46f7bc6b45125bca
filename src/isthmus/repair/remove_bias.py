"""Bias removal: the biases of the last layers, the first or all, set to zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.features import placed
from isthmus.program import Program
from isthmus.repair.affine import from_weights
from isthmus.repair.result import Change, Repaired
from isthmus.repair.table import REPAIRS
from isthmus.repair.writers import biases, kept_apart, levels, statistics_of

#: How many layers: a number, "all", or "best" for the number that scores best on validation data.
Count = int | Literal["all", "best"]


@REPAIRS.register(
    "remove-bias",
    claims=("idempotent", "seeded"),
    costs="nothing; with last='best' a score per choice",
    source="Qu and Horváth 2025 (arXiv:2402.05966)",
)
def remove_bias(
    program: Program,
    weights: Mapping[str, Tensor],
    *,
    last: Count = "all",
    first: Count = 0,
    score: Callable[[Mapping[str, Tensor]], float] | None = None,
) -> Repaired:
    """Set the biases of the last layers, or of the first, to zero.

    Where what the input induces has faded on the way, what is left of it in deep layers is drowned by biases,
    which are new in every layer. The first layers still see the input, and removing theirs hurts.

    Args:
        program: of the merged model; what is kept apart keeps its biases.
        weights: its state dict; it is not changed.
        last: of how many layers, counted from the output, the logits' being the first. Layers are counted by depth, as
            `preserve_last` counts them: two that are equally far from the input are one.
        first: of how many, counted from the input; `last` is then not to be given.
        score: a function of weights, higher is better, on validation data; for "best", which tries every number from 0
            and takes the smallest of those that score best.

    Returns:
        The new weights, and what was done; `settings` says how many layers "best" was, and `notes` every score.

    Raises:
        InputError: both ends, more layers than there are, or "best" without a score.
        MismatchError: weights that do not fit the program.

    Source: Qu and Horváth 2025 (arXiv:2402.05966), section 5.3 and appendix A.6.1, who find 5 or 6 of the 14 layers of
        VGG16 best, by the test curve. A bias right in front of a batch norm has no effect beside the norm's running
        mean, and is left; biases of norms themselves are left too (theirs is a network without norms).
    """
    end, count = ("last", last) if first == 0 else ("first", first)
    numbers = levels(program)
    depth = max(numbers.values(), default=0)
    wrong = [f"last={last!r} and first={first!r}: one of them"] if first != 0 and last != "all" else []
    if isinstance(count, int) and not 0 <= count <= depth:
        wrong.append(f"{end}={count}, the model has {depth} layers")
    if count == "best" and score is None:
        wrong.append(f'{end}="best" is chosen on validation data, and there is no score')
    if wrong:
        raise InputError("biases cannot be removed so", wrong, hint="see isthmus.repair.remove_bias")
    removable, skipped = _removable(program)
    # How many layers have to be taken until a bias is among them.
    reach = {value: depth + 1 - numbers[value] if end == "last" else numbers[value] for value in removable}
    work = placed(program, weights, None)
    notes: tuple[str, ...] = ()
    if count == "best":
        assert score is not None
        scores: dict[int, float] = {}
        for number in sorted({0, *reach.values()}):
            zeros = {
                removable[v]: torch.zeros_like(work[removable[v]]) for v, r in reach.items() if r <= number
            }
            scores[number] = score({**weights, **zeros})
        count = max(scores, key=lambda number: (scores[number], -number))
        listed = ", ".join(f"{number}: {value:.4g}" for number, value in scores.items())
        notes = (f"score by the number of {end} layers without biases: {listed}",)
    number = depth if count == "all" else count
    changes: list[Change] = []
    for value, key in removable.items():
        if reach[value] > number:
            continue
        work[key] = torch.zeros_like(work[key])
        changes.append(Change(value, program.module_of(value), "bias", (0.0, 0.0, 0.0), 0, (key,)))
    return from_weights(
        "remove-bias", program, weights, work, changes, skipped, notes=notes, settings={end: number}
    )


def _removable(program: Program) -> tuple[dict[str, str], dict[str, str]]:
    """Layer -> key of its bias, and the layers whose biases stay, with the reason."""
    found = biases(program)
    skipped: dict[str, str] = {}
    for value in found:
        readers = list(program.nodes[value].users)
        if kept_apart(value):
            skipped[value] = "it is kept apart, not merged"
        elif len(readers) == 1 and statistics_of(program, readers[0]) is not None:
            skipped[value] = "the batch norm behind it takes its bias off"
    return {value: key for value, key in found.items() if value not in skipped}, skipped
