"""`isthmus align`: what brings models together, as a file of maps; or such a file, applied."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli import inputs, output, scoring
from isthmus.cli.together import KEPT, REFERENCE, check_widths, referred, score_for
from isthmus.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from isthmus import Alignment
    from isthmus.comparing import Splits
    from isthmus.symmetry import SymmetryGraph

_FINDING = ("method", "option", "reference", "kept")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("align", short_help="Find the maps that bring models together, or apply them.")(align)


def align(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT | KEY=VALUE", help="Two or more files of weights; arguments go to --arch."
        ),
    ],
    arch: Annotated[list[str] | None, typer.Option(help=inputs.ARCHS)] = None,
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
    maps = out or Path("maps.safetensors")
    if apply is None and maps.suffix != ".safetensors":
        raise InputError(
            f"--out {maps}: maps are written as safetensors", hint=f"--out {maps.stem}.safetensors"
        )
    from isthmus import progress
    from isthmus.align import read_symmetries
    from isthmus.program.named import separate

    progress.enable()
    paths, arguments = separate(checkpoints)
    if len(paths) < 2:
        raise InputError(f"two or more checkpoints are aligned, not {len(paths)}")
    stays = referred(reference, len(paths))
    options = _options(method, option or [], seed, data)
    archs = arch or []
    models = inputs.build_each(archs, arguments, paths)
    states = [inputs.checkpoint(path, model) for path, model in zip(paths, models, strict=True)]
    if apply is None:
        check_widths(states, method, "--method")
    splits = None
    if data is not None:
        splits = inputs.splits(inputs.dataset(data, validation, seed), calibration or None, None, None)
    example = inputs.example(archs[0], arguments, splits, shape, tokens)
    graph, checks = read_symmetries(models, states, example, seed)
    for path, checked in zip(paths, checks, strict=False):  # one for all, or one for each
        output.say(f"symmetries {checked}" if len(checks) == 1 else f"symmetries of {path} {checked}")
    if apply is not None:
        _apply(apply, out, graph, states, paths, as_json)
        return
    found = _find(graph, models, states, {"method": method, **options}, stays, splits)
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


def _options(method: str, option: list[str], seed: int, data: str | None) -> dict[str, object]:
    """The options of a method, checked before anything is read.

    Raises:
        InputError: no method is called so, it has no such option, or it needs data and there are none.
    """
    from isthmus import align as align_models
    from isthmus.align import ALIGNMENTS

    asked = ALIGNMENTS.get(method)
    options = scoring.options(option, align_models, asked.options)
    asked.check_options(options)
    if "data" in asked.needs and data is None:
        raise InputError(f"{method} needs calibration data", hint=f"--data {inputs.KINDS}")
    if "seed" in inspect.signature(asked.function).parameters:
        options.setdefault("seed", seed)
    return options


def _find(
    graph: SymmetryGraph | list[SymmetryGraph],
    models: Sequence[nn.Module],
    states: Sequence[Mapping[str, Tensor]],
    how: Mapping[str, object],
    stays: int | str,
    splits: Splits | None,
) -> Alignment:
    """The alignment that is asked for, which knows whose it is."""
    from isthmus import align as align_models
    from isthmus import weights

    found = align_models(
        graph,
        states,
        how,
        data=splits.calibration if splits is not None else None,
        reference=stays,
        score=score_for(stays, models, splits),
    )
    return replace(found, digests=tuple(map(weights.digest, states)))


def _apply(
    maps: Path,
    out: Path | None,
    graph: SymmetryGraph | list[SymmetryGraph],
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
