"""Maps as a file: safetensors with a description, which is checked against the graph before anything is moved by it.

A file of maps may come from anyone. Nothing in it is run; what is missing, of another kind, not finite or made for
another graph is refused, all problems at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError
from torch import Tensor

from isthmus import weights as files
from isthmus.errors import InputError
from isthmus.maps.affine import Shift
from isthmus.maps.kinds import Dense, Map, Membership, Permutation, ScaledPermutation, Stack
from isthmus.maps.transport import Transport
from isthmus.symmetry import SymmetryGraph, spaces_of, to_json

#: The version of the format. A change that an older reader would misunderstand takes another number.
FORMAT = "isthmus.maps/1"

_ENTRY = "isthmus.maps"

Name = Annotated[str, Field(min_length=1, max_length=4096)]
Count = Annotated[int, Field(ge=0, le=2**48)]


class _Part(BaseModel):
    # An agreement that is not a number is a result, and is read back as one.
    model_config = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="constants")


class _Permutation(_Part):
    kind: Literal["Permutation"]


class _ScaledPermutation(_Part):
    kind: Literal["ScaledPermutation"]


class _Dense(_Part):
    kind: Literal["Dense"]
    keeps_function: bool


class _Membership(_Part):
    kind: Literal["Membership"]
    target: Count


class _Stack(_Part):
    kind: Literal["Stack"]
    start: Count
    source: Count
    target: Count


_Kind = Annotated[
    _Permutation | _ScaledPermutation | _Dense | _Membership | _Stack, Field(discriminator="kind")
]

_described: TypeAdapter[_Kind] = TypeAdapter(_Kind)

#: Kind -> the map, and its tensors: how many dimensions each has (None for any), and whether it holds numbers of units.
_KINDS: dict[str, tuple[type[Any], dict[str, tuple[int | None, bool]]]] = {
    "Permutation": (Permutation, {"index": (None, True)}),
    "ScaledPermutation": (ScaledPermutation, {"index": (1, True), "scale": (1, False)}),
    "Dense": (Dense, {"forward": (2, False), "backward": (2, False)}),
    "Membership": (Membership, {"group": (1, True), "share": (1, False)}),
    "Stack": (Stack, {}),
}


class _Model(_Part):
    graph: str
    maps: dict[Name, _Kind]
    values: list[Name]
    shifts: list[Name]


class _File(_Part):
    format: Literal["isthmus.maps/1"]
    models: Annotated[list[_Model], Field(min_length=1)]
    about: dict[str, JsonValue]


def save(
    transports: Sequence[Transport], path: str | Path, about: Mapping[str, JsonValue] | None = None
) -> None:
    """Write the maps of some models as one safetensors file, whole or not at all.

    Args:
        transports: one per model.
        path: of the file.
        about: how they came about, as JSON.

    Raises:
        InputError: the name does not end in `.safetensors`.
    """
    path = _checked(path)
    # A map without tensors (kept apart) is all in the description; a file of tensors must hold one.
    tensors: dict[str, Tensor] = {_ENTRY: torch.zeros(0)}
    models: list[_Model] = []
    for index, transport in enumerate(transports):
        maps: dict[str, _Kind] = {}
        for name, item in transport.maps.items():
            kind = type(item).__name__
            own, held = _KINDS[kind]
            tensors |= {f"{index}.maps/{name}:{entry}": getattr(item, entry) for entry in held}
            plain = {n: getattr(item, n) for n in own.__dataclass_fields__ if n not in held}
            maps[name] = _described.validate_python({"kind": kind, **plain})
        for name, value in transport.values.items():
            # The format has no complex numbers: real and imaginary parts stand beside each other.
            held_as = torch.view_as_real(value) if value.is_complex() else value
            tensors[f"{index}.values/{name}"] = held_as
        for name, shift in transport.shifts.items():
            tensors[f"{index}.shifts/{name}:written"] = shift.written
            tensors[f"{index}.shifts/{name}:read"] = shift.read
        models.append(
            _Model(
                graph=digest(transport.graph, _touched(transport.graph, transport.maps, transport.values)),
                maps=maps,
                values=list(transport.values),
                shifts=list(transport.shifts),
            )
        )
    content = _File(format=FORMAT, models=models, about=dict(about or {}))
    files.save(tensors, path, metadata={_ENTRY: content.model_dump_json()})


def load(
    path: str | Path, graph: SymmetryGraph | Sequence[SymmetryGraph]
) -> tuple[tuple[Transport, ...], dict[str, JsonValue]]:
    """Read maps back, for the graphs that they move along.

    Args:
        path: of the file.
        graph: of the models; one each where their widths differ.

    Returns:
        One transport per model, and how they came about.

    Raises:
        InputError: the file holds no maps, what it says contradicts itself, or they are of another model; all
            problems are listed.
        WeightsError: it is no safetensors file, or cannot be read.
    """
    path = _checked(path)
    described = files.metadata(path).get(_ENTRY)
    if described is None:
        raise InputError(f"{path} holds no maps", hint="isthmus align MODEL MODEL --out maps.safetensors")
    try:
        content = _File.model_validate(json.loads(described))
    except ValidationError as error:
        where = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise InputError(f"{path} is no file of maps that this isthmus reads", _shown(where)) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no file of maps", [str(error)]) from None
    graphs = [graph] * len(content.models) if isinstance(graph, SymmetryGraph) else list(graph)
    if len(graphs) != len(content.models):
        raise InputError(
            f"{path} has the maps of {len(content.models)} models, there are {len(graphs)} graphs"
        )
    tensors = files.load(path)
    tensors.pop(_ENTRY, None)
    problems: list[str] = []
    found: list[Transport] = []
    for index, (model, own) in enumerate(zip(content.models, graphs, strict=True)):
        transport, wrong = _restored(model, own, tensors, index)
        problems += [f"model {index}: {line}" for line in wrong]
        found += [] if transport is None else [transport]
    problems += [f"{name}: belongs to no map" for name in tensors]
    if not problems:
        problems = list(_apart(found))
    if problems:
        raise InputError(f"the maps in {path} do not fit the model", _shown(problems))
    return tuple(found), content.about


def digest(graph: SymmetryGraph, spaces: Iterable[str]) -> str:
    """What some spaces of a graph are, in 64 hexadecimal digits: which axes of which weights carry them, and how.

    Args:
        graph: the symmetries; other spaces of it may be frozen or not.
        spaces: names.
    """
    names = sorted(set(spaces))
    known = [[n, graph.spaces[n].size, list(graph.spaces[n].within)] for n in names]
    carried = sorted(
        [key, dim, json.dumps(to_json(axis))]
        for key, axes in graph.layout.items()
        for dim, axis in enumerate(axes)
        if spaces_of(axis) & set(names)
    )
    return hashlib.sha256(json.dumps([known, carried]).encode()).hexdigest()


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: maps are in a safetensors file", hint=f"{path.stem}.safetensors")
    return path


def _touched(graph: SymmetryGraph, maps: Iterable[str], values: Iterable[str]) -> set[str]:
    """The spaces that maps and gauges move, of those that the graph has."""
    named = {name.partition("@")[0] for name in maps}
    if values := list(values):
        named |= {graph.gauges[name].space for name in values if name in graph.gauges}
    return named & graph.spaces.keys()


def _restored(
    model: _Model, graph: SymmetryGraph, tensors: dict[str, Tensor], index: int
) -> tuple[Transport | None, list[str]]:
    """One model's maps, and what is wrong with them. Tensors that are used are taken out."""
    problems: list[str] = []

    def take(name: str, dims: int | None = None, units: bool = False) -> Tensor:
        tensor = tensors.pop(f"{index}.{name}", None)
        if tensor is None:
            problems.append(f"{name} is missing")
        elif dims is not None and tensor.ndim != dims:
            problems.append(f"{name} has {tensor.ndim} dimensions, not {dims}")
        elif units != (tensor.dtype == torch.int64) or not (units or tensor.is_floating_point()):
            problems.append(f"{name} is {tensor.dtype}, not {'int64' if units else 'floating point'}")
        elif not units and not bool(tensor.isfinite().all()):
            problems.append(f"{name} is not finite")
        else:
            return tensor
        return torch.empty(0)

    maps: dict[str, Map] = {}
    for name, item in model.maps.items():
        kind, held = _KINDS[item.kind]
        before = len(problems)
        own = {entry: take(f"maps/{name}:{entry}", *said) for entry, said in held.items()}
        if len(problems) > before:
            continue
        shapes = [tuple(tensor.shape) for tensor in own.values()]
        if any(shape != shapes[0][::-1] for shape in shapes[1:]):
            problems.append(f"{name}: tensors of shapes {shapes} do not fit each other")
            continue
        try:
            maps[name] = kind(**own, **item.model_dump(exclude={"kind"}))
        except InputError as error:
            problems.append(f"{name}: {error.what}")
            continue
        problems += [f"{name}: {line}" for line in _wrong(name, maps[name], graph)]
    values = {name: take(f"values/{name}") for name in model.values}
    for name, value in values.items():
        if name in graph.gauges and graph.gauges[name].kind == "planes":
            if value.shape[-1:] == (2,):
                values[name] = torch.view_as_complex(value.contiguous())
            else:
                problems.append(f"values/{name} has no real and imaginary parts")
    shifts = {
        name: Shift(take(f"shifts/{name}:written", 1), take(f"shifts/{name}:read", 1))
        for name in model.shifts
    }
    if problems:
        return None, problems
    try:
        transport = Transport(graph, maps, values, shifts)
    except InputError as error:
        return None, list(error.where)
    problems = [
        f"{name}: the shifts are not of the map's units"
        for name, shift in shifts.items()
        if name not in maps or (len(shift.written), len(shift.read)) != (maps[name].target, maps[name].source)
    ]
    if not problems and model.graph != digest(graph, _touched(graph, maps, values)):
        problems = ["the file was made along another graph: spaces of these names lie elsewhere"]
    return transport, problems


