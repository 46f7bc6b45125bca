"""The symmetry of a model, read off its program and verified."""

from isthmus.symmetry.axes import Axis, Blocks, Concat, Leaf, leaves, spaces_of, to_json
from isthmus.symmetry.gather import Orders, positions, reorder
from isthmus.symmetry.graph import Fixed, Member, Space, SymmetryGraph
from isthmus.symmetry.rules import rule
from isthmus.symmetry.trace import trace
from isthmus.symmetry.verified import culprit, verified
from isthmus.symmetry.verify import Verification

__all__ = [
    "Axis",
    "Blocks",
    "Concat",
    "Fixed",
    "Leaf",
    "Member",
    "Orders",
    "Space",
    "SymmetryGraph",
    "Verification",
    "culprit",
    "leaves",
    "positions",
    "reorder",
    "rule",
    "spaces_of",
    "to_json",
    "trace",
    "verified",
]
