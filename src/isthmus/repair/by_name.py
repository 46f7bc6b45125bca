"""A repair by its name: what it takes, and what of the merged models it is given."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from isthmus.errors import InputError
from isthmus.maps import Transport
from isthmus.program import Program
from isthmus.registry import Asked, hints_of, kinds, misfit, name_of, numbers
from isthmus.repair.goals import Measured
from isthmus.repair.result import Repaired
from isthmus.repair.selection import repairable
from isthmus.repair.table import REPAIRS
from isthmus.repair.targets import Models


def needs_of(asked: Asked) -> tuple[str, ...]:
    """What must be at hand for a repair, as `REPAIRS` names it; a "score" for an option that is "best".

    Raises:
        InputError: no repair is called so, it has not the options that are asked for, or they take other values.
    """
    method = REPAIRS.get(name_of(asked))
    given = _given(asked)
    method.check_options(given)
    hints = hints_of(method.function)
    told = [misfit(name, value, kinds(hints[name])) for name, value in given.items()]
    wrong = [said for said in told if said is not None]
    if wrong:
        raise InputError(f"options of {method.name} take other values", wrong)
    chosen = any(isinstance(value, str) and value == "best" for value in given.values())
    return (*method.needs, "score") if chosen else method.needs


#: What of `needs_of` is measured on the models or taken from them.
OF_MODELS = frozenset({"goals", "models", "parents", "terms"})


def _given(asked: Asked) -> dict[str, Any]:
    """The options that are asked for, whole numbers as what they stand for."""
    if isinstance(asked, str):
        return {}
    return numbers(REPAIRS.get(name_of(asked)).function, {k: v for k, v in asked.items() if k != "method"})


def apply(
    parent: Program,
    program: Program,
    weights: Mapping[str, Tensor],
    parents: Sequence[Mapping[str, Tensor]],
    shares: Sequence[float],
    asked: Asked,
    data: Iterable[object] = (),
    *,
    transports: Sequence[Transport] | None = None,
    terms: Sequence[Mapping[str, Tensor]] | None = None,
    score: Callable[[Program, Mapping[str, Tensor]], float] | None = None,
    measured: Measured | None = None,
) -> tuple[Repaired, dict[str, object]]:
    """Repair a merged model as asked; where the repair has goals, they are measured on the merged models first.

    Args:
        parent: the program of one model.
        program: of the merged model; the same, or one in which parts are kept apart.
        weights: of the merged model.
        parents: the models, in common coordinates.
        shares: how much each counts in the merged model, with sum 1.
        asked: which repair.
        data: calibration data, to be read more than once; for repairs that need it.
        transports: where units are mixed; see `goals`.
        terms: where units are mixed, what the merged model is the weighted sum of; otherwise it is that of `parents`.
        score: of a program with weights, higher is better, on validation data; for options that are "best".
        measured: the goals of these models on these data, to be handed from repair to repair.

    Returns:
        The repaired model, and every option that was used, defaults included.

    Raises:
        InputError, DataError, MismatchError: as the repair.
    """
    method = REPAIRS.get(name_of(asked))
    used = {**method.options, **_given(asked)}
    given: dict[str, Any] = dict(used)
    if "goals" in method.needs:
        # Parents are measured on the examples that the merged model is, and where it is.
        measured = measured or Measured(parent, parents, shares, data, transports)
        given["goals"] = measured(
            # Where nothing but outputs is merged there is nothing to repair, and the result will say so.
            [v for v in repairable(program, given.get("layers", "all")) if v in parent.nodes] or None,
            device=given.get("device"),
            limit=given.get("limit"),
            reads=given.get("mode") == "closed-form",
        )
    if "models" in method.needs:
        moved = None if transports is None else tuple(transports)
        given["models"] = Models(parent, tuple(parents), tuple(shares), moved)
    if "parents" in method.needs:
        given["parents"] = parents
    if "terms" in method.needs:
        given["terms"] = parents if terms is None else terms
    if {"parents", "terms"} & {*method.needs}:
        given["shares"] = shares
    if "score" in needs_of(asked) and score is not None:
        given["score"] = functools.partial(score, program)
    repaired = method.function(program, weights, *([data] if "data" in method.needs else []), **given)
    used |= repaired.settings
    if repaired.mode != "none":
        used |= {"examples": repaired.examples, "batch_size": repaired.batch_size}
    return repaired, used
