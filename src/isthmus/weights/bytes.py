"""The bytes of one file, wherever it is: mapped from a disk, fetched in ranges from anywhere else."""

from __future__ import annotations

import importlib
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor

from isthmus.errors import MissingExtraError, WeightsError

T = TypeVar("T")

# Private maps count as memory that may be written unless this is said, and a file larger than the machine's
# memory could then not be mapped. Python has the name since 3.13; the number is Linux's on x86 and ARM.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


@runtime_checkable
class Bytes(Protocol):
    """A file that tensors are read from."""

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    @property
    def size(self) -> int:
        """In bytes."""
        ...

    @property
    def version(self) -> str:
        """Another text once the file was replaced or changed."""
        ...

    def read(self, start: int, stop: int) -> bytes:
        """A copy of some bytes."""
        ...

    def flat(self, dtype: torch.dtype, start: int, stop: int) -> Tensor:
        """Some bytes as a tensor of one dimension."""
        ...

    def expect(self, start: int, stop: int) -> None:
        """Say that these bytes are needed soon."""
        ...

    def drop(self, start: int, stop: int) -> None:
        """Say that these bytes are not needed soon."""
        ...

    def changed(self) -> bool:
        """Whether what is read here is no longer what was opened."""
        ...


class LocalBytes:
    """A file of this machine, mapped: reading copies nothing, and pages that were read can be let go.

    Args:
        path: an existing file that is not empty.

    Raises:
        WeightsError: it cannot be opened or mapped.
    """

    def __init__(self, path: Path):
        self.name = str(path)
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if hasattr(mmap, "MAP_PRIVATE"):
                    # Writable, so that torch takes it as any memory; a page that is written becomes our own.
                    self._map = mmap.mmap(
                        file.fileno(),
                        0,
                        flags=mmap.MAP_PRIVATE | _NORESERVE,
                        prot=mmap.PROT_READ | mmap.PROT_WRITE,
                    )
                else:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:  # ValueError: it is empty
            raise WeightsError(f"{path} cannot be read", [str(error)]) from None
        self.size = len(self._map)
        self.version = f"{status.st_size} bytes, {status.st_mtime_ns}"
        self._inode = status.st_ino

    def read(self, start: int, stop: int) -> bytes:
        return self._map[start:stop]

    def flat(self, dtype: torch.dtype, start: int, stop: int) -> Tensor:
        if start == stop:
            return torch.empty(0, dtype=dtype)
        if start % dtype.itemsize:  # headers are padded to 8 bytes since 2023, not before
            return torch.frombuffer(bytearray(self._map[start:stop]), dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=(stop - start) // dtype.itemsize, offset=start)

    def expect(self, start: int, stop: int) -> None:
        # Left alone, the system reads an eighth of a megabyte ahead, and a cold disk is waited for all the time.
        start, stop = start - start % mmap.PAGESIZE, min(stop, self.size)
        if stop > start and hasattr(mmap, "MADV_WILLNEED"):
            self._map.madvise(mmap.MADV_WILLNEED, start, stop - start)

    def drop(self, start: int, stop: int) -> None:
        start -= start % mmap.PAGESIZE
        if stop < self.size:
            stop -= stop % mmap.PAGESIZE
        if stop > start and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def changed(self) -> bool:
        try:
            status = Path(self.name).stat()
        except OSError:
            return False  # removed: what is mapped lives on
        # Another file under the name is no harm either.
        return (
            status.st_ino == self._inode and self.version != f"{status.st_size} bytes, {status.st_mtime_ns}"
        )


class FetchedBytes:
    """A file behind a URL, fetched range by range.

    Args:
        path: an existing file.
    """

    def __init__(self, path: Url):
        self.name = str(path)
        self._path = path
        self.size = path.size()
        self.version = path.version()

    def read(self, start: int, stop: int) -> bytes:
        if start == stop:
            return b""
        found = self._path.fetch(start, stop)
        if len(found) != stop - start:
            raise WeightsError(f"{self.name} was cut short while it was read")
        return found

    def flat(self, dtype: torch.dtype, start: int, stop: int) -> Tensor:
        if start == stop:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(bytearray(self.read(start, stop)), dtype=dtype)

    def expect(self, start: int, stop: int) -> None:
        """It is fetched when it is asked for."""

    def drop(self, start: int, stop: int) -> None:
        """Nothing of it is held."""

    def changed(self) -> bool:
        return self.version != self._path.version()


@runtime_checkable
class _FileSystem(Protocol):
    """The part of fsspec's file systems that we use; the package gives no types."""

    def info(self, path: str) -> dict[str, object]: ...
    def exists(self, path: str) -> bool: ...
    def isdir(self, path: str) -> bool: ...
    def isfile(self, path: str) -> bool: ...
    def ls(self, path: str, detail: bool) -> list[str]: ...
    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes: ...


class Url:
    """A place behind a URL that fsspec understands (`s3://`, `gs://`, `hf://`, `https://`, ...).

    It answers the questions that are asked of a `pathlib.Path`.

    Args:
        url: with its protocol.

    Raises:
        MissingExtraError: fsspec, or its package for the protocol, is not installed.
        WeightsError: no such protocol.
    """

    def __init__(self, url: str, system: tuple[_FileSystem, str] | None = None):
        self._url = url
        try:
            self._fs, self._path = system or cast(
                "tuple[_FileSystem, str]", importlib.import_module("fsspec.core").url_to_fs(url)
            )
        except ImportError as error:
            raise MissingExtraError(
                f"{url} needs a package that is not here", [str(error)], hint="pip install 'isthmus[remote]'"
            ) from None
        except ValueError as error:
            raise WeightsError(f"{url} has a protocol that nothing here understands", [str(error)]) from None
        self.name = PurePosixPath(self._path).name
        self.suffix = PurePosixPath(self.name).suffix

    def __str__(self) -> str:
        return self._url

    def __lt__(self, other: Url) -> bool:
        return self._url < other._url

    @property
    def parent(self) -> Url:
        return self._beside(str(PurePosixPath(self._path).parent), self._url.rstrip("/").rpartition("/")[0])

    def __truediv__(self, name: str) -> Url:
        return self._beside(f"{self._path.rstrip('/')}/{name}", f"{self._url.rstrip('/')}/{name}")

    def _beside(self, path: str, url: str) -> Url:
        return Url(url, (self._fs, path))

    def exists(self) -> bool:
        return self._asked(lambda: self._fs.exists(self._path))

    def is_dir(self) -> bool:
        return self._asked(lambda: self._fs.isdir(self._path))

    def is_file(self) -> bool:
        return self._asked(lambda: self._fs.isfile(self._path))

    def iterdir(self) -> Iterator[Url]:
        names = self._asked(lambda: self._fs.ls(self._path, False))
        yield from (self / PurePosixPath(name).name for name in names)

    def read_bytes(self) -> bytes:
        return self._asked(lambda: self._fs.cat_file(self._path))

    def size(self) -> int:
        size = self._asked(lambda: self._fs.info(self._path)).get("size")
        if not isinstance(size, int):
            raise WeightsError(f"{self} has no known size", hint="the server does not say: download it")
        return size

    def version(self) -> str:
        info = self._asked(lambda: self._fs.info(self._path))
        told = [
            f"{k} {info[k]}"
            for k in ("size", "etag", "ETag", "mtime", "LastModified", "md5Hash")
            if k in info
        ]
        return ", ".join(told)

    def fetch(self, start: int, stop: int) -> bytes:
        return self._asked(lambda: self._fs.cat_file(self._path, start, stop))

    def _asked(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except (OSError, ValueError) as error:
            raise WeightsError(f"{self} cannot be read", [str(error) or type(error).__name__]) from error


#: Where a checkpoint may be.
Where = Path | Url
