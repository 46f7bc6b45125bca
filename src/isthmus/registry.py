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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

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
    """

    name: str
    kind: str
    summary: str
    needs: tuple[str, ...]
    claims: tuple[str, ...]
    source: str
    function: F


class Registry(Generic[F]):
    """A table of methods of one kind.

    Args:
        kind: the noun that errors and listings use, e.g. "alignment".
        package: dotted name of the package whose modules register methods; None scans nothing.
    """

    def __init__(self, kind: str, package: str | None = None):
        self.kind = kind
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
