"""`isthmus diagnose`: how checkpoints are related, what is wrong with merging them, and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli import inputs, output


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("diagnose", short_help="Say how checkpoints are related, and which merge is best.")(diagnose)


def diagnose(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT | KEY=VALUE", help="Two or more files of weights; arguments go to --arch."
        ),
    ],
    arch: Annotated[str | None, typer.Option(help=inputs.ARCH)] = None,
    data: Annotated[str | None, typer.Option(help=inputs.DATA)] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.html, results.json and diagnosis.json.")
    ] = None,
    budget: Annotated[
        list[float] | None,
        typer.Option(help="Largest number of parameters, relative to one model; repeat the option."),
    ] = None,
    subset: Annotated[int, typer.Option(help="Images for the measures and for what is tried first.")] = 500,
    recipes: Annotated[int, typer.Option(help="Try at most so many recipes.")] = 60,
    seconds: Annotated[float | None, typer.Option(help="Try no further recipe after so long.")] = None,
    calibration: Annotated[
        int, typer.Option(help="At most this many calibration images, from the training data; 0 for all.")
    ] = 2000,
    validation: Annotated[
        int | None, typer.Option(help="Images kept from the training data; a tenth where not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split and of the merges.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the diagnosis as JSON.")] = False,
) -> None:
    """Say how checkpoints are related, what stands in the way of merging them, and which merge is best at what size."""
    from isthmus import diagnose as diagnose_models
    from isthmus import progress
    from isthmus.comparing import command_line
    from isthmus.diagnose import BUDGETS
    from isthmus.diagnosing import results
    from isthmus.program.named import separate

    progress.enable()
    if report is not None:
        output.ready(report, "--report")
    paths, arguments = separate(checkpoints)
    model = inputs.build(arch, arguments)
    states = [inputs.checkpoint(path, model) for path in paths]
    splits = inputs.splits(inputs.dataset(data, validation, seed), calibration or None, None, 1)
    asked = {"data": data, "calibration": calibration, "validation": validation, "seed": seed}
    words = [word for name, value in asked.items() if value is not None for word in (f"--{name}", str(value))]
    given = [item for item in checkpoints if item not in paths]
    architecture = ["--arch", str(arch), *given]
    found = diagnose_models(
        states,
        splits.calibration,
        validation=splits.validation,
        model=model,
        names=inputs.names(paths),
        budgets=budget or BUDGETS,
        subset=subset,
        recipes=recipes,
        seconds=seconds,
        seed=seed,
        program=["isthmus", "merge", *paths, *architecture, *words],
    )
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        from rich.console import Console

        from isthmus.diagnose.terminal import shown

        Console().print(shown(found), highlight=False)
        # Whole lines, whatever the width of the terminal: they are there to be copied.
        typer.echo("\ncommands\n" + "\n".join(f"{size}  {line}" for size, line in found.commands))
    if report is not None:
        from isthmus.report.diagnosis import render_diagnosis
        from isthmus.report.write import write_text

        made = results(found, command=command_line())
        written = [
            made.to_json(report / "results.json"),
            write_text(report / "diagnosis.json", json.dumps(found.to_dict(), indent=1) + "\n"),
            render_diagnosis(found, report / "report.html", command=command_line()),
        ]
        output.say("wrote " + ", ".join(str(path) for path in written))
