"""Every way to merge these models, measured side by side."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import isthmus
from isthmus import registry
from isthmus.align import ALIGNMENTS
from isthmus.align import Alignment as Maps
from isthmus.align import align as align_models
from isthmus.combine import normalised
from isthmus.errors import InputError
from isthmus.measure import Barrier, Evaluation, barrier, cost, ensemble, evaluate, vanishing, variance_ratio
from isthmus.merging import Mergeable, Merged, merge, state_of
from isthmus.paths import Segment
from isthmus.program import Cut, Program, Variant, first_example
from isthmus.repair.by_name import needs_of
from isthmus.report.pictures import panels
from isthmus.report.profiles import Profile
from isthmus.report.results import (
    Alignment,
    Curve,
    Provenance,
    Published,
    Results,
    Row,
    Setting,
    SpaceCost,
    Verification,
)
from isthmus.symmetry import SymmetryGraph, trace, verified


@dataclass(frozen=True)
class Splits:
    """The data of a comparison, each an iterable that can be read again and again.

    Attributes:
        calibration: inputs that alignment and repair measure their statistics on; from the training
            data, targets are not used.
        validation: (inputs, targets) kept from the training data; every choice is made on it.
        test: (inputs, targets) that nothing is chosen on.
        sizes: examples per split, for the record.
    """

    calibration: Iterable[object]
    validation: Iterable[object]
    test: Iterable[object]
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a comparison found.

    Attributes:
        results: the table, curves and profiles: the schema of `results.json`.
        best: the merge of one parent's size that is best on validation, and the smallest
            kept-apart one that reaches the parents' mean there (None if none does).
        merges: name of the row -> the merge.
    """

    results: Results
    best: Merged
    bridge: Merged | None
    merges: Mapping[str, Merged]


def compare(
    models: Sequence[Mergeable],
    splits: Splits,
    *,
    model: nn.Module | None = None,
    names: Sequence[str] | None = None,
    align: Sequence[registry.Asked] = ("weight-matching", "activation-matching"),
    repairs: Sequence[registry.Asked] | None = None,
    preserve_first: Sequence[int] | None = None,
    variants: Sequence[Variant] = ("junction",),
    weights: Sequence[float] | None = None,
    points: int = 11,
    seed: int = 0,
    published: Mapping[str, Published] | None = None,
    title: str = "Merging strangers",
    command: str = "",
) -> Comparison:
    """Merge models every way there is, and measure each on the same data.

    Args:
        models: two or more modules, state dicts or files of one architecture.
        splits: calibration, validation and test data.
        model: the architecture, where `models` are state dicts or files.
        names: what the models are called.
        align: alignment methods to try, by name or with options; the last one is the one that cuts and curves use.
        repairs: repairs to try after each alignment, likewise; None for those that suit the model: "reset" where
            it has batch norms, "repair" and "rescale" where it has none, and "least-squares".
        preserve_first: depths to keep apart; None for an even choice of five.
        variants: where kept-apart branches meet; with two of them every cut is made both ways.
        weights: of the models.
        points: places on each barrier curve.
        seed: for what is drawn.
        published: name of a row -> the number reported elsewhere.
        title: of the report.
        command: the command line, for the record.

    Raises:
        InputError, MismatchError, DataError, ...: as `isthmus.merge`.
    """
    if not align:
        raise InputError("a comparison needs at least one alignment method")
    # Names and options that are none are said before anything is run.
    for how in align:
        options = (
            [] if isinstance(how, str) else [n for n in how if n not in ("method", "reference", "score")]
        )
        ALIGNMENTS.get(registry.name_of(how)).check_options(options)
    for repair in repairs or ():
        needs_of(repair)
    work = _Comparison(models, splits, model, names, weights, seed, published or {})
    return work.run(list(align), repairs, preserve_first, list(variants), points, title, command)


