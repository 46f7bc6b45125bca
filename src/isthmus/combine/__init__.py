"""One tensor for N aligned ones: one rule per file, arithmetic on blocks of tensors."""

from isthmus.combine import compiled
from isthmus.combine.blocks import (
    ARITHMETIC,
    BLOCK,
    Block,
    BlockRule,
    Job,
    Layout,
    Place,
    arithmetic,
    cut,
    measure,
    places,
    run,
    write,
)
from isthmus.combine.combination import check_asked, combine
from isthmus.combine.rules import COMBINATIONS, Rule, Terms, blockwise, normalised, options_of, rule, terms_of

__all__ = [
    "ARITHMETIC",
    "BLOCK",
    "COMBINATIONS",
    "Block",
    "BlockRule",
    "Job",
    "Layout",
    "Place",
    "Rule",
    "Terms",
    "arithmetic",
    "blockwise",
    "check_asked",
    "combine",
    "compiled",
    "cut",
    "measure",
    "normalised",
    "options_of",
    "places",
    "rule",
    "run",
    "terms_of",
    "write",
]
