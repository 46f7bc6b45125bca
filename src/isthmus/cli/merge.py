"""`isthmus merge`: checkpoints in, one checkpoint out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli import inputs, output


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("merge")(merge)


def merge(
    checkpoints: Annotated[
        list[str],
        typer.Argument(metavar="CHECKPOINT... [KEY=VALUE]...", help="Two or more files of weights."),
    ],
    out: Annotated[Path, typer.Option(help="The merged checkpoint, a safetensors file.")] = Path(
        "merged.safetensors"
    ),
    arch: Annotated[str | None, typer.Option(help=inputs.ARCH)] = None,
    data: Annotated[str | None, typer.Option(help=inputs.DATA)] = None,
    align: Annotated[str | None, typer.Option(help="How to bring the models together first.")] = None,
    method: Annotated[str, typer.Option(help="How aligned tensors are combined.")] = "average",
    weights: Annotated[
        list[float] | None, typer.Option(help="Weight of each model, in order; repeat the option.")
    ] = None,
    repair: Annotated[str | None, typer.Option(help="How activations get their statistics back.")] = None,
    preserve_first: Annotated[int, typer.Option(help="Keep every model's first layers.")] = 0,
    preserve_last: Annotated[int, typer.Option(help="Keep every model's last layers.")] = 0,
    modules: Annotated[
        list[str] | None, typer.Option(help="Keep modules by name, with * and ?; repeat the option.")
    ] = None,
    variant: Annotated[
        str, typer.Option(help="Where kept-apart branches meet: junction or paper.")
    ] = "junction",
    reference: Annotated[int, typer.Option(help="Index of the model whose order of units stays.")] = 0,
    calibration: Annotated[
        int, typer.Option(help="At most this many calibration images, from the training data; 0 for all.")
    ] = 5000,
    validation: Annotated[
        int | None, typer.Option(help="Images kept from the training data; a tenth where not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split and of what is drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Merge checkpoints into one. With --data, the merge and its parents are also evaluated."""
    from isthmus import measure, progress
    from isthmus import merge as merge_models
    from isthmus.errors import InputError

    progress.enable()
    paths, arguments = inputs.separate(checkpoints)
    if out.suffix != ".safetensors":
        raise InputError(
            f"--out {out}: merged weights are written as safetensors", hint=f"{out.stem}.safetensors"
        )
    if data is not None and arch is None:
        raise InputError("--data needs --arch", hint="data is run through the architecture")
    model = inputs.build(arch, arguments) if arch else None
    states = [inputs.checkpoint(p, model) for p in paths] if model else paths
    splits = (
        inputs.splits(inputs.dataset(data, validation, seed), calibration or None, None, None)
        if data
        else None
    )
    merged = merge_models(
        states,
        model=model,
        align=align,
        method=method,
        weights=weights,
        repair=repair,
        data=splits.calibration if splits else None,
        preserve_first=preserve_first,
        preserve_last=preserve_last,
        modules=tuple(modules or ()),
        variant=inputs.variant(variant),
        reference=reference,
        seed=seed,
    )
    scores: dict[str, float] = {}
    if splits is not None and merged.model is not None and model is not None:
        for path, state in zip(paths, states, strict=True):
            assert isinstance(state, dict)
            scores[Path(path).stem] = measure.evaluate(model, splits.test, state, split="test").accuracy
        scores["merged"] = measure.evaluate(merged.model, splits.test, split="test").accuracy
    merged.save(out)
    if as_json:
        settings = {k: v if isinstance(v, (int, float, bool)) else str(v) for k, v in merged.settings.items()}
        done = {"out": str(out), "settings": settings, "test accuracy": scores, "report": str(merged)}
        typer.echo(json.dumps(done, indent=1))
        return
    typer.echo(str(merged))
    for name, accuracy in scores.items():
        typer.echo(f"test accuracy  {100 * accuracy:6.2f}%  {name}")
    output.say(f"wrote {out}")
    if merged.own_program:
        output.say(f"and {out.with_suffix('.json')}: load both with isthmus.load({str(out)!r}, model=...)")
