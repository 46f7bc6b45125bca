"""One call: see, move, combine, repair."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from isthmus import saving
from isthmus import weights as files
from isthmus.align import ALIGNMENTS, Alignment
from isthmus.align import align as align_models
from isthmus.combine import blockwise, check_asked, options_of, terms_of
from isthmus.combine import combine as combine_models
from isthmus.errors import InputError, MismatchError
from isthmus.measure import Finding, cost, reusable
from isthmus.program import Batch, Cut, Inputs, Program, ProgramModule, Variant, batches, keep_apart
from isthmus.registry import Method
from isthmus.repair import REPAIRS, Repaired, goals, repairable
from isthmus.symmetry import SymmetryGraph, Verification, trace, verified

#: What can be merged: modules, state dicts, or files of weights.
Mergeable = nn.Module | Mapping[str, Tensor] | str | Path


@dataclass(frozen=True, eq=False)
class Merged:
    """What a merge made.

    Attributes:
        weights: the merged state dict. Nothing kept apart: it loads strictly in the user's own class.
        model: a module that computes it: a copy of the first model, or the kept-apart program; None
            where only mappings were given.
        program: the graph that `weights` belong to; None for a merge of plain mappings.
        graph: the symmetries that were used.
        verification: how they were checked.
        alignment: how the models were moved.
        aligned: the moved models.
        repaired: what was repaired.
        cut: what was kept apart.
        junctions: the values where kept-apart branches meet.
        settings: every option, defaults included.
        asked: names of the options that were given, not defaulted.
    """

    weights: dict[str, Tensor]
    model: nn.Module | None
    program: Program | None = None
    graph: SymmetryGraph | None = None
    verification: Verification | None = None
    alignment: Alignment | None = None
    aligned: tuple[Mapping[str, Tensor], ...] = ()
    repaired: Repaired | None = None
    cut: Cut = field(default_factory=Cut)
    junctions: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()

    @property
    def ratios(self) -> tuple[Finding, ...]:
        """Parameters and FLOPs relative to one parent; none where no program was read."""
        if self.program is None or self.graph is None:
            return ()
        parent = self.graph.program
        example = saving.example_of(saving.inputs_of(parent))
        return cost(self.program, example).over(cost(parent, example))

    @property
    def own_program(self) -> bool:
        """Whether the weights are of a program, not of the user's class: kept apart, or with new parameters."""
        return bool(self.cut) or bool(self.repaired is not None and self.repaired.new_parameters)

    def save(self, path: str | Path) -> Path:
        """Write the merged weights as safetensors, whole or not at all.

        With something kept apart, a JSON beside it (same name, `.json`) holds what
        `isthmus.load(path, model=factory)` needs to rebuild the module: the cut, the models'
        weights, the maps and the keys.
        """
        path = Path(path)
        described = None
        if self.own_program and self.graph is not None:
            shares = self.settings["weights"]
            assert isinstance(shares, tuple)
            maps = [t.orders for t in self.alignment.transports] if self.alignment else []
            described = saving.describe(
                self.graph.program, self.cut, shares, self.junctions, self.weights, maps
            )
        saving.save(path, self.weights, self.settings, described)
        return path

    def __str__(self) -> str:
        lines = ["merged " + (f"with {self.cut}" if self.cut else "into one network")]
        if self.verification is not None:
            lines.append(f"symmetries {self.verification}")
        if self.alignment is not None:
            lines.append(str(self.alignment))
        if self.graph is not None and self.graph.unread and self.alignment is not None:
            lines.append(
                f"averaged as they are, the program does not read them: {', '.join(self.graph.unread)}"
            )
        if self.repaired is not None:
            lines.append(str(self.repaired))
        if self.junctions:
            lines.append(f"branches meet at {', '.join(self.junctions)}")
            lines.append(", ".join(f"{found.name} {found.value:.3f}" for found in self.ratios))
        lines.append("settings (* given, the rest are defaults):")
        width = max(map(len, self.settings), default=0)
        lines += [
            f"  {'*' if name in self.asked else ' '} {name:<{width}}  {saving.plain(value)}"
            for name, value in self.settings.items()
        ]
        return "\n".join(lines)


