"""What the bytes of a checkpoint are, by a hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

# Beyond this many bytes a content hash is of samples, and says so: hashing would take as long as merging.
WHOLE_HASH = 100_000_000
_SAMPLES, _SAMPLE = 64, 1 << 16


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
