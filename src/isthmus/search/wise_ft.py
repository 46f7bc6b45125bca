"""WiSE-FT: the models on the line from a base to its fine-tuned one, chosen by a score."""

from __future__ import annotations

from isthmus.errors import InputError
from isthmus.paths import Segment
from isthmus.search.result import Searched
from isthmus.search.table import SEARCHES, Search


@SEARCHES.register(
    "wise-ft",
    needs=("score", "base"),
    claims=("copies-give-the-model",),
    costs="`points` evaluations",
    source="Wortsman et al. 2022, Robust fine-tuning of zero-shot models (arXiv:2109.01903)",
)
def wise_ft(search: Search, *, points: int = 21) -> Searched:
    """One fine-tuned model and its base, (1 - a) base + a model for a from 0 to 1; the best a is kept.

    What the base answers must mean the same as what the model answers: a zero-shot head, or one that both
    were trained with. With a head that was drawn anew for the fine-tuning this is no WiSE-FT, only a walk
    towards a head of noise.

    Args:
        search: what is asked: one model and its base.
        points: places on the line, evenly spaced, the ends included.

    Raises:
        InputError: another number of models than one, no base, or fewer than two points.
    """
    if len(search.members) != 1:
        raise InputError(f"WiSE-FT walks from the base to one model, not to {len(search.members)}")
    if points < 2:
        raise InputError(f"points = {points} do not hold both ends")
    base = search.members.base
    assert base is not None, "the table says that it is needed"
    line = Segment(dict(base), dict(search.members.states[0]))
    best: tuple[float, float] | None = None
    for step in range(points):
        a = step / (points - 1)
        what = {"segment": [search.members.base_digest, search.members.digests[0]], "t": a}
        inside = 0 < a < 1
        score = search.ask(f"a = {a:.3g}", {"a": a}, what, lambda a=a: line.at(a), mixture=inside)
        if score is not None and (best is None or score > best[0]):
            best = score, a
            search.accept()
    if best is None:
        raise InputError("no point on the line has a score", [f"{s.label}: {s.note}" for s in search.steps])
    score, a = best
    weights = search.finished(line.at(a), mixture=0 < a < 1)
    return search.found("wise-ft", weights, score, {"a": a}, {"points": points})
