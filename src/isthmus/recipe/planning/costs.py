"""What a plan takes: memory, disk, time."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping

from isthmus.recipe.parents.sizes import size
from isthmus.recipe.planning.planned import Planned

# CPU time per element of an input, in nanoseconds, and bytes per second of a disk: the order of magnitude on which a
# person decides to wait. Measured on an idle machine with three bf16 models of 0.4 GB (user + system, less the start).
_COST = {
    "linear": 1.5, "task-arithmetic": 1.5, "passthrough": 2, "slerp": 2.5, "nuslerp": 2.5, "model-stock": 2.5,
    "karcher": 2.5, "ties": 4, "breadcrumbs": 6, "breadcrumbs-ties": 6, "dare-linear": 4, "dare-ties": 4.5,
    "della": 6.5, "della-linear": 6, "near-swap": 2.5, "arcee-fusion": 12,
}  # fmt: skip
_COST_OTHERWISE, _DISK, _START = 4, 1.0e9, 2.0
# The same with compiled loops, and from how many numbers on there are any (isthmus.combine.compiled).
_COMPILED = {
    "ties": 3.5, "breadcrumbs": 4.5, "breadcrumbs-ties": 4.5, "dare-linear": 3.3, "dare-ties": 3.3, "della": 4.4,
    "della-linear": 4,
}  # fmt: skip
_WORTH = 1 << 27
# Seconds from which on it is said that they would shorten a merge.
_LONG = 30.0
# The part of the time that they may take at most for that.
_GAIN = 0.9
# Rules that sort rows in the paper's convention, which no loop does.
_SORTING = ("breadcrumbs", "breadcrumbs-ties", "della", "della-linear")
# What the interpreter and torch take, in private bytes, and each thread for every input and the output. Measured on
# `isthmus merge` of three bf16 models of 0.1 GB: 164 MB before the first tensor, then TIES 176, 185 and 202 MB on 1, 2
# and 4 threads, DARE 171 to 189, DELLA 173 to 196.
_STARTED, _MEMORY, _MEMORY_PER_THREAD = 160_000_000, 168_000_000, 2_500_000
# What compiled loops add, once they have been compiled: TIES 43 MB, DELLA 47.
_LOOPS = 50_000_000
# What must be free for them under a limit.
_COMPILING = 140_000_000
# What the engine sets aside for one thread, where it is told a limit: a block of float64 for every input and for what a
# rule writes on, and masks that a rule remembers (isthmus.engine.local, isthmus.combine.trimming, which import torch).
_BLOCK, _SCRATCH, _MASKS = 1 << 20, 12, 16 << 20
_DRAWN = ("dare-linear", "dare-ties", "della", "della-linear")
# The same where a model is made and run: libraries of models, activations of a batch.
_RUNNING = 600_000_000
# Models while they are aligned, in float32 copies: the architecture and what verifies it, and for each model what was
# read, what was moved and what a method works on. Measured on perceptrons of 30 layers (116 MB), the peak above that of
# tiny ones: activation matching took 12 for two models and 22 for four, C2M3 17 for two.
_STATES, _STATES_PER_MODEL = 3, 7


#: What is said where models are too large to be held.
STREAMED = "a higher limit; or align: weight-matching, which reads a few layers at a time"


def memory(plan: Planned) -> int:
    """Bytes of memory that the merge should need, apart from the page cache; and models that are held whole."""
    return max(merging(plan), aligning(plan), running(plan))


def disk(plan: Planned) -> int:
    """Bytes of disk that the merge needs on its way: moved models, and a model that is measured twice."""
    return plan.bytes_written * (1 if plan.after is None else 2) + moved(plan)


def merging(plan: Planned) -> int:
    """Bytes of memory that tensors take while they are merged; a limit of so many is kept to."""
    found, limit = _merging(plan) + (_LOOPS if _compiles(plan) else 0), plan.recipe.isthmus.limits.memory
    return found if limit is None else max(min(found, limit), _least(plan))


def _merging(plan: Planned) -> int:
    """The same without compiled loops."""
    return max(_MEMORY + plan.threads * _MEMORY_PER_THREAD * (1 + len(plan.parents)), _least(plan))


def _least(plan: Planned) -> int:
    """Bytes of memory with which one thread can merge."""
    inputs = max((len(row.parts) for row in plan.rows), default=0)
    masks = _MASKS if plan.method.rule in _DRAWN else 0
    return _MEMORY + (inputs + _SCRATCH) * _BLOCK + masks


def aligning(plan: Planned) -> int:
    """Bytes of memory that models take while they are brought together, where they are held whole."""
    if plan.moving is None:
        return 0
    return _RUNNING + (_STATES + _STATES_PER_MODEL * len(plan.parents)) * _state(plan)


def moved(plan: Planned) -> int:
    """Bytes of disk that models take from being moved to being merged, where they are held whole."""
    return 0 if plan.moving is None else len(plan.parents) * _state(plan)


def running(plan: Planned) -> int:
    """Bytes of memory that models take while they are repaired or measured, where they are."""
    if plan.after is None:
        return 0
    # The model itself, the merge, the repaired merge or a parent; and all parents where they are goals.
    states = 3 + (len(plan.parents) if plan.after.goals else 0)
    return _RUNNING + states * _state(plan)


def seconds(plan: Planned) -> float:
    """Seconds that the merge should take, to about a factor of two."""
    return _seconds(plan, _COMPILED if _compiles(plan) else {})


def _seconds(plan: Planned, faster: Mapping[str, float]) -> float:
    cost = {**_COST, **faster}.get(plan.method.rule, _COST_OTHERWISE) * 1e-9
    carried = sum(parent.checkpoint.nbytes for parent in plan.parents.values()) + plan.bytes_written
    return _START + max(cost * _elements(plan) / plan.threads, carried / _DISK)


def _elements(plan: Planned) -> int:
    """How many numbers are read to be merged."""
    return sum(math.prod(row.shape) * len(row.parts) for row in plan.rows if row.how == "merged")


def _compiles(plan: Planned, here: bool = True) -> bool:
    """Whether compiled loops will do most of the work, or would if they were here."""
    sorts = plan.method.rule in _SORTING and plan.recipe.isthmus.convention == "paper"
    if plan.method.rule not in _COMPILED or sorts or _elements(plan) <= _WORTH:
        return False
    limit = plan.recipe.isthmus.limits.memory
    room = limit is None or limit >= _merging(plan) + _COMPILING
    return room and (not here or importlib.util.find_spec("numba") is not None)


def faster(plan: Planned) -> str | None:
    """What is said of a long merge that compiled loops would shorten; None where it is short, or they are there."""
    taken, less = seconds(plan), _seconds(plan, _COMPILED)
    if taken < _LONG or less > _GAIN * taken or not _compiles(plan, here=False):
        return None
    return f"with compiled loops (pip install 'isthmus[fast]') it takes about {less:.0f} s"


def over(plan: Planned, limit: int | None) -> str | None:
    """Why a limit of memory is too low for models that are held whole; None where it is not, or there is none."""
    if plan.moving is None or limit is None or aligning(plan) <= limit:
        return None
    return (
        f"{plan.moving.method} holds {len(plan.parents)} whole models in memory, about {size(aligning(plan))}, "
        f"and the limit is {size(limit)}"
    )


def too_low(limit: int | None) -> str | None:
    """Why a limit of memory is too low for any merge; None where it is not, or there is none."""
    if limit is None or limit >= _STARTED:
        return None
    return f"{size(limit)} are too little: the program takes {size(_STARTED)} before the first tensor"


def tight(plan: Planned) -> str | None:
    """What is said of a limit in the recipe that may be too low for its merge; None where it is not."""
    limit = plan.recipe.isthmus.limits.memory
    if limit is None or limit >= _least(plan):
        return None
    return f"{size(limit)} of memory may be too little: about {size(_least(plan))} are needed"


def told(plan: Planned) -> list[str]:
    """What is said of a plan's costs beside the numbers."""
    return [said for said in (tight(plan), faster(plan)) if said is not None]


def _state(plan: Planned) -> int:
    """Bytes of a model as it is run."""
    return 4 * sum(math.prod(row.shape) for row in plan.rows)
