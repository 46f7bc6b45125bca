"""One call: see, move, combine, repair."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path

from torch import Tensor, nn

from isthmus import saving
from isthmus import weights as files
from isthmus.align import (
    ALIGNMENTS,
    Alignment,
    branches,
    check_apart,
    common,
    of_several_widths,
    resizing,
    shapes,
    turned,
)
from isthmus.align import align as align_models
from isthmus.asking import Aligning, Repairing, check, rule_of, shares_of, told
from isthmus.combine import blockwise, check_asked, options_of, terms_of
from isthmus.combine import combine as combine_models
from isthmus.combine.unmergeable import set_aside
from isthmus.errors import InputError, MismatchError
from isthmus.maps.resize import resized
from isthmus.measure import score
from isthmus.measure.score import Metric
from isthmus.merged import Merged
from isthmus.program import (
    Cut,
    Inputs,
    Program,
    ProgramModule,
    Variant,
    check_alike,
    export,
    first_example,
    keep_apart,
)
from isthmus.program.keep import Outputs
from isthmus.program.module import completed
from isthmus.registry import Asked, name_of
from isthmus.repair import Repaired
from isthmus.repair.by_name import apply as repair_merged
from isthmus.repair.choosing import choose, wanted
from isthmus.repair.goals import Measured
from isthmus.statistics import Gathered, gather
from isthmus.statistics.gathering import asked as statistics_asked
from isthmus.statistics.gathering import moved_along
from isthmus.symmetry import SymmetryGraph, Verification, trace, verified

#: What can be merged: modules, state dicts, or files of weights.
Mergeable = nn.Module | Mapping[str, Tensor] | str | Path


def merge(
    models: Sequence[Mergeable],
    *,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    example: Inputs | None = None,
    align: Aligning = None,
    fold_norms: bool = False,
    combine: str | Mapping[str, object] | None = None,
    method: str = "average",
    base: Mergeable | None = None,
    statistics: Sequence[Mapping[str, Tensor] | str | Path] | Mapping[str, object] | None = None,
    weights: Sequence[float] | None = None,
    skip: Sequence[str] = (),
    repair: Repairing = None,
    data: Iterable[object] | None = None,
    validation: Iterable[object] | None = None,
    metric: str | Metric = "accuracy",
    preserve_first: int = 0,
    preserve_last: int = 0,
    depths: Sequence[tuple[int, int]] = (),
    modules: Sequence[str] = (),
    variant: Variant = "junction",
    outputs: Outputs = "average",
    reference: int = 0,
    seed: int = 0,
    verify: bool = True,
    graph: SymmetryGraph | None = None,
    **options: object,
) -> Merged:
    """Merge models of one architecture into one.

    Args:
        models: two or more modules, state dicts, or files of weights; one is enough for a rule that adds
            a model's difference to the base.
        model: the architecture, where `models` are state dicts or files and a graph is needed (to align,
            repair or keep apart).
        example: example inputs; the first batch of `data` where not given.
        align: how to bring the models together first: a method's name, `{"method": ..., option: ...}`, an
            `Alignment` made before or the file (a `Path`) that one was saved to, or None to merge them as they are.
        fold_norms: let the weights behind norms take over their scales first, in every model: with
            `align={"method": ..., "groups": "full"}` residual streams may then be rotated. The result loads in the
            models' own class, with scales of one.
        combine: how aligned tensors are combined: a rule's name, or `{"method": ..., option: ...}`; see
            `isthmus.methods("combination")`.
        method: the rule's name alone, with its options as further keywords.
        base: what the models were trained from, for rules of task vectors. It is moved with the reference
            model.
        statistics: one mapping per model (or a file of one), for rules that take them. Where models are
            reordered, numbers per element are reordered with them. Where none are given and the rule cannot do
            without, they are gathered from `data`, by the options given here in their place
            (`{"variant": "sampled"}`, see `isthmus.fisher_information` and `isthmus.gram_matrices`).
        weights: one per model. For an average they sum to one and are uniform where not given; what they mean
            to another rule, its docstring says.
        skip: patterns of weights that are not merged but taken from `models[reference]`, such as heads of
            different tasks; the other models' may have other shapes. Symmetries see the reference's.
        repair: how to give activations their statistics back: a name, `{"method": ..., option: ...}`, several of
            these to choose from, "best" for all that there are, or None. With `validation` a repair is kept only
            where it scores better than the merge as it came; without, it is done and not judged.
        data: calibration data, an iterable of inputs or (inputs, targets); targets are used by empirical
            statistics only.
        validation: (inputs, targets) held out of `data` and of the test split, by which repairs are chosen.
        metric: what they are chosen by: "accuracy", "loss", or a function of outputs and targets; see `isthmus.score`.
        preserve_first: keep every model's first so many layers (Preserve-First Merging).
        preserve_last: keep every model's last so many layers (partial zipping).
        depths: further ranges of layers to keep, inclusive, counted from 1.
        modules: globs of module names to keep ("blocks.0").
        variant: where kept-apart branches meet, "junction" or "paper"; see `isthmus.Cut`.
        outputs: where outputs are kept apart, their "average" or "each" model's: heads of different tasks, which
            may have other numbers of classes.
        reference: index of the model whose coordinates the others are moved to.
        seed: for methods that draw.
        verify: check the symmetries on redrawn weights before they are used; a space that fails is
            frozen, and named in the result.
        graph: the symmetries, where they were traced before.
        options: of the combination method (density, ...).

    Returns:
        The merged weights, a module that runs them, and what was done.

    Raises:
        InputError: a bad option or a missing argument.
        MismatchError: the models do not have the same keys and shapes (all are counted, some named), or
            are not one program.
        WeightsError: a weight is not finite, or a file cannot be read.
        ExportError, VerificationError: the architecture cannot be read, or not rightly.
        DataError: the data is empty or does not fit.

    Examples:
        >>> import torch, isthmus
        >>> merged = isthmus.merge([{"w": torch.zeros(2)}, {"w": torch.ones(2)}], weights=[0.3, 0.7])
        >>> merged.weights["w"]
        tensor([0.7000, 0.7000])
        >>> base, models = {"w": torch.zeros(3)}, [{"w": torch.tensor([1.0, 2.0, 3.0])}]
        >>> how = {"method": "ties", "density": 0.34, "convention": "mergekit"}
        >>> isthmus.merge(models, base=base, combine=how).weights["w"]
        tensor([0., 0., 3.])
    """
    asked = _asked(locals())
    method, options = rule_of(combine, method, options)
    terms = terms_of(method)
    if len(models) < 2 and terms.base == "no" and terms.most != 1:
        raise InputError(f"a merge takes two or more models, got {len(models)}")
    gathering, how = statistics_asked(method, statistics, data)
    check_asked(
        method, terms, len(models), weights, options, base is not None, gathering or statistics is not None
    )
    shares = shares_of(weights, len(models))
    cut = Cut(preserve_first, preserve_last, tuple(depths), tuple(modules), variant, outputs)
    repairs = wanted(repair)
    check(method, align, repair, repairs, data, validation, metric, cut)
    names = [_name(m, i) for i, m in enumerate(models)]
    target = align.reference if isinstance(align, Alignment) else reference
    if not 0 <= target < len(models):
        raise InputError(f"reference model {target} of {len(models)}", hint="models are counted from 0")
    module = _module(model, models, target)
    states = [completed(state_of(m), module) for m in models]
    origin = None if base is None else completed(state_of(base), module)
    own: list[dict[str, Tensor]] = [{} for _ in states]
    if skip:
        whole, own = set_aside(states if origin is None else [*states, origin], skip, target)
        states, origin = whole[: len(states)], None if origin is None else whole[-1]
    graphs = _graphs(models, states, align, names, example, data, traced=graph is not None)
    if graphs is not None:
        graph = graphs[target]
    for name, state in zip(names, states, strict=True):
        files.check_finite(state, name)
    if origin is not None:
        files.check_same(states[target], origin, (names[target], "the base"))
        files.check_finite(origin, "the base")
    if module is not None and graphs is None:
        _check_programs(module, dict(zip([*names, "the base"], [*models, base], strict=True)), example, data)
    known = None
    if not isinstance(statistics, Mapping) and statistics is not None:
        known = [{k: v for k, v in state_of(s).items() if k not in own[target]} for s in statistics]

    if gathering and module is None:
        raise InputError(
            f"to gather the statistics that {method} takes, the architecture is needed",
            hint="pass modules instead of state dicts, say which architecture: model= (--arch), or pass statistics=",
        )
    if graph is None and (align is not None or repair is not None or cut):
        if module is None:
            raise InputError(
                "to align, repair or keep apart, the architecture is needed",
                hint="pass modules instead of state dicts, or say which architecture: model= (--arch)",
            )
        graph = trace(module, _example(example, data))
    found: list[Gathered] = []
    kind = blockwise(method, len(models), options).statistics if terms.statistics != "no" else "elements"
    own_heads = bool(skip) and kind == "elements"
    if gathering and own_heads:
        # Information passes through a model's own head, which is in its own order of units: before anything moves.
        assert module is not None and data is not None
        if fold_norms:
            raise InputError(
                "with skip= and fold_norms=, statistics are not gathered", hint="pass statistics=[...]"
            )
        asking = [m if isinstance(m, nn.Module) else module for m in models]
        wholes = [{**state, **mine} for state, mine in zip(states, own, strict=True)]
        found = [
            gather(method, asked_model, whole_model, data, skip=skip, options=how)
            for asked_model, whole_model in zip(asking, wholes, strict=True)
        ]
        known = [dict(f) for f in found]
    if fold_norms:
        if graph is None or align is None:
            raise InputError("norms are folded so that models can be aligned", hint="pass align= as well")
        states = [graph.fold_norms(state) for state in states]
        origin = None if origin is None else graph.fold_norms(origin)
        graph = graph.folded
    if graph is not None and cut:
        cut.apart(graph.program)  # a cut that does not fit is said before minutes are spent
    settings: dict[str, object] = {
        "method": method,
        "weights": shares if weights is None or terms.weighing == "shares" else tuple(map(float, weights)),
        "base": str(base) if isinstance(base, (str, Path)) else None if base is None else "given",
        "align": told(align),
        "fold_norms": fold_norms,
        "repair": repair,
        "preserve_first": preserve_first,
        "preserve_last": preserve_last,
        "depths": tuple(depths),
        "modules": tuple(modules),
        "variant": variant if cut else None,
        **({"outputs": outputs} if outputs != "average" else {}),
        "reference": target,
        **({"skip": tuple(skip)} if skip else {}),
        "seed": seed,
        **{name: value for name, value in options_of(method).items() if value is not None},
        **options,
    }

    verification = None
    alignment = None
    aligned: Sequence[Mapping[str, Tensor]] = states
    if graph is not None and align is not None:
        checks: list[tuple[SymmetryGraph, Verification]] = []
        if verify:
            given = None if example is None and data is None else _example(example, data)
            if graphs is not None:
                checks = [verified(g, given, weights=states[i], seed=seed) for i, g in enumerate(graphs)]
                graphs = common([checked for checked, _ in checks])
            else:
                graph, verification = verified(graph, given, weights=states[0], seed=seed)
        if isinstance(align, Path):
            alignment = Alignment.load(align, graphs or graph)
        elif isinstance(align, Alignment):
            alignment = align
        else:
            alignment = _align(graphs or graph, states, align, data, reference, seed)
        if graphs is not None:
            # The merge has the widths of the model that stays, which may have been chosen.
            target = alignment.reference
            graph, module = graphs[target], _module(model, models, target)
            verification = checks[target][1] if checks else None
        if alignment.through and method != "average":
            raise InputError(
                f"{alignment.method} groups units, so the models meet by weighted average, not by {method!r}"
            )
        settings |= {f"align.{k}": v for k, v in alignment.settings.items()}
        aligned = alignment.apply(states, shares)
        if origin is not None:
            origin = alignment.transports[alignment.reference].apply(origin)
        if known is not None:
            known = moved_along(known, states, alignment.transports, method, kind)

    program = graph.program if graph is not None else None
    if gathering and not own_heads:
        assert module is not None and data is not None
        reader = program or export(module, _example(example, data))
        found = [gather(method, reader, state, data, skip=skip, options=how) for state in aligned]
        known = [dict(f) for f in found]
    settings |= {f"statistics.{k}": v for k, v in (found[0].settings if found else {}).items()}
    junctions: tuple[str, ...] = ()
    tied = graph.program.tied if graph is not None else None
    shared = aligned
    if cut:
        assert graph is not None
        check_apart(alignment)
        program, junctions = keep_apart(graph.program, cut, shares, turned(alignment))
        if graphs is not None:
            # What is kept apart may have other shapes.
            used = {original for branch, original in program.sources.values() if branch is None}
            shared = [{key: m[key] for key in m if key in used} for m in aligned]
    merged = combine_models(
        shared,
        method,
        base=origin,
        weights=weights,
        statistics=known,
        seed=seed,
        names=names,
        tied=tied,
        options=options,
    )
    merged |= {key: aligned[target][key].clone() for key in own[target]}
    if cut:
        assert program is not None
        merged = {k: merged[o] for k, (branch, o) in program.sources.items() if branch is None}
        merged |= branches(program, alignment, states, aligned, shares)
        program = replace(program, shapes={key: tuple(tensor.shape) for key, tensor in merged.items()})
    grown = resizing(alignment)
    if grown and graph is not None:
        program = resized(graph, grown)
    repaired, trials = None, ()
    if repairs:
        assert graph is not None and program is not None
        whole, parts = graph.program, program
        parents, transports = aligned, None
        if alignment is not None and not alignment.keeps_functions:
            # Units are mixed: what is measured is the models as they are, and the statistics are moved.
            transports = alignment.weighted(shares)
            parents = [t.own(state) for t, state in zip(transports, states, strict=True)]
        calibration: Iterable[object] = () if data is None else data
        measured = Measured(whole, parents, shares, calibration, transports)

        def scored(run: Program, tried: Mapping[str, Tensor]) -> float:
            assert validation is not None
            return score(run, validation, metric)(tried)

        def done(how: Asked) -> tuple[Repaired, dict[str, object]]:
            return repair_merged(
                whole,
                parts,
                merged,
                parents,
                shares,
                how,
                calibration,
                transports=transports,
                terms=aligned,
                score=scored,
                measured=measured,
            )

        if validation is None:
            repaired, used = done(repairs[0])
        else:
            choice = choose(parts, merged, repairs, done, scored, unfit=repair == "best")
            repaired, used, trials = choice.repaired, choice.used, choice.trials
            settings["repair"] = choice.asked
            settings["repairs tried"] = tuple(map(str, trials))
            settings["metric"] = metric if isinstance(metric, str) else getattr(metric, "__name__", "given")
        settings |= {f"repair.{k}": v for k, v in used.items()}
        if repaired is not None:
            merged, program = dict(repaired.weights), repaired.program
    return Merged(
        merged,
        _result_module(
            module, program, merged, bool(cut or grown) or bool(repaired and repaired.new_parameters)
        ),
        program,
        graph,
        verification,
        alignment,
        tuple(aligned),
        repaired,
        cut,
        junctions,
        settings,
        asked,
        trials,
        tuple(states),
        shares,
    )


def _align(
    graph: SymmetryGraph | Sequence[SymmetryGraph],
    states: Sequence[Mapping[str, Tensor]],
    how: str | Mapping[str, object],
    data: Iterable[object] | None,
    reference: int,
    seed: int,
) -> Alignment:
    by: dict[str, object] = {"method": how} if isinstance(how, str) else dict(how)
    function = ALIGNMENTS.get(name_of(how)).function
    if "seed" in signature(function).parameters:
        by.setdefault("seed", seed)
    return align_models(graph, states, by, data=data, reference=reference)


def _result_module(
    module: nn.Module | None, program: Program | None, weights: Mapping[str, Tensor], own: bool
) -> nn.Module | None:
    if own and program is not None:
        return ProgramModule(program, weights)
    return None if module is None else saving.filled(copy.deepcopy(module), weights)


def state_of(source: Mergeable) -> dict[str, Tensor]:
    """The state dict of whatever can be merged."""
    if isinstance(source, nn.Module):
        return {key: value.detach() for key, value in source.state_dict().items()}
    return files.load(source) if isinstance(source, (str, Path)) else dict(source)


def _name(source: Mergeable, index: int) -> str:
    return str(source) if isinstance(source, (str, Path)) else f"models[{index}]"


def _graphs(
    models: Sequence[Mergeable],
    states: Sequence[Mapping[str, Tensor]],
    align: Aligning,
    names: Sequence[str],
    example: Inputs | None,
    data: Iterable[object] | None,
    traced: bool,
) -> list[SymmetryGraph] | None:
    """One graph per model where their shapes differ, and the alignment brings them together; None where they agree.

    Raises:
        MismatchError: they differ in what no alignment could change.
    """
    takes = False
    if isinstance(align, Alignment):
        graphs = [transport.graph for transport in align.transports]
        if any(g is not graphs[0] for g in graphs):
            return graphs
    elif isinstance(align, Path):
        takes = True  # the file says whether it fits
    elif align is not None:
        takes = name_of(align) in of_several_widths()
    modules = [m for m in models if isinstance(m, nn.Module)]
    same = all(
        state.keys() == states[0].keys() and all(t.shape == states[0][k].shape for k, t in state.items())
        for state in states
    )
    if not same and takes and not traced and len(modules) == len(models):
        return [trace(m, _example(example, data)) for m in modules]
    for index, state in enumerate(states[1:], start=1):
        try:
            files.check_same(states[0], state, (names[0], names[index]))
        except MismatchError as error:
            if state.keys() != states[0].keys():
                raise
            able = ", ".join(of_several_widths())
            hint = f"of several widths: modules (--arch for each, in order), aligned by {able}"
            raise MismatchError(error.what, error.where, hint) from None
    return None


def _check_programs(
    module: nn.Module,
    models: Mapping[str, Mergeable | None],
    example: Inputs | None,
    data: Iterable[object] | None,
) -> None:
    """Where there is something to run them on, refuse modules that compute something else than the architecture."""
    here = shapes(module.state_dict())
    others = {
        name: m
        for name, m in models.items()
        if isinstance(m, nn.Module) and m is not module and shapes(m.state_dict()) == here
    }
    if others and not (example is None and data is None):
        check_alike(module, others, _example(example, data))


def _module(
    model: nn.Module | Callable[[], nn.Module] | None, models: Sequence[Mergeable], target: int
) -> nn.Module | None:
    if model is not None:
        return model if isinstance(model, nn.Module) else model()
    modules = [m for m in models if isinstance(m, nn.Module)]
    kinds = {type(m) for m in modules}
    if len(kinds) > 1:
        raise MismatchError("the models are of different classes", sorted(kind.__name__ for kind in kinds))
    chosen = models[target]
    return chosen if isinstance(chosen, nn.Module) else modules[0] if modules else None


def _example(example: Inputs | None, data: Iterable[object] | None) -> Inputs:
    if example is not None:
        return example
    if data is None:
        raise InputError("an example input is needed", hint="pass example=, or data= to take its first batch")
    return first_example(data)


def _asked(given: Mapping[str, object]) -> frozenset[str]:
    defaults = signature(merge).parameters
    named = {
        name
        for name, parameter in defaults.items()
        if name in given and parameter.kind is parameter.KEYWORD_ONLY and given[name] is not parameter.default
    }
    options = given.get("options")
    return frozenset(named | set(options if isinstance(options, Mapping) else ()))