class _Comparison:
    def __init__(
        self,
        models: Sequence[Mergeable],
        splits: Splits,
        model: nn.Module | None,
        names: Sequence[str] | None,
        weights: Sequence[float] | None,
        seed: int,
        published: Mapping[str, Published],
    ):
        self.splits, self.seed, self.published = splits, seed, published
        self.shares = normalised(weights, len(models))
        # The plain average checks the models against each other and reads the architecture once.
        self.direct = merge(
            models, model=model, data=splits.calibration, weights=self.shares, align=None, preserve_last=0
        )
        module = model if model is not None else self.direct.model
        if module is None:
            raise InputError("the architecture is needed to compare merges", hint="pass modules, or model=")
        self.module = module
        self.states = [state_of(m) for m in models]
        self.names = list(names or (f"model {i}" for i in range(len(models))))
        self.rows: list[Row] = []
        self.validation: dict[str, Evaluation] = {}
        self.test: dict[str, Evaluation] = {}
        self.merges: dict[str, Merged] = {}

    def run(
        self,
        align: list[registry.Asked],
        repairs: Sequence[registry.Asked] | None,
        depths: Sequence[int] | None,
        variants: Sequence[Variant],
        points: int,
        title: str,
        command: str,
    ) -> Comparison:
        example = first_example(self.splits.calibration)
        graph, checked = verified(trace(self.module, example), weights=self.states[0], seed=self.seed)
        program = graph.program
        self.unit = cost(program, example)
        self.example = example
        ways = {registry.label(how): how for how in (suitable(program) if repairs is None else repairs)}
        layers = program.layers
        chosen = (
            list(depths)
            if depths is not None
            else sorted({round(layers * share) for share in (0.2, 0.4, 0.6, 0.75, 0.9)} - {0, layers})
        )
        for depth in chosen:
            Cut(preserve_first=depth).apart(program)  # one that does not fit is said before minutes are spent
        for name, state in zip(self.names, self.states, strict=True):
            self._record(name, "edge", program, state)
        self._ensemble(program)
        self._merge("direct average", graph, None, None)
        for way in ways:
            self._merge(f"direct + {way}", graph, None, ways[way])
        last: Maps | None = None
        label = ""
        for how in align:
            label = registry.label(how)
            if label in self.merges:
                raise InputError(f"the alignment {label!r} is asked for twice")
            last = align_models(graph, self.states, how, data=self.splits.calibration)
            self._merge(label, graph, last, None)
            for way in ways:
                self._merge(f"{label} + {way}", graph, last, ways[way])
        assert last is not None
        best = max((n for n, _ in self._kinds("merged")), key=lambda n: self.validation[n].accuracy)
        way = max(ways, key=lambda w: self.validation[f"{label} + {w}"].accuracy, default=None)
        for variant in variants:
            for depth in chosen:
                for repair in [None, way] if way else [None]:
                    name = f"preserve-first {depth} of {layers}" + (f" + {repair}" if repair else "")
                    name += f", {variant}" if len(variants) > 1 else ""
                    asked = None if repair is None else ways[repair]
                    self._merge(name, graph, last, asked, preserve_first=depth, variant=variant)
        curves = self._curves(program, last, label, points)
        profiles = self._profiles(program, label, way)
        bridge = self._bridge()
        shown = dict(zip(self.names, self.states, strict=True))
        for row in ("direct average", label):
            shown |= {f"{n}, {row}": s for n, s in zip(self.names, self.merges[row].aligned, strict=True)}
            shown[row] = self.merges[row].weights
        results = Results(
            title=title,
            verdict=self._verdict(best, bridge),
            rows=self.rows,
            curves=curves,
            profiles=profiles,
            panels=panels(program, shown, self.splits.validation),
            verification=Verification(
                error=checked.error,
                bound=checked.bound,
                spaces=len(graph.spaces),
                moved=graph.coverage,
                unobservable=list(checked.unobservable),
                frozen=_frozen(graph),
                note=checked.note,
            ),
            alignment=_alignment(last, graph),
            settings=self._settings(self.merges[best], align, list(ways), chosen, variants, points),
            provenance=Provenance(
                isthmus=isthmus.__version__,
                torch=torch.__version__,
                python=platform.python_version(),
                device=str(next(iter(self.states[0].values())).device),
                command=command,
                seeds={"merge": self.seed},
                splits=dict(self.splits.sizes),
                evaluated="test",
                chance=self.test[self.names[0]].chance,
            ),
        )
        return Comparison(results, self.merges[best], self.merges[bridge] if bridge else None, self.merges)

    def _merge(
        self,
        name: str,
        graph: SymmetryGraph,
        align: Maps | None,
        repair: registry.Asked | None,
        preserve_first: int = 0,
        variant: Variant = "junction",
    ) -> None:
        merged = merge(
            self.states,
            model=self.module,
            graph=graph,
            align=align,
            repair=repair,
            data=self.splits.calibration,
            weights=self.shares,
            preserve_first=preserve_first,
            variant=variant,
            seed=self.seed,
            verify=False,
        )
        self.merges[name] = merged
        kind = "kept-apart" if preserve_first else "merged"
        self._record(name, kind, merged.program or graph.program, merged.weights)

    def _record(self, name: str, kind: str, program: Program, weights: Mapping[str, Tensor]) -> None:
        self.validation[name] = evaluate(program, self.splits.validation, weights, split="validation")
        self.test[name] = evaluate(program, self.splits.test, weights, split="test")
        ratios = cost(program, self.example).over(self.unit)
        self._row(name, kind, ratios[0].value, ratios[1].value)

    def _ensemble(self, program: Program) -> None:
        for found, data in ((self.validation, self.splits.validation), (self.test, self.splits.test)):
            found["ensemble"] = ensemble(program, self.states, data, shares=self.shares)
        self._row("ensemble", "ensemble", float(len(self.states)), float(len(self.states)))

    def _row(self, name: str, kind: str, parameters: float, flops: float) -> None:
        measured = self.test[name]
        self.rows.append(
            Row(
                name=name,
                kind=kind,  # type: ignore[arg-type]
                accuracy=measured.accuracy,
                loss=measured.loss,
                parameters=parameters,
                flops=flops,
                published=self.published.get(name),
                validation=self.validation[name].accuracy,
            )
        )

    def _kinds(self, kind: str) -> list[tuple[str, Row]]:
        return [(row.name, row) for row in self.rows if row.kind == kind]

    @property
    def parents(self) -> float:
        """Mean validation accuracy of the parents."""
        return sum(self.validation[n].accuracy for n in self.names) / len(self.names)

    def _bridge(self) -> str | None:
        """The smallest kept-apart merge that reaches the parents' mean, on validation."""
        reached = [
            (row.parameters or 0.0, -self.validation[name].accuracy, name)
            for name, row in self._kinds("kept-apart")
            if self.validation[name].accuracy >= self.parents
        ]
        return min(reached)[2] if reached else None

    def _verdict(self, best: str, bridge: str | None) -> str:
        mean = sum(self.test[n].accuracy for n in self.names) / len(self.names)
        direct, merged = self.test["direct average"], self.test[best]
        text = (
            f"The direct average scores {_percent(direct.accuracy)} where the parents average "
            f"{_percent(mean)} and guessing {_percent(direct.chance)}; the best merge of the same size, {best}, scores "
            f"{_percent(merged.accuracy)}"
        )
        if self.validation[best].accuracy >= self.parents:
            return (
                f"{text}, which on validation is no less than the parents' mean: nothing need be kept apart."
            )
        if bridge is None:
            return f"{text}; no depth that was tried brings a kept-apart merge to the parents' mean."
        row = next(row for name, row in self._kinds("kept-apart") if name == bridge)
        return (
            f"{text}, and {bridge} scores {_percent(self.test[bridge].accuracy)} with "
            f"{row.parameters:.2f}x the parameters."
        )

    def _curves(self, program: Program, last: Maps, label: str, points: int) -> list[Curve]:
        if len(self.states) != 2 or not points:
            return []
        straight, moved = Segment(*self.states), Segment(*last.apply(self.states))
        test = self.splits.test
        found = {
            "direct": barrier(program, straight, test, points=points, norms="keep", split="test"),
            label: barrier(program, moved, test, points=points, norms="keep", split="test"),
        }
        if "reset" in suitable(program):
            found[f"{label} + reset"] = barrier(
                program,
                moved,
                test,
                points=points,
                norms="reset",
                calibration=self.splits.calibration,
                split="test",
            )
        return [_curve(name, b) for name, b in found.items()]

    def _profiles(self, program: Program, label: str, way: str | None) -> list[Profile]:
        shown = ["direct average", label, *([f"{label} + {way}"] if way else [])]
        gone: dict[str, list[float | None]] = {}
        spread: dict[str, list[float | None]] = {}
        layers: list[str] = []
        notes = ["", ""]
        for name in shown:
            merged = self.merges[name]
            parents = merged.aligned
            fading = vanishing(program, merged.weights, parents, self.splits.validation, split="validation")
            ratio = variance_ratio(
                program,
                merged.weights,
                parents,
                self.splits.validation,
                shares=self.shares,
                split="validation",
            )
            layers = list(fading.layers)
            gone[name] = list(fading.strength)
            spread[name] = list(ratio.ratio)
            notes = [found[0].note for found in (fading.findings, ratio.findings)]
        maps = self.merges[label].kept(self.splits.calibration)
        held: dict[str, list[float | None]] = {
            label: [*maps.information.layers.values()],
            "at most (PCA)": [*maps.bound.layers.values()],
        }
        repaired = self.merges[shown[-1]].repaired
        return [
            Profile.vanishing(layers, gone, note=notes[0]),
            Profile.variance(layers, spread, note=notes[1]),
            *([Profile.kept([*maps.bound.layers], held, note=str(maps))] if maps.bound.layers else []),
            *([Profile.gains(repaired, shown[-1])] if repaired is not None and repaired.changed else []),
        ]

    def _settings(
        self,
        best: Merged,
        align: Sequence[registry.Asked],
        ways: Sequence[str],
        depths: Sequence[int],
        variants: Sequence[str],
        points: int,
    ) -> list[Setting]:
        tried: dict[str, object] = {
            "alignments tried": [registry.label(how) for how in align],
            "repairs tried": list(ways),
            "depths tried": list(depths),
            "variants tried": list(variants),
            "points on a curve": points,
        }
        return [
            *(Setting(name=n, value=_setting(v), default=False) for n, v in tried.items()),
            *(
                Setting(name=f"best: {n}", value=_setting(v), default=n not in best.asked)
                for n, v in best.settings.items()
            ),
        ]


