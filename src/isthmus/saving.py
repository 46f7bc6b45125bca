"""Merged weights to files and back: safetensors, and JSON where more than a state dict is needed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from isthmus import weights as files
from isthmus.errors import WeightsError
from isthmus.maps.resize import resized
from isthmus.program import Batch, Cut, Program, ProgramModule, export, keep_apart
from isthmus.repair import Explicit, with_parameters
from isthmus.symmetry import trace

FORMAT = "isthmus.kept/1"
_MARK = "isthmus.program"


def save(
    path: Path,
    weights: Mapping[str, Tensor],
    settings: Mapping[str, object],
    program: Mapping[str, object] | None = None,
) -> None:
    """Write weights as safetensors; with a program of their own, the JSON that rebuilds it beside them.

    Args:
        path: the safetensors file; the JSON has its name with another ending.
        weights: the state dict.
        settings: how they came about, for the file's metadata.
        program: what `describe` says of a program that is not the user's class.
    """
    described = {"isthmus.settings": json.dumps({k: plain(v) for k, v in settings.items()})}
    if program is not None:
        content = json.dumps(program).encode()
        with files.atomic(path.with_suffix(".json")) as file:
            file.write(content)
        # Weights say which JSON is theirs, so that one of an earlier file is not taken for it.
        described[_MARK] = hashlib.sha256(content).hexdigest()
    files.save(weights, path, metadata=described)


def describe(
    parent: Program,
    cut: Cut,
    shares: Sequence[float],
    junctions: Iterable[str],
    keys: Iterable[str],
    maps: Iterable[Mapping[str, Tensor]],
    turned: Mapping[str, Sequence[int]],
    branches: Mapping[str, Sequence[int]],
) -> dict[str, object]:
    """What `load` needs to make a program again, and what a person wants to know of it."""
    return {
        "format": FORMAT,
        "cut": cut.to_json(),
        "weights": list(shares),
        "inputs": inputs_of(parent),
        "junctions": list(junctions),
        "keys": sorted(keys),
        "turned": {value: list(axes) for value, axes in turned.items()},
        "branches": {key: list(shape) for key, shape in branches.items()},
        "maps": [{name: index.tolist() for name, index in orders.items()} for orders in maps],
    }


def load(path: str | Path, model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Load what `Merged.save` wrote.

    Args:
        path: the safetensors file.
        model: the architecture, or a factory of it. A module is not changed where a program is rebuilt.

    Returns:
        The user's own class with the merged weights; or, where a part was kept apart or has
        parameters of its own, the rebuilt module.

    Raises:
        MismatchError: the file does not fit the architecture.
        WeightsError: the file, or the JSON that belongs to it, cannot be read.
    """
    path = Path(path)
    module = model if isinstance(model, nn.Module) else model()
    weights = files.load(path)
    mark = files.metadata(path).get(_MARK) if path.suffix == ".safetensors" else None
    if mark is None:
        files.check_same(dict(module.state_dict()), weights, (type(module).__name__, str(path)))
        return filled(module, weights)
    described = _read(path.with_suffix(".json"), mark)
    cut, shares = described["cut"], described["weights"]
    assert isinstance(cut, dict) and isinstance(shares, list)
    program = export(module, example_of(described["inputs"]))
    if sizes := described.get("sizes"):
        assert isinstance(sizes, dict)
        program = resized(trace(program), sizes)
    if chosen := Cut.from_json(cut):
        turned, branches = described.get("turned", {}), described.get("branches", {})
        assert isinstance(turned, dict) and isinstance(branches, dict)
        program, _ = keep_apart(program, chosen, shares, turned)
        # A head of another task has its own number of classes.
        own = {key: tuple(shape) for key, shape in branches.items() if key in program.sources}
        program = replace(program, shapes={**program.shapes, **own})
    program = _with_repairs(program, weights)
    expected = {key: torch.empty(program.shapes[key], device="meta") for key in program.weights.values()}
    files.check_same(expected, weights, (f"{type(module).__name__} as the JSON rebuilds it", str(path)))
    return ProgramModule(program, weights)


def filled(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The module with these weights, strictly, in eval mode."""
    module.load_state_dict(dict(weights), strict=True)
    return module.eval()


def _read(path: Path, mark: str) -> dict[str, object]:
    hint = "the weights and the JSON of a kept-apart model are one pair: copy both"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}", hint=hint) from error
    if hashlib.sha256(content).hexdigest() != mark:
        raise WeightsError(f"{path} is not the JSON that these weights were saved with", hint=hint)
    described = json.loads(content)
    if described.get("format") != FORMAT:
        raise WeightsError(f"{path} has the format {described.get('format')!r}, not {FORMAT!r}")
    return described


def _with_repairs(program: Program, weights: Mapping[str, Tensor]) -> Program:
    """The program with the gains and shifts that a repair gave parameters of their own."""
    wanted: dict[str, Explicit] = {}
    for key, tensor in weights.items():
        head, _, rest = key.partition(".")
        value, _, kind = rest.rpartition(".")
        if key in program.shapes or head != "repair" or value not in program.nodes:
            continue
        before = wanted.get(value)
        wanted[value] = Explicit(
            len(program.size(value)) - tensor.ndim,
            kind == "gain" or (before is not None and before.gain),
            kind == "shift" or (before is not None and before.shift),
        )
    return with_parameters(program, wanted)[0] if wanted else program


def inputs_of(program: Program) -> dict[str, object]:
    """The inputs of a program as plain data: enough to make an example again."""

    def plainly(name: str) -> object:
        fake = program.nodes[name].meta.get("val")
        if not isinstance(fake, Tensor):
            return fake
        return {"shape": [int(n) for n in fake.shape], "dtype": str(fake.dtype).removeprefix("torch.")}

    args, kwargs = pytree.tree_unflatten([plainly(n) for n in program.inputs], program.in_spec)
    return {"args": list(args), "kwargs": dict(kwargs)}


def example_of(described: object) -> Batch:
    """An example (zeros) out of what `inputs_of` says."""

    def make(value: object) -> object:
        if isinstance(value, Mapping) and set(value) == {"shape", "dtype"}:
            return torch.zeros(*value["shape"], dtype=getattr(torch, str(value["dtype"])))
        if isinstance(value, Mapping):
            return {k: make(v) for k, v in value.items()}
        return [make(v) for v in value] if isinstance(value, list) else value

    assert isinstance(described, Mapping)
    args, kwargs = described["args"], described["kwargs"]
    assert isinstance(args, list) and isinstance(kwargs, Mapping)
    return Batch(tuple(make(a) for a in args), {str(k): make(v) for k, v in kwargs.items()})


def plain(value: object) -> object:
    """A setting as JSON can hold it."""
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
