"""Flat tables of methods: what exists, what it needs, which laws it claims, what it costs, where it comes from.

A room with methods keeps one table and names its own package:

    ALIGNMENTS = Registry[Rule]("alignment", package=__package__)

and a method is one file of that package, registered by one decorator:

    @ALIGNMENTS.register("weight-matching", needs=("graph",), claims=("seeded",), source="arXiv:2209.04836")
    def weight_matching(...):
        '''Match units by the similarity of their weights, one space at a time.'''

The table imports every module of the package the first time it is asked, so no other file has to
know of a new method; and the law tests run over the tables, so a method is tested once it exists.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from isthmus.errors import InputError

F = TypeVar("F", bound=Callable[..., object])
G = TypeVar("G", bound=Callable[..., object])

# A claim that no test looks for would be worse than none, so the names are fixed here.
LAWS = {
    "copies-give-the-model": "merging N copies of a model gives the model",
    "order-free": "the order of the inputs does not matter",
    "seeded": "the same seed gives the same bytes",
    "streaming-equals-memory": "streaming and in-memory give the same bytes",
    "function-kept": "each moved model computes the same function as before",
    "planted-found": "a planted transformation is found on plain networks",
    "planted-exact": "a model merged with its own reordered copies, at any weights, computes the model",
    "inverts": "apply then invert is the identity",
    "unmerged-is-identity": "repairing a model that was not merged changes nothing",
    "fused-equals-unfused": "fused into the weights or kept beside them, the function is the same",
    "idempotent": "repairing a second time changes nothing",
    "sparsity-exact": "exactly as many weights are pruned as asked for, wherever they are compared",
    "unpruned-is-identity": "at sparsity 0 nothing changes",
    "pruned-stays-pruned": "pruning again as far changes nothing",
    "batching-free": "the result does not depend on how the data is batched",
}

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

#: How a method is asked for: its name, or {"method": name, option: value}.
Asked = str | Mapping[str, object]


def name_of(asked: Asked) -> str:
    """The method's name, however it is asked for; "" where none is said."""
    return asked if isinstance(asked, str) else str(asked.get("method", ""))


def label(asked: Asked) -> str:
    """A method with the options that were asked for, as one word or a few.

    Examples:
        >>> label({"method": "repair", "mode": "sequential"})
        'repair (mode sequential)'
    """
    if isinstance(asked, str):
        return asked
    options = ", ".join(f"{name} {value}" for name, value in asked.items() if name != "method")
    return f"{asked['method']} ({options})" if options else str(asked["method"])


def keywords(function: Callable[..., object], without: Iterable[str] = ()) -> dict[str, Any]:
    """The keyword arguments of a function and their defaults (`inspect.Parameter.empty` where it has none)."""
    known = inspect.signature(function).parameters
    return {name: p.default for name, p in known.items() if p.kind is p.KEYWORD_ONLY and name not in without}


def kinds(hint: object) -> tuple[Any, ...]:
    """The kinds of values that an option's annotation names, one or several."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


@functools.cache
def hints_of(function: Callable[..., object]) -> dict[str, Any]:
    """The annotations of a function; none where they name what is only imported to be type-checked."""
    try:
        return get_type_hints(function)
    except NameError:
        return {}


def numbers(function: Callable[..., object], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with whole numbers as floats where a function takes these alone, also within lists.

    Args:
        function: whose options they are; its annotations say what it takes.
        options: as they are asked for.

    Examples:
        >>> def shrink(*, by: float = 0.5, times: int = 1, each: Sequence[float] = ()): ...
        >>> numbers(shrink, {"by": 1, "times": 2, "each": [1, 0.5]})
        {'by': 1.0, 'times': 2, 'each': [1.0, 0.5]}
    """
    hints = hints_of(function)
    return {name: _number(value, kinds(hints.get(name))) for name, value in options.items()}


def _number(value: Any, known: Sequence[Any]) -> Any:
    if type(value) is int and float in known and int not in known:
        return float(value)
    if isinstance(value, (list, tuple)) and any(get_args(kind) == (float,) for kind in known):
        items = cast("Sequence[Any]", value)
        return type(value)(float(item) if type(item) is int else item for item in items)
    return value


# Plain kinds of options, and what is said of a value that is of another.
_KINDS = {bool: "neither true nor false", float: "not a number", int: "not a whole number"}


def misfit(name: str, value: object, known: Sequence[Any]) -> str | None:
    """Why an option of plain kinds cannot have a value; None where it can, or where a kind is not plain.

    Args:
        name: of the option.
        value: that is asked for.
        known: the option's kinds (`kinds`): words (`Literal`), bool, int, float, None.

    Examples:
        >>> misfit("epochs", "x", kinds(int | None))
        "epochs is 'x', not a whole number"
    """
    words = [word for kind in known if get_origin(kind) is Literal for word in get_args(kind)]
    plain = [kind for kind in known if kind in _KINDS]
    if not all(kind in plain or kind is type(None) or get_origin(kind) is Literal for kind in known):
        return None
    if value is None and type(None) in known:
        return None
    if (isinstance(value, str) and value in words) or any(_is(value, kind) for kind in plain):
        return None
    if not words:
        return f"{name} is {value!r}, {_KINDS[plain[0]]}"
    return f"{name} is {value!r}: it is one of {', '.join(map(str, words))}" + (
        ", or a number" if plain else ""
    )


