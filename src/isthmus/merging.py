"""One call: see, move, combine, repair."""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from isthmus import weights as files
from isthmus.align import ALIGNMENTS, Alignment
from isthmus.align import align as align_models
from isthmus.combine import COMBINATIONS, combine, normalised
from isthmus.errors import InputError, MismatchError
from isthmus.measure import Finding, cost
from isthmus.program import Batch, Cut, Program, ProgramModule, batches, export, keep_apart
from isthmus.program.batches import Inputs
from isthmus.program.keep import Variant
from isthmus.repair import REPAIRS, Repaired, goals
from isthmus.symmetry import SymmetryGraph, Verification, trace, verified

#: What can be merged: modules, state dicts, or files of weights.
Mergeable = nn.Module | Mapping[str, Tensor] | str | Path

FORMAT = "isthmus.kept/1"


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
        example = _inputs(_described(parent))
        return cost(self.program, example).over(cost(parent, example))

    def save(self, path: str | Path) -> Path:
        """Write the merged weights as safetensors, whole or not at all.

        With something kept apart, a JSON beside it (same name, `.json`) holds what
        `isthmus.load(path, model=factory)` needs to rebuild the module: the cut, the models'
        weights, the maps and the keys.
        """
        path = Path(path)
        described = {"isthmus.settings": json.dumps({k: _plain(v) for k, v in self.settings.items()})}
        files.save(self.weights, path, metadata=described)
        if self.cut and self.program is not None and self.graph is not None:
            content = {
                "format": FORMAT,
                "cut": self.cut.to_json(),
                "weights": list(normalised(self._shares, len(self._shares))),
                "inputs": _described(self.graph.program),
                "junctions": list(self.junctions),
                "keys": sorted(self.weights),
                "maps": [
                    {name: index.tolist() for name, index in transport.orders.items()}
                    for transport in (self.alignment.transports if self.alignment else ())
                ],
            }
            with files.atomic(path.with_suffix(".json")) as file:
                file.write(json.dumps(content, indent=1).encode())
        return path

    @property
    def _shares(self) -> tuple[float, ...]:
        shares = self.settings["weights"]
        assert isinstance(shares, tuple)
        return shares

    def __str__(self) -> str:
        lines = ["merged " + (f"with {self.cut}" if self.cut else "into one network")]
        if self.verification is not None:
            lines.append(f"symmetries {self.verification}")
        if self.alignment is not None:
            lines.append(str(self.alignment))
        if self.repaired is not None:
            lines.append(str(self.repaired))
        if self.junctions:
            lines.append(f"branches meet at {', '.join(self.junctions)}")
            lines.append(", ".join(f"{found.name} {found.value:.3f}" for found in self.ratios))
        lines.append("settings (* given, the rest are defaults):")
        width = max(map(len, self.settings), default=0)
        lines += [
            f"  {'*' if name in self.asked else ' '} {name:<{width}}  {_plain(value)}"
            for name, value in self.settings.items()
        ]
        return "\n".join(lines)


