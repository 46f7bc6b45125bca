"""`isthmus prune`: a checkpoint in, a sparse one out, repaired against what it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli import inputs, output, scoring


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("prune")(prune)


def prune(
    checkpoint: Annotated[
        list[str],
        typer.Argument(metavar="CHECKPOINT | KEY=VALUE", help="A file of weights; arguments go to --arch."),
    ],
    arch: Annotated[str | None, typer.Option(help=inputs.ARCH)] = None,
    data: Annotated[str | None, typer.Option(help=inputs.DATA)] = None,
    method: Annotated[
        str | None,
        typer.Option(help="What goes: magnitude (the default), diagonal-fisher, wanda, woodfisher."),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of the weights to prune, 0 to below 1.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Put on the mask of this file instead.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the method, NAME=VALUE (scope=layer); repeat it.")
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Weights to leave whole, by name with * and ?; repeat the option."),
    ] = None,
    repair: Annotated[
        list[str] | None,
        typer.Option(
            help="How activations get their statistics back, as the unpruned model's. Kept only where validation "
            f"images say that it helps; of several, or of all (best), the best. {inputs.OPTIONS}"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The pruned checkpoint.")] = Path("pruned.safetensors"),
    mask_out: Annotated[Path | None, typer.Option(help="Write the mask to this file as well.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for report.html and results.json.")] = None,
    calibration: Annotated[
        int, typer.Option(help="At most this many calibration images, from the training data; 0 for all.")
    ] = 5000,
    validation: Annotated[
        int | None, typer.Option(help="Images kept from the training data; a tenth where not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Prune a checkpoint in one shot. With --data, it is also evaluated: as it was, pruned, and repaired."""
    from isthmus import measure, progress
    from isthmus import prune as prune_model
    from isthmus.comparing import command_line
    from isthmus.errors import InputError
    from isthmus.program.named import separate

    progress.enable()
    paths, arguments = separate(checkpoint)
    problems = [] if len(paths) == 1 else [f"one checkpoint is needed, not {len(paths)}"]
    problems += [
        f"{name} {path}: it is written as safetensors"
        for name, path in (("--out", out), ("--mask-out", mask_out))
        if path is not None and path.suffix != ".safetensors"
    ]
    if data is None:
        problems.append("--data is needed: the network is read, and repaired, by running it")
    if problems:
        raise InputError("the checkpoint cannot be pruned like this", problems)
    if report is not None:
        output.ready(report, "--report")
    options = scoring.options(option or [], prune_model)
    repairs = inputs.repairs(repair)
    model = inputs.build(arch, arguments)
    state = inputs.checkpoint(paths[0], model)
    splits = inputs.splits(inputs.dataset(data, validation, seed), calibration or None, None, None)
    pruned = prune_model(
        model,
        method,
        sparsity=sparsity,
        mask=mask,
        data=splits.calibration,
        weights=state,
        skip=tuple(skip or ()),
        repair=repairs,
        validation=splits.validation if repairs else None,
        **options,
    )
    scores = {
        name: measure.evaluate(model, splits.test, weights, split="test")
        for name, weights in pruned.stages.items()
    }
    pruned.save(out)
    if mask_out is not None:
        pruned.save_mask(mask_out)
    if as_json:
        done = {
            "out": str(out),
            "settings": dict(pruned.settings),
            "sparsity": pruned.sparsity,
            "by layer": pruned.by_layer,
            "left": dict(pruned.left),
            "refilled": pruned.refilled,
            "test accuracy": {name: score.accuracy for name, score in scores.items()},
        }
        typer.echo(json.dumps(done, indent=1, default=str))
    else:
        typer.echo(str(pruned))
        for name, score in scores.items():
            typer.echo(f"test accuracy  {100 * score.accuracy:6.2f}%  {name}")
    written = [str(path) for path in (out, mask_out) if path is not None]
    if report is not None:
        from isthmus.report import render
        from isthmus.report.pruning import pruned_results

        made = pruned_results(
            pruned,
            scores,
            splits.validation,
            title=f"{Path(paths[0]).stem}, pruned by {pruned.settings['method'] or 'a mask'}",
            command=command_line(),
            sizes=splits.sizes,
            seeds={"split": seed},
        )
        written += [str(made.to_json(report / "results.json")), str(render(made, report / "report.html"))]
    output.say(f"wrote {', '.join(written)}")
