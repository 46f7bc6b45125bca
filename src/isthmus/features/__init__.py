"""Statistics of activations: any value of a program, N models, one pass over the calibration data."""

from isthmus.features.collect import Features, Moments, collect
from isthmus.features.feed import explained, feed, part, placed, sinks
from isthmus.features.pooled import Centred, Pooled, Scratch, centre, working_dtype
from isthmus.features.request import Blocks, Patches, Request
from isthmus.features.windows import windows

__all__ = [
    "Blocks",
    "Centred",
    "Features",
    "Moments",
    "Patches",
    "Pooled",
    "Request",
    "Scratch",
    "centre",
    "collect",
    "explained",
    "feed",
    "part",
    "placed",
    "sinks",
    "windows",
    "working_dtype",
]
