"""What REPAIR, RESCALE and re-shift share: a gain, a shift or both at the output of every merged layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from isthmus.errors import InputError, MismatchError
from isthmus.features import placed
from isthmus.program import Program
from isthmus.repair.blocks import place_of
from isthmus.repair.closed_form import closed_form
from isthmus.repair.explicit import Explicit, explicit_keys, with_parameters
from isthmus.repair.goals import Goal
from isthmus.repair.passes import Seen, run
from isthmus.repair.result import AffineMode, Change, Repaired
from isthmus.repair.selection import Outputs, below, norms_of, select
from isthmus.repair.sites import EPS, MAX_GAIN, AffineSite, Site, norm_sites
from isthmus.repair.writers import Fusable, Writer, fusable, kept_apart

#: What happens to the running statistics of batch norms behind repaired values.
Norms = Literal["refresh", "keep"]


def affine_repair(
    method: str,
    program: Program,
    weights: Mapping[str, Tensor],
    data: Iterable[object],
    goals: Mapping[str, Goal],
    *,
    layers: Outputs,
    mode: AffineMode,
    norms: Norms,
    allow_new_parameters: bool,
    device: torch.device | str | None,
    limit: int | None,
    scales: bool = True,
    shifts: bool = True,
    max_gain: float = MAX_GAIN,
    eps: float = EPS,
) -> Repaired:
    """Bring layer outputs to their goals; see `repair`, `rescale` and `reshift`."""
    modes = get_args(AffineMode)
    if norms not in get_args(Norms) or mode not in modes or max_gain <= 0 or eps < 0:
        raise InputError(
            "options of the repair are out of range",
            [
                f"norms={norms!r} (refresh or keep), mode={mode!r} ({', '.join(modes)})",
                f"max_gain={max_gain} (positive), eps={eps} (not negative)",
            ],
        )
    writers, skipped = _chosen(program, layers, goals)
    fusables = {
        value: Fusable(False, None, writer.obstacle) if writer.obstacle else fusable(program, value)
        for value, writer in writers.items()
    }
    if not allow_new_parameters:
        able = {v: found.scale and (scales or found.shift is not None) for v, found in fusables.items()}
        skipped |= {value: fusables[value].reason for value in writers if not able[value]}
        writers = {value: writer for value, writer in writers.items() if value not in skipped}
    added = {
        value: kinds
        for value, writer in writers.items()
        if (kinds := _explicit(writer, fusables[value], scales, shifts)) is not None and allow_new_parameters
    }
    repaired, new = with_parameters(program, added) if added else (program, {})
    work = placed(repaired, {**weights, **new}, device)
    sites = [
        AffineSite(
            program=repaired,
            writer=writer,
            goal=goals[value],
            fusable=fusables[value],
            gain_key=key if (key := explicit_keys(value)[0]) in new else None,
            shift_key=key if (key := explicit_keys(value)[1]) in new else None,
            shifts=shifts,
            max_gain=max_gain,
            eps=eps,
            scales=scales,
        )
        for value, writer in writers.items()
    ]
    stale = below(repaired, writers) if norms == "refresh" else frozenset[str]()
    behind = tuple(name for name in norms_of(repaired) if name in stale and not kept_apart(name))
    refresh = norm_sites(repaired, behind)
    every: list[Site] = [*sites, *refresh]
    if mode == "closed-form":
        changes, left = closed_form(repaired, work, sites, refresh)
        skipped, seen = skipped | left, Seen(max((g.examples for g in goals.values()), default=0), 0)
    elif mode == "sequential":
        changes, seen = run(repaired, work, every, (), data, mode, limit)
    else:
        changes, seen = run(repaired, work, sites, behind, data, mode, limit)
        # The norms' new statistics are those of the repaired weights, so they need a pass of their own.
        changes += run(repaired, work, refresh, behind, data, mode, limit)[0]
    return Repaired(
        method=method,
        weights=written(program, weights, work, changes, new),
        program=repaired,
        changed=in_order(repaired, changes),
        scale_only=tuple(
            s.writer.value for s in sites if shifts and not s.shifted and s.writer.value not in skipped
        ),
        skipped=skipped,
        mode=mode,
        examples=seen.examples,
        batch_size=seen.batch_size,
        new_parameters=tuple(new),
    )


def _chosen(
    program: Program, layers: Outputs, goals: Mapping[str, Goal]
) -> tuple[dict[str, Writer], dict[str, str]]:
    """The layers to repair, and those left out with the reason."""
    chosen, skipped = select(program, layers)
    if not goals:
        raise InputError(
            "there are no goals to repair to", hint="isthmus.repair.goals measures them on the models"
        )
    writers: dict[str, Writer] = {}
    wrong: list[str] = []
    for value in chosen:
        writer = place_of(program, value)
        assert writer is not None, f"{value} was chosen"
        channels = program.size(value)[writer.axis]
        if value not in goals:
            skipped[value] = "no goal was given for it"
        elif {goals[value].mean.numel(), goals[value].std.numel()} != {channels}:
            wrong.append(f"{value}: {channels} channels, a goal for {goals[value].mean.numel()}")
        elif not bool(
            (goals[value].mean + goals[value].std).isfinite().all() & (goals[value].std >= 0).all()
        ):
            wrong.append(f"{value}: a goal that is not finite, or a negative standard deviation")
        else:
            writers[value] = writer
    if wrong:
        raise MismatchError(f"{len(wrong)} goals do not fit the program", wrong)
    return writers, skipped


def _explicit(writer: Writer, found: Fusable, scales: bool, shifts: bool) -> Explicit | None:
    if not found.scale:
        return Explicit(writer.axis, gain=scales, shift=shifts)
    return Explicit(writer.axis, gain=False, shift=True) if shifts and found.shift is None else None


def written(
    program: Program,
    given: Mapping[str, Tensor],
    work: Mapping[str, Tensor],
    changes: Iterable[Change],
    new: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The given state dict with what changed in it, under every key that a tied tensor has."""
    out = dict(given)
    for key in {key for change in changes for key in change.into} | new.keys():
        names = [k for k in (key, *(a for a, k in program.tied.items() if k == key)) if k in given]
        for name in names:
            out[name] = work[key].to(given[name].device)
        if key in new:
            out[key] = work[key]
    return out


def from_weights(
    method: str,
    program: Program,
    given: Mapping[str, Tensor],
    work: Mapping[str, Tensor],
    changes: Sequence[Change],
    skipped: dict[str, str],
    *,
    notes: tuple[str, ...] = (),
    settings: Mapping[str, object] | None = None,
) -> Repaired:
    """The result of a repair that looked at no activation."""
    return Repaired(
        method=method,
        weights=written(program, given, work, changes, {}),
        program=program,
        changed=in_order(program, changes),
        scale_only=(),
        skipped=skipped,
        mode="none",
        examples=0,
        batch_size=0,
        notes=notes,
        settings=settings or {},
    )


def in_order(program: Program, changes: Iterable[Change]) -> dict[str, Change]:
    """Changes by value, in order of execution."""
    found = {change.value: change for change in changes}
    return {name: found[name] for name in program.nodes if name in found}
