"""`isthmus compare`: every way to merge some checkpoints, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli import inputs, output


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("compare", short_help="Merge checkpoints every way there is, and measure each.")(compare)


def compare(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT | KEY=VALUE", help="Two or more files of weights; arguments go to --arch."
        ),
    ],
    arch: Annotated[str | None, typer.Option(help=inputs.ARCH)] = None,
    data: Annotated[str | None, typer.Option(help=inputs.DATA)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html, results.json and weights.")
    ] = None,
    align: Annotated[
        list[str] | None,
        typer.Option(help=f"Alignment methods to try; repeat the option. {inputs.OPTIONS}"),
    ] = None,
    repair: Annotated[
        list[str] | None, typer.Option(help=f"Repairs to try; repeat the option. {inputs.OPTIONS}")
    ] = None,
    preserve_first: Annotated[
        list[int] | None, typer.Option(help="Depths to keep apart; repeat the option.")
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="Where kept-apart branches meet: junction or paper; repeat for both."),
    ] = None,
    calibration: Annotated[
        int, typer.Option(help="At most this many calibration images, from the training data; 0 for all.")
    ] = 5000,
    validation: Annotated[
        int | None, typer.Option(help="Images kept from the training data; a tenth where not given.")
    ] = None,
    test: Annotated[int | None, typer.Option(help="Test images; all where not given.")] = None,
    points: Annotated[int, typer.Option(help="Places on each barrier curve; odd, 0 for none.")] = 11,
    seed: Annotated[int, typer.Option(help="Of the split and of the merges.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Merge checkpoints every way there is and measure each on the same data."""
    from isthmus import progress
    from isthmus.comparing import command_line
    from isthmus.comparing import compare as compare_models
    from isthmus.program.named import separate

    progress.enable()
    if out is not None:
        output.ready(out)
    paths, arguments = separate(checkpoints)
    model = inputs.build(arch, arguments)
    names = inputs.names(paths)
    states = [inputs.checkpoint(path, model) for path in paths]
    images = inputs.dataset(data, validation, seed)
    found = compare_models(
        states,
        inputs.splits(images, calibration or None, None, test),
        model=model,
        names=names,
        align=[inputs.method(one, "--align") for one in align or ("weight-matching", "activation-matching")],
        repairs=None if repair is None else [inputs.method(one, "--repair") for one in repair],
        preserve_first=preserve_first,
        variants=[inputs.variant(name) for name in variant or ["junction"]],
        points=points,
        seed=seed,
        title=f"Merging {' and '.join(names)}",
        command=command_line(),
    )
    output.show(found.results, as_json)
    if out is not None:
        output.write(found, out)
