"""The two ways to measure what is to be repaired: all layers in one joint pass, or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.errors import DataError, InputError
from isthmus.features import Scratch, centre, explained, feed, sinks
from isthmus.program import Batch, Program, home
from isthmus.repair.result import Change, Mode
from isthmus.repair.sites import Site
from isthmus.repair.tape import Tape


@dataclass(frozen=True)
class Seen:
    """What a pass saw of the data.

    Attributes:
        examples: how many.
        batch_size: of the largest batch.
    """

    examples: int
    batch_size: int


def run(
    program: Program,
    weights: dict[str, Tensor],
    sites: Sequence[Site],
    batch_norms: Iterable[str],
    data: Iterable[object],
    mode: Mode,
    limit: int | None,
) -> tuple[list[Change], Seen]:
    """Measure all sites and write what they ask for into `weights`.

    Args:
        program: the graph.
        weights: of the program, on the device to run on; changed.
        sites: what is repaired.
        batch_norms: those whose running statistics are not valid while measuring: a joint pass
            normalises with the batch's.
        data: calibration data.
        mode: "joint" or "sequential".
        limit: number of examples after which to stop.

    Raises:
        InputError: no such mode.
        DataError: the data is empty or does not fit, a batch of one sample in a joint pass, or
            activations that are not finite.
    """
    if mode not in ("joint", "sequential"):
        raise InputError(f"mode={mode!r} is neither 'joint' nor 'sequential'")
    if not sites:
        return [], Seen(0, 0)
    with torch.no_grad():
        if mode == "sequential":
            return _sequential(program, weights, sites, data, limit)
        return joint(program, weights, sites, tuple(batch_norms), data, limit)


def joint(
    program: Program,
    weights: dict[str, Tensor],
    sites: Sequence[Site],
    batch_norms: tuple[str, ...],
    data: Iterable[object],
    limit: int | None,
    *,
    what: str = "repair",
    given: Sequence[str] = (),
    start: Callable[[Batch], Mapping[str, Tensor]] | None = None,
) -> tuple[list[Change], Seen]:
    """One pass in which every layer already sees its predecessors repaired, by the batch's own statistics.

    Args:
        program: as for `run`, with the five that follow.
        weights: see there.
        sites: see there.
        batch_norms: see there.
        data: see there.
        limit: see there.
        what: is said in progress and errors.
        given: values that are not computed; sites lie behind them.
        start: their value for a batch.
    """
    watched: dict[str, list[tuple[Site, int]]] = {}
    for site in sites:
        for _, value, axis in site.events:
            watched.setdefault(value, []).append((site, axis))
    runner = program.compile(sinks(program, watched), given=given, taps=watched, batch_statistics=batch_norms)
    scratch = Scratch()

    def tap(name: str, value: Tensor) -> Tensor | None:
        replacement: Tensor | None = None
        for site, axis in watched[name]:
            batch = centre(value, axis, scratch, "passing")
            if batch.count < 2:
                raise DataError(
                    f"{name}: a batch of one sample has no statistics of its own",
                    hint="use larger batches, drop the last one where it is that small, or mode='sequential'",
                )
            site.pooled.add(batch)
            replacement = site.replacement(value, batch) if replacement is None else replacement
        return replacement

    examples = largest = 0
    device, dtype = home(weights)
    for index, batch in enumerate(feed(data, what, limit)):
        here = batch.to(device, dtype)
        with explained(program, here, f"batch {index}"):
            runner(weights, here, tap=tap, given=start(batch) if start is not None else None)
        examples, largest = examples + batch.size, max(largest, batch.size)
    for site in sites:
        _check(site)
    return [site.write(weights) for site in sites], Seen(examples, largest)


def _check(site: Site) -> None:
    if not bool(site.pooled.finite):
        raise DataError(
            "the merged model's activations are not finite",
            [site.events[0][1]],
            hint="look at the merged weights: a value overflowed, or they hold NaN; or at the data",
        )


def _sequential(
    program: Program,
    weights: dict[str, Tensor],
    sites: Sequence[Site],
    data: Iterable[object],
    limit: int | None,
) -> tuple[list[Change], Seen]:
    """Layer after layer, each measured on all the data with everything before it finished.

    The network is run through about twice, however deep it is; see `isthmus.repair.tape`.
    """
    order = {name: position for position, name in enumerate(program.nodes)}
    events = sorted(
        ((place, value, axis, site) for site in sites for place, value, axis in site.events),
        key=lambda event: order[event[0]],
    )
    values = {value for _, value, _, _ in events}
    tape = Tape(program, weights, lambda: feed(data, "repair", limit), values)
    changes: dict[str, Change] = {}
    scratch = Scratch()
    for place, value, axis, site in events:
        for found in tape.advance(place, (value,)):
            site.pooled.add(centre(found[value], axis, scratch, "passing"))
        _check(site)
        change = site.write(weights)
        # A norm that is called twice is written twice, the second time with both calls pooled.
        changes[change.value] = change
    return list(changes.values()), Seen(tape.examples, tape.largest)
