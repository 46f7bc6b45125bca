"""What `align` and `merge` share: whose coordinates checkpoints are brought to, and of which widths they may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isthmus.errors import InputError, MismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from isthmus.comparing import Splits

REFERENCE = "Whose order of units stays: an index, first, best (on validation data), medoid or universe."
KEPT = "Examples of --data on which to measure how much of the models the maps keep; 0 for none."
_WORDS = ("first", "best", "medoid", "universe")


def referred(text: str, count: int) -> int | str:
    """An index, or how the reference is chosen.

    Args:
        text: as typed.
        count: how many models there are.

    Raises:
        InputError: it is neither.
    """
    if text in _WORDS:
        return text
    if text.isdecimal() and int(text) < count:
        return int(text)
    raise InputError(
        f"--reference {text} is none of {count} models", hint=f"0 to {count - 1}, or {', '.join(_WORDS)}"
    )


def score_for(
    reference: int | str, models: Sequence[nn.Module], splits: Splits | None
) -> Callable[[Mapping[str, Tensor]], float] | None:
    """What tells which model is the best, where that is asked for: accuracy on the validation split.

    Args:
        reference: as it was asked for.
        models: the architecture of each; none where it is not known.
        splits: the data, where there is some.

    Raises:
        InputError: there is no data to tell it by.
    """
    if reference != "best":
        return None
    if not models or splits is None:
        raise InputError(
            "which model is the best is not known without data",
            hint="--arch and --data, or another --reference",
        )
    from isthmus import score
    from isthmus.align import shapes

    by_shapes = {shapes(model.state_dict()): score(model, splits.validation) for model in models}
    return lambda weights: by_shapes[shapes(weights)](weights)


def check_widths(states: Sequence[Mapping[str, Tensor]], method: str | None, option: str) -> None:
    """Refuse checkpoints of several widths where nothing brings them to one.

    Args:
        states: the checkpoints.
        method: how they are aligned; None for not at all.
        option: that says how.

    Raises:
        MismatchError: the shapes differ, and the method takes one graph.
    """
    from isthmus.align import of_several_widths, shapes

    able = of_several_widths()
    if len(set(map(shapes, states))) > 1 and method not in able:
        raise MismatchError(
            f"{method} takes checkpoints of one width"
            if method
            else "checkpoints of several widths have no average",
            hint=f"{option} {', '.join(able[:-1])} or {able[-1]}",
        )
