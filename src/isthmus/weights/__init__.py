"""Bytes <-> named tensors: lazy readers, hashes and checks, an atomic writer.

A set of weights is a `Mapping[str, Tensor]` everywhere in isthmus; this room is where files become
one and one becomes a file. Nothing in a file is ever executed.
"""

from isthmus.weights.checks import check_finite, check_same, digest
from isthmus.weights.reading import load, metadata, open  # noqa: A004
from isthmus.weights.writing import atomic, save

__all__ = ["atomic", "check_finite", "check_same", "digest", "load", "metadata", "open", "save"]
