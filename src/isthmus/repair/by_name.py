"""A repair by its name: what it takes, and what of the merged models it is given."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from isthmus.errors import InputError
from isthmus.maps import Transport
from isthmus.program import Program
from isthmus.repair.goals import goals
from isthmus.repair.result import Repaired
from isthmus.repair.selection import repairable
from isthmus.repair.table import REPAIRS

#: How a repair is asked for: its name, or {"method": name, option: value}.
Asked = str | Mapping[str, object]

# Arguments that are no options: whoever merges has them.
_SUPPLIED = ("goals", "data", "reference", "weights")


def needs_of(asked: Asked) -> tuple[str, ...]:
    """What must be at hand for a repair: "data", "goals".

    Raises:
        InputError: no repair is called so, it has not the options that are asked for, or they take other values.
    """
    method = REPAIRS.get(_name(asked))
    known, given = options_of(asked), _given(asked)
    if unknown := [name for name in given if name not in known]:
        raise InputError(
            f"{method.name} has no option {', '.join(map(repr, unknown))}",
            hint=f"it takes {', '.join(known) or 'none'}",
        )
    hints = get_type_hints(method.function)
    wrong = [said for name, value in given.items() if (said := _wrong(name, value, hints[name])) is not None]
    if wrong:
        raise InputError(f"options of {method.name} take other values", wrong)
    return method.needs


def _wrong(name: str, value: object, hint: object) -> str | None:
    """Why an option of a plain kind cannot have a value; of other kinds the repair says it."""
    if get_origin(hint) is Literal and value not in get_args(hint):
        return f"{name} is {value!r}: it is one of {', '.join(map(str, get_args(hint)))}"
    if hint is bool and not isinstance(value, bool):
        return f"{name} is {value!r}, neither true nor false"
    if hint is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        return f"{name} is {value!r}, not a number"
    if hint == (int | None) and value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        return f"{name} is {value!r}, not a whole number"
    return None


def _given(asked: Asked) -> dict[str, Any]:
    """The options that are asked for, whole numbers as what they stand for."""
    if isinstance(asked, str):
        return {}
    known = options_of(asked)
    return {
        name: float(value) if isinstance(known.get(name), float) and type(value) is int else value
        for name, value in asked.items()
        if name != "method"
    }


def options_of(asked: Asked) -> dict[str, Any]:
    """Every option of a repair with its default.

    Raises:
        InputError: no repair is called so.
    """
    return {
        name: parameter.default
        for name, parameter in inspect.signature(REPAIRS.get(_name(asked)).function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in _SUPPLIED
    }


def apply(
    parent: Program,
    program: Program,
    weights: Mapping[str, Tensor],
    parents: Sequence[Mapping[str, Tensor]],
    shares: Sequence[float],
    asked: Asked,
    data: Iterable[object],
    *,
    transports: Sequence[Transport] | None = None,
) -> tuple[Repaired, dict[str, object]]:
    """Repair a merged model as asked; where the repair has goals, they are measured on the merged models first.

    Args:
        parent: the program of one model.
        program: of the merged model; the same, or one in which parts are kept apart.
        weights: of the merged model.
        parents: the models, in common coordinates.
        shares: how much each counts in the merged model, with sum 1.
        asked: which repair.
        data: calibration data, to be read more than once.
        transports: where units are mixed; see `goals`.

    Returns:
        The repaired model, and every option that was used, defaults included.

    Raises:
        InputError, DataError, MismatchError: as the repair.
    """
    method = REPAIRS.get(_name(asked))
    used = {**options_of(asked), **_given(asked)}
    given: dict[str, Any] = dict(used)
    if "goals" in method.needs:
        # Parents are measured on the examples that the merged model is, and where it is.
        given["goals"] = goals(
            parent,
            parents,
            shares,
            data,
            # Where nothing but outputs is merged there is nothing to repair, and the result will say so.
            [v for v in repairable(program, given.get("layers", "all")) if v in parent.nodes] or None,
            device=given.get("device"),
            limit=given.get("limit"),
            transports=transports,
        )
    repaired = method.function(program, weights, data, **given)
    return repaired, {**used, "examples": repaired.examples, "batch_size": repaired.batch_size}


def _name(asked: Asked) -> str:
    return asked if isinstance(asked, str) else str(asked.get("method", ""))
