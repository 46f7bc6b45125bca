"""The A, B algebra: what happens to each space of each model, and to the weights that carry it."""

from isthmus.maps.kinds import (
    Dense,
    Map,
    Membership,
    Permutation,
    ScaledPermutation,
    Stack,
    compose,
    identity,
    invert,
)
from isthmus.maps.transport import Transport

__all__ = [
    "Dense",
    "Map",
    "Membership",
    "Permutation",
    "ScaledPermutation",
    "Stack",
    "Transport",
    "compose",
    "identity",
    "invert",
]
