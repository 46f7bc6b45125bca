"""Curves between networks: for every t between 0 and 1, the weights of one network."""

from isthmus.paths.segment import Path, Segment

__all__ = ["Path", "Segment"]
