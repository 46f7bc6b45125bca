"""A folder in the making: whole under its name, or under a hidden name until it is; a kill loses nothing.

Beside each file that is being written lies a journal of the tensors in it that are finished. A tensor is
entered once its bytes are on the disk, so that whatever is entered need not be made again, and a run that
goes on where another one was killed gives the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from rich.filesize import decimal
from torch import Tensor

from isthmus.errors import WeightsError
from isthmus.weights.shards import Layout, Shard
from isthmus.weights.writing import sync_folder

try:
    import fcntl
except ImportError:  # not a POSIX system: no lock against a second process
    fcntl = None

_JOURNAL = ".journal"


class BusyError(WeightsError):
    """Another process is writing the same files."""


def checksum(data: Tensor) -> int:
    """A number that changes with any one 64-bit word of a run of bytes, at the speed of memory.

    It is the sum of the words: made to find pages that a power cut lost, not to stand against a forger.

    Args:
        data: a contiguous tensor.

    Returns:
        A number below 2**64.

    Examples:
        >>> import torch
        >>> checksum(torch.tensor([1, 2, 3])), checksum(torch.tensor([1, 2, 4]))
        (6, 7)
    """
    flat = data.reshape(-1).view(torch.uint8)
    whole = flat.numel() // 8 * 8
    words = int(flat[:whole].view(torch.int64).sum()) if whole else 0
    return (words + int.from_bytes(bytes(flat[whole:].tolist()), "little")) % 2**64


class Draft:
    """The hidden folder in which a checkpoint is made.

    Args:
        out: the folder that shall appear.
        layout: its files of tensors.
        key: what determines the bytes (the plan and its inputs): a draft of another key is not continued.

    Raises:
        WeightsError: `out` exists, cannot be written, or its disk has not the room; another process is
            writing it. Nothing has then been changed, except that a draft of another key was removed.
    """

    def __init__(self, out: Path, layout: Layout, key: str):
        self.out = out.absolute()
        self.folder = draft_of(out)
        self._layout = layout
        self._folder_handle = -1
        self._made = not self.folder.exists()
        problem = _unfit(self.out)
        if problem:
            raise WeightsError(*problem)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._folder_handle = _lock_folder(self.folder)
            self._clear()
            self._check_room()
            self.files = tuple(ShardFile(self.folder, shard, key) for shard in layout.shards)
        except OSError as error:
            self.remove_if_empty()
            raise WeightsError(f"{self.out} cannot be written", [_why(error)]) from error
        except WeightsError:
            self.remove_if_empty()
            raise

    def _clear(self) -> None:
        """Nothing of a draft with other files may come into this one."""
        files = {shard.file for shard in self._layout.shards}
        for file in self.folder.iterdir():
            if file.name.removesuffix(_JOURNAL) not in files:
                file.unlink()

    def _check_room(self) -> None:
        held = sum(_allocated(self.folder / shard.file) for shard in self._layout.shards)
        needed, free = self._layout.size - held, shutil.disk_usage(self.folder).free
        if needed > free:
            raise WeightsError(
                f"{self.out} needs {decimal(self._layout.size)}, and its disk has {decimal(free)} left",
                [f"{decimal(held)} of it are there from a run that was interrupted"] if held else (),
                hint="free some space, or write to another disk; a narrower dtype is smaller",
            )

    @property
    def finished(self) -> frozenset[str]:
        """Tensors that are written and on the disk."""
        return frozenset(name for file in self.files for name in file.checks)

    def copy(self, name: str, source: str | None, text: str | None) -> None:
        """Put a file beside the tensors: the copy of another one, or a text.

        Raises:
            WeightsError: it cannot be read or written, or would replace another file.
        """
        taken = {*(s.file for s in self._layout.shards), self._layout.index_file}
        if not name or name in taken or Path(name).name != name or name.endswith(_JOURNAL):
            raise WeightsError(f"{name!r} cannot be the name of a file beside the tensors")
        try:
            if text is not None:
                (self.folder / name).write_bytes(text.encode())
            elif source is not None:
                shutil.copyfile(source, self.folder / name)
        except OSError as error:
            raise WeightsError(f"{source or name} cannot be copied to {self.out}", [_why(error)]) from error

    def publish(self) -> None:
        """Give the folder its name. Every tensor must be finished.

        Raises:
            WeightsError: a tensor is missing, or the folder cannot be renamed.
        """
        left = [name for file in self.files for name in file.shard.entries if name not in file.checks]
        if left:
            raise WeightsError(f"{self.out} is not complete", [f"{name}    not written" for name in left])
        known = {file.shard.file for file in self.files}
        try:
            if self._layout.index is not None:
                (self.folder / self._layout.index_file).write_bytes(self._layout.index)
            self.close()
            for file in self.folder.iterdir():
                if file.name not in known and not file.name.endswith(_JOURNAL):
                    _sync(file)
            sync_folder(self.folder)
            for file in self.files:
                file.journal.unlink()
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.folder.rename(self.out)
            sync_folder(self.out.parent)
        except OSError as error:
            raise WeightsError(f"{self.out} cannot be written", [_why(error)]) from error

    def close(self) -> None:
        """Let go of the files; what is finished stays."""
        for file in self.files:
            file.close()
        if self._folder_handle >= 0:
            os.close(self._folder_handle)
            self._folder_handle = -1

    def remove_if_empty(self) -> None:
        """Remove the folder if this run made it and nothing in it is worth keeping."""
        files: Iterable[ShardFile] = getattr(self, "files", ())
        if self._folder_handle >= 0:
            os.close(self._folder_handle)
            self._folder_handle = -1
        if not any(file.checks for file in files) and self._made:
            shutil.rmtree(self.folder, ignore_errors=True)


class ShardFile:
    """One file of tensors, written in any order and by any thread.

    Args:
        folder: where it lies.
        shard: what it shall hold.
        key: as for `Draft`.

    Raises:
        OSError: it cannot be made in its full size.
        WeightsError: another process is writing it.
    """

    def __init__(self, folder: Path, shard: Shard, key: str):
        self.shard = shard
        self.path = folder / shard.file
        self.journal = folder / (shard.file + _JOURNAL)
        self._handle = self._log = -1
        try:
            self._log = os.open(self.journal, os.O_RDWR | os.O_CREAT, 0o666)
            _lock(self._log, self.path)
            self._first = _line({"key": key, "size": shard.size})
            self.checks: dict[str, str] = self._entered()
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            if not self.checks:
                os.ftruncate(self._log, 0)
                os.ftruncate(self._handle, 0)
                _allocate(self._handle, shard.size)
                _write(self._handle, shard.header, 0)
                os.fsync(self._handle)
                _write(self._log, self._first, 0)
                os.fsync(self._log)
                self._end = len(self._first)
        except BaseException:
            self.close()
            raise

    def _entered(self) -> dict[str, str]:
        """What an earlier run finished: the sound lines of its journal, if it made the same."""
        whole = os.pread(self._log, os.fstat(self._log).st_size, 0)
        if not whole.startswith(self._first):
            return {}
        if not self.path.exists() or self.path.stat().st_size != self.shard.size:
            return {}
        with self.path.open("rb") as file:
            if file.read(len(self.shard.header)) != self.shard.header:
                return {}
        found: dict[str, str] = {}
        self._end = len(self._first)
        for line in whole[len(self._first) :].splitlines(keepends=True):
            content = _parsed(line)
            if content is None or content.get("tensor") not in self.shard.entries:
                break  # cut off while it was written; what follows is of no use
            found[content["tensor"]] = content["check"]
            self._end += len(line)
        return found

    def write(self, name: str, start: int, data: Tensor) -> None:
        """Write some elements of a tensor, from element `start` on.

        Raises:
            WeightsError: the disk does not take them.
        """
        entry = self.shard.entries[name]
        raw = data.detach().reshape(-1).view(torch.uint8).numpy().data
        try:
            _write(self._handle, raw, entry.start + start * entry.dtype.itemsize)
        except OSError as error:
            raise WeightsError(f"{self.path} cannot be written", [_why(error)]) from error

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Some elements of a tensor as they are in the file now.

        Raises:
            WeightsError: the disk does not give them.
        """
        entry = self.shard.entries[name]
        size = entry.dtype.itemsize
        data = bytearray((stop - start) * size)
        try:
            count = os.preadv(self._handle, [data], entry.start + start * size)
        except OSError as error:
            raise WeightsError(f"{self.path} cannot be read", [_why(error)]) from error
        if count != len(data):
            raise WeightsError(f"{self.path} was cut short by someone else")
        return torch.frombuffer(data, dtype=torch.uint8)

    def forget(self, names: Iterable[str]) -> None:
        """Take back that tensors are finished: their bytes are not what was entered."""
        left = {name: check for name, check in self.checks.items() if name not in set(names)}
        if len(left) == len(self.checks):
            return
        self.checks = left
        lines = b"".join(_line({"tensor": name, "check": check}) for name, check in left.items())
        os.ftruncate(self._log, len(self._first))
        _write(self._log, lines, len(self._first))
        self._end = len(self._first) + len(lines)

    def enter(self, checks: Mapping[str, str]) -> None:
        """Put finished tensors on the disk, then into the journal.

        Args:
            checks: what identifies each tensor's bytes.

        Raises:
            WeightsError: the disk does not take them.
        """
        lines = b"".join(_line({"tensor": name, "check": check}) for name, check in checks.items())
        try:
            _sync_handle(self._handle)
            _write(self._log, lines, self._end)
            _sync_handle(self._log)
        except OSError as error:
            raise WeightsError(f"{self.path} cannot be written", [_why(error)]) from error
        self._end += len(lines)
        self.checks.update(checks)

    def close(self) -> None:
        """Let go of the file."""
        for handle in (self._handle, self._log):
            if handle >= 0:
                os.close(handle)
        self._handle = self._log = -1