def suitable(program: Program) -> list[str]:
    """The repairs that suit a model: those of batch norms, or of layers without, and the one that is for all."""
    norms = any(n.target is torch.ops.aten.batch_norm.default for n in program.graph.nodes)
    return [*(["reset"] if norms else ["repair", "rescale"]), "least-squares"]


def _frozen(graph: SymmetryGraph) -> list[str]:
    """Weight axes that stay for another reason than being input, output or kernel positions."""
    usual = ("input", "output")
    return sorted(
        {
            f"{f.key}[{f.axis}]: {f.reason}"
            for f in graph.fixed
            if f.reason not in usual and "conv" not in f.reason
        }
    )


def _alignment(maps: Maps, graph: SymmetryGraph) -> Alignment:
    return Alignment(
        method=maps.method,
        cost=maps.costs[0].unit if maps.costs else "similarity",
        better="higher",
        spaces=[
            SpaceCost(
                space=c.space if len(maps.transports) == 2 else f"model {c.model}: {c.space}",
                size=graph.spaces[c.space].size,
                before=c.before,
                after=c.after,
            )
            for c in maps.costs
        ],
        note="; ".join((maps.status, *maps.notes)),
    )


def _curve(name: str, found: Barrier) -> Curve:
    return Curve(
        name=name,
        t=list(found.t),
        accuracy=list(found.accuracy),
        loss=list(found.loss),
        accuracy_barrier=found.height("accuracy"),
        loss_barrier=found.height("loss"),
    )


def _setting(value: object) -> str | int | float | bool | list[str | int | float | bool | None] | None:
    if isinstance(value, (tuple, list)):
        return [v if isinstance(v, (str, int, float, bool)) or v is None else str(v) for v in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def command_line() -> str:
    """How this process was called, without the folder of its program."""
    return " ".join(["isthmus", *sys.argv[1:]])