def merge(
    models: Sequence[Mergeable],
    *,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    example: Inputs | None = None,
    align: str | Mapping[str, object] | Alignment | None = None,
    method: str = "average",
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
        models: two or more modules, state dicts, or files of weights.
        model: the architecture, where `models` are state dicts or files and a graph is needed (to align,
            repair or keep apart).
        example: example inputs; the first batch of `data` where not given.
        align: how to bring the models together first: a method's name, `{"method": ..., option: ...}`, an
            `Alignment` made before, or None to merge them as they are.
        method: how aligned tensors are combined; see `isthmus.methods()`.
        weights: one per model, summing to one; uniform where not given.
        repair: how to give activations their statistics back: a name, `{"method": ..., option: ...}`, or None.
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
        >>> import isthmus
        >>> merged = isthmus.merge([{"w": torch.zeros(2)}, {"w": torch.ones(2)}], weights=[0.3, 0.7])
        >>> merged.weights["w"]
        tensor([0.7000, 0.7000])
    """
    asked = _asked(locals())
    # A misspelt name is said before anything is read.
    COMBINATIONS.get(method)
    if align is not None and not isinstance(align, Alignment):
        ALIGNMENTS.get(_called(align))
    if repair is not None:
        REPAIRS.get(_called(repair))
    if len(models) < 2:
        raise InputError(f"a merge takes two or more models, got {len(models)}")
    shares = normalised(weights, len(models))
    names = [_name(m, i) for i, m in enumerate(models)]
    states = [state_of(m) for m in models]
    cut = Cut(preserve_first, preserve_last, tuple(depths), tuple(modules), variant)
    for index, state in enumerate(states[1:], start=1):
        files.check_same(states[0], state, (names[0], names[index]))
    for name, state in zip(names, states, strict=True):
        files.check_finite(state, name)
    if cut and method != "average":
        raise InputError(f"what is kept apart meets by weighted average, not by {method!r}")

    module = _module(model, models)
    needs_graph = align is not None or repair is not None or bool(cut)
    if graph is None and needs_graph:
        if module is None:
            raise InputError(
                "to align, repair or keep apart, the architecture is needed",
                hint="pass modules instead of state dicts, or model=",
            )
        graph = trace(module, _example(example, data))
    settings: dict[str, object] = {
        "method": method,
        "weights": shares,
        "align": align.method if isinstance(align, Alignment) else align,
        "repair": repair,
        "preserve_first": preserve_first,
        "preserve_last": preserve_last,
        "depths": tuple(depths),
        "modules": tuple(modules),
        "variant": variant if cut else None,
        "reference": reference,
        "seed": seed,
        **options,
    }

    verification = None
    alignment = None
    aligned: Sequence[Mapping[str, Tensor]] = states
    if graph is not None and align is not None:
        if isinstance(align, Alignment):
            alignment = align
        else:
            if verify:
                given = None if example is None and data is None else _example(example, data)
                graph, verification = verified(graph, given, weights=states[0], seed=seed)
            alignment = _align(graph, states, align, data, reference, seed)
        settings |= {f"align.{k}": v for k, v in alignment.settings.items()}
        aligned = alignment.apply(states)

    program = graph.program if graph is not None else None
    junctions: tuple[str, ...] = ()
    merged = combine(aligned, method, weights=shares, names=names, options=options)
    if cut:
        assert graph is not None
        program, junctions = keep_apart(graph.program, cut, shares)
        merged = _distribute(program, merged, aligned)
    repaired = None
    if repair is not None:
        assert graph is not None and program is not None
        if data is None:
            raise InputError("repair needs calibration data", hint="pass data=, an iterable of inputs")
        how = {"method": repair} if isinstance(repair, str) else dict(repair)
        repaired = _repair(graph, program, merged, aligned, shares, how, data)
        settings |= {f"repair.{k}": v for k, v in how.items() if k != "method"}
        settings |= {
            "repair.mode": repaired.mode,
            "repair.examples": repaired.examples,
            "repair.batch_size": repaired.batch_size,
        }
        merged, program = dict(repaired.weights), repaired.program
    return Merged(
        merged,
        _result_module(module, program, merged, kept=bool(cut)),
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


def load(path: str | Path, model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Load what `Merged.save` wrote.

    Args:
        path: the safetensors file.
        model: the architecture, or a factory of it.

    Returns:
        The user's own class with the merged weights; or, where a part was kept apart, the rebuilt
        module.

    Raises:
        MismatchError: the file does not fit the architecture.
        WeightsError: the file cannot be read.
    """
    path = Path(path)
    module = model if isinstance(model, nn.Module) else model()
    weights = files.load(path)
    beside = path.with_suffix(".json")
    described = json.loads(beside.read_text()) if beside.is_file() else {}
    if described.get("format") != FORMAT:
        files.check_same(dict(module.state_dict()), weights, (type(module).__name__, str(path)))
        return _loaded(module, weights)
    example = _inputs(described["inputs"])
    program, _ = keep_apart(export(module, example), Cut.from_json(described["cut"]), described["weights"])
    expected = {key: torch.empty(shape, device="meta") for key, shape in program.shapes.items()}
    files.check_same(expected, weights, (f"{type(module).__name__} cut as {beside.name} says", str(path)))
    return ProgramModule(program, weights)


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
    how: Mapping[str, object],
    data: Iterable[object],
) -> Repaired:
    method = REPAIRS.get(_called(how))
    options = {name: value for name, value in how.items() if name != "method"}
    known = [n for n, p in inspect.signature(method.function).parameters.items() if p.kind is p.KEYWORD_ONLY]
    if unknown := [name for name in options if name not in known or name == "goals"]:
        takes = ", ".join(n for n in known if n != "goals")
        raise InputError(
            f"{method.name} has no option {', '.join(map(repr, unknown))}", hint=f"it takes {takes}"
        )
    if "goals" in method.needs:
        options["goals"] = goals(graph.program, aligned, shares, data)
    return method.function(program, merged, data, **options)


def _distribute(
    program: Program, merged: Mapping[str, Tensor], aligned: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Weights of a kept-apart program: each branch its own model's, the rest the merged ones."""
    result: dict[str, Tensor] = {}
    for key in program.weights.values():
        head, _, rest = key.partition(".")
        index = head.removeprefix("branch")
        if key not in merged and head.startswith("branch") and index.isdigit():
            result[key] = aligned[int(index)][rest]
        else:
            result[key] = merged[key]
    return result


def _result_module(
    module: nn.Module | None, program: Program | None, weights: Mapping[str, Tensor], kept: bool
) -> nn.Module | None:
    if program is not None and (kept or set(program.weights.values()) - set(weights)):
        return ProgramModule(program, weights)
    return None if module is None else _loaded(copy.deepcopy(module), weights)


def _loaded(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    module.load_state_dict(dict(weights), strict=True)
    return module.eval()


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
        if name in given and parameter.kind is parameter.KEYWORD_ONLY and given[name] != parameter.default
    }
    options = given.get("options")
    return frozenset(named | set(options if isinstance(options, Mapping) else ()))


def _plain(value: object) -> object:
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def _described(program: Program) -> dict[str, object]:
    """The inputs of a program as plain data: enough to make an example again."""

    def describe(name: str) -> object:
        fake = program.nodes[name].meta.get("val")
        if not isinstance(fake, Tensor):
            return fake
        return {"shape": [int(n) for n in fake.shape], "dtype": str(fake.dtype).removeprefix("torch.")}

    args, kwargs = pytree.tree_unflatten([describe(n) for n in program.inputs], program.in_spec)
    return {"args": list(args), "kwargs": dict(kwargs)}


def _inputs(described: Mapping[str, object]) -> Batch:
    def make(value: object) -> object:
        if isinstance(value, Mapping) and set(value) == {"shape", "dtype"}:
            return torch.zeros(*value["shape"], dtype=getattr(torch, str(value["dtype"])))
        if isinstance(value, Mapping):
            return {k: make(v) for k, v in value.items()}
        return [make(v) for v in value] if isinstance(value, list) else value

    args, kwargs = described["args"], described["kwargs"]
    assert isinstance(args, list) and isinstance(kwargs, Mapping)
    return Batch(tuple(make(a) for a in args), {str(k): make(v) for k, v in kwargs.items()})
