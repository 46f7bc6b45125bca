"""`isthmus sweep`: one or two options of a merge varied, every combination scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli import inputs, output, scoring


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("sweep", short_help="Merge at every point of a grid, and score each.")(sweep)


def sweep(
    models: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE.yml | CHECKPOINT | KEY=VALUE", help="A recipe, or files of weights."),
    ],
    x: Annotated[str, typer.Option("-x", help="What to vary: NAME=VALUE,VALUE,... (density=.1,.3).")],
    y: Annotated[str | None, typer.Option("-y", help="And a second one (method=ties,dare_ties).")] = None,
    method: Annotated[
        str, typer.Option(help="Of files: how tensors are combined, where not varied.")
    ] = "average",
    base: Annotated[str | None, typer.Option(help="Of files: what the models were trained from.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Of files: an option of the method, NAME=VALUE; repeat it.")
    ] = None,
    score: Annotated[str | None, typer.Option(help=scoring.SCORE)] = None,
    arch: Annotated[str | None, typer.Option(help=inputs.ARCH)] = None,
    data: Annotated[str | None, typer.Option(help=inputs.DATA)] = None,
    metric: Annotated[str, typer.Option(help=scoring.METRIC)] = "accuracy",
    out: Annotated[Path, typer.Option(help=f"{scoring.FOLDER} And for the best merge.")] = Path("sweep"),
    on_error: Annotated[str, typer.Option(help=scoring.ON_ERROR)] = "raise",
    validation: Annotated[
        int | None, typer.Option(help="Images kept from the training data; a tenth where not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split and of what is drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the search as JSON.")] = False,
) -> None:
    """Merge at every point of a grid and score each; the best merge is kept. Interrupted, it goes on where it was."""
    from isthmus import progress
    from isthmus.comparing import command_line
    from isthmus.errors import InputError
    from isthmus.program.named import separate
    from isthmus.report.search import render_search

    progress.enable()
    if on_error not in ("raise", "skip"):
        raise InputError(f"--on-error {on_error} is neither raise nor skip")
    paths, arguments = separate(models)
    over = dict([scoring.axis("-x", x), *([scoring.axis("-y", y)] if y is not None else [])])
    if y is not None and len(over) == 1:
        raise InputError(f"-x and -y both vary {next(iter(over))}")
    recipes = [path for path in paths if Path(path).suffix.lower() in (".yml", ".yaml")]
    if recipes and (len(paths) > 1 or base is not None or option or method != "average"):
        raise InputError(f"{recipes[0]} is a recipe and names its own models, base and method")
    output.ready(out)
    chosen = scoring.choose(score, arch, arguments, data, metric, validation, seed)
    skip = "skip" if on_error == "skip" else "raise"
    if recipes:
        from isthmus.sweeping import sweep_recipe

        found, best = sweep_recipe(
            recipes[0], chosen.score, over, out, score_name=chosen.called, on_error=skip
        )
    else:
        from isthmus.search import soup as search
        from isthmus.sweeping import hyphenated

        grid = {k: [hyphenated(v) if k == "method" else v for v in values] for k, values in over.items()}
        settings = scoring.options(option or [], search)
        settings |= {"method": hyphenated(method), "over": grid}
        found = search(
            paths,
            chosen.score,
            "grid",
            model=chosen.model,
            base=base,
            folder=out,
            score_name=chosen.called,
            on_error=skip,
            seed=seed,
            **settings,
        )
        best = found.save(out / "best.safetensors")
    accuracy = chosen.tested(found.weights)
    measured = {} if accuracy is None else {"the best merge": accuracy}
    found.to_json(out / "search.json")
    page = render_search(
        found, out / "report.html", title=f"Sweep of {', '.join(over)}", axes=list(over) if y else (),
        measured=measured, measure="test accuracy, fraction", command=command_line(),
    )  # fmt: skip
    if as_json:
        typer.echo(
            json.dumps(
                {**found.as_dict(), "out": str(best), "test accuracy": accuracy}, indent=1, default=str
            )
        )
    else:
        typer.echo(str(found))
        if accuracy is not None:
            typer.echo(f"test accuracy  {100 * accuracy:6.2f}%  the best merge")
    output.say(f"wrote {best}, {out / 'search.json'}, {page}")
