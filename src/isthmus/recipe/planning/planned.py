"""What a recipe comes to, as plain data: everything that a merge will do, before it does it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from isthmus.recipe.language.dialect import Method
from isthmus.recipe.language.methods import method_of
from isthmus.recipe.language.recipe import Recipe
from isthmus.recipe.output.folder import Beside
from isthmus.recipe.parents.parent import Parent
from isthmus.recipe.planning.afterwards import Afterwards
from isthmus.recipe.planning.alignment import Moving
from isthmus.recipe.planning.rig import Rig
from isthmus.recipe.rows.row import Row
from isthmus.recipe.tokens.vocabulary import Vocabulary


@dataclass(frozen=True)
class Planned:
    """What a plan holds; `isthmus.Plan` adds what it takes, how it reads, and how it is done.

    Args:
        path: the recipe's file.
        text: as written.
        recipe: as read.
        parents: the models, by the recipe's own names.
        rows: one per output tensor, in natural order of their names.
        vocabulary: the output's tokens, where the recipe asks for a tokenizer.
        files: what the output holds beside the tensors and the card.
        notes: what was inferred, changed, left out or not read.
        graph: the file of symmetries that the recipe aligns by, where it names one.
        after: what is done with the merged model, where the recipe asks for a repair or an evaluation.
        moving: how models are brought together, where they are held whole for it.
        rig: what weights are run in and on, where any are.
    """

    path: Path
    text: str
    recipe: Recipe
    parents: Mapping[str, Parent]
    rows: tuple[Row, ...]
    vocabulary: Vocabulary | None
    files: tuple[Beside, ...]
    notes: tuple[str, ...] = ()
    graph: Path | None = None
    after: Afterwards | None = None
    moving: Moving | None = None
    rig: Rig | None = None

    @property
    def method(self) -> Method:
        """The method, as mergekit has it."""
        name = self.recipe.merge_method
        return method_of(name) or Method(name, name, {})

    @property
    def bytes_written(self) -> int:
        """Bytes of all output tensors."""
        return sum(row.nbytes for row in self.rows)

    @property
    def bytes_read(self) -> int:
        """Bytes of all inputs, each as often as it is read."""
        total = 0
        for row in self.rows:
            times = self.method.passes if row.how == "merged" else 1
            for part in row.parts if row.how != "copied" else row.parts[:1]:
                total += times * self.parents[part.model].checkpoint.entries[part.name].nbytes
        return total

    @property
    def threads(self) -> int:
        """How many threads work."""
        return self.recipe.isthmus.limits.threads or min(os.cpu_count() or 1, 8)

    @property
    def runs(self) -> bool:
        """Whether models are run, rather than looked at."""
        return self.after is not None or (self.moving is not None and self.moving.symmetries == "program")

    def is_base(self, name: str) -> bool:
        """Whether a parent is the recipe's base model."""
        return self.recipe.base_model is not None and str(self.recipe.base_model) == name
