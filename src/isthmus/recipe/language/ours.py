"""The block `isthmus:` of a recipe, for what mergekit has not."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal, cast

from pydantic import BeforeValidator, Field

from isthmus.recipe.language.aligning import Aligning
from isthmus.recipe.language.layers import Layers
from isthmus.recipe.language.parameters import BlockValue
from isthmus.recipe.language.reference import Model
from isthmus.recipe.language.strict import Strict, short


class Block(Strict):
    """Parameters for some tensors, some layers, some model; the first block that fits wins over all levels.

    Attributes:
        match: a pattern of tensor names, with * and ?; all where absent.
        layers: a half-open range of the output's layers; all tensors where absent.
        model: the model that is meant; every model where absent.
        parameters: values, lists over the layers of the range, or presets over all layers.
    """

    match: str = "*"
    layers: Layers | None = None
    model: Model | None = None
    parameters: dict[str, BlockValue]


def read_size(value: object) -> int:
    """Bytes, written as a number or as 500MB, 2GB, 512MiB.

    Raises:
        ValueError: it is no size.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{short(value)} is no size: write it as 500MB or 2GB")
    text = str(value).strip().upper().removesuffix("B")
    units = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30}
    digits = text.rstrip("KMGTI")
    try:
        number = float(digits) * units.get(text[len(digits) :], 1 if digits == text else math.nan)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 1):
        raise ValueError(f"{value!r} is no size: write it as 500MB or 2GB")
    return int(number)


Size = Annotated[int, BeforeValidator(read_size)]


class Limits(Strict):
    """What the merge may use."""

    memory: Size | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    shard_size: Size | None = None


def _repairing(value: object) -> object:
    if value is None or isinstance(value, str):
        return None if value is None else {"method": value}
    given = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if not isinstance(given.get("method"), str):
        raise ValueError(f"{short(value)} is no repair: write its name, or {{method: NAME, OPTION: VALUE}}")
    return value


Repairing = Annotated[dict[str, object] | None, BeforeValidator(_repairing)]


def _page(value: object) -> object:
    if value is not None and not re.fullmatch(r"\w[\w .-]*\.html", str(value)):
        raise ValueError(f"{short(value)} is no page: write a name such as report.html, without a folder")
    return value


class Ours(Strict):
    """The block `isthmus:`, for what mergekit has not.

    Attributes:
        convention: whose arithmetic a method's name means: mergekit's, or its paper's.
        seed: of whatever is random.
        skip: patterns of tensors that are not merged but taken from the base (else the first model).
        blocks: parameters by pattern, range of layers, model.
        limits: memory, threads, bytes per file.
        licence: what the card says the licence is, where the parents' cannot be summed up.
        align: how models are brought together first; a method's name alone stands for its defaults.
        model: what weights are run in, as `--arch` has it ("isthmus.zoo:vgg16 base=16"); by default
            what the output's config.json describes.
        data: what it is run on, as `--data` has it; or "text:FILE", UTF-8 that the output's tokenizer cuts into tokens,
            each of which a causal language model foretells from those before it.
        calibration: at most this many examples are used to align and to repair, from the training data; 0 for all.
        validation: examples (or their share) kept from the training data, by which a repair is kept or not; by
            default those that the data comes with, else a tenth.
        repair: how activations get their statistics back; a method's name alone stands for its defaults.
        evaluate: measure parents and merge on the test data; by this a repair is kept or not.
        report: the name of a page to write into the output.
    """

    convention: Literal["mergekit", "paper"] = "mergekit"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    skip: list[str] = Field(default_factory=list[str])
    blocks: list[Block] = Field(default_factory=list[Block])
    limits: Limits = Limits()
    licence: str | None = None
    align: Aligning = None
    model: str | None = None
    data: str | None = None
    calibration: Annotated[int, Field(ge=0)] = 5000
    validation: Annotated[float | int, Field(gt=0)] | None = None
    repair: Repairing = None
    evaluate: Literal["accuracy", "loss"] | None = None
    report: Annotated[str | None, BeforeValidator(_page)] = None
