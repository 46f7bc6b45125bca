"""What statistics of which value are wanted: declared first, so that one pass over the data serves all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from isthmus.errors import InputError
from isthmus.program import Program

#: How much is wanted, each including what stands before it.
Blocks = Literal["moments", "reference", "joint"]
_RANK: dict[Blocks, int] = {"moments": 0, "reference": 1, "joint": 2}


@dataclass(frozen=True)
class Patches:
    """What a convolution's windows show of its input, of any rank.

    Attributes:
        kernel: size along each spatial dimension.
        stride: likewise.
        padding: zeros before and behind, likewise.
        dilation: likewise.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    def of(self, value: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "samples width"]:
        """One row per window: channels x kernel, flattened as the weight of a convolution is."""
        rank = len(self.kernel)
        found = functional.pad(value, [n for pair in reversed(self.padding) for n in pair])
        for d in range(rank):
            axis = 2 + 2 * d  # of what is left of this dimension; its windows' own follow it
            size = found.shape[axis]
            last = size - self.dilation[d] * (self.kernel[d] - 1)
            starts = torch.arange(0, last, self.stride[d], device=value.device)
            steps = torch.arange(self.kernel[d], device=value.device) * self.dilation[d]
            rows = (starts.unsqueeze(1) + steps).flatten()
            found = found.index_select(axis, rows).unflatten(axis, (len(starts), self.kernel[d]))
        places = [2 + 2 * d for d in range(rank)]
        found = found.permute(0, *places, 1, *(p + 1 for p in places))
        return found.reshape(-1, value.shape[1] * torch.Size(self.kernel).numel())


#: What statistics are of: a value and its channel axis, and the patches that it is read by, if any.
Place = tuple[str, int] | tuple[str, int, Patches]


@dataclass(frozen=True)
class Request:
    """Statistics of one value.

    Attributes:
        value: the value's name in the program.
        axis: its channel axis. All other axes (examples, tokens, positions) count samples.
        blocks: "moments": each model's mean and variance. "reference": also the cross-covariance of
            model 0 with every other. "joint": also that of every model with every model, itself included.
        patches: read the value as a convolution does: windows count samples, what one shows is the channels.
    """

    value: str
    axis: int
    blocks: Blocks = "moments"
    patches: Patches | None = None

    @property
    def place(self) -> Place:
        """What it is found under."""
        return (self.value, self.axis) if self.patches is None else (self.value, self.axis, self.patches)

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
    settled: dict[tuple[str, int, Patches | None], Request] = {}
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
            place = (request.value, axis, request.patches)
            blocks = max(request.blocks, settled.get(place, request).blocks, key=_RANK.__getitem__)
            settled[place] = Request(request.value, axis, blocks, request.patches)
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
    if request.patches is not None and (rank != len(request.patches.kernel) + 2 or request.axis % rank != 1):
        return f"has no patches of {request.patches.kernel}, its shape is {program.size(request.value)}"
    return None
