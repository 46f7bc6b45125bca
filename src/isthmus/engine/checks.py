"""Everything that can be known to be wrong with a work before a tensor is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from isthmus.combine import BlockRule, check_asked, terms_of
from isthmus.engine.jobs import COPY, Job, Work
from isthmus.engine.stream import Stream, rule_of
from isthmus.errors import InputError, MismatchError


def check(work: Work, checkpoints: Sequence[Mapping[str, Tensor]]) -> list[Stream]:
    """Open every job's sources and compare what is there with what is asked for.

    Args:
        work: what is asked for.
        checkpoints: opened, in the order of the work.

    Returns:
        One stream per job, in their order; jobs of a rule that looks at all tensors share one object.

    Raises:
        InputError: some jobs cannot be done. All of them are listed.
    """
    streams: list[Stream] = []
    problems: dict[tuple[str, ...], list[str]] = {}
    rules: dict[str, BlockRule] = {}
    for job in work.jobs:
        try:
            stream = Stream(job, checkpoints, _rule(job, rules))
            lines = _lines(job, stream)
        except InputError as error:
            lines = [error.what, *(f"  {line}" for line in error.where)]
        else:
            streams.append(stream)
        if lines:
            problems.setdefault(tuple(lines), []).append(job.name)
    if problems:
        wrong = sum(map(len, problems.values()))
        where = [f"{_named(names)}    {line}" for lines, names in problems.items() for line in lines]
        raise MismatchError(f"{wrong} of {len(work.jobs)} tensors cannot be merged", where)
    return streams


def _named(names: Sequence[str]) -> str:
    """Tensors of which the same is to be said: what is wrong with a model's weights is wrong for each of hundreds."""
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} more"


def _rule(job: Job, shared: dict[str, BlockRule]) -> BlockRule | None:
    if job.rule == COPY:
        return None
    terms = terms_of(job.rule)
    weights = job.weights or None
    base, statistics = job.base is not None, bool(job.statistics)
    check_asked(job.rule, terms, len(job.sources), weights, job.options, base, statistics)
    made = rule_of(job)
    if made.scope == "tensor":
        return made
    return shared.setdefault(repr((job.rule, job.weights, sorted(job.options.items()), job.seed)), made)


def _lines(job: Job, stream: Stream) -> list[str]:
    """What is wrong with a job whose sources are all there."""
    lines = [
        f"has the shape {reader.shape} in {reader.file}, and {job.shape} in the output"
        for reader in stream.inputs[: len(job.sources) + (job.base is not None)]
        if reader.shape != job.shape
    ]
    if job.rule == COPY and (len(job.sources) != 1 or job.base is not None):
        lines.append(f"copies one tensor, and has {len(job.sources)} sources")
    if job.weights and len(job.weights) != len(job.sources):
        lines.append(f"has {len(job.weights)} weights for {len(job.sources)} sources")
    if not job.sources:
        lines.append("has no sources")
    if job.rule != COPY:
        lines += [
            f"is of {reader.dtype} in {reader.file}: {job.rule} combines numbers with a point"
            for reader in stream.inputs
            if not (
                reader.dtype.is_floating_point
                or (reader.dtype.is_complex and stream.rule and stream.rule.complex)
            )
        ]
    return lines
