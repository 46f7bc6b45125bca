"""`isthmus align`: what brings models together, as a file of maps; or such a file, applied."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli import inputs, output, scoring
from isthmus.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from isthmus import Alignment
    from isthmus.comparing import Splits
    from isthmus.program import Inputs
    from isthmus.symmetry import SymmetryGraph, Verification

REFERENCE = "Whose order of units stays: an index, first, best (on validation data), medoid or universe."
KEPT = "Examples of --data on which to measure how much of the models the maps keep; 0 for none."
_WORDS = ("first", "best", "medoid", "universe")
_FINDING = ("method", "option", "reference", "kept")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("align")(align)


def align(
    checkpoints: Annotated[
        list[str],
        typer.Argument(metavar="CHECKPOINT... [KEY=VALUE]...", help="Two or more files of weights."),
    ],
    arch: Annotated[str | None, typer.Option(help=inputs.ARCH)] = None,
    method: Annotated[
        str, typer.Option(help="How units are matched; `isthmus methods alignment` lists them.")
    ] = "weight-matching",
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the method, NAME=VALUE; repeat it.")
    ] = None,
    reference: Annotated[str, typer.Option(help=REFERENCE)] = "first",
    data: Annotated[str | None, typer.Option(help=inputs.DATA)] = None,
    shape: Annotated[str | None, typer.Option(help=inputs.EXAMPLE)] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="The input is integer tokens.")] = False,
    apply: Annotated[
        Path | None,
        typer.Option(help="Move the models by this file of maps instead, and write those that move."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file of maps, by default maps.safetensors; with --apply the moved checkpoint, or a folder "
            "where several move, by default moved."
        ),
    ] = None,
    kept: Annotated[int, typer.Option(help=KEPT)] = 256,
    calibration: Annotated[
        int, typer.Option(help="At most this many calibration images, from the training data; 0 for all.")
    ] = 5000,
    validation: Annotated[
        int | None, typer.Option(help="Images kept from the training data; a tenth where not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split and of what is drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Find the maps that bring models to one of them, or apply maps that were found before."""
    given = dict(locals())
    defaults = {name: parameter.default for name, parameter in inspect.signature(align).parameters.items()}
    wrong = [f"--{name}" for name in _FINDING if apply is not None and given[name] != defaults[name]]
    if wrong:
        raise InputError(f"{', '.join(wrong)}: not with --apply, which takes maps as they are")
    stays = referred(reference)
    maps = out or Path("maps.safetensors")
    if apply is None and maps.suffix != ".safetensors":
        raise InputError(
            f"--out {maps}: maps are written as safetensors", hint=f"--out {maps.stem}.safetensors"
        )
    from isthmus import progress
    from isthmus.program.named import separate

    progress.enable()
    paths, arguments = separate(checkpoints)
    if len(paths) < 2:
        raise InputError(f"two or more checkpoints are aligned, not {len(paths)}")
    model = inputs.build(arch, arguments)
    states = [inputs.checkpoint(path, model) for path in paths]
    splits = None
    if data is not None:
        splits = inputs.splits(inputs.dataset(data, validation, seed), calibration or None, None, None)
    example = inputs.example(arch, arguments, splits, shape, tokens)
    graph, checked = _symmetries(model, example, states, seed)
    output.say(f"symmetries {checked}")
    if apply is not None:
        _apply(apply, out, graph, states, paths, as_json)
        return
    found = _find(graph, model, states, method, option or [], stays, splits, seed)
    figures = None
    if splits is not None and kept:
        from isthmus.measure import kept as examine

        figures = examine(found, states, splits.calibration, limit=kept)
    found.save(maps)
    if as_json:
        described = {
            "out": str(maps),
            "method": found.method,
            "reference": found.reference,
            "status": found.status,
            "notes": list(found.notes),
            "costs": [cost.__dict__ for cost in found.costs],
            "kept": None if figures is None else {f.name: {"mean": f.value, **f.layers} for f in figures},
        }
        typer.echo(json.dumps(described, indent=1))
    else:
        typer.echo("\n".join([str(found), *([str(figures)] if figures is not None else [])]))
    output.say(f"wrote {maps}")


