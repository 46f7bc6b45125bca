"""The rules of a diagnosis: how models are related, and what is wrong.

Limits are conservative: a rule names a cause where the numbers leave little doubt, and says nothing otherwise. Those on
accuracies are in points of the validation accuracy; five of them are more than chance gives on 500 examples and 90%
(one standard error is 1.3). Sources are of what a rule says; the limits are this project's.
"""

from __future__ import annotations

from isthmus.diagnose.rules import Bound, Rule

#: Relative distance up to which two sets of weights, or of answers, are called the same (a cast to bfloat16 is 2e-3).
SAME = 0.005
#: Points of accuracy that count.
POINTS = 5.0
#: Cosine of weights from which on two models are of one training. Independent ones have 0.00 to 0.02 on this
#: project's pairs, fine-tunings of one model 0.99.
RELATED = 0.3

#: Relations of models that compute the same.
COPIES = ("copies", "reordered copies", "rescaled copies")

_VANISHING = "Qu and Horváth 2025 (arXiv:2402.05966)"
_REPAIR = "Jordan et al. 2023 (arXiv:2211.08403)"
_OURS = "isthmus: seen on the models themselves"

#: How models are related: the first that holds is said.
RELATIONS: tuple[Rule, ...] = (
    Rule(
        "copies",
        (Bound("weight distance", "at most", SAME),),
        "Their weights differ by {weight distance:.2g} of their length.",
        "They are the same model, and any average of them is it again.",
        "There is nothing to merge: keep one of them.",
        "weights compared element by element",
    ),
    Rule(
        "reordered copies",
        (Bound("weight distance, reordered", "at most", SAME), Bound("answer distance", "at most", SAME)),
        "As they are, their weights differ by {weight distance:.2g} of their length; with the units of one in another "
        "order, by {weight distance, reordered:.2g}. Their answers differ by {answer distance:.2g}.",
        "They are one model whose hidden units were put in another order.",
        "Merging gains nothing. Where it has to be done, align first: the merge is then that model.",
        "Ainsworth et al. 2023 (arXiv:2209.04836), permutation symmetry",
    ),
    Rule(
        "rescaled copies",
        (Bound("weight distance, rescaled", "at most", SAME), Bound("answer distance", "at most", SAME)),
        "Their answers differ by {answer distance:.2g}. Reordered their weights still differ by "
        "{weight distance, reordered:.2g} of their length, reordered and rescaled by {weight distance, rescaled:.2g}.",
        "They are one model whose units were rescaled (or turned) along a symmetry of its activations.",
        'Align in the full group, align={{"method": "weight-matching", "groups": "full"}}: orders alone cannot '
        "bring them together.",
        "Godfrey et al. 2022 (arXiv:2205.14258), intertwiner groups",
    ),
    Rule(
        "siblings",
        (Bound("weight cosine", "at least", RELATED),),
        "The cosine of their weights is {weight cosine:.2f}, in the order in which their units come.",
        "They were trained from one model, so that their units correspond as they are.",
        "Merge them without alignment.",
        "Wortsman et al. 2022 (arXiv:2203.05482)",
    ),
    Rule(
        "strangers",
        (Bound("weight cosine", "at most", RELATED),),
        "The cosine of their weights is {weight cosine:.2f} as they are, and {weight cosine, reordered:.2f} with "
        "matched units.",
        "They were trained independently: their hidden units come in unrelated orders.",
        "Align them before anything is averaged.",
        "Entezari et al. 2022 (arXiv:2110.06296)",
    ),
)

