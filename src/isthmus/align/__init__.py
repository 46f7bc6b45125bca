"""Choosing the maps that bring models together: one method per file."""

from isthmus.align.alignment import ALIGNMENTS, Alignment, Cost, align

__all__ = ["ALIGNMENTS", "Alignment", "Cost", "align"]