def merge(
    models: Sequence[Mergeable],
    *,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    example: Inputs | None = None,
    align: str | Mapping[str, object] | Alignment | None = None,
    fold_norms: bool = False,
    combine: str | Mapping[str, object] | None = None,
    method: str = "average",
    base: Mergeable | None = None,
    statistics: Sequence[Mapping[str, Tensor] | str | Path] | None = None,
    weights: Sequence[float] | None = None,
    repair: str | Mapping[str, object] | None = None,
    data: Iterable[object] | None = None,
    preserve_first: int = 0,
    preserve_last: int = 0,
    depths: Sequence[tuple[int, int]] = (),
    modules: Sequence[str] = (),
    variant: Variant = "junction",
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
            `Alignment` made before, or None to merge them as they are.
        fold_norms: let the weights behind norms take over their scales first, in every model: with
            `align={"method": ..., "groups": "full"}` residual streams may then be rotated. The result loads in the
            models' own class, with scales of one.
        combine: how aligned tensors are combined: a rule's name, or `{"method": ..., option: ...}`; see
            `isthmus.methods("combination")`.
        method: the rule's name alone, with its options as further keywords.
        base: what the models were trained from, for rules of task vectors. It is moved with the reference
            model.
        statistics: one mapping per model (or a file of one), for rules that take them. Where models are
            reordered, numbers per element are reordered with them.
        weights: one per model. For an average they sum to one and are uniform where not given; what they mean
            to another rule, its docstring says.
        repair: how to give activations their statistics back: a name, `{"method": ..., option: ...}`, or
            None.
        data: calibration data, an iterable of inputs or (inputs, targets); targets are not used.
        preserve_first: keep every model's first so many layers (Preserve-First Merging).
        preserve_last: keep every model's last so many layers (partial zipping).
        depths: further ranges of layers to keep, inclusive, counted from 1.
        modules: globs of module names to keep ("blocks.0").
        variant: where kept-apart branches meet, "junction" or "paper"; see `isthmus.Cut`.
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
        MismatchError: the models do not have the same keys and shapes; all differences are listed.
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
    method, options = _rule(combine, method, options)
    terms = terms_of(method)
    if len(models) < 2 and terms.base == "no" and terms.most != 1:
        raise InputError(f"a merge takes two or more models, got {len(models)}")
    check_asked(method, terms, len(models), weights, options, base is not None, statistics is not None)
    shares = _shares(weights, len(models))
    cut = Cut(preserve_first, preserve_last, tuple(depths), tuple(modules), variant)
    _check(method, align, repair, data, cut)
    names = [_name(m, i) for i, m in enumerate(models)]
    module = _module(model, models)
    states = [completed(state_of(m), module) for m in models]
    for index, state in enumerate(states[1:], start=1):
        files.check_same(states[0], state, (names[0], names[index]))
    for name, state in zip(names, states, strict=True):
        files.check_finite(state, name)
    origin = None if base is None else completed(state_of(base), module)
    if origin is not None:
        files.check_same(states[0], origin, (names[0], "the base"))
        files.check_finite(origin, "the base")
    known = None if statistics is None else [state_of(s) for s in statistics]

    if graph is None and (align is not None or repair is not None or cut):
        if module is None:
            raise InputError(
                "to align, repair or keep apart, the architecture is needed",
                hint="pass modules instead of state dicts, or say which architecture: model= (--arch)",
            )
        graph = trace(module, _example(example, data))
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
        "align": align.method if isinstance(align, Alignment) else align,
        "fold_norms": fold_norms,
        "repair": repair,
        "preserve_first": preserve_first,
        "preserve_last": preserve_last,
        "depths": tuple(depths),
        "modules": tuple(modules),
        "variant": variant if cut else None,
        "reference": align.reference if isinstance(align, Alignment) else reference,
        "seed": seed,
        **{name: value for name, value in options_of(method).items() if value is not None},
        **options,
    }

    verification = None
    alignment = None
    aligned: Sequence[Mapping[str, Tensor]] = states
    if graph is not None and align is not None:
        if verify:
            given = None if example is None and data is None else _example(example, data)
            graph, verification = verified(graph, given, weights=states[0], seed=seed)
        alignment = (
            align if isinstance(align, Alignment) else _align(graph, states, align, data, reference, seed)
        )
        settings |= {f"align.{k}": v for k, v in alignment.settings.items()}
        aligned = alignment.apply(states)
        if origin is not None:
            origin = alignment.transports[alignment.reference].apply(origin)
        if known is not None:
            known = _moved(
                known, states, alignment, method, blockwise(method, len(models), options).statistics
            )

    program = graph.program if graph is not None else None
    junctions: tuple[str, ...] = ()
    tied = graph.program.tied if graph is not None else None
    merged = combine_models(
        aligned,
        method,
        base=origin,
        weights=weights,
        statistics=known,
        seed=seed,
        names=names,
        tied=tied,
        options=options,
    )
    if cut:
        assert graph is not None
        program, junctions = keep_apart(graph.program, cut, shares)
        merged = {
            key: merged[original] if branch is None else aligned[branch][original].clone()
            for key, (branch, original) in program.sources.items()
        }
    repaired = None
    if repair is not None:
        assert graph is not None and program is not None and data is not None
        repaired, used = _repair(graph, program, merged, aligned, shares, repair, data)
        settings |= {f"repair.{k}": v for k, v in used.items()}
        merged, program = dict(repaired.weights), repaired.program
    return Merged(
        merged,
        _result_module(module, program, merged, bool(cut) or bool(repaired and repaired.new_parameters)),
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
    )