def referred(text: str) -> int | str:
    """An index, or how the reference is chosen.

    Raises:
        InputError: it is neither.
    """
    if text in _WORDS:
        return text
    if text.isdecimal():
        return int(text)
    raise InputError(f"--reference {text} is no model", hint=f"an index from 0, or {', '.join(_WORDS)}")


def score_for(
    reference: int | str, model: nn.Module | None, splits: Splits | None
) -> Callable[[Mapping[str, Tensor]], float] | None:
    """What tells which model is the best, where that is asked for: accuracy on the validation split.

    Raises:
        InputError: there is no data to tell it by.
    """
    if reference != "best":
        return None
    if model is None or splits is None:
        raise InputError(
            "which model is the best is not known without data",
            hint="--arch and --data, or another --reference",
        )
    from isthmus import score

    return score(model, splits.validation)


def _symmetries(
    model: nn.Module, example: Inputs, states: Sequence[Mapping[str, Tensor]], seed: int
) -> tuple[SymmetryGraph, Verification]:
    from isthmus.symmetry import trace, verified

    return verified(trace(model, example), example, weights=states[0], seed=seed)


def _find(
    graph: SymmetryGraph,
    model: nn.Module,
    states: Sequence[Mapping[str, Tensor]],
    method: str,
    option: list[str],
    stays: int | str,
    splits: Splits | None,
    seed: int,
) -> Alignment:
    """The alignment that is asked for, which knows whose it is."""
    from isthmus import align as align_models
    from isthmus import weights
    from isthmus.align import ALIGNMENTS

    options = scoring.options(option, align_models)
    if "seed" in inspect.signature(ALIGNMENTS.get(method).function).parameters:
        options.setdefault("seed", seed)
    found = align_models(
        graph,
        states,
        {"method": method, **options},
        data=splits.calibration if splits is not None else None,
        reference=stays,
        score=score_for(stays, model, splits),
    )
    return replace(found, digests=tuple(map(weights.digest, states)))


def _apply(
    maps: Path,
    out: Path | None,
    graph: SymmetryGraph,
    states: Sequence[Mapping[str, Tensor]],
    paths: Sequence[str],
    as_json: bool,
) -> None:
    """Write every model that the maps move as a checkpoint of its own class."""
    from isthmus import Alignment, weights
    from isthmus.align import check_models

    found = Alignment.load(maps, graph)
    check_models(found, states, paths)
    if found.through:
        raise InputError(
            f"{found.method} groups units: one moved model alone is a part of a sum, and no network",
            hint=f"isthmus merge {' '.join(paths)} --maps {maps}",
        )
    moving = [index for index in range(len(states)) if index != found.reference]
    alone = len(moving) == 1
    out = out or Path("moved.safetensors" if alone else "moved")
    if alone and out.suffix != ".safetensors":
        raise InputError(f"--out {out}: weights are written as safetensors", hint=f"{out.stem}.safetensors")
    names = [str(out)] if alone else [str(out / f"{i}-{Path(paths[i]).stem}.safetensors") for i in moving]
    moved = found.apply(states)
    for index in moving:
        weights.check_finite(moved[index], f"{paths[index]}, moved")
    if not alone:
        out.mkdir(parents=True, exist_ok=True)
    described = {"method": found.method, "to": paths[found.reference]}
    for index, name in zip(moving, names, strict=True):
        said = json.dumps({**described, "model": paths[index]})
        weights.save(moved[index], name, metadata={"isthmus.aligned": said})
    if as_json:
        typer.echo(
            json.dumps({"wrote": names, **described, "keeps functions": found.keeps_functions}, indent=1)
        )
    else:
        rows = zip(moving, names, strict=True)
        typer.echo("\n".join(f"{paths[i]} in the units of {described['to']}: {name}" for i, name in rows))
    if not found.keeps_functions:
        output.say(
            f"{found.method} does not keep a model's function: the moved weights are for merging, and running "
            "statistics are estimates"
        )
    output.say(f"wrote {', '.join(names)}")
