"""The models that a recipe names, as far as a plan looks: headers, configuration, adapter, licence."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from isthmus.errors import IsthmusError, WeightsError
from isthmus.recipe.headers import SIZES, Checkpoint, Entry, of_remote, read
from isthmus.recipe.lora import SETTINGS, WEIGHTS, Adapter, read_adapter
from isthmus.recipe.schema import Reference

# Beyond this many bytes a content hash is of samples, and says so: hashing would take as long as merging.
WHOLE_HASH = 100_000_000
_SAMPLES, _SAMPLE = 64, 1 << 16

_CONFIG_BYTES = 10_000_000  # a configuration is read whole; one longer than this is none


@dataclass(frozen=True)
class Parent:
    """A model to be merged.

    Args:
        reference: as the recipe names it.
        path: the file or folder it was found at.
        checkpoint: its headers.
        config: its `config.json`, empty where it has none.
        adapter: what is added to it on the way, if anything.
        remote: where its weights are on the hub, `org/name@commit`, if they are not here yet; a run fetches them.
        ids: names on the hub that it and its adapter were found under; a path that looks like one is none.
    """

    reference: Reference
    path: Path
    checkpoint: Checkpoint
    config: Mapping[str, object] = field(default_factory=lambda: cast("dict[str, object]", {}))
    adapter: Adapter | None = None
    remote: str | None = None
    ids: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where its configuration and tokenizer are."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def name(self) -> str:
        """What tables and cards call it: a hub id as it is, a path by its last part."""
        return self.reference.path if self.reference.path in self.ids else Path(self.reference.path).name

    @property
    def tied(self) -> bool:
        """Whether its head is its embedding: its configuration says so, and it stores no head."""
        return (
            self.text_config.get("tie_word_embeddings", self.config.get("tie_word_embeddings")) is not False
        )

    @property
    def text_config(self) -> Mapping[str, object]:
        """The part of the configuration that the language model has."""
        inner = self.config.get("text_config")
        return cast("dict[str, object]", inner) if isinstance(inner, dict) else self.config

    @property
    def awaited(self) -> int:
        """Bytes of weights that a run fetches from the hub, the adapter's included."""
        adapter = self.adapter
        return (self.checkpoint.nbytes if self.remote is not None else 0) + (
            adapter.checkpoint.nbytes if adapter is not None and adapter.remote is not None else 0
        )

    @functools.cached_property
    def vocabulary_size(self) -> int | None:
        """Rows of the embedding, as the configuration says."""
        size = self.text_config.get("vocab_size", self.config.get("vocab_size"))
        return size if isinstance(size, int) and not isinstance(size, bool) else None

    @functools.cached_property
    def licences(self) -> tuple[str | None, ...]:
        """The `license` of its model card, and of its adapter's if it has one; None for what states none."""
        folders = [self.folder] if self.adapter is None else [self.folder, self.adapter.path.parent]
        return tuple(card_field(folder / "README.md", "license") for folder in folders)

    @property
    def licence(self) -> str | None:
        """The same in words: `mit`, or `mit + unknown` where model and adapter differ; None where none is stated."""
        told = " + ".join(dict.fromkeys(licence or "unknown" for licence in self.licences))
        return None if told == "unknown" else told


def is_id(text: str) -> bool:
    """Whether a text looks like `org/name` on the hub, rather than a path."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text)) and not exists(Path(text))


def exists(path: Path) -> bool:
    """Whether something is at a path; at one that no disk can have there is nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a NUL in it
        return False


