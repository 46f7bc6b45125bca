"""One row: a tensor's parts found in its sources, and how they become one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

from isthmus.recipe.language.dialect import METHODS, Method
from isthmus.recipe.language.recipe import Recipe
from isthmus.recipe.language.text import Problems
from isthmus.recipe.parents.headers import Entry
from isthmus.recipe.parents.parent import Parent
from isthmus.recipe.parents.sizes import NAMES, promoted
from isthmus.recipe.rows.arithmetic import refusal
from isthmus.recipe.rows.misfits import Misfits
from isthmus.recipe.rows.row import Part, Row
from isthmus.recipe.rows.settings import Spot
from isthmus.recipe.rows.values import Context, Given
from isthmus.recipe.tokens.names import EMBEDDINGS, HEADS, is_tokens
from isthmus.recipe.tokens.vocabulary import Vocabulary

# Buffers that are computed, not learned, and that old checkpoints carry: their absence is no loss.
_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|position_ids|attn\.(masked_)?bias|attention\.(masked_)?bias)$")


class Made:
    """Rows as they are made, one tensor after another.

    Args:
        recipe: as read.
        method: by which tensors are merged.
        parents: by the recipe's own names.
        vocabulary: where rows of tokens are remade.
        misfits: told of tensors that cannot be merged.
        problems: told of values that a rule cannot take.

    Attributes:
        rows: by the output's names.
    """

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        parents: Mapping[str, Parent],
        vocabulary: Vocabulary | None,
        misfits: Misfits,
        problems: Problems,
    ):
        self._recipe = recipe
        self._method = method
        self._parents = parents
        self._vocabulary = vocabulary
        self._misfits = misfits
        self._problems = problems
        self._given = Given(recipe, method, misfits, problems)
        self.rows: dict[str, Row] = {}

    def row(self, spot: Spot, context: Context, names: Sequence[str]) -> None:
        """Make one row, or take into account why there is none.

        Args:
            spot: of the output.
            context: of its slice.
            names: of the tensor in each source.
        """
        found = [
            self._resolve(source.model, name) for source, name in zip(context.sources, names, strict=True)
        ]
        if not any(found):
            # A member that only other layers have, or a head that is the embedding everywhere.
            return
        self._misfits.met(
            spot, [source.model for source in context.sources], found, self._given.base_of(context)
        )
        if self._misfits.skips(spot.name):
            self._skip(spot.name, context, found)
            return
        lacking = [s.model for s, name in zip(context.sources, found, strict=True) if name is None]
        if lacking:
            if _BUFFERS.search(spot.name):
                self._misfits.dropped.add(spot.name)
            else:
                self._misfits.missing[tuple(lacking)].append(spot.name)
            return
        entries = [self._entry(s.model, cast("str", n)) for s, n in zip(context.sources, found, strict=True)]
        tokens = self._vocabulary is not None and any(
            is_tokens(cast("str", n), e.shape[0] if e.shape else 0, self._parents[s.model].vocabulary_size)
            for s, n, e in zip(context.sources, found, entries, strict=True)
        )
        shapes = [
            ((self._vocabulary.size, *e.shape[1:]) if tokens and self._vocabulary else e.shape)
            for e in entries
        ]
        if len(set(shapes)) > 1 or len({entry.learned for entry in entries}) > 1:
            self._misfits.mismatched.append(
                (spot.name, [(s.model, str(e)) for s, e in zip(context.sources, entries, strict=True)])
            )
            return
        if not entries[0].learned:
            parts = tuple(Part(s.model, cast("str", n)) for s, n in zip(context.sources, found, strict=True))
            self.rows[spot.name] = Row(spot.name, shapes[0], entries[0].dtype, "agreed", parts)
            return
        self._merged(spot, context, cast("list[str]", found), entries, shapes[0], tokens)

    def _merged(
        self,
        spot: Spot,
        context: Context,
        names: Sequence[str],
        entries: Sequence[Entry],
        shape: tuple[int, ...],
        tokens: bool,
    ) -> None:
        given = self._given.of(spot, context, names)
        parts = tuple(
            Part(source.model, name, own, index == given.base)
            for index, (source, name, own) in enumerate(zip(context.sources, names, given.own, strict=True))
        )
        dtype = self._recipe.out_dtype or self._recipe.dtype or promoted([NAMES[e.dtype] for e in entries])
        row = Row(spot.name, shape, dtype, "merged", parts, given.shared, tokens)
        self.rows[spot.name] = row
        # mergekit's words are checked by themselves; what is left to a rule is the rule's to judge, which needs torch.
        ours = self._recipe.isthmus.convention == "paper" or self._method.name not in METHODS
        if ours and not self._problems.found and (said := refusal(self._recipe, row)) is not None:
            self._problems.add(("merge_method",), "\n".join([said.what, *said.where]), said.hint)

    def _resolve(self, model: str, name: str) -> str | None:
        """A tensor's name in a model; a head that a model does not store may be its embedding."""
        parent = self._parents[model]
        entries = parent.checkpoint.entries
        if name in entries:
            return name
        if HEADS.search(name) and parent.tied:
            embeddings = [key for key in entries if EMBEDDINGS.search(key)]
            heads = [p for p in self._parents.values() if name in p.checkpoint.entries]
            if len(embeddings) == 1 and heads:
                self._misfits.ties[model] += 1
                return embeddings[0]
        return None

    def _entry(self, model: str, name: str) -> Entry:
        return self._parents[model].checkpoint.entries[name]

    def _skip(self, name: str, context: Context, found: Sequence[str | None]) -> None:
        order = sorted(
            zip(context.sources, found, strict=True), key=lambda pair: pair[0].model != context.base
        )
        for source, there in order:
            if there is not None:
                self.copy(name, source.model, there)
                return

    def copy(self, name: str, model: str, there: str) -> None:
        """Make a row of one model's tensor as it is.

        Args:
            name: of the tensor in the output.
            model: the recipe's name of the model.
            there: the tensor's name in it.
        """
        entry = self._entry(model, there)
        dtype = (
            (self._recipe.out_dtype or self._recipe.dtype or NAMES[entry.dtype])
            if entry.learned
            else entry.dtype
        )
        shape, tokens = entry.shape, False
        if self._vocabulary and is_tokens(
            there, shape[0] if shape else 0, self._parents[model].vocabulary_size
        ):
            shape, tokens = (self._vocabulary.size, *shape[1:]), True
        self.rows[name] = Row(name, shape, dtype, "copied", (Part(model, there),), {}, tokens)
