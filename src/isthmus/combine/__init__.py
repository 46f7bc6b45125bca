"""One tensor for N aligned ones: one rule per file, pure functions of tensors."""

from isthmus.combine.combination import COMBINATIONS, combine, normalised

__all__ = ["COMBINATIONS", "combine", "normalised"]
