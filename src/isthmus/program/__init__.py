"""The exported graph: export it, run it, watch it, cut it, duplicate a branch, rebuild a module."""

from isthmus.program.batches import Batch, batches, example_of
from isthmus.program.export import export
from isthmus.program.keep import Cut, keep_apart
from isthmus.program.module import ProgramModule
from isthmus.program.program import Program
from isthmus.program.run import Runner, Tap

__all__ = [
    "Batch",
    "Cut",
    "Program",
    "ProgramModule",
    "Runner",
    "Tap",
    "batches",
    "example_of",
    "export",
    "keep_apart",
]
