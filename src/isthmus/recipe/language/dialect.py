"""mergekit's methods and parameters: their names, defaults and what each needs, as data.

No tensor is touched here and torch is not imported: this is what a plan is checked against. The arithmetic
is in `isthmus.combine`, asked for by `convention: mergekit`.

Source: the tables of mergekit 0.1.5 (names, defaults, required), as its registry prints them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Parameter:
    """A parameter of some method.

    Args:
        name: as recipes write it.
        kind: what values it takes.
        low: least value.
        high: largest value.
        above: whether `low` itself is too little.
        per_model: one value per model, rather than one per tensor.
    """

    name: str
    kind: Literal["number", "whole", "switch", "any"]
    low: float | int = -math.inf
    high: float | int = math.inf
    above: bool = False
    per_model: bool = False

    def read(self, value: object) -> float | int | bool | str:
        """A value as this parameter takes it.

        Numbers may be written as `1e-5`, which YAML 1.1 reads as text; true and false count as 1 and 0
        where a number is asked, as in mergekit.

        Raises:
            ValueError: it is no such value.
        """
        if self.kind == "any":
            return value if isinstance(value, bool | int | float | str) else str(value)
        if self.kind == "switch":
            if isinstance(value, bool):
                return value
            if isinstance(value, int | float) and value in (0, 1):
                return bool(value)
            words = {
                "true": True,
                "yes": True,
                "on": True,
                "1": True,
                "false": False,
                "no": False,
                "off": False,
            }
            if isinstance(value, str) and value.strip().lower() in words:
                return words[value.strip().lower()]
            raise ValueError(f"is {value!r}, neither true nor false")
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"is {str(value)[:40]!r}, not a number") from None
        if not math.isfinite(number):
            raise ValueError(f"is {number}, which is not finite")
        if self.kind == "whole":
            if number != int(number):
                raise ValueError(f"is {value}, not a whole number")
            number = int(number)
        if number < self.low or (self.above and number == self.low):
            raise ValueError(f"is {value}: it must be {'above' if self.above else 'at least'} {self.low:g}")
        if number > self.high:
            raise ValueError(f"is {value}: it must be at most {self.high:g}")
        return number

    def wrong(self, value: object) -> str | None:
        """Why a value cannot be taken, if so."""
        try:
            self.read(value)
        except ValueError as error:
            return str(error)
        return None


def _table(*parameters: Parameter) -> Mapping[str, Parameter]:
    return MappingProxyType({p.name: p for p in parameters})


#: Every parameter that any method of mergekit has.
PARAMETERS = _table(
    Parameter("weight", "number", per_model=True),
    Parameter("density", "number", 0, 1, per_model=True),
    Parameter("gamma", "number", 0, 1, per_model=True),
    Parameter("epsilon", "number", 0),  # per model in della, of the tensor in ram
    Parameter("scale", "number", per_model=True),
    Parameter("t", "number"),
    Parameter("lambda", "number"),
    Parameter("normalize", "switch"),
    Parameter("rescale", "switch"),
    Parameter("int8_mask", "switch"),
    Parameter("nuslerp_row_wise", "switch"),
    Parameter("nuslerp_flatten", "switch"),
    Parameter("normalize_weights", "switch"),
    Parameter("eps", "number", 0, above=True),
    Parameter("max_iter", "whole", 1),
    Parameter("tol", "number", 0, above=True),
    Parameter("filter_wise", "switch"),
    Parameter("select_topk", "number", 0, 1),
    Parameter("r", "number"),
    Parameter("alpha", "number", 0),
)

#: A parameter that must be given.
REQUIRED = object()


@dataclass(frozen=True)
class Method:
    """A method of mergekit.

    Args:
        name: mergekit's.
        rule: ours, in `isthmus.combine`.
        parameters: what it reads and the value where nothing is given.
        base: whether it has a base model.
        least: fewest models, the base among them where one is required.
        most: most models.
        passes: how often each input is read.
        per_model: parameters of one value per model.
    """

    name: str
    rule: str
    parameters: Mapping[str, object]
    base: Literal["required", "optional", "none"] = "none"
    least: int = 1
    most: int | None = None
    passes: int = 1
    per_model: tuple[str, ...] = ()


_W: dict[str, object] = {"weight": REQUIRED}


def _arithmetic(name: str, normalize: bool, rescale: bool, passes: int, **more: object) -> Method:
    """One of mergekit's generalised task arithmetic family."""
    shared: dict[str, object] = {
        "normalize": normalize,
        "rescale": rescale,
        "lambda": 1.0,
        "int8_mask": False,
    }
    return Method(
        name,
        name.replace("_", "-"),
        {**_W, "density": 1.0, **more, **shared},
        base="required",
        passes=passes,
        per_model=("weight", "density", *more),
    )


