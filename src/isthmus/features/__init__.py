"""Statistics of activations: any value of a program, N models, one pass over the calibration data."""

from isthmus.features.collect import Features, Moments, collect
from isthmus.features.request import Blocks, Request

__all__ = ["Blocks", "Features", "Moments", "Request", "collect"]
