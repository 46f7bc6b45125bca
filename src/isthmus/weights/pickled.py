"""Checkpoints of `torch.save`, read without running anything in them."""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from isthmus.errors import UnsafeFileError, WeightsError
from isthmus.weights.dense import objection

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")

# Where training scripts put the weights when they save more than the weights.
_WRAPPERS = ("state_dict", "model")

# Modules whose names appear in a pickle of plain tensors. Only used to say why a file was refused:
# what may be built is decided by torch's own list, and is less.
_PLAIN = {"collections", "torch", "torch._utils", "torch._tensor", "torch.nn.parameter", "torch.storage"}


class PickledFile(Mapping[str, Tensor]):
    """The tensors of one file of `torch.save`, mapped where that is safe, else read whole.

    Args:
        path: an existing file.

    Raises:
        UnsafeFileError: as for `read_pickled`.
        WeightsError: as for `read_pickled`.
    """

    def __init__(self, path: Path):
        self.path = path
        self._tensors = read_pickled(path)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def read_pickled(path: Path) -> dict[str, Tensor]:
    """Read a file of `torch.save` that holds plain named tensors.

    A top-level `state_dict` or `model` is unwrapped; what lies beside it (epoch, optimizer) is
    training state and not read, unless it could be meant as the weights too.

    Args:
        path: an existing file.

    Returns:
        Tensors by sorted name.

    Raises:
        UnsafeFileError: it asks for objects other than tensors. Nothing of it was run.
        WeightsError: it is broken, or holds something else than named tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what it then refuses: the error below says it better
            content: object = _mapped(path)
            if content is None:
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - broken bytes make the unpickler raise anything at all
        if names := _foreign(path):
            raise UnsafeFileError(
                f"{path} was refused: loading it would run code",
                [f"it calls {name}" for name in names],
                hint="ask its author for the plain weights, model.state_dict(), best as safetensors",
            ) from None
        raise WeightsError(
            f"{path} is not a readable checkpoint of torch.save",
            [_reason(error)],
            hint="it is cut short, or of another format: fetch or write it again",
        ) from None
    return _plain(path, _unwrap(path, content))


def _mapped(path: Path) -> object:
    """The content with its tensors mapped from the file; None where that cannot be trusted.

    torch takes the pickle's word for how long a tensor's bytes are, and would map whatever lies behind them
    as well. So each storage must be one record of the archive, from its first byte to its last.
    """
    if not zipfile.is_zipfile(path):  # older files cannot be mapped
        return None
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        storages = {s.data_ptr(): s.nbytes() for s in _storages(content) if s.nbytes()}
        records = _records(path)
    except Exception:  # noqa: BLE001 - the plain way of reading says better what is wrong
        return None
    found = sorted(storages.items())
    if not found or len(found) != len(records):
        return None
    shift = found[0][0] - records[0][0]
    moved = [(place + shift, size) for place, size in records]
    return content if moved == found else None


def _storages(content: object) -> Iterator[torch.UntypedStorage]:
    if isinstance(content, Tensor):
        if content.layout == torch.strided:
            yield content.untyped_storage()
    elif isinstance(content, Mapping):
        for value in cast("Mapping[object, object]", content).values():
            yield from _storages(value)
    elif isinstance(content, list | tuple):
        for value in cast("list[object]", content):
            yield from _storages(value)


def _records(path: Path) -> list[tuple[int, int]]:
    """Where the bytes of tensors lie in an archive, and how many they are, in order."""
    reader = cast("Any", torch._C).PyTorchFileReader(str(path))  # pyright: ignore[reportPrivateUsage]
    with zipfile.ZipFile(path) as archive:
        inside = [(info.filename.partition("/")[2], info) for info in archive.infolist()]
        tensors = [(name, info) for name, info in inside if name.startswith("data/") and info.file_size]
        if any(info.compress_type != zipfile.ZIP_STORED for _, info in tensors):
            return []
        return sorted((reader.get_record_offset(name), info.file_size) for name, info in tensors)


def _unwrap(path: Path, content: object) -> object:
    if not isinstance(content, Mapping):
        return content
    entries = cast("Mapping[object, object]", content)
    wrapped = [key for key in _WRAPPERS if isinstance(entries.get(key), Mapping)]
    if not wrapped:
        return entries
    rivals = [str(key) for key, value in entries.items() if key not in wrapped and _is_weights(value)]
    if len(wrapped) + len(rivals) > 1:
        raise WeightsError(
            f"{path} holds more than one set of weights",
            [*wrapped, *rivals],
            hint="save the one you mean alone",
        )
    return entries[wrapped[0]]


def _is_weights(value: object) -> bool:
    """Whether an entry beside the unwrapped one could be meant: a tensor, or named tensors."""
    if not isinstance(value, Mapping):
        return isinstance(value, Tensor)
    entries = cast("Mapping[object, object]", value)
    return bool(entries) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in entries.items())


def _plain(path: Path, content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds no named tensors", [f"it holds a {type(content).__name__}"])
    entries = cast("Mapping[object, object]", content)
    wrong = [
        f"{key}    {type(value).__name__}"
        for key, value in entries.items()
        if not isinstance(key, str) or not isinstance(value, Tensor)
    ]
    if wrong:
        raise WeightsError(
            f"{path} holds values that are no tensors", wrong, hint="save model.state_dict() and nothing else"
        )
    tensors = cast("Mapping[str, Tensor]", entries)
    if wrong := [f"{name}    {problem}" for name, t in tensors.items() if (problem := objection(t))]:
        raise WeightsError(f"{path} holds tensors that are not plain numbers", wrong)
    return {name: tensors[name].detach() for name in sorted(tensors)}  # a Parameter is a tensor too


def _reason(error: Exception) -> str:
    """The telling line of an error, without torch's advice to load unsafely."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    return text.splitlines()[0]


def _foreign(path: Path) -> list[str]:
    """The callables a pickle names beyond tensors, read off its opcodes; nothing is unpickled."""
    found: set[str] = set()
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith(".pkl"):
                        with archive.open(name) as file:
                            found.update(_callables(pickletools.genops(file)))
        else:  # older files: magic number, protocol, system, content, keys; then raw storage
            with path.open("rb") as file:
                for _ in range(5):
                    found.update(_callables(pickletools.genops(file)))
    except Exception:  # noqa: BLE001 - past the last sound opcode: what was found so far is the answer
        pass
    return sorted(name for name in found if name.rpartition(".")[0] not in _PLAIN)


def _callables(opcodes: Iterable[tuple[pickletools.OpcodeInfo, object, int | None]]) -> Iterator[str]:
    """`module.name` of every global that a pickle names."""
    strings: list[str] = []  # a STACK_GLOBAL takes the two strings pushed last, directly or from the memo
    memo: dict[int, str] = {}
    for opcode, argument, _ in opcodes:
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif isinstance(argument, str):
            strings.append(argument)
        elif opcode.name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            memo[argument if isinstance(argument, int) else len(memo)] = strings[-1] if strings else "?"
        elif opcode.name in ("BINGET", "LONG_BINGET") and isinstance(argument, int):
            strings.append(memo.get(argument, "?"))
