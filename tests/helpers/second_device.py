"""A second device where there is none: tensors that say they lie on "meta" and hold their data on the CPU.

As on a GPU, an operation refuses tensors of both devices (scalars and indices may come from the CPU), and `numpy` is
refused too. What is tested here would fail on a real device in the same places.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")

#: Operations whose arguments may lie on another device.
_ACROSS = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_to_copy", "aten::copy_"}


class There(Tensor):
    """A tensor on the second device."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> There:
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, raw.stride(), raw.storage_offset(), dtype=raw.dtype, device=DEVICE
        )
        made.raw = raw
        return made

    def tolist(self) -> Any:
        return self.raw.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError("a tensor of the second device is no array")
        return self.raw.numpy(force=True)

    def __deepcopy__(self, memo: dict[int, object]) -> There:
        return There(self.raw.clone())

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


class _Both(TorchDispatchMode):
    """Sees operations that make tensors, too."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


def _run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    there = [t for t in tensors if isinstance(t, There)]
    wanted = kwargs.get("device")
    to_there = wanted is not None and torch.device(wanted).type == DEVICE.type
    if not there and not to_there:
        return op(*args, **kwargs)
    name = op._schema.name
    if there and name not in _ACROSS and any(t.ndim and not isinstance(t, There) for t in tensors):
        raise RuntimeError(f"{name} has arguments on two devices")
    raw_args, raw_kwargs = pytree.tree_map(lambda t: t.raw if isinstance(t, There) else t, (args, kwargs))
    if wanted is not None:
        raw_kwargs["device"] = "cpu"
    found = op(*raw_args, **raw_kwargs)
    if wanted is not None and not to_there:
        return found.clone()
    if name == "aten::copy_" and not isinstance(args[0], There):
        return args[0]
    known = {id(t.raw): t for t in there} if op._schema.is_mutable else {}
    return pytree.tree_map(lambda t: known.get(id(t), There(t)) if isinstance(t, Tensor) else t, found)


def placed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict on the second device."""
    return {key: There(value.detach().clone()) for key, value in weights.items()}


@pytest.fixture
def second_device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The device, while it is there: in threads as well, which do not see their maker's modes."""
    submit, tensor = ThreadPoolExecutor.submit, torch.tensor

    def submitted(self: ThreadPoolExecutor, task: Any, *args: Any, **kwargs: Any) -> Any:
        def inside() -> Any:
            with _Both():
                return task(*args, **kwargs)

        return submit(self, inside)

    def made(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
        found = tensor(data, **kwargs)
        return found if device is None else found.to(device)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submitted)
    monkeypatch.setattr(torch, "tensor", made)
    with _Both():
        yield DEVICE
