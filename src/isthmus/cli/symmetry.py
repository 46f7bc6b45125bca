"""`isthmus symmetry`: what may be moved in a model, what stays and why, and whether that was checked."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli import inputs, output
from isthmus.errors import ExportError, InputError, VerificationError
from isthmus.progress import PATIENCE

if TYPE_CHECKING:
    from isthmus.program import named
    from isthmus.symmetry import SymmetryGraph, Verification

#: Above this many parameters a model is traced on the meta device: float64 copies to check it would not fit.
LARGEST = 150_000_000

#: A narrower model that is still larger than this is not tried.
LARGEST_SMALL = 60_000_000


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("symmetry", short_help="List what may be reordered in a model without changing it.")(symmetry)


def symmetry(
    model: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL | KEY=VALUE", help=f"{inputs.MODEL} Arguments go to its factory."),
    ] = None,
    arch: Annotated[str | None, typer.Option(help="Another way to give MODEL.")] = None,
    shape: Annotated[
        str | None, typer.Option(help="Shape of one input with its batch, such as 2,3,32,32; tokens: 2,16.")
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="The input is integer tokens.")] = False,
    meta: Annotated[
        bool, typer.Option("--meta", help="Build on the meta device: no memory. Large models are anyway.")
    ] = False,
    check: Annotated[
        bool | None,
        typer.Option(
            help="Verify on redrawn weights; with --check, exit with 1 where anything fails or could not be "
            "verified. By default it is verified if it fits."
        ),
    ] = None,
    small: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Verify a model that is too large on one of the same structure with these arguments; repeat.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the weights and elements that verification draws.")] = 0,
    save: Annotated[Path | None, typer.Option(help="Write the graph here, to use without the model.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="A row for each space, also of repeated layers.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the spaces of a model: index sets that may be reordered without changing its function."""
    from isthmus import progress
    from isthmus.program import named

    progress.enable()
    paths, given = named.separate(model or [])
    names = [*paths, *([arch] if arch else [])]
    if len(names) != 1:
        raise InputError(
            f"one model is needed, not {len(names)}: {', '.join(names)}" if names else "no model is named",
            hint=f"MODEL is {inputs.MODEL}",
        )
    if save is not None and save.suffix != ".json":
        raise InputError(f"--save {save}: a graph is written as JSON", hint=f"{save.stem}.json")
    found = _read(names[0]) if names[0].endswith(".json") else None
    if found is None:
        asked = named.find(names[0], given, inputs.sizes(shape), tokens)
        found = _examine(asked, meta=meta, check=check, small=_pairs(small or []), seed=seed)
    elif check:
        raise InputError(f"{names[0]} holds no program to check", hint="give the model itself")
    if save is not None:
        from isthmus.symmetry import saved

        saved.save(found.graph, save, found.verification)
    if as_json:
        typer.echo(json.dumps(_described(found), indent=1, allow_nan=False))
    else:
        typer.echo(_shown(found, every))
    if save is not None:
        output.say(f"wrote {save}")
    if check and found.trouble:
        output.say(f"error: {found.trouble}")
        raise typer.Exit(1)


@dataclass(frozen=True)
class Found:
    """What the verb has to say.

    Attributes:
        title: of the model.
        graph: its symmetries.
        verification: how they were checked; None if they were not.
        trouble: why --check is not content; empty where it is.
    """

    title: str
    graph: SymmetryGraph
    verification: Verification | None
    trouble: str = ""


def _examine(
    asked: named.Named, *, meta: bool, check: bool | None, small: Mapping[str, object], seed: int
) -> Found:
    """Make the model, read it, and check it, itself or by one of the same structure."""
    import torch

    from isthmus.symmetry import trace, verified

    torch.manual_seed(seed)
    model = example = None
    if meta or asked.weigh:
        with _busy("building"), torch.device("meta"):
            model, example = asked.make({})
        count = sum(p.numel() for p in model.parameters())
        meta = meta or count > LARGEST
    if not meta:
        with _busy("building"):
            model, example = asked.make({})
    assert model is not None and example is not None
    with _busy("reading the program"):
        graph = trace(model, example)
    if check is False:
        return Found(asked.title, graph, None, "not verified")
    try:
        if meta or small:
            graph, verification = _by_smaller(asked, graph, small, seed)
        else:
            with _busy("verifying"):
                graph, verification = verified(graph, example, weights=model, seed=seed)
    except VerificationError as error:
        return Found(asked.title, graph, None, error.render())
    trouble = ""
    if math.isnan(verification.error):
        trouble = f"unverified: {verification.note}"
    elif verification.frozen:
        places = [f"{name} ({where})" for name, where in verification.frozen.items()]
        trouble = f"{len(places)} spaces failed and are fixed: {', '.join(places)}"
    return Found(asked.title, graph, verification, trouble)


