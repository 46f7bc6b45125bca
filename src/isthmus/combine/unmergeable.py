"""Weights that are not merged but taken from one of the models, such as the heads of different tasks."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

from torch import Tensor

from isthmus.errors import InputError


def set_aside(
    models: Sequence[Mapping[str, Tensor]], patterns: Sequence[str], target: int
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Give every model the target's own weights under some names; elsewhere these may have other shapes, or be missing.

    Args:
        models: state dicts.
        patterns: of names, with * and ?.
        target: index of the model whose weights they are.

    Returns:
        The models with the target's weights in these places, and what each had there itself.

    Raises:
        InputError: a pattern that no weight of the target has, or nothing left to merge.

    Examples:
        >>> import torch
        >>> a, b = ({"body": torch.ones(1), "head": torch.ones(n)} for n in (2, 3))
        >>> whole, own = set_aside([a, b], ["head"], 0)
        >>> len(whole[1]["head"]), len(own[1]["head"])
        (2, 3)
    """
    theirs = models[target]
    unused = [p for p in patterns if not any(fnmatch.fnmatchcase(key, p) for key in theirs)]
    if unused:
        raise InputError(
            f"no weight is called {', '.join(map(repr, unused))}",
            hint="skip= takes patterns of names (head.*)",
        )

    def apart(key: str) -> bool:
        return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)

    if all(map(apart, theirs)):
        raise InputError("nothing is left to merge: skip= leaves out every weight")
    own = [{key: value for key, value in model.items() if apart(key)} for model in models]
    whole = [
        # In the target's order, then what only this model has, so that errors can name it.
        {key: theirs[key] if apart(key) else model[key] for key in theirs if apart(key) or key in model}
        | {key: value for key, value in model.items() if key not in theirs and not apart(key)}
        for model in models
    ]
    return whole, own
