"""The parameters of one output tensor: each model's own and the tensor's, checked alone and together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isthmus.recipe.language.dialect import REQUIRED, Method, refused, summed_to_nothing
from isthmus.recipe.language.recipe import Recipe
from isthmus.recipe.language.text import Problems, Where
from isthmus.recipe.rows.misfits import Misfits
from isthmus.recipe.rows.settings import Level, Spot, block_levels, value_of


@dataclass(frozen=True)
class Source:
    """A model in a slice, or in the whole recipe.

    Args:
        model: the recipe's name of it.
        level: its own parameters.
        first: the layer that its range begins with; None without slices.
        where: its place in the recipe.
    """

    model: str
    level: Level | None
    first: int | None
    where: Where


@dataclass(frozen=True)
class Context:
    """What holds for all tensors of a slice.

    Args:
        sources: the models.
        base: the one that the others are compared with.
        levels: parameters of the slice, the module and the recipe, each with its place, highest first.
        where: the place of the sources.
    """

    sources: tuple[Source, ...]
    base: str | None
    levels: tuple[tuple[Where, Level | None], ...]
    where: Where


@dataclass(frozen=True)
class Values:
    """What is given for one tensor.

    Args:
        shared: parameters of the tensor as a whole.
        own: of each source; empty for the base.
        base: the index of the source that is the base, if one is.
    """

    shared: Mapping[str, object]
    own: tuple[Mapping[str, object], ...]
    base: int | None


class Given:
    """Parameters of tensors, looked up through all levels of a recipe.

    Args:
        recipe: as read.
        method: whose parameters they are.
        misfits: told of what is nowhere given, and of weights that sum to nothing.
        problems: told of values that the method cannot take, at the line that gives them.
    """

    def __init__(self, recipe: Recipe, method: Method, misfits: Misfits, problems: Problems):
        self._recipe = recipe
        self._method = method
        self._misfits = misfits
        self._problems = problems
        self._references = {str(reference): reference for _, reference in recipe.references()}

    def of(self, spot: Spot, context: Context, names: Sequence[str]) -> Values:
        """Parameters of a tensor.

        Args:
            spot: of the output.
            context: its slice.
            names: of the tensor in each source.
        """
        method = self._method
        common = self._levels(spot, context)
        shared = {
            name: self._value(name, spot, common, None, context.where, spot.name)
            for name in method.parameters
            if name not in method.per_model
        }
        base = self.base_of(context)
        own: list[Mapping[str, object]] = []
        for index, (source, name) in enumerate(zip(context.sources, names, strict=True)):
            levels = self._levels(spot, context, source)
            keys = () if index == base else method.per_model
            own.append({k: self._value(k, spot, levels, name, source.where, source.model) for k in keys})
        self._check(spot, context, names, shared, own)
        return Values(shared, tuple(own), base)

    def base_of(self, context: Context) -> int | None:
        """The index of the source that is the base, which has no parameters of its own; None where none is."""
        # The same model twice in a slice (other layers of it): the first is the base.
        models = [source.model for source in context.sources]
        return models.index(context.base) if self._method.base != "none" and context.base in models else None

    def _levels(
        self, spot: Spot, context: Context, source: Source | None = None
    ) -> list[tuple[Where, Level | None]]:
        """Every level that a tensor has, of a source or of all, with its place, highest first."""
        model = self._references.get(source.model) if source is not None else None
        own = [((*source.where, "parameters"), source.level)] if source is not None else []
        blocks = block_levels(self._recipe.isthmus.blocks, spot, model)
        return [
            *((("isthmus", "blocks", index, "parameters"), level) for index, level in blocks.items()),
            *own,
            *context.levels,
        ]

    def _value(
        self,
        name: str,
        spot: Spot,
        levels: Sequence[tuple[Where, Level | None]],
        source_name: str | None,
        where: Where,
        owner: str,
    ) -> object:
        default = self._method.parameters[name]
        if self._recipe.isthmus.convention == "paper" and default is not REQUIRED:
            default = None  # what is not given is then the rule's own default
        try:
            return value_of(name, default, spot, [level for _, level in levels], source_name)
        except LookupError:
            self._misfits.lacking[(name, where if source_name else None)].append(owner)
        except ValueError as error:
            said = f"{name} {error}"
            if not self._problems.has(said):  # at its own line, when the recipe was read
                self._problems.add(where, said)
        return None

    def _check(
        self,
        spot: Spot,
        context: Context,
        names: Sequence[str],
        shared: Mapping[str, object],
        own: Sequence[Mapping[str, object]],
    ) -> None:
        """What the method's arithmetic would refuse when the merge runs."""
        for name, said in refused(self._method, shared):
            self._problems.add(self._place(name, spot, self._levels(spot, context), None), f"{name} {said}")
        for source, source_name, values in zip(context.sources, names, own, strict=True):
            for name, said in refused(self._method, values):
                levels = self._levels(spot, context, source)
                self._problems.add(self._place(name, spot, levels, source_name), f"{name} {said}")
        if summed_to_nothing(self._method, shared, own):
            self._misfits.cancelled[context.where].append(spot.name)

    def _place(
        self, name: str, spot: Spot, levels: Sequence[tuple[Where, Level | None]], source_name: str | None
    ) -> Where:
        """Where the value of a parameter stands; the method's place for a default."""
        for place, level in levels:
            if level is not None and value_of(name, None, spot, [level], source_name) is not None:
                return (*place, name)
        return ("merge_method",)