def _by_smaller(
    asked: named.Named, graph: SymmetryGraph, small: Mapping[str, object], seed: int
) -> tuple[SymmetryGraph, Verification]:
    """Verify a model on the meta device by a narrower one: as the user says, or as its configuration allows."""
    import torch

    from isthmus.symmetry import Verification
    from isthmus.symmetry.stand_in import verified_by

    def attempt(options: Mapping[str, object], largest: int) -> tuple[SymmetryGraph, Verification] | None:
        with torch.device("meta"):
            model, example = asked.make(options)
        if sum(p.numel() for p in model.parameters()) > largest:
            return None
        with _busy("verifying by a narrower model"):
            model, example = asked.make(options)
            return verified_by(graph, None, model, example, seed=seed)

    if small:
        done = attempt(small, LARGEST)
        if done is None:
            raise InputError(f"--small: the model still has more than {LARGEST:,} parameters")
        return done
    reasons: list[str] = []
    for options in asked.narrower():
        try:
            done = attempt(options, LARGEST_SMALL)
        except (InputError, ExportError) as error:
            reasons.append(error.where[0] if error.where else error.what)
            continue
        if done is not None:
            return done
    note = "on the meta device; give --small KEY=VALUE, arguments of a narrower model of as many layers"
    return graph, Verification(math.nan, note=note + (f" (tried: {reasons[0]})" if reasons else ""))


def _read(path: str) -> Found:
    from isthmus.symmetry import saved

    graph = saved.load(path)
    return Found(path, graph, None)


def _pairs(items: list[str]) -> dict[str, object]:
    """KEY=VALUE pairs; keys may have dots, values are read as JSON where they are JSON."""
    found: dict[str, object] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise InputError(f"--small {item}: KEY=VALUE is expected")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


@contextmanager
def _busy(label: str) -> Iterator[None]:
    """Say what is being done where it takes long: one piece of work of which nobody knows the half."""
    start = time.monotonic()
    timer = threading.Timer(PATIENCE, output.say, (f"{label} ...",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if (took := time.monotonic() - start) > PATIENCE:
            output.say(f"{label}: took {took:.0f} s")


# -- what is shown -----------------------------------------------------------------------------


def _shown(found: Found, every: bool) -> str:
    from isthmus.cli import spaces

    graph = found.graph
    lines = [f"{found.title}: {spaces.summary(graph)}", ""]
    lines += spaces.table(graph, every=every)
    if graph.fixed:
        lines += ["", "fixed, and why:", *spaces.fixed(graph)]
    if graph.unread:
        lines += ["", f"not read by the program, and never moved: {', '.join(spaces.folded(graph.unread))}"]
    if graph.unknown:
        lines += ["", "operations without a rule (what they touch is fixed):"]
        lines += [
            f"  {name} at {', '.join(spaces.folded(places)[:3])}" for name, places in graph.unknown.items()
        ]
        lines.append("hint: a rule is a few lines, registered by isthmus.rule; see docs/guides/add-a-rule.md")
    return "\n".join([*lines, "", _checked(found)])


def _checked(found: Found) -> str:
    if found.verification is not None:
        text = str(found.verification)
        note = found.verification.note
        return f"{text}\n({note})" if note and note not in text else text
    told = getattr(found.graph.program, "verification", "")
    if told:
        return f"when it was saved: {told}"
    return found.trouble or "not verified"


def _described(found: Found) -> dict[str, object]:
    from isthmus.symmetry import to_json

    graph, verification = found.graph, found.verification
    described: dict[str, object] = {
        "model": found.title,
        "spaces": [
            {
                "name": space.name,
                "size": space.size,
                "group": graph.groups[space.name],
                "within": list(space.within),
                "marks": sorted(space.marks),
                "members": [[m.key, m.axis, m.role] for m in space.members],
            }
            for space in graph.spaces.values()
        ],
        "layout": {key: [to_json(axis) for axis in axes] for key, axes in graph.layout.items()},
        "fixed": [[f.key, f.axis, f.size, f.reason] for f in graph.fixed],
        "unknown": {name: list(places) for name, places in graph.unknown.items()},
        "unread": list(graph.unread),
        "coverage": graph.coverage,
    }
    if verification is not None:
        described["verification"] = {
            "ok": verification.ok,
            "error": None if math.isnan(verification.error) else verification.error,
            "bound": verification.bound,
            "unobservable": list(verification.unobservable),
            "failed": verification.failed,
            "frozen": verification.frozen,
            "note": verification.note,
        }
    if found.trouble:
        described["trouble"] = found.trouble
    return described