#: What is wrong, the most basic causes first.
CAUSES: tuple[Rule, ...] = (
    Rule(
        "wrong-normalisation",
        (Bound("accuracy gained by standardised inputs", "at least", POINTS),),
        "Every model answers better, by {accuracy gained by standardised inputs:.1f} points or more, when its inputs "
        "are shifted and scaled to mean 0 and deviation 1 (they have mean {input mean:.3g} and deviation "
        "{input deviation:.3g}).",
        "The data is not normalised as in training, so that nothing measured on it can be trusted.",
        "Normalise it with the mean and deviation of the training, then diagnose again.",
        _OURS,
    ),
    Rule(
        "class-order",
        (
            Bound("accuracy gained by renaming classes", "at least", POINTS),
            Bound("errors that renaming classes removes", "at least", 0.2),
        ),
        "Renaming classes raises the accuracy of {where} by {accuracy gained by renaming classes:.1f} points, and "
        "removes {errors that renaming classes removes:.0%} of its errors ({note}).",
        "It knows the classes under other numbers than the labels and the other models do.",
        "Reorder the rows of its last layer (or its label map) before merging.",
        _OURS,
    ),
    Rule(
        "stale-statistics",
        (Bound("accuracy gained by fresh statistics", "at least", POINTS),),
        "With batch norm statistics measured anew, {where} gains {accuracy gained by fresh statistics:.1f} points; "
        "what is stored is off by {running mean gap:.2g} standard deviations in its mean.",
        "The running statistics of that model are not those of its activations (an interrupted training, a short "
        "momentum, weights that were changed afterwards).",
        "Reset them in that model before it is merged: isthmus.repair.reset(program, weights, data).",
        _REPAIR,
        unless=("wrong-normalisation",),
    ),
    Rule(
        "dead-layer",
        (Bound("dead units", "at least", 0.95),),
        "{dead units:.0%} of the units that are read by {where} are the same whatever the input.",
        "A layer of that model is dead: nothing behind it (but for skips) sees the input.",
        "Do not merge that model, or keep the other's layers there; no repair brings back what a dead layer does "
        "not pass on.",
        _OURS,
        # Units whose statistics are stale may be shut by nothing but them.
        unless=("wrong-normalisation", "stale-statistics"),
    ),
    Rule(
        "uneven-parents",
        (Bound("accuracy between the parents", "at least", POINTS),),
        "The best parent is {accuracy between the parents:.1f} points ahead of the worst.",
        "An even average starts from their mean, below the better one.",
        "Weigh the better one more (weights=[...], chosen on validation), or merge equals.",
        "barrier over interpolated ends: Entezari et al. 2022 (arXiv:2110.06296)",
        unless=("wrong-normalisation", "class-order", "stale-statistics", "dead-layer"),
    ),
    Rule(
        "other-order",
        (
            Bound("accuracy lost by the plain average", "at least", POINTS),
            Bound("cosine gained by reordering", "at least", 0.05),
        ),
        "Averaged as they are, the models lose {accuracy lost by the plain average:.1f} points against their mean; "
        "matching units raises the cosine of their weights by {cosine gained by reordering:.2f}.",
        "Units that do different things are averaged with each other.",
        "Align first (activation-matching, weight-matching).",
        "Ainsworth et al. 2023 (arXiv:2209.04836)",
    ),
    Rule(
        "merged-statistics",
        (Bound("accuracy the merge gains by fresh statistics", "at least", POINTS),),
        "The aligned average gains {accuracy the merge gains by fresh statistics:.1f} points when its batch norm "
        "statistics are measured anew; stored deviations are up to {merged running deviation ratio:.1f} times the "
        "actual ones.",
        "Averaged running statistics are not those of the averaged network, whose activations vary less.",
        'Repair with "reset".',
        _REPAIR + "; " + _VANISHING + ", figure 3 (C)",
        unless=("wrong-normalisation", "stale-statistics"),
    ),
    Rule(
        "vanished-features",
        (Bound("vanishing features", "at most", 0.5),),
        "At the last layer of the aligned average, what the input contributes is {vanishing features:.2f} of what it "
        "contributes in the parents (the weights' magnitude is {weight scale ratio:.2f} of theirs).",
        "The features of the input fade from layer to layer, as averaged weights are shorter than those they are made "
        "of.",
        'Repair the scale of the activations ("rescale", "repair", "least-squares"; "reset" with batch norms), or keep '
        "the first layers of each model apart.",
        _VANISHING + ", definition 5.1",
        unless=("wrong-normalisation", "dead-layer"),
    ),
    Rule(
        "variance-collapse",
        (Bound("variance ratio", "at most", 0.5),),
        "The units of {where} vary {variance ratio:.2f} times as much as those of the parents.",
        "The variance of the activations has collapsed.",
        'Repair it ("repair"; "reset" with batch norms).',
        _REPAIR,
        unless=("wrong-normalisation", "dead-layer", "vanished-features"),
    ),
    Rule(
        "bias-dominated",
        (
            Bound("bias dominance", "at least", 1.0),
            Bound("bias dominance over the parents'", "at least", 2.0),
        ),
        "At the last layer of the aligned average the part that does not depend on the input is {bias dominance:.1f} "
        "times as large as the part that does, {bias dominance over the parents':.1f} times the parents' ratio.",
        "A bias is averaged once, a feature at every layer that it passes: the biases now decide the answers.",
        'Repairs that put no offset back ("rescale", "remove-bias", "calibrate-bias") are made for this. Their order '
        "differs from pair to pair: the table has it for these models.",
        _VANISHING + ", sections 4.2 and 5.3",
        unless=("wrong-normalisation", "dead-layer"),
        also="{commonest answer:.0%} of its answers are one class.",
    ),
    Rule(
        "too-different",
        (Bound("accuracy lost by the best merge of one size", "at least", 2.0),),
        "The best merge with the parameters of one parent loses {accuracy lost by the best merge of one size:.1f} "
        "points against their mean.",
        "Some layers of the two have no counterpart in each other that a map could find.",
        "Keep the first layers of each model apart (preserve_first): the table says what each size buys.",
        _VANISHING + ", section 5.4, Preserve-First Merging",
        unless=("wrong-normalisation", "class-order", "stale-statistics", "dead-layer"),
    ),
)
