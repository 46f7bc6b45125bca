"""`isthmus merge`: checkpoints in, one checkpoint out; or a recipe in, a folder out."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli import inputs, output, scoring
from isthmus.cli.together import KEPT, REFERENCE, check_widths, referred, score_for
from isthmus.errors import InputError

if TYPE_CHECKING:
    from isthmus.recipe import Plan

ALIGN = (
    f"How to bring the models together first; `isthmus methods alignment` lists the ways. {inputs.OPTIONS}"
)

# Options of a merge by recipe, and those that a merge by recipe and one of files share.
_RECIPES = ("max_memory", "threads", "shard_size", "parents", "engine", "address")
_BOTH = ("checkpoints", "out", "as_json")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("merge")(merge)


def merge(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE.yml | CHECKPOINT | KEY=VALUE",
            help="A recipe, or a merged model to make again from its own; or two or more files of weights.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The merged checkpoint, by default merged.safetensors; of a recipe, a new folder."),
    ] = None,
    arch: Annotated[list[str] | None, typer.Option(help=inputs.ARCHS)] = None,
    data: Annotated[str | None, typer.Option(help=inputs.DATA)] = None,
    align: Annotated[str | None, typer.Option(help=ALIGN)] = None,
    maps: Annotated[
        Path | None, typer.Option(help="Bring them together by maps that `isthmus align` wrote.")
    ] = None,
    shape: Annotated[str | None, typer.Option(help=inputs.EXAMPLE)] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="The input is integer tokens.")] = False,
    method: Annotated[
        str, typer.Option(help="How aligned tensors are combined; `isthmus methods combination` lists them.")
    ] = "average",
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the method, NAME=VALUE (density=.3); repeat it.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="What the models were trained from, for methods that need it.")
    ] = None,
    weights: Annotated[
        list[float] | None, typer.Option(help="Weight of each model, in order; repeat the option.")
    ] = None,
    statistics: Annotated[
        list[Path] | None,
        typer.Option(
            help="What `isthmus statistics` wrote of each model, in order; repeat the option. Without, fisher and "
            "reg-mean gather from --data."
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            help="Weights to take from the reference, unmerged, by name with * and ?; repeat the option."
        ),
    ] = None,
    repair: Annotated[
        list[str] | None,
        typer.Option(
            help="How activations get their statistics back, see `isthmus methods repair`; of several, or of all "
            f"(best), the one that is best on validation images, if it is better than none. {inputs.OPTIONS}"
        ),
    ] = None,
    metric: Annotated[str, typer.Option(help="By what repairs are chosen: accuracy or loss.")] = "accuracy",
    preserve_first: Annotated[int, typer.Option(help="Keep every model's first layers.")] = 0,
    preserve_last: Annotated[int, typer.Option(help="Keep every model's last layers.")] = 0,
    depths: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOW-HIGH",
            help="Keep a range of every model's layers, counted from 1; repeat the option.",
        ),
    ] = None,
    modules: Annotated[
        list[str] | None, typer.Option(help="Keep modules by name, with * and ?; repeat the option.")
    ] = None,
    variant: Annotated[
        str, typer.Option(help="Where kept-apart branches meet: junction or paper.")
    ] = "junction",
    outputs: Annotated[
        str,
        typer.Option(
            help="Of last layers kept apart: the average of their outputs, or each model's (heads of different tasks)."
        ),
    ] = "average",
    reference: Annotated[str, typer.Option(help=REFERENCE)] = "first",
    kept: Annotated[int, typer.Option(help=KEPT)] = 256,
    calibration: Annotated[
        int, typer.Option(help="At most this many calibration images, from the training data; 0 for all.")
    ] = 5000,
    validation: Annotated[
        int | None, typer.Option(help="Images kept from the training data; a tenth where not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split and of what is drawn.")] = 0,
    max_memory: Annotated[
        str | None, typer.Option(help="Of a recipe: private memory to work in, as 512MiB or 2GB.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of a recipe: how many.")] = None,
    shard_size: Annotated[str | None, typer.Option(help="Of a recipe: bytes per file, as 5GB.")] = None,
    parents: Annotated[
        Path | None, typer.Option(help="Of a merged model made again: the folder that its parents are in.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Of a recipe: local, or ray for a cluster whose machines share a file system.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster: HOST:PORT, or auto for this machine's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Merge checkpoints into one. With --data, the merge and its parents are also evaluated."""
    given = dict(locals())
    recipe = _recipe(checkpoints, base)
    _check_options(given, recipe)
    if recipe is not None:
        _merge_by_recipe(recipe, out, max_memory, threads, shard_size, parents, engine, address, as_json)
        return
    out = out or Path("merged.safetensors")
    from isthmus import measure, progress
    from isthmus import merge as merge_models
    from isthmus.align import ALIGNMENTS, check_models
    from isthmus.program.named import separate
    from isthmus.registry import name_of
    from isthmus.saving import filled

    progress.enable()
    paths, arguments = separate(checkpoints)
    if out.suffix != ".safetensors":
        raise InputError(
            f"--out {out}: merged weights are written as safetensors", hint=f"{out.stem}.safetensors"
        )
    if data is not None and arch is None:
        raise InputError("--data needs --arch", hint="data is run through the architecture")
    if maps is not None and (align is not None or reference != "first"):
        raise InputError("--maps says how the models are brought together: --align and --reference do not")
    if align is None and maps is None and reference in ("best", "medoid", "universe"):
        raise InputError(f"--reference {reference} is chosen by aligning", hint="--align weight-matching")
    by = None if align is None else inputs.method(align, "--align")
    repairs = inputs.repairs(repair)
    if by is not None:  # what does not exist is said before anything is read
        ALIGNMENTS.get(name_of(by)).check_options([] if isinstance(by, str) else by.keys() - {"method"})
    apart = {
        "preserve_first": preserve_first,
        "preserve_last": preserve_last,
        "depths": inputs.depths(depths or ()),
        "modules": tuple(modules or ()),
    }
    whose = inputs.outputs(outputs)
    options = scoring.options(option or [], merge_models)
    models = inputs.build_each(arch, arguments, paths) if arch else []
    states = [inputs.checkpoint(p, m) for p, m in zip(paths, models, strict=True)] if models else []
    if maps is None and not skip:  # heads that are skipped may be of other sizes
        check_widths(states, None if by is None else name_of(by), "--align")
    splits = (
        inputs.splits(inputs.dataset(data, validation, seed), calibration or None, None, None)
        if data
        else None
    )
    chosen = referred(reference, len(paths))
    stays = chosen if isinstance(chosen, int) else 0
    how: str | dict[str, object] | Path | None = by if maps is None else maps
    if by is not None and isinstance(chosen, str) and chosen != "first":
        how = {**({"method": by} if isinstance(by, str) else by), "reference": chosen}
        if (score := score_for(chosen, models, splits)) is not None:
            how["score"] = score
    traced = bool(align or maps or repair or any(apart.values()))
    each = len(arch or ()) > 1
    merged = merge_models(
        [filled(m, s) for m, s in zip(models, states, strict=True)] if each else states or paths,
        model=models[0] if models and not each else None,
        example=inputs.example(arch[0], arguments, splits, shape, tokens) if arch and traced else None,
        align=how,
        method=method,
        base=None if base is None else inputs.checkpoint(base, models[stays]) if models else base,
        weights=weights,
        statistics=statistics or None,
        skip=tuple(skip or ()),
        repair=repairs,
        data=splits.calibration if splits else None,
        validation=splits.validation if splits and repair else None,
        metric=metric,
        **apart,
        variant=inputs.variant(variant),
        outputs=whose,
        reference=stays,
        seed=seed,
        **options,
    )
    if maps is not None and merged.alignment is not None:
        check_models(merged.alignment, merged.parents, paths)
    figures = merged.kept(splits.calibration, limit=kept) if splits and kept and merged.alignment else None
    scores: dict[str, float] = {}
    if splits is not None and merged.model is not None:
        whole = dict(zip(inputs.names(paths), zip(models, states, strict=True), strict=True))
        if whose == "each":
            scores = scoring.each_head(merged.model, whole, splits.test)
        else:
            for name, (model, state) in whole.items():
                scores[name] = measure.evaluate(model, splits.test, state, split="test").accuracy
            scores["merged"] = measure.evaluate(merged.model, splits.test, split="test").accuracy
    merged.save(out)
    if as_json:
        settings = {k: v if isinstance(v, (int, float, bool)) else str(v) for k, v in merged.settings.items()}
        done: dict[str, object] = {
            "out": str(out),
            "settings": settings,
            "test accuracy": scores,
            "report": str(merged),
        }
        if figures is not None:
            done["kept"] = {f.name: {"mean": f.value, **f.layers} for f in figures}
        typer.echo(json.dumps(done, indent=1))
        return
    typer.echo(str(merged))
    if figures is not None:
        typer.echo(str(figures))
    for name, accuracy in scores.items():
        typer.echo(f"test accuracy  {100 * accuracy:6.2f}%  {name}")
    output.say(f"wrote {out}")
    if merged.own_program:
        output.say(f"and {out.with_suffix('.json')}: load both with isthmus.load({str(out)!r}, model=...)")


