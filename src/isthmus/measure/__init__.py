"""What a merge cost, where it broke, and how well it answers.

Numbers are in the field's natural units: accuracies are fractions (0 to 1), losses nats. A `Finding`, which
is made to be printed, says its unit; accuracies are per cent there.
"""

from isthmus.measure.answers import answering, logits_of
from isthmus.measure.barrier import Barrier, barrier
from isthmus.measure.bounds import OutputBound, Spread, VarianceBound, output_bound, spread, variance_bound
from isthmus.measure.cost import Cost, cost
from isthmus.measure.ensemble import ensemble
from isthmus.measure.ensemble_module import Ensemble
from isthmus.measure.evaluation import Evaluation, Tally, evaluate
from isthmus.measure.finding import Finding
from isthmus.measure.kept import kept
from isthmus.measure.magnitude import Scope, magnified, not_finite
from isthmus.measure.score import Score, reusable, score
from isthmus.measure.templates import ClassMeans, as_pictures, class_means, template_cosines
from isthmus.measure.vanishing import Vanishing, vanishing
from isthmus.measure.variance import VarianceProfile, variance_ratio

__all__ = [
    "Barrier",
    "ClassMeans",
    "Cost",
    "Ensemble",
    "Evaluation",
    "Finding",
    "OutputBound",
    "Scope",
    "Score",
    "Spread",
    "Tally",
    "Vanishing",
    "VarianceBound",
    "VarianceProfile",
    "answering",
    "as_pictures",
    "barrier",
    "class_means",
    "cost",
    "ensemble",
    "evaluate",
    "kept",
    "logits_of",
    "magnified",
    "not_finite",
    "output_bound",
    "reusable",
    "score",
    "spread",
    "template_cosines",
    "vanishing",
    "variance_bound",
    "variance_ratio",
]
