"""Non-increasing bounds of a profile: what the definitions of vanishing features and variance collapse are about."""

from __future__ import annotations

from collections.abc import Sequence

#: The smoothed bound of the published plots. Above 1 on purpose: it inflates slightly.
GAMMA = 1.4


def upper_bound(values: Sequence[float], gamma: float | None = None) -> tuple[float, ...]:
    """The least non-increasing sequence that bounds a profile from above.

    Args:
        values: one per layer, in order of execution.
        gamma: None for the plain bound, eps_l = max(eps_{l+1}, v_l); a number for the smoothed one,
            eps_l = max(gamma eps_{l+1} + (1 - gamma) (1 - 1 / (L + 1 - l)) eps_{l+1}, v_l).
            The published plots use 1.4.

    Source: Qu and Horváth 2025 (arXiv:2402.05966), definitions 4.1 and 5.1; the smoothed one from its appendix.

    Examples:
        >>> upper_bound([0.5, 0.9, 0.2, 0.4])
        (0.9, 0.9, 0.4, 0.4)
    """
    bounds: list[float] = []
    for left, value in enumerate(reversed(values)):  # left = L - l
        after = bounds[-1] if bounds else 0.0
        if gamma is not None and bounds:
            after = gamma * after + (1 - gamma) * (1 - 1 / (left + 1)) * after
        bounds.append(max(after, value))
    return tuple(reversed(bounds))
