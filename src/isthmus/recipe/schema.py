"""What may stand in a recipe: mergekit's YAML (0.1.5), and one block of our own.

The field names are mergekit's, and so is their meaning. What mergekit passes over without a word (a
misspelt key, a parameter that no method has) is an error here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

DTYPES = ("float32", "float16", "bfloat16", "float64")


#: What stands for a model, and for a range of layers, that the recipe gives wrongly: so that the rest can be read.
UNKNOWN_MODEL, UNKNOWN_LAYERS = "?", (0, 1 << 62)


class Strict(BaseModel):
    """A block of a recipe: no key that is not known, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Reference(Strict):
    """A model: `path@revision+adapter@revision`, the last three optional.

    Attributes:
        path: a folder, a file or the id of a Hugging Face repository.
        revision: of the repository.
        lora: folder or id of a LoRA adapter that is added to the model.
        lora_revision: of the adapter's repository.
    """

    path: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None

    def __str__(self) -> str:
        model = f"{self.path}@{self.revision}" if self.revision else self.path
        if not self.lora:
            return model
        return f"{model}+{self.lora}@{self.lora_revision}" if self.lora_revision else f"{model}+{self.lora}"


def _reference(value: object) -> object:
    """A model as mergekit writes it: text, or a mapping of its parts."""
    if isinstance(value, Reference):
        return value
    if isinstance(value, str):
        model, plus, lora = value.partition("+")
        if "+" in lora or value.count("@") > 1 + bool(plus) or model.count("@") > 1:
            raise ValueError(f"{value!r} is not path@revision+adapter@revision")
        path, _, revision = model.partition("@")
        adapter, _, adapter_revision = lora.partition("@")
        if not path.strip() or (plus and not adapter.strip()) or "\0" in value:
            raise ValueError(f"{value!r} names no model")
        return {
            "path": path,
            "revision": revision or None,
            "lora": adapter or None,
            "lora_revision": adapter_revision or None,
        }
    if isinstance(value, dict):
        return _from_parts(cast("dict[str, object]", value))
    raise ValueError(f"{_short(value)} is no model: write its path or its id as text")


def _from_parts(parts: dict[str, object]) -> dict[str, object]:
    """mergekit's long form: {model: path or {path, revision}, lora: the same}."""
    if unknown := set(parts) - {"model", "lora"}:
        raise ValueError(f"a model is text, or {{model: ..., lora: ...}}; {min(unknown)!r} is neither")
    found: dict[str, object] = {}
    for key, path, revision in (("model", "path", "revision"), ("lora", "lora", "lora_revision")):
        value = parts.get(key)
        if value is None and key == "lora":
            continue
        entry = cast("dict[str, object]", value) if isinstance(value, dict) else {"path": value}
        if not isinstance(entry.get("path"), str) or not set(entry) <= {"path", "revision"}:
            raise ValueError(f"{key} is text, or {{path: ..., revision: ...}}")
        name, _, at = str(entry["path"]).partition("@") if entry is not value else (entry["path"], "", "")
        found[path], found[revision] = name, entry.get("revision") or at or None
    return found


Model = Annotated[Reference, BeforeValidator(_reference)]

Scalar = bool | int | float | str


def _scalar(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    if isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{_short(value)} is no number, word or true/false")


Plain = Annotated[object, BeforeValidator(_scalar)]


def _gradient(value: object) -> object:
    if isinstance(value, list) and not value:
        raise ValueError("a list of values over the layers is empty")
    return cast("object", value)


Gradient = Annotated[list[Plain], BeforeValidator(_gradient)]


def _one_or_list(value: object) -> str:
    return "#list" if isinstance(value, list | tuple) else "#one"


Value = Annotated[
    Annotated[Plain, Tag("#one")] | Annotated[Gradient, Tag("#list")], Discriminator(_one_or_list)
]


class Filtered(Strict):
    """A value for the tensors whose names contain `filter` (all where it is absent or `*`)."""

    value: Value
    filter: str | None = None


def _kind(value: object) -> str:
    if isinstance(value, Filtered | dict):
        return "#filtered"
    if isinstance(value, list) and any(
        isinstance(item, dict | Filtered) for item in cast("list[object]", value)
    ):
        return "#filters"
    return _one_or_list(value)


#: A parameter: one value, a list over the layers, or such for some tensors.
Setting = Annotated[
    Annotated[Plain, Tag("#one")]
    | Annotated[Gradient, Tag("#list")]
    | Annotated[Filtered, Tag("#filtered")]
    | Annotated[list[Filtered], Tag("#filters")],
    Discriminator(_kind),
]

#: What the tags above begin with: pydantic names them in a place, where the YAML has no such key.
TAG = "#"

Parameters = dict[str, Setting]


class Input(Strict):
    """A model of `models:`."""

    model: Model
    parameters: Parameters | None = None


def _range(value: object) -> object:
    if not isinstance(value, list | tuple) or len(cast("list[object]", value)) != 2:
        raise ValueError(f"{_short(value)} is no range of layers: write [first, end), for example [0, 16]")
    first, end = cast("list[object]", value)
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in (first, end)):
        raise ValueError(f"{_short(value)} is no range of layers: both ends are whole numbers")
    if not 0 <= cast("int", first) < cast("int", end):
        raise ValueError(f"[{first}, {end}] holds no layer: the range begins at 0 and its end is not in it")
    return (first, end)


