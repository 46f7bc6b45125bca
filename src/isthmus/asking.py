"""What is asked of a merge, in one of several ways; what is wrong with it is said before anything is read or run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from isthmus.align import ALIGNMENTS, Alignment
from isthmus.errors import InputError
from isthmus.measure import reusable
from isthmus.measure.score import Metric
from isthmus.program import Cut
from isthmus.registry import Asked, name_of
from isthmus.repair.by_name import needs_of

#: How models are brought together: a method, an alignment made before or the file of one, or not at all.
Aligning = str | Mapping[str, object] | Alignment | Path | None

#: How a merge is repaired: one repair, several to choose from, or none.
Repairing = Asked | Sequence[Asked] | None


def rule_of(
    combine: str | Mapping[str, object] | None, method: str, options: Mapping[str, object]
) -> tuple[str, dict[str, object]]:
    """The rule and its options, said in one of two ways.

    Raises:
        InputError: said in both ways, or no rule named.
    """
    if combine is None:
        return method, dict(options)
    given: dict[str, object] = {"method": combine} if isinstance(combine, str) else dict(combine)
    name = given.pop("method", None)
    problems = [f"method={method!r} beside it"] if method != "average" else []
    problems += [f"the option {option!r} beside it" for option in options]
    problems += [] if isinstance(name, str) else ["no method in it"]
    if problems:
        raise InputError(
            "combine= says how to combine, and so does something else"
            if isinstance(name, str)
            else "combine= does not say how to combine",
            problems,
            hint='combine={"method": "ties", "density": 0.3}, or method="ties", density=0.3',
        )
    return str(name), given


def shares_of(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """What part of the merge each model is, where a rule's weights are not parts of one: for goals of repair."""
    values = tuple(map(float, weights or ()))
    if not values or min(values) < 0 or sum(values) <= 0:
        values = (1.0,) * count
    return values if abs(sum(values) - 1) <= 1e-6 else tuple(v / sum(values) for v in values)


def told(align: Aligning) -> object:
    """How models are aligned, as a setting says it: a score is a function, and has no place in a file."""
    if isinstance(align, Alignment):
        return align.method
    if isinstance(align, Mapping):
        return {name: value for name, value in align.items() if name != "score"}
    return str(align) if isinstance(align, Path) else align


def check(
    method: str,
    align: Aligning,
    repair: Repairing,
    repairs: Sequence[Asked],
    data: Iterable[object] | None,
    validation: Iterable[object] | None,
    metric: str | Metric,
    cut: Cut,
) -> None:
    """Say what is wrong with the call before anything is read or run."""
    if cut.outputs == "each" and not cut:
        raise InputError(
            "every model's outputs are asked for, and nothing is kept apart",
            hint="preserve_last=1 (--preserve-last 1), or the modules of the heads",
        )
    if cut.outputs == "each" and validation is not None and isinstance(metric, str):
        raise InputError(
            f"repairs cannot be chosen by {metric} where every model's outputs are kept",
            hint="pass metric=, a function of all outputs and the targets; or one repair, and no validation=",
        )
    if cut and method != "average":
        raise InputError(f"what is kept apart meets by weighted average, not by {method!r}")
    if data is not None:
        reusable(data)
    needs: dict[str, tuple[str, ...]] = {}
    if align is not None and not isinstance(align, (Alignment, Path)):
        chosen = ALIGNMENTS.get(name_of(align))
        needs[chosen.name] = chosen.needs
        own = ("method", "reference", "score")
        chosen.check_options([] if isinstance(align, str) else [name for name in align if name not in own])
    for how in repairs:
        needs[name_of(how)] = needs_of(how)
    if repair is not None and not repairs:
        raise InputError("repair= names no repair", hint='a name, several, or "best"')
    choice = len(repairs) > 1 or repair == "best" or any("score" in needed for needed in needs.values())
    if repair is not None and validation is None and choice:
        raise InputError(
            "which repair is best is decided on validation data, and there is none",
            hint="pass validation=, an iterable of (inputs, targets) held out of training and test data",
        )
    if validation is not None:
        if repair is None:
            raise InputError("validation= chooses a repair, and none is asked for", hint='repair="best"')
        reusable(validation)
    for name, needed in needs.items():
        if "data" in needed and data is None:
            raise InputError(
                f"{name} needs calibration data", hint="pass data=, an iterable of inputs (--data)"
            )
