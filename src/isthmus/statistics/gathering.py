"""Which statistics a rule takes: gathered from one model, and moved along with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from isthmus.combine import terms_of
from isthmus.errors import InputError
from isthmus.maps import Transport
from isthmus.program import Program
from isthmus.registry import keywords
from isthmus.statistics.fisher import fisher_information
from isthmus.statistics.gathered import Gathered
from isthmus.statistics.grams import gram_matrices

#: Rule -> what gathers the statistics that it takes.
GATHERERS: dict[str, Callable[..., Gathered]] = {"fisher": fisher_information, "reg-mean": gram_matrices}

#: What `gather` says itself.
_GIVEN = ("weights", "example", "skip")


def asked(method: str, statistics: object, data: object) -> tuple[bool, dict[str, object]]:
    """Whether a merge has to gather statistics itself, and by which options.

    Args:
        method: the rule.
        statistics: what the merge was given: options, one mapping per model, or None.
        data: what it was given to gather from.

    Raises:
        InputError: nothing gathers what the rule takes, unknown options (all of them are named), or no data.
    """
    if not (statistics is None or isinstance(statistics, Mapping)):
        return False, {}
    needed = terms_of(method).statistics == "needed"
    options = {str(name): value for name, value in (statistics or {}).items()}
    if needed and data is not None:
        _check(method, options)
    elif needed and options:
        raise InputError(
            "statistics are gathered from data", hint="pass data=, an iterable of inputs (--data)"
        )
    return needed and data is not None, options


def _check(method: str, options: Mapping[str, object]) -> None:
    """Refuse options that a rule's statistics are not gathered by."""
    if method not in GATHERERS:
        raise InputError(
            f"nothing here gathers the statistics that {method} takes",
            hint="pass them: statistics=[...], one mapping per model",
        )
    known = keywords(GATHERERS[method], _GIVEN)
    if unknown := [name for name in options if name not in known]:
        raise InputError(
            f"the statistics of {method} have no option {', '.join(map(repr, unknown))}",
            hint=f"they take {', '.join(known)}",
        )


def gather(
    method: str,
    model: nn.Module | Program,
    weights: Mapping[str, Tensor],
    data: Iterable[object],
    *,
    skip: Iterable[str] = (),
    options: Mapping[str, object] | None = None,
) -> Gathered:
    """The statistics that a rule takes, of one model.

    Args:
        method: the rule.
        model: a module or a program.
        weights: the model's.
        data: an iterable of inputs or (inputs, targets).
        skip: patterns of weights to leave out.
        options: of `fisher_information` or `gram_matrices`.

    Raises:
        InputError: nothing gathers what the rule takes, or wrong options.
        DataError: data that does not fit.
    """
    given = dict(options or {})
    _check(method, given)
    return GATHERERS[method](model, data, weights=weights, skip=tuple(skip), **given)


def moved_along(
    statistics: Sequence[Mapping[str, Tensor]],
    models: Sequence[Mapping[str, Tensor]],
    transports: Sequence[Transport],
    method: str,
    kind: str,
) -> list[dict[str, Tensor]]:
    """The statistics of the moved models.

    Args:
        statistics: of each model, as it was.
        models: state dicts, likewise.
        transports: how each was moved.
        method: the rule, for the error.
        kind: "elements", one number per weight, or "whole".

    Raises:
        InputError: they cannot be moved along.
    """
    if kind != "elements" or any(t.values or len(t.orders) < len(t.maps) for t in transports):
        raise InputError(
            f"the statistics that {method} takes cannot be moved with the models",
            hint="align first, gather them from the moved models, then combine",
        )
    moved = [
        transport.apply({**state, **known})
        for transport, state, known in zip(transports, models, statistics, strict=True)
    ]
    return [{key: m[key] for key in known} for m, known in zip(moved, statistics, strict=True)]
