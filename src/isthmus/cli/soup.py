"""`isthmus soup`: files of weights in, the average that a score likes best out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli import inputs, output, scoring

if TYPE_CHECKING:
    from isthmus.report import Panel
    from isthmus.search import Searched

#: Models whose first layer is shown.
_ROWS = 6


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("soup")(soup)


def soup(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT | KEY=VALUE", help="Two or more files of weights; arguments go to --arch."
        ),
    ],
    score: Annotated[str | None, typer.Option(help=scoring.SCORE)] = None,
    arch: Annotated[str | None, typer.Option(help=inputs.ARCH)] = None,
    data: Annotated[str | None, typer.Option(help=inputs.DATA)] = None,
    metric: Annotated[str, typer.Option(help=scoring.METRIC)] = "accuracy",
    kind: Annotated[str, typer.Option(help="The search; `isthmus methods search` lists them.")] = "greedy",
    base: Annotated[
        str | None, typer.Option(help="What the models were trained from, for searches that need it.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the search, NAME=VALUE; repeat it.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The soup.")] = Path("soup.safetensors"),
    folder: Annotated[
        Path | None, typer.Option(help=f"{scoring.FOLDER} By default named as the soup.")
    ] = None,
    reset: Annotated[
        bool,
        typer.Option("--reset", help="Re-estimate BatchNorm statistics of mixtures from training images."),
    ] = False,
    calibration: Annotated[
        int, typer.Option(help="At most this many training images to do it from; 0 for all.")
    ] = 5000,
    on_error: Annotated[str, typer.Option(help=scoring.ON_ERROR)] = "raise",
    validation: Annotated[
        int | None, typer.Option(help="Images kept from the training data; a tenth where not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split and of what is drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the search as JSON.")] = False,
) -> None:
    """Average the models that a score says to. Interrupted, it goes on where it was."""
    from isthmus import progress
    from isthmus.comparing import command_line
    from isthmus.errors import InputError
    from isthmus.program.named import separate
    from isthmus.search import soup as search

    progress.enable()
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: a soup is written as safetensors", hint=f"{out.stem}.safetensors")
    if on_error not in ("raise", "skip"):
        raise InputError(f"--on-error {on_error} is neither raise nor skip")
    if reset and data is None:
        raise InputError(
            "--reset needs --arch and --data", hint="statistics are re-estimated from training images"
        )
    paths, arguments = separate(checkpoints)
    settings = scoring.options(option or [], search)
    folder = folder or out.with_suffix("")
    chosen = scoring.choose(score, arch, arguments, data, metric, validation, seed)
    output.ready(folder, "--folder")
    images = chosen.splits
    loader = None
    if reset:
        images = inputs.splits(inputs.dataset(data, validation, seed), calibration or None, None, None)
        loader = images.calibration
    found = search(
        paths,
        chosen.score,
        kind,
        model=chosen.model,
        data=None if images is None else images.validation,
        base=base,
        calibration=loader,
        folder=folder,
        score_name=chosen.called,
        on_error="skip" if on_error == "skip" else "raise",
        seed=seed,
        **settings,
    )
    tested = _tested(found, paths, chosen)
    found.save(out)
    found.to_json(folder / "search.json")
    from isthmus.report.search import render_search

    page = render_search(
        found,
        folder / "report.html",
        measured=tested,
        measure="test accuracy, fraction",
        command=command_line(),
        panels=_panels(found, paths, chosen),
    )
    if as_json:
        typer.echo(
            json.dumps({**found.as_dict(), "out": str(out), "test accuracy": tested}, indent=1, default=str)
        )
    else:
        typer.echo(str(found))
        for name, accuracy in tested.items():
            typer.echo(f"test accuracy  {100 * accuracy:6.2f}%  {name}")
    output.say(f"wrote {out}, {folder / 'search.json'}, {page}")


def _panels(found: Searched, paths: list[str], chosen: scoring.Chosen) -> list[Panel]:
    """The first layer's units of the models that went in, and of the soup, as pictures."""
    from isthmus import weights
    from isthmus.measure import first_layer, likely_first_layer
    from isthmus.report.pictures import panel

    if chosen.model is not None and chosen.splits is not None:
        from isthmus.program import batches, export

        layer = first_layer(export(chosen.model, next(batches(chosen.splits.validation))))
    else:
        layer = likely_first_layer(found.weights)
    if layer is None or layer.key not in found.weights:
        return []
    used = [path for name, path in zip(found.members, paths, strict=True) if name in found.chosen]
    names = [name for name in found.members if name in found.chosen]
    rows = {name: weights.open(path) for name, path in zip(names[:_ROWS], used, strict=False)}
    made = panel(layer, {**rows, f"the {found.kind} soup": found.weights})
    return [] if made is None else [made]


def _tested(found: Searched, paths: list[str], chosen: scoring.Chosen) -> dict[str, float]:
    """Test accuracy of the best single model (by the score) and of the soup."""
    from isthmus import weights

    if chosen.splits is None:
        return {}
    measured: dict[str, float] = {}
    single = {step.label: step.score for step in found.steps if step.label in found.members}
    known = {name: value for name, value in single.items() if value is not None}
    if known:
        best = max(known, key=lambda name: known[name])
        state = weights.open(paths[found.members.index(best)])
        measured[f"{best}, best alone"] = chosen.tested(state) or 0.0
    measured[f"the {found.kind} soup"] = chosen.tested(found.weights) or 0.0
    return measured
