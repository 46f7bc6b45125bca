"""What may stand in a recipe: mergekit's YAML (0.1.5), and one block of our own.

The field names are mergekit's, and so is their meaning. What mergekit passes over without a word (a
misspelt key, a parameter that no method has) is an error here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field

from isthmus.recipe.language.layers import UNKNOWN_LAYERS, Layers
from isthmus.recipe.language.ours import Ours
from isthmus.recipe.language.parameters import Parameters
from isthmus.recipe.language.reference import UNKNOWN_MODEL, Model, Reference
from isthmus.recipe.language.strict import Strict, short
from isthmus.recipe.language.text import nearest
from isthmus.recipe.language.tokens import Tokenizer, TokenizerSource

DTYPES = ("float32", "float16", "bfloat16", "float64")


class Input(Strict):
    """A model of `models:`."""

    model: Model
    parameters: Parameters | None = None


class SliceInput(Input):
    """A model's layers in a slice: `layer_range` is half open, the end is not in it."""

    layer_range: Layers


class Slice(Strict):
    """Some layers of the output, and what they are made of."""

    sources: Annotated[list[SliceInput], Field(min_length=1)]
    base_model: Model | None = None
    residual_weight: float | None = None
    parameters: Parameters | None = None


class Module(Strict):
    """A part of the model that is merged by itself: the language model, the vision tower."""

    models: list[Input] | None = None
    slices: list[Slice] | None = None
    parameters: Parameters | None = None


def _dtype(value: object) -> object:
    if value is None:
        return None
    name = str(value).removeprefix("torch.")
    if not isinstance(value, str) or name not in DTYPES:
        if name.startswith("float8_"):
            raise ValueError(
                f"{short(value)} needs scales, and a recipe writes none: merge in bfloat16 and quantize the result, "
                "or write bare values by isthmus.merge_files(..., dtype=)"
            )
        raise ValueError(f"{short(value)} is no dtype that is merged in{nearest(name, DTYPES)}")
    return name


Dtype = Annotated[str | None, BeforeValidator(_dtype)]


class Recipe(Strict):
    """A whole recipe."""

    models: list[Input] | None = None
    slices: list[Slice] | None = None
    modules: dict[str, Module] | None = None
    merge_method: str
    base_model: Model | None = None
    dtype: Dtype = None
    out_dtype: Dtype = None
    parameters: Parameters | None = None
    tokenizer_source: TokenizerSource | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    name: str | None = None
    isthmus: Ours = Ours()

    @property
    def tokenizes(self) -> bool:
        """Whether rows of tokens are remade for one tokenizer."""
        return self.tokenizer is not None or self.tokenizer_source is not None

    def references(self) -> Iterator[tuple[tuple[str | int, ...], Reference]]:
        """Every model that is merged, with its place, in the order of the file, base first."""
        if self.base_model is not None:
            yield ("base_model",), self.base_model
        parts: list[tuple[tuple[str | int, ...], Module | Recipe]] = [((), self)]
        parts += [(("modules", name), module) for name, module in (self.modules or {}).items()]
        for where, part in parts:
            for i, entry in enumerate(part.models or ()):
                yield (*where, "models", i, "model"), entry.model
            for i, piece in enumerate(part.slices or ()):
                if piece.base_model is not None:
                    yield (*where, "slices", i, "base_model"), piece.base_model
                for j, source in enumerate(piece.sources):
                    yield (*where, "slices", i, "sources", j, "model"), source.model

    @property
    def readable(self) -> bool:
        """Whether nothing in it stands for what could not be read."""
        parts: list[Module | Recipe] = [self, *(self.modules or {}).values()]
        sources = [source for part in parts for piece in part.slices or () for source in piece.sources]
        return all(str(reference) != UNKNOWN_MODEL for _, reference in self.references()) and all(
            source.layer_range != UNKNOWN_LAYERS for source in sources
        )

    def settings(self) -> Iterator[tuple[tuple[str | int, ...], Mapping[str, object]]]:
        """Every block of parameters, with its place."""
        if self.parameters:
            yield ("parameters",), self.parameters
        parts: list[tuple[tuple[str | int, ...], Module | Recipe]] = [((), self)]
        for name, module in (self.modules or {}).items():
            parts.append((("modules", name), module))
            if module.parameters:
                yield ("modules", name, "parameters"), module.parameters
        for where, part in parts:
            for i, entry in enumerate(part.models or ()):
                if entry.parameters:
                    yield (*where, "models", i, "parameters"), entry.parameters
            for i, piece in enumerate(part.slices or ()):
                if piece.parameters:
                    yield (*where, "slices", i, "parameters"), piece.parameters
                for j, source in enumerate(piece.sources):
                    if source.parameters:
                        yield (*where, "slices", i, "sources", j, "parameters"), source.parameters
        for i, block in enumerate(self.isthmus.blocks):
            yield ("isthmus", "blocks", i, "parameters"), block.parameters
