"""Bytes <-> named tensors: lazy readers, hashes and checks, atomic writers.

A set of weights is a `Mapping[str, Tensor]` everywhere in isthmus; this room is where files become
one and one becomes a file. Nothing in a file is ever executed.
"""

from isthmus.weights.checks import check_finite, check_same, digest
from isthmus.weights.draft import BusyError, Draft, ShardFile, checksum, draft_of
from isthmus.weights.header import Entry
from isthmus.weights.headers import Identity, changed, headers, identify
from isthmus.weights.reading import load, locate, metadata, open  # noqa: A004
from isthmus.weights.shards import Layout, Shard, lay_out
from isthmus.weights.stored import Stored, stored
from isthmus.weights.writing import atomic, save

__all__ = [
    "BusyError",
    "Draft",
    "Entry",
    "Identity",
    "Layout",
    "Shard",
    "ShardFile",
    "Stored",
    "atomic",
    "changed",
    "check_finite",
    "check_same",
    "checksum",
    "digest",
    "draft_of",
    "headers",
    "identify",
    "lay_out",
    "load",
    "locate",
    "metadata",
    "open",
    "save",
    "stored",
]
