"""The laws, as functions that anyone can call on their own methods.

    @COMBINATIONS.register("mine", claims=("copies-give-the-model", "order-free"))
    def mine(tensors, *, weights):
        '''The first model, and a little of the others.'''

    isthmus.testing.check_combination("mine")

Each runs the laws (`isthmus.registry.LAWS`) that a method claims, in float64 and on networks of a few units,
and raises one AssertionError that says of each broken law where it broke, by how much, and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from torch import Tensor

from isthmus.align import ALIGNMENTS, Alignment
from isthmus.combine import COMBINATIONS
from isthmus.errors import InputError
from isthmus.prune import PRUNERS, Choice
from isthmus.registry import LAWS, Registry
from isthmus.repair import REPAIRS, Repaired
from isthmus.testing import alignments, combinations, pruners, repairs
from isthmus.testing.calls import TOLERANCE, Call, Law

__all__ = [
    "TOLERANCE",
    "check_alignment",
    "check_combination",
    "check_pruner",
    "check_repair",
    "laws_checked",
]

F = TypeVar("F", bound=Callable[..., object])


def check_alignment(
    method: str | Callable[..., Alignment], laws: Iterable[str] | None = None, **options: object
) -> tuple[str, ...]:
    """Hold an alignment to its laws: on an MLP, a conv net with batch norms and an attention block.

    Args:
        method: a registered name, or a function `(graph, models, *, reference, ...) -> Alignment`; `data`
            and `seed` are passed where it takes them.
        laws: those to check; by default what the registered method claims.
        options: of the method.

    Returns:
        The laws that were checked, and hold.

    Raises:
        AssertionError: a law is broken.
        InputError: a law that is not checked for alignments, or a function of which no law is known.

    Examples:
        >>> from isthmus.testing import check_alignment
        >>> check_alignment("weight-matching", laws=["seeded"])
        ('seeded',)
    """
    return _check(ALIGNMENTS, method, laws, options)


def check_combination(
    method: str | Callable[..., Tensor], laws: Iterable[str] | None = None, **options: object
) -> tuple[str, ...]:
    """Hold a rule of combination to its laws: on tensors of several shapes and dtypes.

    Args:
        method: a registered name, or a function `(tensors, *, weights, ...) -> tensor`; `base` (a tensor),
            `statistics` (a positive tensor per model), `key` and `seed` are passed where it takes them.
        laws: those to check; by default what the registered method claims.
        options: of the method.

    Returns:
        The laws that were checked, and hold.

    Raises:
        AssertionError: a law is broken.
        InputError: a law that is not checked for combinations, or a function of which no law is known.

    Examples:
        >>> from isthmus.testing import check_combination
        >>> check_combination(lambda tensors, *, weights: tensors[0], laws=["order-free"])
        Traceback (most recent call last):
            ...
        AssertionError: <lambda> breaks 1 of 1 laws
          order-free (the order of the inputs does not matter): float64, ...
    """
    return _check(COMBINATIONS, method, laws, options)


def check_pruner(
    method: str | Callable[..., Choice], laws: Iterable[str] | None = None, **options: object
) -> tuple[str, ...]:
    """Hold a pruner to its laws: on an MLP, a conv net with batch norms and an attention block.

    Args:
        method: a registered name, or a function `(program, weights, layers, *, sparsity, ...) -> Choice`; `data`
            with targets and `seed` are passed where it takes them.
        laws: those to check; by default what the registered method claims.
        options: of the method.

    Returns:
        The laws that were checked, and hold.

    Raises:
        AssertionError: a law is broken.
        InputError: a law that is not checked for pruners, or a function of which no law is known.

    Examples:
        >>> from isthmus.testing import check_pruner
        >>> check_pruner("magnitude", laws=["sparsity-exact"], scope="layer")
        ('sparsity-exact',)
    """
    return _check(PRUNERS, method, laws, options)


def check_repair(
    method: str | Callable[..., Repaired], laws: Iterable[str] | None = None, **options: object
) -> tuple[str, ...]:
    """Hold a repair to its laws: on an MLP, a plain conv net and an attention block.

    Args:
        method: a registered name, or a function `(program, weights, data, ...) -> Repaired`; `goals` are
            passed where it takes them. Where it takes a `mode`, the laws hold for "joint" over one batch
            and for "sequential" over several.
        laws: those to check; by default what the registered method claims.
        options: of the method.

    Returns:
        The laws that were checked, and hold.

    Raises:
        AssertionError: a law is broken.
        InputError: a law that is not checked for repairs, or a function of which no law is known.

    Examples:
        >>> from isthmus.testing import check_repair
        >>> check_repair("rescale", laws=["fused-equals-unfused"])
        ('fused-equals-unfused',)
    """
    return _check(REPAIRS, method, laws, options)


def laws_checked(kind: str) -> tuple[str, ...]:
    """The laws that methods of a kind ("alignment", "combination", "pruner", "repair") can be held to."""
    return tuple(_LAWS[kind])


def _check(
    table: Registry[F], method: str | F, laws: Iterable[str] | None, options: Mapping[str, object]
) -> tuple[str, ...]:
    if isinstance(method, str):
        row = table.get(method)
    else:
        row = next((row for row in table.rows() if row.function is method), None)
    function = row.function if row is not None else method
    assert not isinstance(function, str)
    name = row.name if row is not None else getattr(function, "__name__", repr(function))
    if laws is None and row is None:
        raise InputError(
            f"{name} is not registered: nothing says which laws it keeps", hint="pass laws=[...]"
        )
    wanted = tuple(row.claims if laws is None and row is not None else laws or ())
    known = _LAWS[table.kind]
    if unknown := [law for law in wanted if law not in known]:
        raise InputError(
            f"{len(unknown)} laws cannot be checked of a {table.kind}",
            unknown,
            hint=f"there are: {', '.join(known)}",
        )
    broken: list[str] = []
    for law in wanted:
        try:
            known[law](Call(function, options))
        except AssertionError as error:
            broken.append(f"  {law} ({LAWS[law]}): {error}")
    if broken:
        raise AssertionError("\n".join([f"{name} breaks {len(broken)} of {len(wanted)} laws", *broken]))
    return wanted


_LAWS: dict[str, dict[str, Law]] = {
    "alignment": {
        "function-kept": alignments.function_kept,
        "planted-found": alignments.planted_found,
        "planted-exact": alignments.planted_exact,
        "copies-give-the-model": alignments.copies_stay,
        "inverts": alignments.inverts,
        "batching-free": alignments.batching_free,
        "seeded": alignments.seeded,
    },
    "combination": {
        "copies-give-the-model": combinations.copies_give_the_model,
        "order-free": combinations.order_free,
        "streaming-equals-memory": combinations.streams,
        "seeded": combinations.seeded,
    },
    "pruner": {
        "sparsity-exact": pruners.sparsity_exact,
        "unpruned-is-identity": pruners.unpruned_is_identity,
        "pruned-stays-pruned": pruners.pruned_stays_pruned,
        "batching-free": pruners.batching_free,
        "seeded": pruners.seeded,
    },
    "repair": {
        "unmerged-is-identity": repairs.unmerged_is_identity,
        "fused-equals-unfused": repairs.fused_equals_unfused,
        "idempotent": repairs.idempotent,
        "batching-free": repairs.batching_free,
        "seeded": repairs.seeded,
    },
}
