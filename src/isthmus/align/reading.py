"""The symmetries of models that are modules: read off each architecture, and verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from isthmus.align.apart import common
from isthmus.program import Inputs, check_alike
from isthmus.symmetry import SymmetryGraph, Verification, trace, verified


def shapes(state: Mapping[str, Tensor]) -> frozenset[tuple[str, tuple[int, ...]]]:
    """By which models of several widths are told apart."""
    return frozenset((key, tuple(tensor.shape)) for key, tensor in state.items())


def read_symmetries(
    modules: Sequence[nn.Module], states: Sequence[Mapping[str, Tensor]], example: Inputs, seed: int = 0
) -> tuple[SymmetryGraph | list[SymmetryGraph], list[Verification]]:
    """The graph of all models; where their shapes differ, one of each, with the spaces that are free in all.

    Args:
        modules: the architecture of each model.
        states: the weights of each.
        example: inputs as for `isthmus.trace`.
        seed: of the weights and elements drawn to verify.

    Returns:
        The graph or graphs, and how each was verified.

    Raises:
        MismatchError: modules of equal shapes are different programs.
    """
    if len(set(map(shapes, states))) == 1:
        check_alike(modules[0], {f"models[{i}]": module for i, module in enumerate(modules)}, example)
        graph, checked = verified(trace(modules[0], example), example, weights=states[0], seed=seed)
        return graph, [checked]
    found = [
        verified(trace(module, example), example, weights=state, seed=seed)
        for module, state in zip(modules, states, strict=True)
    ]
    return common([graph for graph, _ in found]), [checked for _, checked in found]