Layers = Annotated[tuple[int, int], BeforeValidator(_range)]


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


class ModelToken(Strict):
    """The row of another token of some model."""

    kind: Literal["model_token"]
    model: Model
    token_id: Annotated[int, Field(ge=0)] | None = None
    token: str | None = None


class Zero(Strict):
    """A row of zeros."""

    kind: Literal["zero"]


def _token_kind(value: object) -> str:
    if isinstance(value, ModelToken | Zero):
        return "#token" if isinstance(value, ModelToken) else "#parts"
    if isinstance(value, dict) and "kind" in value:
        return "#parts" if cast("dict[str, object]", value)["kind"] == "zero" else "#token"
    return "#model"


class Token(Strict):
    """Where the row of a token comes from, in models that lack it (with `force`, in all)."""

    source: Annotated[
        Annotated[ModelToken, Tag("#token")]
        | Annotated[Zero, Tag("#parts")]
        | Annotated[Model, Tag("#model")],
        Discriminator(_token_kind),
    ]
    force: bool = False


def _tokenizer_source(value: object) -> object:
    return value if value in ("union", "base") else _reference(value)


TokenizerSource = Annotated[Literal["union", "base"] | Reference, BeforeValidator(_tokenizer_source)]


class Tokenizer(Strict):
    """Which tokenizer the output has, and how its rows are made."""

    source: TokenizerSource = "union"
    tokens: dict[str, Token] | None = None
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None


class Preset(Strict):
    """A curve over all layers: `ramp` and `cosine` go from `from` to `to`, `peak` goes there and back."""

    preset: Literal["ramp", "cosine", "peak"]
    start: float = Field(0.0, alias="from")
    end: float = Field(1.0, alias="to")


def _block_kind(value: object) -> str:
    return "#preset" if isinstance(value, dict | Preset) else _one_or_list(value)


BlockValue = Annotated[
    Annotated[Plain, Tag("#one")] | Annotated[Gradient, Tag("#list")] | Annotated[Preset, Tag("#preset")],
    Discriminator(_block_kind),
]


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
        raise ValueError(f"{_short(value)} is no size: write it as 500MB or 2GB")
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


class Brought(Strict):
    """How models are brought together before they are merged.

    Attributes:
        reference: the model whose units the others are brought to; by default the base, else the first.
        graph: a file that `isthmus symmetry MODEL --save` wrote; by default symmetries are read off the model.
    """

    reference: Model | None = None
    graph: str | None = None


class ByParts(Brought):
    """Weight matching of models as they stream from their files, a few layers at a time.

    Attributes:
        method: by weights alone.
        residual: "identity" leaves residual streams as they are, "match" moves them too.
        max_sweeps: as for weight matching.
    """

    method: Literal["weight-matching"] = "weight-matching"
    residual: Literal["identity", "match"] = "identity"
    max_sweeps: Annotated[int, Field(ge=1)] = 100


class Whole(Brought):
    """Any registered alignment, of models that are held whole; its own options stand beside these keys.

    Attributes:
        method: its name, as `isthmus methods alignment` lists it.
    """

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    method: str

    @property
    def options(self) -> dict[str, object]:
        """The method's own options, as they are written."""
        # What is added to an alignment by parts does not make it move what was left alone.
        kept = {"residual": ByParts().residual} if self.method == ByParts().method else {}
        return {**kept, **(self.model_extra or {})}


def _aligning(value: object) -> object:
    return {"method": value} if isinstance(value, str) else value


def _align_kind(value: object) -> str:
    if isinstance(value, Whole):
        return "#whole"
    given = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    by_parts = given.get("method", ByParts().method) == ByParts().method
    return "#parts" if by_parts and set(given) <= set(ByParts.model_fields) else "#whole"


Align = ByParts | Whole

Aligning = Annotated[
    Annotated[Annotated[ByParts, Tag("#parts")] | Annotated[Whole, Tag("#whole")], Discriminator(_align_kind)]
    | None,
    BeforeValidator(_aligning),
]


def _repairing(value: object) -> object:
    if value is None or isinstance(value, str):
        return None if value is None else {"method": value}
    given = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if not isinstance(given.get("method"), str):
        raise ValueError(f"{_short(value)} is no repair: write its name, or {{method: NAME, OPTION: VALUE}}")
    return value


Repairing = Annotated[dict[str, object] | None, BeforeValidator(_repairing)]


def _page(value: object) -> object:
    if value is not None and not re.fullmatch(r"\w[\w .-]*\.html", str(value)):
        raise ValueError(f"{_short(value)} is no page: write a name such as report.html, without a folder")
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


def _dtype(value: object) -> object:
    if value is None:
        return None
    name = str(value).removeprefix("torch.")
    if not isinstance(value, str) or name not in DTYPES:
        from isthmus.recipe.text import nearest

        if name.startswith("float8_"):
            raise ValueError(
                f"{_short(value)} needs scales, and a recipe writes none: merge in bfloat16 and quantize the result, "
                "or write bare values by isthmus.merge_files(..., dtype=)"
            )
        raise ValueError(f"{_short(value)} is no dtype that is merged in{nearest(name, DTYPES)}")
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


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
