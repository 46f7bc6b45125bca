"""The A, B algebra: what happens to each space of each model, and to the weights that carry it."""

from isthmus.maps.affine import Shift
from isthmus.maps.kinds import (
    Dense,
    Map,
    Membership,
    Mixture,
    Permutation,
    ScaledPermutation,
    Stack,
    compose,
    identity,
    invert,
    weighted,
)
from isthmus.maps.positions import positions_in
from isthmus.maps.transport import Transport

__all__ = [
    "Dense",
    "Map",
    "Membership",
    "Mixture",
    "Permutation",
    "ScaledPermutation",
    "Shift",
    "Stack",
    "Transport",
    "compose",
    "identity",
    "invert",
    "positions_in",
    "weighted",
]