def _wrong(name: str, item: Map, graph: SymmetryGraph) -> Iterator[str]:
    """What a map says that cannot be, and its own checks do not see."""
    if isinstance(item, ScaledPermutation) and not torch.equal(
        item.index.sort().values, torch.arange(len(item.index))
    ):
        yield "the index does not name each unit once"
    if isinstance(item, Membership):
        if len(item.group) and not 0 <= int(item.group.min()) <= int(item.group.max()) < item.target:
            yield f"a unit is in none of {item.target} groups"
        if bool((item.share < 0).any()):
            yield "a share is negative"
    if isinstance(item, Dense) and item.keeps_function:
        back = item.backward.double() @ item.forward.double()
        if not torch.allclose(back, torch.eye(len(back), dtype=torch.float64), atol=1e-4):
            yield "the map is said to keep the function, but does not undo itself"
    space, at, place = name.partition("@")
    if at:
        key, _, axis = place.rpartition(":")
        axes = graph.layout.get(key, ())
        if not axis.isdecimal() or int(axis) >= len(axes):
            yield "no such weight, or no such axis"
        elif space and space not in spaces_of(axes[int(axis)]):
            yield f"{space} is not there"
        elif not space and item.source != axes[int(axis)].size:
            yield f"the map takes {item.source} units, the axis has {axes[int(axis)].size}"


def _apart(transports: Sequence[Transport]) -> Iterator[str]:
    """Spaces that models do not move to the same merged units, or to more than all of them have."""
    if len(transports) == 1:
        return
    for name in dict.fromkeys(n for t in transports for n in t.maps if not n.startswith("@")):
        space = name.partition("@")[0]
        sizes = [t.graph.spaces[space].size for t in transports]
        targets = {
            size if (item := t.maps.get(name)) is None else item.target
            for t, size in zip(transports, sizes, strict=True)
        }
        if "@" not in name and len(targets) > 1:
            yield f"{name}: merged units differ in number: {', '.join(map(str, sorted(targets)))}"
        elif max(targets) > sum(sizes):
            yield f"{name}: {max(targets)} merged units of {sum(sizes)} in all models together"


def _shown(problems: Sequence[str]) -> list[str]:
    return [*problems[:20], *([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])]
