"""Every error that isthmus raises on purpose, one class per situation a caller may want to catch.

An error says *what* is wrong (one sentence), *where* (one line per offending place, all of them
at once) and, where we know one, gives a *hint*: the next thing to try.
"""

from __future__ import annotations

from collections.abc import Iterable

#: What a module, a program or a kernel raises on inputs that do not fit it.
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError)


def first_line(error: BaseException) -> str:
    """What somebody else's error says in its first line; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class IsthmusError(Exception):
    """What went wrong, where, and what to try.

    Args:
        what: one sentence, no trailing period needed.
        where: one line per offending place; all of them, not the first.
        hint: the next thing to try.
    """

    def __init__(self, what: str, where: Iterable[str] = (), hint: str | None = None):
        self.what = what
        self.where = tuple(where)
        self.hint = hint
        super().__init__(self.render())

    def render(self) -> str:
        lines = [self.what, *(f"  {line}" for line in self.where)]
        if self.hint:
            lines += ["", f"hint: {self.hint}"]
        return "\n".join(lines)


class InputError(IsthmusError, ValueError):
    """An argument, an option or a recipe is wrong."""


class MismatchError(InputError):
    """Models, checkpoints or tensors do not fit each other: keys, shapes or architectures."""


class DataError(InputError):
    """Calibration or evaluation data is empty, misshapen or not what the model takes."""


class WeightsError(InputError):
    """A checkpoint cannot be read or written, holds non-finite numbers, or is not plain tensors."""


class UnsafeFileError(WeightsError):
    """A file would have executed code on loading. It was refused; nothing was run."""


class ExportError(IsthmusError, RuntimeError):
    """`torch.export` could not turn the model into a graph."""


class VerificationError(IsthmusError, RuntimeError):
    """A symmetry read off the program does not leave the function alone."""


class MissingExtraError(IsthmusError, ImportError):
    """An optional dependency is needed: the hint names the extra to install."""