def draft_of(out: Path) -> Path:
    """The hidden folder in which `out` is made, beside it, so that a rename is all that is left to do."""
    out = out.absolute()
    return out.with_name(f".{out.name}.isthmus")


def _lock(handle: int, path: Path) -> None:
    """Until the handle is closed, or its process is gone."""
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(
            f"{path} is being written by another process", hint="wait for it, or write to another folder"
        ) from None
    except OSError:
        return  # network file systems lock no folders, and some lock nothing


def _lock_folder(folder: Path) -> int:
    if fcntl is None:
        return -1
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _unfit(out: Path) -> tuple[str, list[str], str | None] | None:
    """Why a folder cannot be written, as far as can be known before."""
    if out.exists() and not out.is_dir():
        return f"{out} is a file", [], "name a folder"
    if out.is_dir() and any(out.iterdir()):
        return f"{out} exists and is not empty", [], "name another folder, or remove it"
    above = out.parent
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        return f"{out} cannot be made: {above} is a file", [], None
    # Asking the system is not enough: it answers an administrator yes on disks that nobody can write.
    probe = above / f".isthmus-{uuid.uuid4().hex[:8]}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        return f"{out} cannot be written", [_why(error)], None
    return None


def _allocated(path: Path) -> int:
    try:
        status = path.stat()
    except OSError:
        return 0
    return getattr(status, "st_blocks", 0) * 512


def _allocate(handle: int, size: int) -> None:
    """Have the disk set the room aside, so that it cannot run full on the way."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:
        os.ftruncate(handle, size)


def _write(handle: int, data: bytes | memoryview, position: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(handle, view, position)
        view, position = view[count:], position + count


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


_sync_handle: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


def _line(content: Mapping[str, object]) -> bytes:
    text = json.dumps(content, sort_keys=True).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parsed(line: bytes) -> dict[str, str] | None:
    check, _, text = line.partition(b" ")
    if not line.endswith(b"\n") or check != b"%08x" % zlib.crc32(text[:-1]):
        return None
    return json.loads(text)


def _why(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
