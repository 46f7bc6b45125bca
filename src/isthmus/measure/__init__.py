"""What a merge cost, where it broke, and how well it answers.

Numbers are in the field's natural units: accuracies are fractions (0 to 1), losses nats. A `Finding`, which
is made to be printed, says its unit; accuracies are per cent there.
"""

from isthmus.measure.agreement import sign_conflict, weight_cosine, weight_distance
from isthmus.measure.answers import answering, logits_of
from isthmus.measure.barrier import Barrier, barrier
from isthmus.measure.bounds import OutputBound, Spread, VarianceBound, output_bound, spread, variance_bound
from isthmus.measure.calibration import calibration_error
from isthmus.measure.cka import Similarity, cka
from isthmus.measure.cost import Cost, cost
from isthmus.measure.dead import dead_units
from isthmus.measure.ensemble import ensemble
from isthmus.measure.ensemble_module import Ensemble
from isthmus.measure.evaluation import Evaluation, Tally, evaluate
from isthmus.measure.finding import Finding
from isthmus.measure.first_layer import FirstLayer, first_layer, likely_first_layer
from isthmus.measure.kept import Kept, kept
from isthmus.measure.linear_split import LinearSplit, linear_split
from isthmus.measure.logits import LogitProfile, logit_profile
from isthmus.measure.magnitude import Scope, magnified, not_finite, scale_ratio
from isthmus.measure.partial_barrier import PartialBarrier, partial_barrier
from isthmus.measure.places import Place, places
from isthmus.measure.procrustes import procrustes
from isthmus.measure.running import running_change, running_gap
from isthmus.measure.score import Score, reusable, score
from isthmus.measure.sequence import upper_bound
from isthmus.measure.stitching import Stitch, Stitched, stitch
from isthmus.measure.stopping import Stopping, when_to_stop
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
    "FirstLayer",
    "Kept",
    "LinearSplit",
    "LogitProfile",
    "OutputBound",
    "PartialBarrier",
    "Place",
    "Scope",
    "Score",
    "Similarity",
    "Spread",
    "Stitch",
    "Stitched",
    "Stopping",
    "Tally",
    "Vanishing",
    "VarianceBound",
    "VarianceProfile",
    "answering",
    "as_pictures",
    "barrier",
    "calibration_error",
    "cka",
    "class_means",
    "cost",
    "dead_units",
    "ensemble",
    "evaluate",
    "first_layer",
    "kept",
    "likely_first_layer",
    "linear_split",
    "logit_profile",
    "logits_of",
    "magnified",
    "not_finite",
    "output_bound",
    "partial_barrier",
    "places",
    "procrustes",
    "reusable",
    "running_change",
    "running_gap",
    "scale_ratio",
    "score",
    "sign_conflict",
    "spread",
    "stitch",
    "template_cosines",
    "upper_bound",
    "vanishing",
    "variance_bound",
    "variance_ratio",
    "weight_cosine",
    "weight_distance",
    "when_to_stop",
]