_ALL = (
    Method("linear", "linear", {**_W, "normalize": True}, per_model=("weight",)),
    Method("slerp", "slerp", {"t": REQUIRED}, "required", 2, 2, passes=2),
    Method(
        "nuslerp", "nuslerp", {**_W, "nuslerp_row_wise": False, "nuslerp_flatten": True},
        "optional", passes=2, per_model=("weight",),
    ),
    Method(
        "multislerp", "multislerp", {**_W, "normalize_weights": True, "eps": 1e-8},
        "optional", passes=3, per_model=("weight",),
    ),
    Method("karcher", "karcher", {"max_iter": 10, "tol": 1e-5}, passes=3),
    _arithmetic("task_arithmetic", False, False, 1),
    _arithmetic("ties", True, False, 2),
    _arithmetic("dare_linear", False, True, 2),
    _arithmetic("dare_ties", False, True, 2),
    _arithmetic("breadcrumbs", False, False, 2, gamma=0.01),
    _arithmetic("breadcrumbs_ties", False, False, 2, gamma=0.01),
    _arithmetic("della", True, True, 2, epsilon=0.15),
    _arithmetic("della_linear", False, True, 2, epsilon=0.15),
    Method("model_stock", "model-stock", {"filter_wise": False}, "required", 3, passes=2),
    Method("sce", "sce", {"select_topk": 1.0, "int8_mask": False}, "required", passes=2),
    Method("ram", "ram", {"epsilon": 1e-5}, "required"),
    Method("ramplus_tl", "ramplus-tl", {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5}, "required", passes=2),
    Method("nearswap", "near-swap", {"t": REQUIRED}, "required", 2, 2),
    Method("arcee_fusion", "arcee-fusion", {}, "required", 2, 2, passes=3),
    Method("passthrough", "passthrough", {"scale": None}, "none", 1, 1, per_model=("scale",)),
)  # fmt: skip

#: mergekit's methods by name.
METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})


#: Methods that divide by the sum of the weights and cannot where it is 0, with the switch that turns it off.
NORMALIZED = {"linear": "normalize", "task_arithmetic": "normalize", "multislerp": "normalize_weights"}


def refused(method: Method, values: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Values that a parameter may have, and this method's arithmetic has no use for.

    Args:
        method: of mergekit, or (then nothing is known of it) another.
        values: of one model, or of the tensor as a whole; None where nothing is given.

    Yields:
        A parameter, and what is wrong with it.
    """
    trims = "lambda" in method.parameters and method.name != "task_arithmetic"
    name = "density" if trims else "select_topk"
    if values.get(name) == 0:
        yield name, "is 0: nothing would be kept"
    if trims and values.get("gamma") == 1:
        yield "gamma", "is 1: everything would be dropped"
    t = values.get("t")
    if method.name == "nearswap" and isinstance(t, int | float) and t < 0:
        yield "t", f"is {t:g}: it must be at least 0"
    density, epsilon = values.get("density"), values.get("epsilon")
    if not isinstance(density, int | float) or not isinstance(epsilon, int | float) or density == 0:
        return
    low, high = density - epsilon, density + epsilon
    if density < 1 and not (low > 0 and high < 1):
        yield "epsilon", f"is {epsilon:g}: with density {density:g}, {low:g} to {high:g} are no probabilities"
    elif epsilon > 1:
        yield "epsilon", f"is {epsilon:g}: it must be at most 1"


def summed_to_nothing(
    method: Method, shared: Mapping[str, object], own: Sequence[Mapping[str, object]]
) -> bool:
    """Whether a method would divide by the sum of weights that sum to 0.

    Args:
        method: of mergekit, or (then nothing is known of it) another.
        shared: parameters of the tensor as a whole.
        own: of each model.
    """
    if method.name not in NORMALIZED:
        return False
    task_vectors = method.name == "task_arithmetic"
    normalized = shared.get(NORMALIZED[method.name])
    if not (not task_vectors if normalized is None else normalized):
        return False
    merged = [values for values in own if values]  # all but the base
    weights = [weight for values in merged if isinstance(weight := values.get("weight"), int | float)]
    return 0 < len(weights) == len(merged) and abs(sum(weights)) < (1e-8 if task_vectors else 1e-12)


def method_name(name: str) -> str:
    """mergekit's name of a method, also where it is written with hyphens as everywhere else in isthmus."""
    return name.replace("-", "_")


def parameter(name: str) -> Parameter:
    """How values of a parameter are read; those of our own rules are as the rule takes them."""
    return PARAMETERS.get(name) or Parameter(name, "any")
