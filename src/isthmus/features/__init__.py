"""Statistics of activations: any value of a program, N models, one pass over the calibration data."""

from isthmus.features.collect import Features, Moments, collect
from isthmus.features.feed import explained, feed, placed, sinks
from isthmus.features.pooled import Centred, Pooled, Scratch, centre, working_dtype
from isthmus.features.request import Blocks, Patches, Request

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
    "placed",
    "sinks",
    "working_dtype",
]
