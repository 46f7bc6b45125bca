"""The symmetry of a model, read off its program and verified."""

from isthmus.symmetry.axes import Axis, Blocks, Concat, Interleaved, Leaf, leaves, spaces_of, to_json
from isthmus.symmetry.counting import SHAPED, Count, counted
from isthmus.symmetry.elements import Element, around_ones, check, misfits, off_ones
from isthmus.symmetry.expose import exposed
from isthmus.symmetry.gather import Orders, positions, reorder
from isthmus.symmetry.gauges import DENSE, Gauge, Slot
from isthmus.symmetry.graph import Fixed, Member, Space, SymmetryGraph
from isthmus.symmetry.intertwiners import INTERTWINERS, Intertwiner
from isthmus.symmetry.rules import rule
from isthmus.symmetry.trace import trace
from isthmus.symmetry.verified import culprit, verified
from isthmus.symmetry.verify import Verification

__all__ = [
    "DENSE",
    "INTERTWINERS",
    "SHAPED",
    "Axis",
    "Blocks",
    "Concat",
    "Count",
    "Element",
    "Fixed",
    "Gauge",
    "Interleaved",
    "Intertwiner",
    "Leaf",
    "Member",
    "Orders",
    "Slot",
    "Space",
    "SymmetryGraph",
    "Verification",
    "around_ones",
    "check",
    "counted",
    "culprit",
    "exposed",
    "leaves",
    "misfits",
    "off_ones",
    "positions",
    "reorder",
    "rule",
    "spaces_of",
    "to_json",
    "trace",
    "verified",
]
