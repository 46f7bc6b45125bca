"""What a merge cost, where it broke, and how well it answers.

Numbers are in the field's natural units: accuracies are fractions (0 to 1), losses nats. A `Finding`, which
is made to be printed, says its unit; accuracies are per cent there.
"""

from isthmus.measure.answers import logits_of
from isthmus.measure.barrier import Barrier, barrier
from isthmus.measure.cost import Cost, cost
from isthmus.measure.ensemble import ensemble
from isthmus.measure.evaluation import Evaluation, evaluate
from isthmus.measure.finding import Finding
from isthmus.measure.score import Score, reusable, score
from isthmus.measure.vanishing import Vanishing, vanishing
from isthmus.measure.variance import VarianceProfile, variance_ratio

__all__ = [
    "Barrier",
    "Cost",
    "Evaluation",
    "Finding",
    "Score",
    "Vanishing",
    "VarianceProfile",
    "barrier",
    "cost",
    "ensemble",
    "evaluate",
    "logits_of",
    "reusable",
    "score",
    "vanishing",
    "variance_ratio",
]
