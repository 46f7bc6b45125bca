"""Whether modules of equal shapes are one program: weights do not say how many heads there are, or which activation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from isthmus.errors import REFUSALS, MismatchError, first_line
from isthmus.program.batches import Batch, Inputs, example_of, home
from isthmus.program.evaluating import evaluating

#: The largest difference of outputs, relative to the largest output, that counts as rounding.
ROUNDING = 1e-3


def check_alike(module: nn.Module, others: Mapping[str, nn.Module], example: Inputs) -> None:
    """Refuse modules that compute something else than `module` would with their weights.

    Each runs once on the example, and `module` once with its weights; inputs are cast to where these are. What draws
    random numbers draws the same ones. Where `module` itself does not take the example, or weights are on the meta
    device, nothing is said.

    Args:
        module: the architecture that stands for all.
        others: name -> a module whose weights have the same names and shapes.
        example: inputs as for `isthmus.trace`.

    Raises:
        MismatchError: some do; all are listed.

    Examples:
        >>> from torch import nn
        >>> nets = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 4), nn.Tanh())]
        >>> check_alike(nets[0], {"models[0]": nets[0]}, torch.ones(2, 4))
        >>> try:
        ...     check_alike(nets[0], {"models[1]": nets[1]}, torch.ones(2, 4))
        ... except MismatchError as error:
        ...     print(error.what)
        the modules are not one program, though their weights have the same names and shapes
    """
    batch = example_of(example)
    wrong: list[str] = []
    if any(value.is_meta for value in module.state_dict().values()):
        return
    for name, other in others.items():
        state = {key: value.detach() for key, value in other.state_dict().items()}
        if other is module or any(value.is_meta for value in state.values()):
            continue
        inputs = batch.to(*home(state))
        try:
            ours = _outputs(module, state, inputs)
        except REFUSALS:  # it is not known to take this example: reading it will say so
            continue
        try:
            theirs = _outputs(other, state, inputs)
        except torch.OutOfMemoryError:
            raise
        except REFUSALS as error:
            wrong.append(f"{name}    does not take the example: {first_line(error)}")
            continue
        if len(ours) != len(theirs):
            wrong.append(f"{name}    returns {len(theirs)} tensors, the architecture {len(ours)}")
        elif how := next(filter(None, map(_apart, ours, theirs)), None):
            wrong.append(f"{name}    {how}")
    if wrong:
        raise MismatchError(
            "the modules are not one program, though their weights have the same names and shapes",
            wrong,
            hint="build them with the same settings (numbers of heads, activations, strides): weights of one mean "
            "something else in the other",
        )


def _outputs(module: nn.Module, state: Mapping[str, Tensor], batch: Batch) -> list[Tensor]:
    with evaluating(module), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        found = torch.func.functional_call(module, dict(state), batch.args, batch.kwargs, tie_weights=False)
    return [value for value in pytree.tree_leaves(found) if isinstance(value, torch.Tensor)]


def _apart(ours: Tensor, theirs: Tensor) -> str | None:
    """How two outputs differ, by more than rounding."""
    if ours.shape != theirs.shape:
        return f"returns {tuple(theirs.shape)}, and with its weights the architecture {tuple(ours.shape)}"
    a, b = (value.detach().to("cpu", torch.float64).nan_to_num() for value in (ours, theirs))
    if not a.numel():
        return None
    difference, largest = float((a - b).abs().max()), float(b.abs().max())
    if difference <= ROUNDING * largest:
        return None
    away = f"{difference:.2g} away from what the architecture computes with its weights"
    return f"is {away} (largest output {largest:.2g})"
