"""What rules that take `statistics=` are given: Fisher information and Gram matrices, from a model and data."""

from isthmus.statistics.fisher import Per, Variant, fisher_information
from isthmus.statistics.gathered import Gathered
from isthmus.statistics.gathering import GATHERERS, asked, gather, moved_along
from isthmus.statistics.gradients import squared_gradients
from isthmus.statistics.grams import gram_matrices
from isthmus.statistics.likelihoods import LIKELIHOODS, Likelihood, Loss

__all__ = [
    "GATHERERS",
    "LIKELIHOODS",
    "Gathered",
    "Likelihood",
    "Loss",
    "Per",
    "Variant",
    "asked",
    "fisher_information",
    "gather",
    "gram_matrices",
    "moved_along",
    "squared_gradients",
]
