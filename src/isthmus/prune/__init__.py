"""Prune networks in one shot, and repair what pruning broke."""

from isthmus.prune.layers import Layer, prunable
from isthmus.prune.masks import load_mask, masked, save_mask
from isthmus.prune.pruning import prune
from isthmus.prune.result import Pruned
from isthmus.prune.selection import Scope, keep_largest
from isthmus.prune.table import PRUNERS, Choice

__all__ = [
    "PRUNERS",
    "Choice",
    "Layer",
    "Pruned",
    "Scope",
    "keep_largest",
    "load_mask",
    "masked",
    "prunable",
    "prune",
    "save_mask",
]