def find(text: str, roots: Iterable[Path]) -> Path | None:
    """What a path means, in the first folder in which something is there."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # ~ of nobody
        return None
    return next((root / path for root in roots if exists(root / path)), None)


def locate(text: str) -> Path:
    """Where a model is: a path from here, else the hub's cache, into which it is fetched.

    Args:
        text: path or id.

    Raises:
        WeightsError: it is nowhere.
    """
    found = _here(text, (Path(),), None)
    if found is not None:
        return found
    from isthmus.weights.hub import download  # imports torch: only where the hub is needed

    return download(text)


def _here(text: str, roots: tuple[Path, ...], inside: Path | None) -> Path | None:
    """Where a model or adapter is: a path from here or from beside the recipe; None where the hub is to be asked.

    Args:
        text: path or id.
        roots: folders that relative paths begin in, in order.
        inside: where given, the recipe is not trusted: the model is in this folder, under its path or under the
            last part of it, or nowhere; nothing is fetched.

    Raises:
        WeightsError: it is nowhere.
    """
    if inside is not None:
        return _locate_inside(text, inside)
    if (found := find(text, roots)) is not None:
        return found
    if "://" in text:
        raise WeightsError(
            f"{text} is a URL, and a recipe reads folders, files and models of the hub",
            hint="isthmus.merge_files reads URLs range by range; or mount the bucket, or copy the model",
        )
    if not is_id(text):
        raise WeightsError(f"{text} does not exist")
    return None


def _locate_inside(text: str, folder: Path) -> Path:
    for found in (folder / text, folder / Path(text).name):
        # Links are followed first, so that none leads out.
        if (
            exists(found)
            and found.resolve().is_relative_to(folder.resolve())
            and found.resolve() != folder.resolve()
        ):
            return found
    raise WeightsError(f"{text} is not in {folder}, and a recipe from inside a model leads nowhere else")


def open_parent(reference: Reference, roots: tuple[Path, ...], inside: Path | None = None) -> Parent:
    """Find a model and read its headers.

    Raises:
        WeightsError: it is not there or not readable.
        InputError: its adapter is of a kind that cannot be applied.
    """
    path, remote = _here(reference.path, roots, inside), None
    ids: list[str] = []
    if path is None:
        ids.append(reference.path)
        path, checkpoint, remote = _on_hub(reference)
    else:
        checkpoint = _headers(path)
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / "config.json")
    adapter = None
    if reference.lora is not None:
        where = _here(reference.lora, roots, inside)
        ids += [reference.lora] if where is None else []
        adapter = _adapter_on_hub(reference, checkpoint) if where is None else read_adapter(where, checkpoint)
    return Parent(reference, path, checkpoint, config, adapter, remote, tuple(ids))


def _on_hub(reference: Reference) -> tuple[Path, Checkpoint, str | None]:
    """A model of the hub: its folder in the cache, its headers, and where the weights are if not in that folder."""
    from isthmus.weights.hub import describe, download, remote_headers  # imports torch

    name = f"{reference.path}@{reference.revision}" if reference.revision else reference.path
    folder = describe(name)
    try:
        return folder, _headers(folder), None
    except WeightsError:
        pass  # not all of it is here
    fixed = f"{reference.path}@{folder.name}"  # whatever the branch says when the merge runs
    if (held := remote_headers(fixed)) is None:
        folder = download(fixed)
        return folder, _headers(folder), None
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
        _check_same(parent.remote, parent.checkpoint, _headers(download(parent.remote)))
    adapter = parent.adapter
    if adapter is not None and adapter.remote is not None:
        _check_same(adapter.remote, adapter.checkpoint, read(download(adapter.remote) / WEIGHTS))


def _check_same(remote: str, planned: Checkpoint, fetched: Checkpoint) -> None:
    if fetched.entries != planned.entries:
        raise WeightsError(f"{remote} has other tensors than when it was planned", hint="plan again")


def _headers(path: Path) -> Checkpoint:
    try:
        return read(path)
    except WeightsError as error:
        if "pickle" not in error.what:
            raise
    # A pickle has no header: what it holds is known only by reading it, without running it.
    from isthmus.weights import open as open_weights
    from isthmus.weights.dense import DTYPES

    tensors = open_weights(path)
    entries = {name: Entry(DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
    files = (path,) if path.is_file() else tuple(sorted(path.glob("*.bin")))
    return Checkpoint(files, entries, {})


def read_json(path: Path) -> dict[str, object]:
    """A JSON object beside a model; empty where there is no such file.

    Raises:
        WeightsError: it is there, and no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            content: object = json.loads(file.read(_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not readable JSON", [str(error)]) from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is no JSON object")
    return cast("dict[str, object]", content)


def card_field(card: Path, name: str) -> str | None:
    """One plain field of a model card's front matter; None where there is none or it is not plain."""
    try:
        text = card.read_bytes()[:100_000].decode("utf-8", "replace")
    except OSError:
        return None
    match = re.match(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if match is None:
        return None
    from isthmus.recipe.text import parse

    try:
        data, _ = parse(match[1], card.name)
    except IsthmusError:
        return None
    value = cast("dict[str, object]", data).get(name) if isinstance(data, dict) else None
    if isinstance(value, list) and len(cast("list[object]", value)) == 1:
        value = cast("list[object]", value)[0]
    return value if isinstance(value, str) and value.strip() else None


def content_hash(
    files: tuple[Path, ...], progress: Callable[[int], None] = lambda _: None, like: str = ""
) -> str:
    """What the bytes of a checkpoint are: `sha256:...`, or `sampled-sha256:...` for large ones.

    Small checkpoints are hashed whole; of large ones the sizes, the headers and 64 pieces of 64 KiB,
    evenly spread over each file. Two trainings differ in all of them. A file in the hub's cache is named
    by its SHA-256, which is then taken as it is.

    Args:
        files: in order.
        progress: told the bytes that were read.
        like: an earlier hash to compare with: the same kind is taken, wherever the files are now.
    """
    digests: list[str] = []
    names = [file.resolve().name for file in files]
    known = [re.fullmatch(r"[0-9a-f]{64}", name) is not None for name in names]
    whole = all(known) or sum(file.stat().st_size for file in files) <= WHOLE_HASH
    whole = {"sha256": True, "sampled-sha256": False}.get(like.partition(":")[0], whole)
    for file, name, named in zip(files, names, known, strict=True):
        if not whole:
            digests.append(_hash_samples(file, progress))
        else:
            digests.append(name if named else _hash_whole(file, progress))
    kind = "sha256" if whole else "sampled-sha256"
    if len(digests) == 1:
        return f"{kind}:{digests[0]}"
    return f"{kind}:{hashlib.sha256(chr(10).join(digests).encode()).hexdigest()}"


def _hash_whole(file: Path, progress: Callable[[int], None]) -> str:
    total = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            total.update(block)
            progress(len(block))
    return total.hexdigest()


def _hash_samples(file: Path, progress: Callable[[int], None]) -> str:
    size = file.stat().st_size
    total = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        head = stream.read(8)
        total.update(head + stream.read(min(int.from_bytes(head, "little"), 100_000_000)))
        for index in range(_SAMPLES):
            stream.seek(max(size - _SAMPLE, 0) * index // (_SAMPLES - 1))
            total.update(stream.read(_SAMPLE))
            progress(_SAMPLE)
    return total.hexdigest()


def size_of(dtype: str) -> int:
    """Bytes of an element, by torch's name of a floating dtype."""
    from isthmus.recipe.headers import NAMES

    return next(SIZES[key] for key, name in NAMES.items() if name == dtype)
