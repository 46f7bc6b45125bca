"""Models found and their headers read, here or on the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from isthmus.errors import InputError, IsthmusError, WeightsError
from isthmus.recipe.language.recipe import Recipe
from isthmus.recipe.language.reference import UNKNOWN_MODEL, Reference
from isthmus.recipe.language.text import Problems
from isthmus.recipe.parents.headers import Checkpoint, Entry, NoHeaderError, of_remote, read
from isthmus.recipe.parents.lora import SETTINGS, WEIGHTS, Adapter, read_adapter
from isthmus.recipe.parents.parent import Parent, read_json
from isthmus.recipe.parents.places import place_of
from isthmus.recipe.parents.sizes import size


def open_parent(reference: Reference, roots: tuple[Path, ...], inside: Path | None = None) -> Parent:
    """Find a model and read its headers.

    Raises:
        WeightsError: it is not there or not readable.
        InputError: its adapter is of a kind that cannot be applied.
    """
    path, remote = place_of(reference.path, roots, inside), None
    ids: list[str] = []
    if path is None:
        ids.append(reference.path)
        path, checkpoint, remote = _on_hub(reference)
    else:
        checkpoint = headers_of(path)
    folder = path if path.is_dir() else path.parent
    if all(file.name == WEIGHTS for file in checkpoint.files):
        raise InputError(
            f"{reference.path} is an adapter, and no model by itself", hint=_its_model(reference.path, folder)
        )
    config = read_json(folder / "config.json")
    adapter = None
    if reference.lora is not None:
        where = place_of(reference.lora, roots, inside)
        ids += [reference.lora] if where is None else []
        adapter = _adapter_on_hub(reference, checkpoint) if where is None else read_adapter(where, checkpoint)
    return Parent(reference, path, checkpoint, config, adapter, remote, tuple(ids))


def _its_model(name: str, folder: Path) -> str:
    told = read_json(folder / SETTINGS).get("base_model_name_or_path")
    model = told if isinstance(told, str) and told else "MODEL"
    return f"write it behind the model that it was trained on: {model}+{name}"


def _on_hub(reference: Reference) -> tuple[Path, Checkpoint, str | None]:
    """A model of the hub: its folder in the cache, its headers, and where the weights are if not in that folder."""
    from isthmus.weights.hub import describe, download, remote_headers  # imports torch

    name = f"{reference.path}@{reference.revision}" if reference.revision else reference.path
    folder = describe(name)
    try:
        return folder, headers_of(folder), None
    except WeightsError:
        pass  # not all of it is here
    fixed = f"{reference.path}@{folder.name}"  # whatever the branch says when the merge runs
    if (held := remote_headers(fixed)) is None:
        folder = download(fixed)
        return folder, headers_of(folder), None
    return folder, of_remote(folder, held), fixed


def _adapter_on_hub(reference: Reference, base: Checkpoint) -> Adapter:
    """An adapter of the hub, by its configuration and headers."""
    from isthmus.weights.hub import describe, download, remote_headers

    name, revision = reference.lora, reference.lora_revision
    folder = describe(f"{name}@{revision}" if revision else f"{name}")
    if not (folder / SETTINGS).is_file() or (folder / WEIGHTS).is_file():
        return read_adapter(folder, base)  # no adapter, or here in full
    fixed = f"{name}@{folder.name}"
    if (held := remote_headers(fixed, WEIGHTS)) is None:
        return read_adapter(download(fixed), base)
    return dataclasses.replace(read_adapter(folder, base, of_remote(folder, held)), remote=fixed)


def fetch(parent: Parent) -> None:
    """Bring the weights of a model and its adapter here, where the plan has left them on the hub.

    Raises:
        WeightsError: they cannot be fetched, or are not those that the plan saw.
    """
    from isthmus.weights.hub import download

    if parent.remote is not None:
        _check_same(parent.remote, parent.checkpoint, headers_of(download(parent.remote)))
    adapter = parent.adapter
    if adapter is not None and adapter.remote is not None:
        _check_same(adapter.remote, adapter.checkpoint, read(download(adapter.remote) / WEIGHTS))


def _check_same(remote: str, planned: Checkpoint, fetched: Checkpoint) -> None:
    if fetched.entries != planned.entries:
        raise WeightsError(f"{remote} has other tensors than when it was planned", hint="plan again")


def headers_of(path: Path) -> Checkpoint:
    """The headers of a checkpoint of any kind that isthmus reads; those of pickles and GGUF take torch.

    Args:
        path: a file, an index, or a folder that holds one of them.

    Raises:
        WeightsError: there is none, or it cannot be read.
        MissingExtraError: it is GGUF, and what reads it is not installed.
    """
    try:
        return read(path)
    except NoHeaderError:
        pass  # what it holds is known only by opening it; nothing in it is run
    from isthmus import weights
    from isthmus.weights.dense import DTYPES

    tensors = weights.open(path)
    held = weights.headers(tensors).items()
    entries = {name: Entry(DTYPES[entry.dtype], tuple(entry.shape)) for name, entry in held}
    files = sorted(Path(found.file) for found in weights.identify(tensors))
    return Checkpoint(tuple(files), entries, {})


def open_parents(
    recipe: Recipe, problems: Problems, roots: tuple[Path, ...], inside: Path | None
) -> dict[str, Parent] | None:
    """Open every model once; None where one cannot be, since what follows would be guesses."""
    parents: dict[str, Parent] = {}
    failed: dict[str, IsthmusError] = {}
    for where, reference in recipe.references():
        name = str(reference)
        if name == UNKNOWN_MODEL or name in parents:
            continue
        if name not in failed:
            try:
                parents[name] = open_parent(reference, roots, inside)
                continue
            except IsthmusError as error:
                failed[name] = error
        said = failed[name]
        more = [f"and {len(said.where) - 6} more"] if len(said.where) > 6 else []
        problems.add(where, "\n".join([said.what, *said.where[:6], *more]), said.hint)
    same: dict[tuple[Path, ...], str] = {}
    told: set[str] = set()
    for where, reference in recipe.references():
        if (parent := parents.get(name := str(reference))) is None or name in told:
            continue
        adapter = () if parent.adapter is None else (parent.adapter.path.resolve(),)
        first = same.setdefault((parent.path.resolve(), *adapter), name)
        if first != name:
            told.add(name)
            problems.add(
                where, f"{name} is the same model as {first}", "write it alike, wherever it is meant"
            )
    return parents if not failed and recipe.readable else None


def told(parents: Mapping[str, Parent]) -> list[str]:
    """What adapters add, what is read from GGUF, and what is not here yet, a line each."""
    notes: list[str] = []
    for name, parent in parents.items():
        if any(file.suffix == ".gguf" for file in parent.checkpoint.files):
            notes.append(
                f"{name}: GGUF, read as plain numbers and written under its own names as safetensors"
            )
        if (adapter := parent.adapter) is not None:
            replaced = f", {len(adapter.replaced)} tensors replaced" if adapter.replaced else ""
            notes.append(
                f"{name}: LoRA of rank {adapter.rank} added to {len(adapter.factors)} tensors{replaced}"
            )
    notes += [
        f"{name}: {size(parent.awaited)} are fetched from the hub when this runs"
        for name, parent in parents.items()
        if parent.awaited
    ]
    return notes
