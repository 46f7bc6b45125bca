"""How much each model counts in the merged one."""

from __future__ import annotations

from collections.abc import Sequence

from isthmus.errors import InputError


def check_shares(shares: Sequence[float], models: Sequence[object]) -> None:
    """Refuse shares that do not weigh the models.

    Raises:
        InputError: they are not one per model, not negative, with sum 1.
    """
    if len(shares) != len(models) or not shares or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(
            f"shares {tuple(shares)} do not weigh {len(models)} models",
            hint="one share per model, not negative, with sum 1",
        )
