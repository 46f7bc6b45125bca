"""How a file of this room registers its rule: once, for tensors in memory and for streams.

    @rule("task-arithmetic", needs=("base",), weighing="coefficients", source="arXiv:2212.04089")
    def task_arithmetic(weights, *, lam=1.0):
        '''The base, and a multiple of the sum of the models' differences from it.'''
        return Linear(...)

What is written is a function from weights and options to a `BlockRule`; what is registered (and what the name
then stands for) is the function of tensors that runs it: `task_arithmetic(tensors, base=..., lam=0.3)`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from isthmus.combine.blocks import Block, BlockRule, run
from isthmus.errors import InputError
from isthmus.registry import Registry, numbers

#: A rule: (tensors, *, weights, **options) -> tensor, all of one shape.
Rule = Callable[..., Tensor]

#: What one weight per model means: parts of a whole, which sum to one and are uniform where not given;
#: factors of any size, one where not given; or nothing.
Weighing = Literal["shares", "coefficients", "none"]

#: Arguments of a rule's function that are no options.
GIVEN = ("weights", "base", "statistics", "key", "seed")

COMBINATIONS: Registry[Rule] = Registry("combination", package="isthmus.combine", supplied=GIVEN)


@dataclass(frozen=True)
class Terms:
    """What a rule asks of its caller.

    Attributes:
        build: (weights, **options) -> the arithmetic; None for a function of tensors registered as such.
        weighing: what the models' weights mean.
        base: whether a base model is taken.
        statistics: whether a tensor of statistics per model is taken.
        seed: whether random numbers are drawn.
        least: fewest models.
        most: most models; None is any number.
    """

    build: Callable[..., BlockRule] | None = None
    weighing: Weighing = "shares"
    base: Literal["needed", "taken", "no"] = "no"
    statistics: Literal["needed", "taken", "no"] = "no"
    seed: bool = False
    least: int = 1
    most: int | None = None


_TERMS: dict[Callable[..., Tensor], Terms] = {}


def rule(
    name: str,
    *,
    needs: Iterable[str] = (),
    takes: Iterable[str] = (),
    weighing: Weighing = "shares",
    models: tuple[int, int | None] = (1, None),
    claims: Iterable[str] = (),
    costs: str = "",
    source: str = "",
) -> Callable[[Callable[..., BlockRule]], Rule]:
    """Register a rule by a function from weights and options to its arithmetic.

    Args:
        name: hyphenated.
        needs: of "base", "statistics", "seed": what the rule cannot do without; and "passes", if it measures
            before it writes.
        takes: of "base", "statistics": what it can use.
        weighing: what one weight per model means.
        models: fewest and most models; None is any number.
        claims: the laws that it is held to.
        costs: beside reading every tensor, once, or before as often as it measures whole ones.
        source: the paper or code that it comes from.

    Returns:
        A decorator; the name becomes the function of tensors.
    """
    needs, takes = tuple(needs), tuple(takes)
    reads = (
        "every tensor is read to be measured, and again to be merged"
        if "passes" in needs
        else "one read of every tensor"
    )
    costs = f"{reads}; {costs}" if costs else reads

    def how(what: str) -> Literal["needed", "taken", "no"]:
        return "needed" if what in needs else "taken" if what in takes else "no"

    def register(build: Callable[..., BlockRule]) -> Rule:
        terms = Terms(build, weighing, how("base"), how("statistics"), "seed" in needs, *models)

        @functools.wraps(build)
        def merge(
            tensors: Sequence[Tensor],
            *,
            weights: Sequence[float] | None = None,
            base: Tensor | None = None,
            statistics: Sequence[Tensor] | None = None,
            key: str = "",
            seed: int = 0,
            **options: Any,
        ) -> Tensor:
            if problems := asked_too_much(
                name, terms, len(tensors), base is not None, statistics is not None
            ):
                raise InputError(f"{name} cannot merge this", problems)
            made = build(weighed(terms.weighing, weights, len(tensors)), **numbers(build, options))
            origin = None if terms.base == "no" else base
            return run(made, tensors, base=origin, statistics=statistics or (), key=key, seed=seed)

        merge.__signature__ = _signature(build, terms)  # type: ignore[attr-defined]
        _TERMS[merge] = terms
        return COMBINATIONS.register(name, needs=needs, claims=claims, costs=costs, source=source)(merge)

    return register


def terms_of(rule: str | Rule) -> Terms:
    """What a rule asks of its caller; of a plain function, its signature says it."""
    function = COMBINATIONS.get(rule).function if isinstance(rule, str) else rule
    if function in _TERMS:
        return _TERMS[function]
    known = inspect.signature(function).parameters

    def how(what: str) -> Literal["needed", "taken", "no"]:
        if what not in known:
            return "no"
        return "needed" if known[what].default is inspect.Parameter.empty else "taken"

    return Terms(None, "shares", how("base"), how("statistics"), "seed" in known)


def options_of(name: str) -> dict[str, object]:
    """The options of a rule and their defaults (`inspect.Parameter.empty` where it has none)."""
    return COMBINATIONS.get(name).options


def blockwise(
    name: str, weights: Sequence[float] | int, options: Mapping[str, object] | None = None
) -> BlockRule:
    """The arithmetic of a registered rule on one tensor, block by block.

    Args:
        name: of the rule.
        weights: one per model; or how many models there are, for the rule's own default.
        options: of the rule.

    Returns:
        An object for one tensor (for all tensors, if its `scope` is "model").

    Raises:
        InputError: no such rule, or wrong weights or options.

    Examples:
        >>> from isthmus.combine import blockwise
        >>> blockwise("average", 3).passes, blockwise("ties", 3, {"convention": "mergekit"}).passes
        (0, 5)
    """
    terms = terms_of(name)
    given = dict(options or {})
    known = options_of(name)
    unknown = [option for option in given if option not in known]
    missing = [n for n, value in known.items() if value is inspect.Parameter.empty and n not in given]
    if unknown or missing:
        told = f"has no option {', '.join(map(repr, unknown))}" if unknown else f"needs {', '.join(missing)}"
        raise InputError(
            f"{name} {told}",
            [f"and needs {', '.join(missing)}"] if unknown and missing else (),
            hint=f"it takes {', '.join(known) or 'none'}",
        )
    count = weights if isinstance(weights, int) else len(weights)
    if wrong := wrong_number(name, terms, count):
        raise InputError(wrong)
    values = weighed(terms.weighing, None if isinstance(weights, int) else weights, count)
    if terms.build is not None:
        return terms.build(values, **numbers(terms.build, given))
    function = COMBINATIONS.get(name).function
    return _Whole(function, values, numbers(function, given))


class _Whole(BlockRule):
    """A plain function of tensors, as a rule on tensors that are not cut."""

    layout = "whole"
    complex = True

    def __init__(self, function: Rule, weights: Sequence[float], options: Mapping[str, object]):
        self._function = function
        self._weights = weights
        self._options = options
        self._known = set(inspect.signature(function).parameters)
        if "statistics" in self._known:
            self.statistics = "whole"

    def write(self, block: Block) -> Tensor:
        offered: dict[str, object] = {
            "weights": self._weights,
            "base": block.base,
            "statistics": block.statistics,
            "key": block.place.key,
            "seed": block.place.seed,
        }
        known = {name: value for name, value in offered.items() if name in self._known}
        return self._function(list(block.models), **known, **self._options)


def weighed(weighing: Weighing, weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """The models' weights, checked; what the rule means by none where none are given.

    Raises:
        InputError: weights for a rule that takes none, another number of weights than models, one that
            is not finite, or shares whose sum is not one.
    """
    if weights is None or weighing == "none":
        if weights is not None and len({float(w) for w in weights}) > 1:
            raise InputError("this rule takes no weights: it finds its own")
        return (1.0 if weighing == "coefficients" else 1.0 / max(count, 1),) * count
    values = tuple(float(w) for w in weights)
    problems: list[str] = []
    if len(values) != count:
        problems.append(f"{len(values)} weights for {count} models")
    if not all(math.isfinite(w) for w in values):
        problems.append(f"not all finite: {values}")
    elif weighing == "shares" and abs(sum(values) - 1) > 1e-6:
        problems.append(f"they sum to {sum(values):g}, not 1")
    if problems:
        raise InputError("the models' weights are wrong", problems)
    return values


def normalised(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """The models' shares, uniform where none are given.

    Raises:
        InputError: another number of weights than models, a weight that is not finite, or a sum that
            is not one.
    """
    return weighed("shares", weights, count)


def wrong_number(name: str, terms: Terms, models: int) -> str:
    """What is wrong with a number of models; nothing where it is right."""
    if terms.least <= models and (terms.most is None or models <= terms.most):
        return ""
    number = f"{terms.least} or more" if terms.most is None else f"{terms.least}"
    return f"{name} merges {number} model{'' if number == '1' else 's'}, not {models}"


def asked_too_much(name: str, terms: Terms, models: int, base: bool, statistics: bool) -> list[str]:
    """What a rule lacks or cannot use, one line each."""
    problems = [wrong] if (wrong := wrong_number(name, terms, models)) else []
    if terms.base == "needed" and not base:
        problems.append(f"{name} needs a base model: the one that these were trained from (base=)")
    if terms.statistics == "needed" and not statistics:
        problems.append(f"{name} needs statistics: one mapping of tensors per model (statistics=)")
    return problems


def _signature(build: Callable[..., BlockRule], terms: Terms) -> inspect.Signature:
    """Of the function of tensors: what it is given, then the rule's options."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    made = [
        inspect.Parameter("tensors", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="Sequence[Tensor]")
    ]
    if terms.weighing != "none":
        made.append(inspect.Parameter("weights", keyword, default=None, annotation="Sequence[float] | None"))
    if terms.base != "no":
        default = inspect.Parameter.empty if terms.base == "needed" else None
        made.append(inspect.Parameter("base", keyword, default=default, annotation="Tensor"))
    if terms.statistics != "no":
        default = inspect.Parameter.empty if terms.statistics == "needed" else ()
        made.append(inspect.Parameter("statistics", keyword, default=default, annotation="Sequence[Tensor]"))
    if terms.seed:
        made.append(inspect.Parameter("key", keyword, default="", annotation="str"))
        made.append(inspect.Parameter("seed", keyword, default=0, annotation="int"))
    made += [p for p in inspect.signature(build).parameters.values() if p.kind is keyword]
    return inspect.Signature(made, return_annotation="Tensor")
