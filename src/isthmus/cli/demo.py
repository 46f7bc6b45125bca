"""`isthmus demo`: two strangers trained on embedded data, merged every way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli import inputs, output


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("demo", short_help="Train two networks, merge them every way, say what worked.")(demo)


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for report.html, results.json and the merged weights.")
    ] = Path("out/demo"),
    data: Annotated[str, typer.Option(help=inputs.DATA)] = "digits",
    seed: Annotated[int, typer.Option(help="Of the split, the two networks and the merge.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Train two networks from different seeds, merge them every way, and say what worked."""
    from isthmus import progress
    from isthmus.comparing import command_line, compare
    from isthmus.zoo import DEMO_RECIPE, demo_vgg, strangers

    progress.enable()
    output.ready(out)
    images = inputs.dataset(data, None, seed)
    seeds = (seed, seed + 1)

    def factory() -> object:
        return demo_vgg(num_classes=images.num_classes, in_channels=images.shape[0])

    output.say(f"training two networks on {images.name} from seeds {seeds[0]} and {seeds[1]}")
    trained = strangers(images, factory, n=2, seeds=seeds, **DEMO_RECIPE)  # type: ignore[arg-type]
    found = compare(
        [result.model for result in trained],
        inputs.splits(images, None, None, None),
        names=[f"network, seed {s}" for s in seeds],
        seed=seed,
        title=f"Two strangers on {images.name}",
        command=command_line(),
    )
    output.show(found.results, as_json)
    output.write(found, out)