def _rule(
    combine: str | Mapping[str, object] | None, method: str, options: Mapping[str, object]
) -> tuple[str, dict[str, object]]:
    """The rule and its options, said in one of two ways.

    Raises:
        InputError: said in both ways, or no rule named.
    """
    if combine is None:
        return method, dict(options)
    given: dict[str, object] = {"method": combine} if isinstance(combine, str) else dict(combine)
    name = given.pop("method", None)
    problems = [f"method={method!r} beside it"] if method != "average" else []
    problems += [f"the option {option!r} beside it" for option in options]
    problems += [] if isinstance(name, str) else ["no method in it"]
    if problems:
        raise InputError(
            "combine= says how to combine, and so does something else"
            if isinstance(name, str)
            else "combine= does not say how to combine",
            problems,
            hint='combine={"method": "ties", "density": 0.3}, or method="ties", density=0.3',
        )
    return str(name), given


def _shares(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """What part of the merge each model is, where a rule's weights are not parts of one: for goals of repair."""
    values = tuple(map(float, weights or ()))
    if not values or min(values) < 0 or sum(values) <= 0:
        values = (1.0,) * count
    return values if abs(sum(values) - 1) <= 1e-6 else tuple(v / sum(values) for v in values)


def _moved(
    statistics: Sequence[Mapping[str, Tensor]],
    states: Sequence[Mapping[str, Tensor]],
    alignment: Alignment,
    method: str,
    kind: str,
) -> list[dict[str, Tensor]]:
    """The statistics of the moved models.

    Raises:
        InputError: they cannot be moved along.
    """
    if kind != "elements" or any(t.values or len(t.orders) < len(t.maps) for t in alignment.transports):
        raise InputError(
            f"the statistics that {method} takes cannot be moved with the models",
            hint="align first, gather them from the moved models, then combine",
        )
    moved = [
        transport.apply({**state, **known})
        for transport, state, known in zip(alignment.transports, states, statistics, strict=True)
    ]
    return [{key: m[key] for key in known} for m, known in zip(moved, statistics, strict=True)]


def _called(how: str | Mapping[str, object]) -> str:
    return how if isinstance(how, str) else str(how.get("method", ""))


def _align(
    graph: SymmetryGraph,
    states: Sequence[Mapping[str, Tensor]],
    how: str | Mapping[str, object],
    data: Iterable[object] | None,
    reference: int,
    seed: int,
) -> Alignment:
    by: dict[str, object] = {"method": how} if isinstance(how, str) else dict(how)
    function = ALIGNMENTS.get(_called(how)).function
    if "seed" in inspect.signature(function).parameters:
        by.setdefault("seed", seed)
    return align_models(graph, states, by, data=data, reference=reference)


def _repair(
    graph: SymmetryGraph,
    program: Program,
    merged: Mapping[str, Tensor],
    aligned: Sequence[Mapping[str, Tensor]],
    shares: Sequence[float],
    how: str | Mapping[str, object],
    data: Iterable[object],
) -> tuple[Repaired, dict[str, object]]:
    """The repaired model, and every option that was used, defaults included."""
    method = REPAIRS.get(_called(how))
    used = {**_options(method), **({} if isinstance(how, str) else how)}
    used = {name: value for name, value in used.items() if name != "method"}
    given: dict[str, Any] = dict(used)
    if "goals" in method.needs:
        # Parents are measured on the examples that the merged model is, and where it is.
        given["goals"] = goals(
            graph.program,
            aligned,
            shares,
            data,
            # Where nothing but outputs is merged there is nothing to repair, and the result will say so.
            [v for v in repairable(program, given.get("layers", "all")) if v in graph.program.nodes] or None,
            device=given.get("device"),
            limit=given.get("limit"),
        )
    repaired = method.function(program, merged, data, **given)
    used |= {"examples": repaired.examples, "batch_size": repaired.batch_size}
    return repaired, used


def _options(method: Method[Any]) -> dict[str, Any]:
    """The options of a method and their defaults; what a merge supplies itself is none."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(method.function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in ("goals", "data", "reference", "weights")
    }


def _check(
    method: str,
    align: str | Mapping[str, object] | Alignment | None,
    repair: str | Mapping[str, object] | None,
    data: Iterable[object] | None,
    cut: Cut,
) -> None:
    """Say what is wrong with the call before anything is read or run."""
    if cut and method != "average":
        raise InputError(f"what is kept apart meets by weighted average, not by {method!r}")
    if data is not None:
        reusable(data)
    for kind, how in (("alignment", align), ("repair", repair)):
        if how is None or isinstance(how, Alignment):
            continue
        chosen: Method[Any] = (
            ALIGNMENTS.get(_called(how)) if kind == "alignment" else REPAIRS.get(_called(how))
        )
        if "data" in chosen.needs and data is None:
            raise InputError(
                f"{chosen.name} needs calibration data", hint="pass data=, an iterable of inputs (--data)"
            )
        known = _options(chosen)
        asked = () if isinstance(how, str) else [name for name in how if name != "method"]
        if unknown := [name for name in asked if name not in known]:
            raise InputError(
                f"{chosen.name} has no option {', '.join(map(repr, unknown))}",
                hint=f"it takes {', '.join(known) or 'none'}",
            )


def _result_module(
    module: nn.Module | None, program: Program | None, weights: Mapping[str, Tensor], own: bool
) -> nn.Module | None:
    if own and program is not None:
        return ProgramModule(program, weights)
    return None if module is None else saving.filled(copy.deepcopy(module), weights)


def completed(state: dict[str, Tensor], module: nn.Module | None) -> dict[str, Tensor]:
    """A state dict with the names of tied weights that its file left out (as safetensors files do)."""
    if module is None:
        return state
    first: dict[int, str] = {}
    for key, tensor in module.state_dict(keep_vars=True).items():
        other = first.setdefault(id(tensor), key)
        if other != key and (key in state) != (other in state):
            missing, there = (key, other) if other in state else (other, key)
            state = {**state, missing: state[there]}
    return state


def state_of(source: Mergeable) -> dict[str, Tensor]:
    """The state dict of whatever can be merged."""
    if isinstance(source, nn.Module):
        return {key: value.detach() for key, value in source.state_dict().items()}
    return files.load(source) if isinstance(source, (str, Path)) else dict(source)


def _name(source: Mergeable, index: int) -> str:
    return str(source) if isinstance(source, (str, Path)) else f"models[{index}]"


def _module(
    model: nn.Module | Callable[[], nn.Module] | None, models: Sequence[Mergeable]
) -> nn.Module | None:
    if model is not None:
        return model if isinstance(model, nn.Module) else model()
    modules = [m for m in models if isinstance(m, nn.Module)]
    kinds = {type(m) for m in modules}
    if len(kinds) > 1:
        raise MismatchError("the models are of different classes", sorted(kind.__name__ for kind in kinds))
    return modules[0] if modules else None


def _example(example: Inputs | None, data: Iterable[object] | None) -> Inputs:
    if example is not None:
        return example
    if data is None:
        raise InputError("an example input is needed", hint="pass example=, or data= to take its first batch")
    return first_example(data)


def first_example(data: Iterable[object]) -> Batch:
    """Two examples of the data's first batch: enough to read a program."""
    first = next(batches(data))
    return Batch(
        *pytree.tree_map(lambda v: v[:2] if isinstance(v, Tensor) else v, (first.args, first.kwargs))
    )


def _asked(given: Mapping[str, object]) -> frozenset[str]:
    defaults = inspect.signature(merge).parameters
    named = {
        name
        for name, parameter in defaults.items()
        if name in given and parameter.kind is parameter.KEYWORD_ONLY and given[name] is not parameter.default
    }
    options = given.get("options")
    return frozenset(named | set(options if isinstance(options, Mapping) else ()))
