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
        typer.Argument(
            metavar="CHECKPOINT [KEY=VALUE]...", help="A file of weights; arguments go to --arch."
        ),
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
        str | None, typer.Option(help="How activations get their statistics back, as the unpruned model's.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The pruned checkpoint.")] = Path("pruned.safetensors"),
    mask_out: Annotated[Path | None, typer.Option(help="Write the mask to this file as well.")] = None,
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
    options = scoring.options(option or [], prune_model)
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
        repair=repair,
        **options,
    )
    tried = {"as it was": state, "pruned": pruned.unrepaired, "repaired": pruned.weights}
    scores = {
        name: measure.evaluate(model, splits.test, weights, split="test").accuracy
        for name, weights in tried.items()
        if name != "repaired" or repair is not None
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
            "test accuracy": scores,
        }
        typer.echo(json.dumps(done, indent=1, default=str))
    else:
        typer.echo(str(pruned))
        for name, accuracy in scores.items():
            typer.echo(f"test accuracy  {100 * accuracy:6.2f}%  {name}")
    output.say(f"wrote {out}" + (f" and {mask_out}" if mask_out is not None else ""))