def _recipe(items: list[str], base: str | None) -> Path | None:
    """The one argument that is a recipe, or a merged model to be made again; beside a base it is a model."""
    if len(items) == 1 and Path(items[0]).suffix.lower() not in (".yml", ".yaml"):
        path = Path(items[0])
        if not path.exists():
            raise InputError(
                f"{path} does not exist", hint="a recipe (.yml), or two or more files of weights"
            )
        return path if base is None else None
    recipes = [item for item in items if Path(item).suffix.lower() in (".yml", ".yaml")]
    if recipes and len(items) > 1:
        raise InputError(f"{recipes[0]} is a recipe and names its own models: nothing can stand beside it")
    return Path(recipes[0]) if recipes else None


def _check_options(values: dict[str, object], recipe: Path | None) -> None:
    """Options of one kind of merge are not taken for the other."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(merge).parameters.items()}
    given = [name for name, value in values.items() if value != defaults[name] and name not in _BOTH]
    wrong = [name for name in given if (name in _RECIPES) != (recipe is not None)]
    if wrong:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        if recipe is None:
            raise InputError(f"{options}: only for a merge by recipe")
        raise InputError(f"{options}: not for a merge by recipe", hint=f"write it in {recipe.name}")


def _merge_by_recipe(
    path: Path,
    out: Path | None,
    max_memory: str | None,
    threads: int | None,
    shard_size: str | None,
    parents: Path | None,
    engine: str,
    address: str | None,
    as_json: bool,
) -> None:
    from isthmus import progress

    progress.enable()
    plan = _plan(path, parents)
    if out is None:
        raise InputError("where the merged model shall be is not known", hint="--out FOLDER")
    size = _size("--shard-size", shard_size)
    memory = _size("--max-memory", max_memory)
    output.say(str(plan.within(max_memory=memory, threads=threads)))
    done = plan.run(out, max_memory=memory, threads=threads, shard_size=size, engine=engine, address=address)
    typer.echo(json.dumps(done.as_dict(), indent=1, ensure_ascii=False) if as_json else str(done))


def _plan(path: Path, parents: Path | None) -> Plan:

    if path.suffix.lower() in (".yml", ".yaml"):
        from isthmus import plan

        if parents is not None:
            raise InputError(
                "--parents is for a merged model that is made again",
                hint="the recipe says where its models are",
            )
        return plan(path)
    from isthmus.recipe.again import plan_again

    return plan_again(path, parents)


def _size(option: str, text: str | None) -> int | None:
    from isthmus.recipe.language.ours import read_size

    try:
        return None if text is None else read_size(text)
    except ValueError as error:
        raise InputError(f"{option}: {error}") from None
