"""Choosing the maps that bring models together: one method per file, in `methods`."""

from isthmus.align.alignment import ALIGNMENTS, Alignment, Cost, align, of_several_widths
from isthmus.align.apart import branches, check_apart, common, resizing, turned
from isthmus.align.mixed.joint import Joint, joint, mixable
from isthmus.align.observe import observations
from isthmus.align.reading import read_symmetries, shapes
from isthmus.align.saved import check_models

__all__ = [
    "ALIGNMENTS",
    "Alignment",
    "Cost",
    "Joint",
    "align",
    "branches",
    "check_apart",
    "check_models",
    "common",
    "joint",
    "mixable",
    "observations",
    "of_several_widths",
    "read_symmetries",
    "resizing",
    "shapes",
    "turned",
]
