"""The exported graph: export it, run it, watch it, cut it, duplicate a branch, rebuild a module."""

from isthmus.program.alike import check_alike
from isthmus.program.batches import Batch, Inputs, batches, example_of, first_example, home
from isthmus.program.export import export
from isthmus.program.keep import Cut, Variant, keep_apart
from isthmus.program.module import ProgramModule
from isthmus.program.outputs import logits_of
from isthmus.program.program import LINEAR, Program
from isthmus.program.run import Runner, Tap

__all__ = [
    "LINEAR",
    "Batch",
    "Cut",
    "Inputs",
    "Program",
    "ProgramModule",
    "Runner",
    "Tap",
    "Variant",
    "batches",
    "check_alike",
    "example_of",
    "export",
    "first_example",
    "home",
    "keep_apart",
    "logits_of",
]
