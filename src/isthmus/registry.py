"""Flat tables of methods: what exists, what it needs, which laws it claims, where it comes from.

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
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

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
    """

    name: str
    kind: str
    summary: str
    needs: tuple[str, ...]
    claims: tuple[str, ...]
    source: str
    function: F
    supplied: tuple[str, ...] = ()

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
        self, name: str, *, needs: Iterable[str] = (), claims: Iterable[str] = (), source: str = ""
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