def _is(value: object, kind: object) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int) or (isinstance(value, float) and kind is float)


@dataclass(frozen=True)
class Method(Generic[F]):
    """One row of a table.

    Args:
        name: hyphenated, as users write it everywhere.
        kind: what the table holds ("alignment", "combination", "repair", ...).
        summary: the first line of the function's docstring.
        needs: what a caller must provide beyond the models ("data", "base", "graph", ...).
        claims: the laws (keys of `LAWS`) that the method is tested against.
        source: the paper or code that it comes from.
        function: the method itself.
        supplied: its keyword arguments that are no options: whoever calls has them.
        costs: what it costs beside reading the models: passes over data, assignments, memory.
    """

    name: str
    kind: str
    summary: str
    needs: tuple[str, ...]
    claims: tuple[str, ...]
    source: str
    function: F
    supplied: tuple[str, ...] = ()
    costs: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Every option with its default."""
        return keywords(self.function, self.supplied)

    def check_options(self, names: Iterable[str]) -> None:
        """Refuse options that the method does not have.

        Raises:
            InputError: there are any; all of them are named.
        """
        known = self.options
        if unknown := [name for name in names if name not in known]:
            raise InputError(
                f"{self.name} has no option {', '.join(map(repr, unknown))}",
                hint=f"it takes {', '.join(known) or 'none'}",
            )


class Registry(Generic[F]):
    """A table of methods of one kind.

    Args:
        kind: the noun that errors and listings use, e.g. "alignment".
        package: dotted name of the package whose modules register methods; None scans nothing.
        supplied: keyword arguments that are no options of its methods: whoever calls has them.
    """

    def __init__(self, kind: str, package: str | None = None, supplied: Iterable[str] = ()):
        self.kind = kind
        self.supplied = tuple(supplied)
        self._package = package
        self._methods: dict[str, Method[F]] = {}
        self._scanned = package is None

    def register(
        self,
        name: str,
        *,
        needs: Iterable[str] = (),
        claims: Iterable[str] = (),
        costs: str = "",
        source: str = "",
    ) -> Callable[[G], G]:
        """Decorate a function to add it under `name`; the function itself is returned unchanged.

        Raises:
            InputError: the name is not hyphenated lower case or is taken, a claim is no law, or the
                function has no docstring to be listed by.
        """

        def add(function: G) -> G:
            method = Method(
                name=name,
                kind=self.kind,
                summary=(inspect.getdoc(function) or "").partition("\n")[0],
                needs=tuple(needs),
                claims=tuple(claims),
                source=source,
                function=cast("F", function),
                supplied=self.supplied,
                costs=costs,
            )
            if wrong := self._wrong(method):
                raise InputError(f"{self.kind} {name!r} cannot be registered", wrong)
            self._methods[name] = method
            return function

        return add

    def get(self, name: str) -> Method[F]:
        """The method called `name`.

        Raises:
            InputError: there is none; the hint names the nearest one.
        """
        self._scan()
        if name not in self._methods:
            raise InputError(f"no {self.kind} is called {name!r}", hint=self._suggest(name))
        return self._methods[name]

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        self._scan()
        return tuple(sorted(self._methods))

    def rows(self) -> tuple[Method[F], ...]:
        """All methods, sorted by name."""
        return tuple(self._methods[name] for name in self.names())

    def _scan(self) -> None:
        """Import the package's modules once; importing registers."""
        if self._scanned or self._package is None:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__, prefix=f"{self._package}."):
            importlib.import_module(module.name)
        self._scanned = True  # last: a module that fails to import fails again, not silently later

    def _wrong(self, method: Method[F]) -> list[str]:
        wrong: list[str] = []
        if not _NAME.fullmatch(method.name):
            wrong.append("its name is not lower-case words joined by hyphens")
        if method.name in self._methods:
            wrong.append(f"the name is taken by {self._methods[method.name].function!r}")
        if not method.summary:
            wrong.append("its function has no docstring")
        wrong += [f"it claims {law!r}, which is no law" for law in method.claims if law not in LAWS]
        return wrong

    def _suggest(self, name: str) -> str:
        if not self._methods:
            return f"there is no {self.kind} at all"
        plain = name.strip().lower().replace("_", "-").replace(" ", "-")
        near = difflib.get_close_matches(plain, self._methods, n=1)
        return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(self._methods))}"
