"""`isthmus symmetry`: what may be moved in a model."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from isthmus.cli import inputs


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("symmetry")(symmetry)


def symmetry(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Arguments of the architecture."),
    ] = None,
    arch: Annotated[str | None, typer.Option(help=inputs.ARCH)] = None,
    shape: Annotated[
        str, typer.Option(help="Shape of one input with its batch, such as 2,3,32,32; tokens: 2,16.")
    ] = "2,3,32,32",
    tokens: Annotated[bool, typer.Option("--tokens", help="The input is integer tokens.")] = False,
    meta: Annotated[
        bool, typer.Option("--meta", help="Build on the meta device: no memory, nothing verified.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Verify on redrawn weights.")] = True,
    seed: Annotated[int, typer.Option(help="Of the weights and elements that verify draws.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the spaces of a model: index sets that may be reordered without changing its function."""
    import torch

    from isthmus.errors import InputError
    from isthmus.symmetry import trace

    paths, given = inputs.separate(arguments or [])
    if paths:
        raise InputError(f"{paths[0]!r} is no KEY=VALUE argument of the architecture")
    try:
        sizes = [int(n) for n in shape.split(",")]
    except ValueError:
        raise InputError(f"--shape {shape}: numbers separated by commas are expected") from None
    with torch.device("meta" if meta else "cpu"):
        model = inputs.build(arch, given)
        example = torch.zeros(sizes, dtype=torch.long) if tokens else torch.randn(sizes)
    graph = trace(model, example)
    verification = graph.verify(model, example, seed=seed) if check and not meta else None
    if as_json:
        typer.echo(json.dumps(_described(graph, verification), indent=1))
    else:
        typer.echo(str(graph))
        typer.echo(str(verification) if verification else "not verified")
    if verification is not None:
        verification.require()


def _described(graph: object, verification: object) -> dict[str, object]:
    from isthmus.symmetry import SymmetryGraph, Verification, to_json

    assert isinstance(graph, SymmetryGraph)
    described: dict[str, object] = {
        "spaces": [
            {
                "name": space.name,
                "size": space.size,
                "group": space.group,
                "within": list(space.within),
                "marks": sorted(space.marks),
                "members": [[m.key, m.axis, m.role] for m in space.members],
            }
            for space in graph.spaces.values()
        ],
        "layout": {key: [to_json(axis) for axis in axes] for key, axes in graph.layout.items()},
        "fixed": [[f.key, f.axis, f.size, f.reason] for f in graph.fixed],
        "unknown": {name: list(places) for name, places in graph.unknown.items()},
        "coverage": graph.coverage,
    }
    if isinstance(verification, Verification):
        described["verification"] = {
            "error": verification.error,
            "bound": verification.bound,
            "unobservable": list(verification.unobservable),
            "failed": verification.failed,
        }
    return described
