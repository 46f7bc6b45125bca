"""Runs a plan's tensor jobs: every output tensor for itself, block by block, in constant memory."""

from isthmus.engine.files import beside, merge_files
from isthmus.engine.jobs import COPY, Adapter, File, Job, Order, Source, Work, digest
from isthmus.engine.local import Written, run
from isthmus.engine.memory import size

__all__ = [
    "COPY",
    "Adapter",
    "File",
    "Job",
    "Order",
    "Source",
    "Work",
    "Written",
    "beside",
    "digest",
    "merge_files",
    "run",
    "size",
]
