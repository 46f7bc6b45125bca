"""The tokenizer that a recipe asks for, and rows of single tokens."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from pydantic import BeforeValidator, Discriminator, Field, Tag

from isthmus.recipe.language.reference import Model, Reference, read_reference
from isthmus.recipe.language.strict import Strict, short
from isthmus.recipe.language.text import nearest


class ModelToken(Strict):
    """The row of another token of some model."""

    kind: Literal["model_token"]
    model: Model
    token_id: Annotated[int, Field(ge=0)] | None = None
    token: str | None = None


class Zero(Strict):
    """A row of zeros."""

    kind: Literal["zero"]


_KINDS = ("model_token", "zero")


def _token_kind(value: object) -> str:
    if isinstance(value, ModelToken | Zero):
        return "#token" if isinstance(value, ModelToken) else "#parts"
    if isinstance(value, dict) and "kind" in value:
        return "#parts" if cast("dict[str, object]", value)["kind"] == "zero" else "#token"
    return "#model"


def _known_kind(value: object) -> object:
    kind = cast("dict[str, object]", value).get("kind", "zero") if isinstance(value, dict) else "zero"
    if kind not in _KINDS:
        raise ValueError(f"no kind of row is called {short(kind)}{nearest(str(kind), _KINDS)}")
    return value


class Token(Strict):
    """Where the row of a token comes from, in models that lack it (with `force`, in all)."""

    source: Annotated[
        Annotated[ModelToken, Tag("#token")]
        | Annotated[Zero, Tag("#parts")]
        | Annotated[Model, Tag("#model")],
        Discriminator(_token_kind),
        BeforeValidator(_known_kind),
    ]
    force: bool = False


def _tokenizer_source(value: object) -> object:
    return value if value in ("union", "base") else read_reference(value)


TokenizerSource = Annotated[Literal["union", "base"] | Reference, BeforeValidator(_tokenizer_source)]


class Tokenizer(Strict):
    """Which tokenizer the output has, and how its rows are made."""

    source: TokenizerSource = "union"
    tokens: dict[str, Token] | None = None
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None
