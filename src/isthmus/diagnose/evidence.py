"""The cheap measures of a diagnosis: of the models, of their alignment, and of the aligned average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from isthmus.align import Alignment, align
from isthmus.combine import combine
from isthmus.diagnose.parents import examine
from isthmus.diagnose.subsets import Item
from isthmus.measure import (
    Finding,
    evaluate,
    logit_profile,
    partial_barrier,
    running_gap,
    scale_ratio,
    sign_conflict,
    vanishing,
    variance_ratio,
    weight_cosine,
    weight_distance,
)
from isthmus.measure.barrier import keeps_statistics
from isthmus.paths import Segment
from isthmus.repair import reset
from isthmus.symmetry import SymmetryGraph

State = Mapping[str, Tensor]

#: Answers that are nearer than this are of one function, so that a search for the symmetry between them is worth while.
ALIKE = 0.05


@dataclass(frozen=True)
class Gathered:
    """What was measured.

    Attributes:
        findings: by name.
        alignment: by activations, on the same data.
    """

    findings: dict[str, Finding]
    alignment: Alignment


def gather(
    graph: SymmetryGraph,
    states: Sequence[State],
    names: Sequence[str],
    calibration: Sequence[Item],
    validation: Sequence[Item],
) -> Gathered:
    """Run every cheap measure.

    Args:
        graph: the verified symmetries.
        states: two or more models.
        names: what they are called.
        calibration: inputs for alignments and statistics.
        validation: (inputs, targets) that accuracies are of.
    """
    program = graph.program
    found = [
        weight_cosine(states), weight_distance(states), sign_conflict(states),
        *examine(program, states, names, calibration, validation),
    ]  # fmt: skip
    by_name = {finding.name: finding for finding in found}
    alignment = align(graph, states, "activation-matching", data=calibration)
    aligned = alignment.apply(states)
    by_weights = align(graph, states, "weight-matching").apply(states)
    # Units that never vary are seen by their weights alone.
    nearest = min((aligned, by_weights), key=lambda moved: weight_distance(moved).value)
    found += [_named(weight_distance(nearest), ", reordered"), _named(weight_cosine(nearest), ", reordered")]
    gained = found[-1].value - by_name["weight cosine"].value
    found.append(Finding("cosine gained by reordering", gained, bounds=(-2.0, 2.0)))
    if by_name["answer distance"].value <= ALIKE:
        full = align(graph, states, {"method": "weight-matching", "groups": "full"}).apply(states)
        found.append(_named(weight_distance(full), ", rescaled"))
    parents = by_name["parents' accuracy"].value
    plain, merged = combine(states), combine(aligned)
    for name, weights in (("plain", plain), ("aligned", merged)):
        lost = parents - 100 * evaluate(program, validation, weights).accuracy
        note = "against the parents' mean, on validation"
        found.append(
            Finding(
                f"accuracy lost by the {name} average", lost, "points", "lower", (-100.0, 100.0), note=note
            )
        )
    found += _merged(graph, merged, aligned, calibration, validation)
    found += _layers(graph, alignment, aligned, calibration, validation)
    return Gathered({finding.name: finding for finding in found}, alignment)


def _merged(
    graph: SymmetryGraph,
    merged: State,
    aligned: Sequence[State],
    calibration: Sequence[Item],
    validation: Sequence[Item],
) -> list[Finding]:
    """The aligned average beside its parents."""
    program = graph.program
    found = [*scale_ratio(merged, aligned)]
    # Token ids have no zero: where the input is not floating, nothing counts as no input.
    if all(program.value(name).is_floating_point() for name in program.inputs if program.is_tensor(name)):
        seen = vanishing(program, merged, aligned, calibration, split="calibration")
        found += seen.findings
        parents = seen.parent_dominance[-1] if seen.layers else 0.0
        if parents:
            ratio = seen.dominance[-1] / parents
            found.append(Finding("bias dominance over the parents'", ratio, "1", "lower", (0.0, None)))
    found += variance_ratio(program, merged, aligned, calibration, split="calibration").findings
    output = next((name for name in program.outputs if name is not None), None)
    if output is not None and len(program.size(output)) == 2:
        found += logit_profile(program, calibration, merged, split="calibration").findings
    if keeps_statistics(program):
        mean, deviation = running_gap(program, merged, calibration, split="aligned average, calibration")
        found += [_named(mean, "", "merged "), _named(deviation, "", "merged ")]
        now = evaluate(program, validation, merged).accuracy
        fresh = evaluate(program, validation, reset(program, merged, calibration).weights).accuracy
        found.append(
            Finding(
                "accuracy the merge gains by fresh statistics",
                100 * (fresh - now),
                "points",
                None,
                (-100.0, 100.0),
            )
        )
    return found


def _layers(
    graph: SymmetryGraph,
    alignment: Alignment,
    aligned: Sequence[State],
    calibration: Sequence[Item],
    validation: Sequence[Item],
) -> list[Finding]:
    """Where the models disagree: matched correlation of each space, and the barrier of each layer alone."""
    spaces: dict[str, list[float]] = {}
    for cost in alignment.costs:
        spaces.setdefault(cost.space, []).append(cost.after)
    found: list[Finding] = []
    if spaces:
        layers = {name: sum(values) / len(values) for name, values in spaces.items()}
        note = f"{alignment.costs[0].unit} of matched units, by activation matching"
        found.append(
            Finding("matched correlation", min(layers.values()), "1", "higher", (-1.0, 1.0), layers, note)
        )
    if len(aligned) == 2:
        program = graph.program
        barriers = partial_barrier(
            program,
            Segment(*aligned),
            validation,
            ranges="single",
            calibration=calibration,
            split="validation",
        )
        found += [_named(finding, ", one layer") for finding in barriers.findings]
    return found


def _named(finding: Finding, after: str, before: str = "") -> Finding:
    return replace(finding, name=f"{before}{finding.name}{after}")
