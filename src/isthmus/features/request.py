"""What statistics of which value are wanted: declared first, so that one pass over the data serves all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from isthmus.errors import InputError
from isthmus.program import Program

#: How much is wanted, each including what stands before it.
Blocks = Literal["moments", "reference", "joint"]
_RANK: dict[Blocks, int] = {"moments": 0, "reference": 1, "joint": 2}


@dataclass(frozen=True)
class Request:
    """Statistics of one value.

    Attributes:
        value: the value's name in the program.
        axis: its channel axis. All other axes (examples, tokens, positions) count samples.
        blocks: "moments": each model's mean and variance. "reference": also the cross-covariance of
            model 0 with every other. "joint": also that of every model with every model, itself included.
    """

    value: str
    axis: int
    blocks: Blocks = "moments"

    def pairs(self, models: int) -> tuple[tuple[int, int], ...]:
        """The pairs (i, j), i <= j, of models whose products are summed."""
        if self.blocks == "moments":
            return ()
        if self.blocks == "reference":
            return tuple((0, j) for j in range(1, models))
        return tuple((i, j) for i in range(models) for j in range(i, models))


def settle(requests: Iterable[Request], programs: Sequence[Program]) -> tuple[Request, ...]:
    """Check requests, count axes from the front, merge what names one value twice, sort by execution.

    Raises:
        InputError: a value that a program does not have or that has no such axis, all of them at once.
    """
    wrong: list[str] = []
    settled: dict[tuple[str, int], Request] = {}
    for request in requests:
        if request.blocks not in _RANK:
            wrong.append(f"{request.value}: blocks={request.blocks!r} is none of {', '.join(_RANK)}")
            continue
        for index, program in enumerate(programs):
            if (problem := _problem(request, program)) is not None:
                whose = f" (model {index})" if any(p is not programs[0] for p in programs) else ""
                wrong.append(f"{request.value}: {problem}{whose}")
                break
        else:
            axis = request.axis % len(programs[0].size(request.value))
            other = settled.get((request.value, axis), request)
            blocks = max(request.blocks, other.blocks, key=_RANK.__getitem__)
            settled[request.value, axis] = Request(request.value, axis, blocks)
    if wrong:
        raise InputError(f"{len(wrong)} requests do not fit the program", wrong)
    order = {name: position for position, name in enumerate(programs[0].nodes)}
    return tuple(sorted(settled.values(), key=lambda request: order[request.value]))


def _problem(request: Request, program: Program) -> str | None:
    if request.value not in program.nodes:
        return "the program has no such value"
    if not program.is_tensor(request.value):
        return "is not a tensor"
    if not program.value(request.value).is_floating_point():
        return f"is {program.value(request.value).dtype}, not floating"
    rank = len(program.size(request.value))
    if not -rank <= request.axis < rank:
        return f"has no axis {request.axis}, its shape is {program.size(request.value)}"
    return None
