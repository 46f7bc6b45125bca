"""A symmetry graph as a file, so that weights can be moved and matched without the code of their model.

The file is JSON with a version: spaces, axes, groups, what is fixed and why, but no program. A graph read back
is printed, transports, and is matched by weights; what runs the model (verification, activation matching)
needs it traced again, and says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from isthmus import weights as files
from isthmus.errors import InputError
from isthmus.program import Program
from isthmus.symmetry.axes import Axis, Blocks, Concat, Interleaved, Leaf, leaves, to_json
from isthmus.symmetry.gauges import Gauge, Opening, Slot
from isthmus.symmetry.graph import Fixed, Member, Space, SymmetryGraph
from isthmus.symmetry.verify import Verification

#: The version of the format. A change that an older reader would misunderstand takes another number.
FORMAT = "isthmus.symmetry/1"

#: The largest file that is read: a graph of a hundred thousand weights is a tenth of it.
LARGEST = 2**28

#: Products and concatenations in each other; real ones are three deep.
DEEPEST = 32

Kind = Literal["positive", "sign", "orthogonal", "centred", "invertible", "planes"]
Count = Annotated[int, Field(ge=1, le=2**48)]
Place = Annotated[int, Field(ge=0, le=64)]
Name = Annotated[str, Field(min_length=1, max_length=4096)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Weight(_Part):
    shape: list[Annotated[int, Field(ge=0, le=2**48)]]
    axes: list[Any] | None = None
    buffer: bool = False


class _Space(_Part):
    size: Count
    within: list[Name] = []
    marks: list[Name] = []
    members: list[tuple[Name, Place, Literal["writes", "reads", "statistic"]]] = []


class _Slot(_Part):
    key: Name
    axis: Place
    occurrence: Annotated[int, Field(ge=0, le=2**20)]
    power: Annotated[str, Field(pattern=r"^-?[0-9]{1,4}(/[1-9][0-9]{0,3})?$")]
    offset: Annotated[float, Field(ge=0.0, le=1e6, allow_inf_nan=False)] = 0.0


class _Gauge(_Part):
    space: Name
    kind: Kind
    size: Count
    within: list[Name] = []
    slots: list[_Slot]
    axes: dict[Name, list[Any]] | None = None
    turned: Annotated[int, Field(ge=0, le=2**48)] = 0
    pairing: Literal["halves", "neighbours"] = "halves"


class _Opening(_Part):
    kind: Kind
    scales: dict[Name, list[Name]]
    slots: list[_Slot]


class _File(_Part):
    format: Literal["isthmus.symmetry/1"]
    weights: dict[Name, _Weight]
    tied: dict[Name, Name] = {}
    spaces: dict[Name, _Space]
    fixed: list[tuple[Name, Place, Count, str]] = []
    unknown: dict[str, list[str]] = {}
    gauges: dict[Name, _Gauge] = {}
    openings: dict[Name, _Opening] = {}
    ones: list[Name] = []
    refused: dict[Name, str] = {}
    residual: list[Name] = []
    biases: list[Name] = []
    verification: str = ""


class SavedProgram(Program):
    """What a graph that was read from a file knows of its program: names and shapes of weights, no operations."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        read: Iterable[str],
        buffers: Iterable[str],
        tied: Mapping[str, str],
        verification: str = "",
        residual: Iterable[str] = (),
        biases: Iterable[str] = (),
    ):
        for name, value in {
            "weights": {key: key for key in read},
            "buffers": frozenset(buffers),
            "constants": {},
            "inputs": (),
            "outputs": (),
            "tied": dict(tied),
            "shapes": dict(shapes),
            "sources": {},
            "verification": verification,
            "residual": tuple(residual),
            "biases": tuple(biases),  # in the place of what is read off operations
        }.items():
            object.__setattr__(self, name, value)

    #: What its verification said when it was saved; empty if it was not verified.
    verification: str

    #: The residual streams (`isthmus.symmetry.residual`), which its operations showed.
    residual: tuple[str, ...]

    def __getattr__(self, name: str) -> NoReturn:
        # Only what a program has and this one lacks comes here: its graph, and how its inputs nest.
        if name in ("graph", "in_spec", "out_spec"):
            raise InputError(
                "this graph was read from a file, which holds no program to run",
                [f"when it was saved: {self.__dict__.get('verification') or 'not verified'}"],
                hint="trace the model again: isthmus.trace(model, example)",
            )
        raise AttributeError(name)

    def to(self, device: object = None, dtype: object = None) -> NoReturn:  # noqa: ARG002 - a program's
        self.graph  # noqa: B018 - raises, and says why
        raise AssertionError

    def __repr__(self) -> str:
        return f"SavedProgram({len(self.weights)} weights)"

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def save(graph: SymmetryGraph, path: str | Path, verification: Verification | None = None) -> Path:
    """Write a symmetry graph as JSON, whole or not at all.

    Args:
        graph: what to write; its program is left out.
        path: of the file.
        verification: how the graph was checked, kept as a sentence.

    Raises:
        InputError: the file cannot be written.

    Examples:
        >>> import tempfile, torch, isthmus
        >>> from isthmus.symmetry import saved
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = isthmus.trace(model, torch.randn(2, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = saved.load(saved.save(graph, f"{folder}/graph.json"))
        >>> print(again) == print(graph), again.spaces == graph.spaces
        1 spaces...
        (True, True)
    """
    from isthmus.symmetry.residual import residual_streams  # it knows what a saved program is

    path = Path(path)
    program = graph.program
    weights = {
        key: _Weight(
            shape=list(shape),
            axes=[to_json(axis) for axis in graph.layout[key]] if key in graph.layout else None,
            buffer=key in program.buffers,
        )
        # Read weights first and in the order they are read in: sweeps visit them so.
        for key, shape in ({key: program.shapes[key] for key in graph.layout} | program.shapes).items()
    }
    told = verification is not None and not math.isnan(verification.error)
    content = _File(
        format="isthmus.symmetry/1",
        weights=weights,
        tied=program.tied,
        spaces={
            name: _Space(
                size=space.size,
                within=list(space.within),
                marks=sorted(space.marks),
                members=[(m.key, m.axis, m.role) for m in space.members],  # type: ignore[misc]
            )
            for name, space in graph.spaces.items()
        },
        fixed=[(f.key, f.axis, f.size, f.reason) for f in graph.fixed],
        unknown={name: list(places) for name, places in graph.unknown.items()},
        gauges={name: _gauge_to(gauge) for name, gauge in graph.gauges.items()},
        openings={
            name: _Opening(
                kind=o.kind,
                scales={key: list(places) for key, places in o.scales.items()},
                slots=_slots_to(o.slots),
            )
            for name, o in graph.openings.items()
        },
        ones=sorted(graph.ones),
        refused=dict(graph.refused),
        residual=list(residual_streams(graph)),
        biases=list(graph.program.biases),
        verification=str(verification) if told else getattr(program, "verification", ""),
    )
    text = content.model_dump_json(exclude_defaults=True, indent=1)
    try:
        with files.atomic(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def load(path: str | Path) -> SymmetryGraph:
    """Read a symmetry graph that `save` wrote. Nothing in the file is run, and what contradicts itself is refused.

    Args:
        path: of the file.

    Returns:
        The graph without its program: for transports and weight matching.

    Raises:
        InputError: the file cannot be read, is of another version, or its spaces, axes and shapes disagree.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} is too large to be a symmetry graph")
        raw = json.loads(path.read_bytes(), object_pairs_hook=_once, parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path} is not a readable symmetry graph", [str(reason)]) from None
    version = raw.get("format") if isinstance(raw, dict) else None
    if version != FORMAT:
        known = isinstance(version, str) and version.startswith("isthmus.symmetry/")
        raise InputError(
            f"{path} is of the format {version!r}, this isthmus reads {FORMAT!r}"
            if known
            else f"{path} is no symmetry graph",
            hint="isthmus symmetry MODEL --save graph.json writes one",
        )
    try:
        content = _File.model_validate_json(json.dumps(raw))
        graph, problems = _graph(content)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        graph = None
    except (_AxisError, RecursionError) as error:
        graph, problems = None, [str(error) or "nested too deep"]
    if problems or graph is None:
        shown = problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise InputError(
            f"{path} contradicts itself", shown, hint="write it again with isthmus symmetry --save"
        )
    return graph


class _AxisError(Exception):
    """What is wrong with an axis."""


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _graph(content: _File) -> tuple[SymmetryGraph | None, list[str]]:
    """The graph that a file describes, and what is wrong with it."""
    sizes = {name: space.size for name, space in content.spaces.items()}
    layout = {
        key: tuple(_axis(axis, key) for axis in weight.axes)
        for key, weight in content.weights.items()
        if weight.axes is not None
    }
    problems = [*_wrong_axes(content, layout, sizes), *_wrong_names(content, layout)]
    if problems:
        return None, problems
    program = SavedProgram(
        {key: tuple(weight.shape) for key, weight in content.weights.items()},
        layout,
        [key for key, weight in content.weights.items() if weight.buffer],
        content.tied,
        content.verification,
        content.residual,
        content.biases,
    )
    graph = SymmetryGraph(
        program,
        {
            name: Space(
                name,
                space.size,
                within=tuple(space.within),
                marks=frozenset(space.marks),
                members=tuple(Member(*member) for member in space.members),
            )
            for name, space in content.spaces.items()
        },
        layout,
        {},
        tuple(Fixed(*fixed) for fixed in content.fixed),
        {name: tuple(places) for name, places in content.unknown.items()},
        frozenset(content.ones),
        dict(content.refused),
    )
    gauges = {name: _gauge_from(name, gauge) for name, gauge in content.gauges.items()}
    openings = {
        name: Opening(name, o.kind, {key: tuple(v) for key, v in o.scales.items()}, _slots_from(o.slots))
        for name, o in content.openings.items()
    }
    # They were read off the program; here they are what the file says.
    graph.__dict__["_freedoms"] = (gauges, openings)
    return graph, []


def _wrong_axes(
    content: _File, layout: Mapping[str, Sequence[Axis]], sizes: Mapping[str, int]
) -> Iterable[str]:
    for key, axes in layout.items():
        shape = content.weights[key].shape
        if [axis.size for axis in axes] != shape:
            yield f"{key}: axes of {[axis.size for axis in axes]} for a shape of {shape}"
        for leaf in (leaf for axis in axes for leaf in leaves(axis)):
            if leaf.space is not None and sizes.get(leaf.space) != leaf.size:
                yield f"{key}: {leaf.size} units of {leaf.space}, which has {sizes.get(leaf.space, 'no entry')}"


def _wrong_names(content: _File, layout: Mapping[str, Sequence[Axis]]) -> Iterable[str]:
    for name, space in content.spaces.items():
        for outer in space.within:
            if outer not in content.spaces:
                yield f"{name}: within {outer}, which is no space"
        for key, axis, _ in space.members:
            axes = layout.get(key, ())
            if axis >= len(axes) or all(leaf.space != name for leaf in leaves(axes[axis])):
                yield f"{name}: not on axis {axis} of {key}"
    yield from _circles(content)
    for alias, key in content.tied.items():
        if alias not in content.weights or key not in content.weights:
            yield f"{alias}: tied to {key}, and one of them is no weight"
    for key, axis, *_ in content.fixed:
        if axis >= len(layout.get(key, ())):
            yield f"fixed: {key} has no axis {axis}"
    places = [
        (name, place)
        for name, found in (*content.gauges.items(), *content.openings.items())
        for place in found.slots
    ]
    for name, place in places:
        if place.axis >= len(layout.get(place.key, ())):
            yield f"{name}: {place.key} has no axis {place.axis}"
    for name, gauge in content.gauges.items():
        if unknown := [n for n in gauge.within if n not in content.spaces]:
            yield f"{name}: within {', '.join(unknown)}, which is no space"
        if gauge.kind != "planes" and gauge.space not in content.spaces:
            yield f"{name}: {gauge.space} is no space"
        if gauge.turned > gauge.size or gauge.turned % 2:
            yield f"{name}: {gauge.turned} of {gauge.size} units cannot turn"
        for key, axes in (gauge.axes or {}).items():
            if [_axis(axis, key).size for axis in axes] != (
                content.weights[key].shape if key in content.weights else None
            ):
                yield f"{name}: its axes of {key} do not fit"
    for name in content.residual:
        if name not in content.spaces:
            yield f"residual: {name} is no space"
    for name in content.biases:
        if name not in content.weights:
            yield f"biases: {name} is no weight"
    for name in content.openings:
        if name not in content.spaces:
            yield f"{name}: an opening of no space"


def _circles(content: _File) -> Iterable[str]:
    """Spaces that are within themselves."""
    done: set[str] = set()
    for start in content.spaces:
        path: dict[str, None] = {}
        todo = [(start, False)]
        while todo:
            name, left = todo.pop()
            if left:
                path.pop(name, None)
                done.add(name)
            elif name in path:
                yield f"{name}: within itself"
                return
            elif name not in done and name in content.spaces:
                path[name] = None
                todo.append((name, True))
                todo += [(outer, False) for outer in content.spaces[name].within]


def _axis(given: object, key: str, depth: int = 0) -> Axis:
    """An axis from its plain lists: what `to_json` makes."""
    if depth > DEEPEST:
        raise _AxisError(f"{key}: an axis is nested too deep")

    def count(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 2**48:
            raise _AxisError(f"{key}: {value!r} is no size")
        return value

    if isinstance(given, (int, float)):
        return Leaf(count(given))
    if isinstance(given, list) and len(given) == 2 and isinstance(given[0], str):
        return Leaf(count(given[1]), given[0])
    if isinstance(given, dict) and len(given) == 1:
        ((kind, items),) = given.items()
        if kind in ("blocks", "concat") and isinstance(items, list) and items:
            parts = tuple(_axis(item, key, depth + 1) for item in items)
            return Blocks(parts) if kind == "blocks" else Concat(parts)
    if isinstance(given, dict) and given.keys() == {"turn", "order"}:
        items, order = given["turn"], given["order"]
        if isinstance(items, list) and items and isinstance(order, list):
            strands = tuple(_axis(item, key, depth + 1) for item in items)
            turns = [count(n) for n in order]
            if [turns.count(n) for n in range(len(strands))] == [strand.size for strand in strands]:
                return Interleaved(strands, tuple(turns))
    raise _AxisError(f"{key}: {str(given)[:60]!r} is no axis")


def _slots_to(slots: Sequence[Slot]) -> list[_Slot]:
    return [
        _Slot(key=s.key, axis=s.axis, occurrence=s.occurrence, power=str(s.power), offset=float(s.offset))
        for s in slots
    ]


def _slots_from(slots: Sequence[_Slot]) -> tuple[Slot, ...]:
    return tuple(Slot(s.key, s.axis, s.occurrence, Fraction(s.power), s.offset) for s in slots)


def _gauge_to(gauge: Gauge) -> _Gauge:
    return _Gauge(
        space=gauge.space,
        kind=gauge.kind,
        size=gauge.size,
        within=list(gauge.within),
        slots=_slots_to(gauge.slots),
        axes=None
        if gauge.axes is None
        else {key: [to_json(axis) for axis in axes] for key, axes in gauge.axes.items()},
        turned=gauge.turned,
        pairing=gauge.pairing,
    )


def _gauge_from(name: str, gauge: _Gauge) -> Gauge:
    axes = None
    if gauge.axes is not None:
        axes = {key: tuple(_axis(axis, key) for axis in found) for key, found in gauge.axes.items()}
    return Gauge(
        name,
        gauge.space,
        gauge.kind,
        gauge.size,
        tuple(gauge.within),
        _slots_from(gauge.slots),
        axes,
        gauge.turned,
        gauge.pairing,
    )
