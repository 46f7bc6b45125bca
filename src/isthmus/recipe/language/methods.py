"""Methods by name: mergekit's, and our own rules, which are whatever `isthmus methods` lists that mergekit has not.

The parameters of those are the rules' options, one value per tensor; weights are per model. Asking what there is
imports torch, which a plan in mergekit's words does not.
"""

from __future__ import annotations

import inspect

from isthmus.recipe.language.dialect import METHODS, REQUIRED, Method, method_name


def method_of(name: str) -> Method | None:
    """The method of that name: mergekit's, or a rule of our own; None where there is none."""
    found = METHODS.get(method_name(name))
    if found is not None:
        return found
    return _own(name)


def own_names() -> tuple[str, ...]:
    """Names of rules that need tensors and nothing else."""
    from isthmus.combine import COMBINATIONS, terms_of

    return tuple(name for name in COMBINATIONS.names() if terms_of(name).statistics != "needed")


def barred(name: str) -> tuple[str, str] | None:
    """Why no recipe can name a rule that there is, and what can; None where one can, or there is no such rule."""
    from isthmus.combine import COMBINATIONS

    if (name := name.replace("_", "-")) not in {*COMBINATIONS.names()} - {*own_names()}:
        return None
    ways = f"isthmus merge a b --arch ... --method {name}, with --data or --statistics"
    return (
        f"{name} takes statistics that are measured on each model, and no recipe names any",
        f"{ways}; or isthmus.merge([a, b], method={name!r}, statistics=...); see isthmus methods {name}",
    )


def _own(name: str) -> Method | None:
    """A rule as a plan sees methods; None where there is none of that name."""
    from isthmus.combine import COMBINATIONS, options_of, terms_of

    if name not in own_names():
        return None
    terms = terms_of(name)
    weighed = terms.weighing != "none"
    parameters: dict[str, object] = {"weight": 1.0} if weighed else {}
    for option, default in options_of(name).items():
        parameters[option] = REQUIRED if default is inspect.Parameter.empty else default
    based = terms.base == "needed"
    passes = 2 if any("passes" in need for need in COMBINATIONS.get(name).needs) else 1
    return Method(
        name,
        name,
        parameters,
        {"needed": "required", "taken": "optional", "no": "none"}[terms.base],  # type: ignore[arg-type]
        terms.least + based,
        None if terms.most is None else terms.most + based,
        passes,
        ("weight",) if weighed else (),
    )
