"""A model and data that fit each other, at hand."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from isthmus import weights
from isthmus.program import Batch, first_example
from isthmus.program.batches import example_of
from isthmus.program.module import completed
from isthmus.program.pretrained import stored_names
from isthmus.recipe.language.ours import Ours
from isthmus.recipe.planning.rig import Rig
from isthmus.recipe.running.texts import LENGTH, Batches, Text, read_text
from isthmus.zoo import Dataset, Loader, open_data

_BATCH = 250


class Bench:
    """What a recipe's weights are run in and on, made before the merge: what cannot be done is said then.

    Attributes:
        model: the architecture; its own weights mean nothing.
        data: what it is run on; None where it is run on nothing.

    Args:
        rig: what is to be made.
        ours: the recipe's block.
        device: "meta" for a model that is looked at and never run.

    Raises:
        IsthmusError: the data cannot be read, or the model not be made.
    """

    def __init__(self, rig: Rig, ours: Ours, device: str = "cpu"):
        with (
            torch.random.fork_rng(devices=[]),
            torch.device(device),
        ):  # factories draw weights, all are replaced
            self.model, self._own_example = rig.make()
        self._names = stored_names(self.model)
        self._rig, self._ours = rig, ours
        self.data: Dataset | Text | None = self._read_data() if rig.data else None

    def _read_data(self) -> Dataset | Text:
        if self._rig.text is None:
            return open_data(self._rig.data).split(validation=self._ours.validation, seed=self._ours.seed)
        with torch.no_grad():
            answer = self.model(torch.zeros(1, 2, dtype=torch.long))
        longest = getattr(getattr(self.model, "config", None), "max_position_embeddings", LENGTH)
        return read_text(
            self._rig.text, self._rig.tokenizer, answer.shape[-1], self._ours.validation, int(longest)
        )

    def loader(self, split: str, limit: int | None = None) -> Loader | Batches:
        """Batches of a split of the data: at most `limit` examples."""
        assert self.data is not None
        return self.data.loader(split, batch_size=_BATCH, limit=limit)

    @property
    def calibration(self) -> Loader | Batches:
        """As many examples of the training data as the recipe says."""
        return self.loader("train", self._ours.calibration or None)

    @property
    def example(self) -> Batch:
        """Two examples of the data, or the model's own."""
        return example_of(self._own_example) if self.data is None else first_example(self.calibration)

    def fitted(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state of the model, under its own names and in its dtypes.

        Args:
            tensors: under the names that files have.

        Raises:
            MismatchError: names or shapes disagree.
        """
        own = self.model.state_dict()
        mine = {stored: name for name, stored in self._names.items()}
        found = completed({mine.get(name, name): tensor for name, tensor in tensors.items()}, self.model)
        weights.check_same(own, found, ("the model", "the checkpoint"))
        return {name: found[name].to(tensor.dtype) for name, tensor in own.items()}

    def stored(self, name: str) -> str:
        """The name that a tensor of the model has in files."""
        return self._names.get(name, name)
