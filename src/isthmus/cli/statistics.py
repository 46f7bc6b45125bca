"""`isthmus statistics`: what `fisher` and `reg-mean` take beside the models, of one checkpoint, as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli import inputs, output


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("statistics", short_help="Gather the statistics that fisher and reg-mean take.")(statistics)


def statistics(
    checkpoint: Annotated[
        list[str],
        typer.Argument(metavar="CHECKPOINT | KEY=VALUE", help="A file of weights; arguments go to --arch."),
    ],
    arch: Annotated[str | None, typer.Option(help=inputs.ARCH)] = None,
    data: Annotated[str | None, typer.Option(help=inputs.DATA)] = None,
    kind: Annotated[str, typer.Option(help="fisher (for --method fisher) or gram (reg-mean).")] = "fisher",
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("statistics.safetensors"),
    variant: Annotated[
        str | None, typer.Option(help="Of fisher: exact (the default), sampled or empirical.")
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Of --variant sampled: targets per example.")] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="Leave out weights by name, with * and ?; repeat the option.")
    ] = None,
    calibration: Annotated[int, typer.Option(help="At most this many training images; 0 for all.")] = 4096,
    validation: Annotated[
        int | None, typer.Option(help="Images kept from the training data; a tenth where not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split and of what is drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was gathered as JSON.")] = False,
) -> None:
    """Gather the statistics that a rule takes, from one checkpoint and its training data."""
    from isthmus import fisher_information, gram_matrices, progress
    from isthmus.errors import InputError
    from isthmus.program.named import separate

    progress.enable()
    paths, arguments = separate(checkpoint)
    given = {"variant": variant, "draws": draws}
    problems: list[str] = []
    if len(paths) != 1:
        problems.append(f"one checkpoint is needed, not {len(paths)}")
    if kind not in ("fisher", "gram"):
        problems.append(f"--kind {kind} is neither fisher nor gram")
    elif kind == "gram":
        problems += [f"--{name} is for --kind fisher" for name, value in given.items() if value is not None]
    if variant not in (None, "exact", "sampled", "empirical"):
        problems.append(f"--variant {variant} is none of exact, sampled, empirical")
    if out.suffix != ".safetensors":
        problems.append(f"--out {out}: statistics are written as safetensors")
    if problems:
        raise InputError("statistics cannot be gathered like this", problems)
    model = inputs.build(arch, arguments)
    state = inputs.checkpoint(paths[0], model)
    loader = inputs.splits(
        inputs.dataset(data, validation, seed), calibration or None, None, None
    ).calibration
    if kind == "gram":
        found = gram_matrices(model, loader, weights=state, skip=skip or ())
    else:
        found = fisher_information(
            model,
            loader,
            weights=state,
            variant="sampled" if variant == "sampled" else "empirical" if variant == "empirical" else "exact",
            draws=draws or 1,
            skip=skip or (),
            seed=seed,
        )
    found.save(out)
    if as_json:
        described = {"out": str(out), "settings": dict(found.settings), "left": dict(found.left)}
        typer.echo(json.dumps(described, indent=1))
    else:
        typer.echo(str(found))
    output.say(f"wrote {out}")
