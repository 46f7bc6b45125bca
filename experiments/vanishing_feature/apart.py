"""Which end is kept apart, and which layers are permuted: figure 4 of the paper and its appendix A.8.2."""

from __future__ import annotations

from dataclasses import replace

from common.bench import Results
from nets import FAMILIES
from pairs import Pair

from isthmus.align import Alignment
from isthmus.measure.layers import depth_of_keys

METHODS = ("activation-matching", "zipit")


def measure(pair: Pair, results: Results) -> None:
    """Test accuracy with the first or the last layers kept, and with the first layers permuted only."""
    family = FAMILIES[pair.family]
    counts = range(2, family.depth, 2)
    repairs = ("none", "rescale" if "rescale" in family.repairs else "reset")
    for method in METHODS:
        for count in counts:
            for end, cut in (
                ("first", pair.kept(count)),
                ("last", {"preserve_last": count, "variant": "paper"}),
            ):
                keys = {repair: f"{method} {end} {count} {repair}" for repair in repairs}
                if all(key in results.found for key in keys.values()):
                    continue
                merge = pair.merge(method, cut)
                for repair, key in keys.items():
                    done = merge if repair == "none" else pair.repair(merge, method, repair)
                    results.once(key, lambda done=done: pair.answers(done, pair.splits.test).accuracy)
    for count in (0, *counts, family.depth - 1):
        for repair in repairs:
            results.once(
                f"permuted {count} {repair}", lambda count=count, repair=repair: permuted(pair, count, repair)
            )


def permuted(pair: Pair, count: int, repair: str) -> float:
    """Test accuracy of the midpoint when the outputs of the first so many layers are matched, and no others."""
    whole = pair.alignment("activation-matching")
    assert whole is not None
    name = f"permuted-{count}"
    pair.add(name, first(whole, count))
    merge = pair.merge(name)
    merge = merge if repair == "none" else pair.repair(merge, name, repair)
    return pair.answers(merge, pair.splits.test).accuracy


def first(whole: Alignment, count: int) -> Alignment:
    """The maps of the spaces that the first so many layers write, and the identity elsewhere."""
    depths = depth_of_keys(whole.graph.program)
    near = {
        name
        for name, space in whole.graph.spaces.items()
        if min(depths[m.key] for m in space.members if m.role == "writes") <= count
    }
    transports = tuple(
        replace(t, maps={name: m for name, m in t.maps.items() if name in near}) for t in whole.transports
    )
    return replace(whole, transports=transports)
