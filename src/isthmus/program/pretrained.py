"""Models of `transformers`, made from a configuration: without their weights, at any width, on any device.

Code that comes with a checkpoint is never run, and nothing is fetched but the configuration.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.errors import InputError, MissingExtraError, first_line
from isthmus.program.batches import Inputs

#: Answers of transformers models, the first that a model gives counts. Hidden states are the last resort: what a model
#: returns has names, and so would its residual stream.
_ANSWERS = (
    "logits",
    "logits_per_image",
    "prediction_logits",
    "predicted_depth",
    "prediction_outputs",
    "reconstruction",
    "pooler_output",
    "last_hidden_state",
)

#: Fields of a configuration that say how wide a model is. A guess: whether the narrower model has the structure
#: of the wide one is checked, operation by operation.
_WIDTH = re.compile(
    r"(hidden|intermediate|embedding|projection|ffn|moe|shared_expert|inner|feed_forward|head|state|conv)\w*_"
    r"(size|sizes|dim|dims|width|channels)$|^(d_model|d_ff|d_kv|d_inner|n_embd|n_inner|ffn_dim|head_dim|"
    r"hidden_size|hidden_sizes|embed_dim|embed_dims|dim|width|conv_dim|\w+_ffn_dim|\w+_lora_rank|qk_\w+_dim|v_head_dim|"
    r"rotary_dim|word_embed_proj_dim)$"
)

#: What looks like a width and is none.
_NO_WIDTH = re.compile(r"image|patch|kernel|window|chunk|vocab|num_|type_")


@dataclass(frozen=True)
class Pretrained:
    """A model that can be made, also at other sizes.

    Attributes:
        title: what messages call it.
        make: (fields of the configuration) -> (model, example inputs), on torch's default device.
        narrower: fields that make narrower models of the same structure, narrowest first.
    """

    title: str
    make: Callable[[Mapping[str, object]], tuple[nn.Module, Inputs]]
    narrower: Callable[[], Iterator[dict[str, object]]]


def library(name: str, extra: str) -> ModuleType:
    """Import a library of models; beside a torch that torchvision's operators do not fit, describe two of them.

    Args:
        name: of the package.
        extra: what the user asked for that needs it.

    Raises:
        MissingExtraError: it is not installed.
        InputError: it cannot be imported.
    """
    if importlib.util.find_spec(name) is None:
        raise MissingExtraError(f"{extra} needs the package {name}", hint=f"pip install {name}")
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise InputError(f"{name} cannot be imported", [str(error)]) from error
    # Wheels built for CUDA beside a torch for the CPU: their library does not load, and the import fails over the
    # shapes of operators that no traced model calls.
    for operator in ("nms", "qnms"):
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{operator}", schema)
    for loaded in [m for m in sys.modules if m.partition(".")[0] in ("torchvision", name)]:
        del sys.modules[loaded]
    return importlib.import_module(name)


def pretrained(path: str, options: Mapping[str, object] | None = None) -> Pretrained:
    """A transformers model by its configuration, not made yet; nothing of its weights is looked at.

    Args:
        path: a folder with a `config.json`, or a name on the hub.
        options: fields of the configuration to change; those of a part as "text_config.hidden_size".

    Raises:
        InputError: there is no such configuration, or it has no such field (when the model is made).
        MissingExtraError: transformers is not installed.
    """
    given = dict(options or {})
    if importlib.util.find_spec("torchvision") is not None:
        library("torchvision", "hf:PATH")  # transformers imports it
    transformers: Any = library("transformers", "hf:PATH")
    folder = Path(path).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(f"{path} is a folder without a config.json")
    if not folder.is_dir() and (path.count("/") > 1 or path.startswith((".", "/", "~"))):
        raise InputError(f"there is no folder {path}")
    transformers.logging.set_verbosity_error()

    def configured(more: Mapping[str, object]) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                config = transformers.AutoConfig.from_pretrained(
                    str(folder) if folder.is_dir() else path, trust_remote_code=False
                )
        except Exception as error:  # each configuration checks itself in its own way
            first = first_line(error)
            raise InputError(f"hf:{path} has no configuration that can be read", [first]) from error
        for key, value in {**given, **more}.items():
            *outer, last = key.split(".")
            part = config
            for name in outer:
                part = getattr(part, name, None)
            if part is None or not hasattr(part, last):
                raise InputError(f"the configuration of hf:{path} has no {key}")
            setattr(part, last, value)
        return config

    def make(more: Mapping[str, object]) -> tuple[nn.Module, Inputs]:
        config = configured(more)
        return _model(transformers, config, f"hf:{path}")

    def narrower() -> Iterator[dict[str, object]]:
        yield from _narrower(configured({}))

    return Pretrained(f"hf:{path}", make, narrower)


def stored_names(model: nn.Module) -> dict[str, str]:
    """Under which name each weight of a model lies in its files.

    transformers (since 5.0) writes some weights under names of earlier versions, and renames them as it loads.

    Args:
        model: of transformers or not; it may live on the meta device.

    Returns:
        Name in the model -> name in a file; without those that a file has in another form (experts that are stacked
        when they are loaded). Names of other models are the same.
    """
    state = model.state_dict(keep_vars=True)
    loading = sys.modules.get("transformers.core_model_loading")
    if not hasattr(model, "base_model_prefix") or loading is None:
        return {name: name for name in state}
    # What is only renamed is the same tensor afterwards. Tied weights are one tensor: each gets one of its own.
    own = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    written = {
        id(tensor): name for name, tensor in loading.revert_weight_conversion(model, dict(own)).items()
    }
    return {name: written[id(tensor)] for name, tensor in own.items() if id(tensor) in written}


def _model(transformers: Any, config: Any, title: str) -> tuple[nn.Module, Inputs]:
    """A transformers model with its answer as the only output, and inputs for it."""
    names = list(config.architectures or [])
    kind = getattr(transformers, names[0], None) if names else transformers.AutoModel
    if kind is None:
        raise InputError(
            f"{title} is of the class {names[0]}, which this transformers ({transformers.__version__}) has not",
            hint="code that comes with a checkpoint is not run",
        )
    for part in (config, *(v for v in vars(config).values() if hasattr(v, "use_cache"))):
        part.use_cache = False
    make = getattr(kind, "_from_config", None) or kind.from_config
    try:
        try:
            model = make(config, attn_implementation="sdpa", dtype=torch.float32)
        except (ValueError, ImportError):
            model = make(config, attn_implementation="eager", dtype=torch.float32)
    except Exception as error:
        raise InputError(f"{title} cannot be made from its configuration", [str(error)]) from error
    try:
        given = _inputs(model, config, title)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"inputs of {title} do not follow from its configuration", [str(error)]) from error
    known = tuple(given)

    def forward(self: Any, *tensors: Tensor) -> object:
        found = type(self).__mro__[1].forward(self, **dict(zip(known, tensors, strict=True)))
        return next((found[a] for a in _ANSWERS if a in found and found[a] is not None), found)

    # The class with another forward: the weights keep their names, as a module around it would not let them.
    model.__class__ = type(type(model).__name__, (type(model),), {"forward": forward})
    return model.eval(), tuple(given.values())


def _inputs(model: Any, config: Any, title: str) -> dict[str, Tensor]:
    """Example inputs that follow from a configuration: two texts, images, sounds, or pairs of them."""
    import inspect

    takes = inspect.signature(model.forward).parameters
    text = getattr(config, "text_config", None) or config
    vision = getattr(config, "vision_config", None) or config
    words = int(getattr(text, "vocab_size", 0) or 0)

    def number(part: Any, *names: str, default: int = 0) -> int:
        for name in names:
            value = getattr(part, name, None)
            if isinstance(value, (list, tuple)) and value:
                value = value[0]
            if isinstance(value, int) and value > 0:
                return value
        return default

    def tokens(length: int) -> Tensor:
        longest = number(text, "max_position_embeddings", "n_positions", default=length)
        length = min(length, max(longest - 2, 1))
        # Not the first ids: those are paddings and marks, which a model may treat in its own way.
        first = 3 if words > 6 else 0
        return torch.arange(2 * length).view(2, length) % max(words - first, 1) + first

    main = str(model.main_input_name)
    found: dict[str, Tensor] = {}
    beside = "pixel_values" in takes and main == "input_ids" and hasattr(vision, "patch_size")
    if beside or main == "pixel_values":
        size = number(vision, "image_size", default=224)
        found["pixel_values"] = torch.randn(2, number(vision, "num_channels", default=3), size, size)
    if main == "input_values":
        bins, frames = number(config, "num_mel_bins"), number(config, "max_length")
        length = 20 * number(config, "inputs_to_logits_ratio", default=320)
        found[main] = torch.randn(2, frames, bins) if bins and frames else torch.randn(2, length)
    elif main == "input_features":
        bins = number(config, "num_mel_bins", "feature_size", "input_feat_per_channel", default=80)
        frames = 2 * number(config, "max_source_positions", default=50)
        found[main] = torch.randn(2, bins, frames)
    if words and "input_ids" in takes and (main == "input_ids" or hasattr(config, "text_config")):
        found = {"input_ids": tokens(16), **found}
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes and words:
        found["decoder_input_ids"] = tokens(8)
    if main not in found:
        raise InputError(
            f"inputs of {type(model).__name__} ({title}) do not follow from its configuration: it takes {main}",
            hint="write a factory that returns the model, package.module:factory, and give --shape",
        )
    return found


def _narrower(config: Any) -> Iterator[dict[str, object]]:
    """Configurations of the same depth, heads and options and a fraction of the width, narrowest first.

    A width that a factor does not divide is rounded down, where it divides the others; the last has fewer words only.
    """
    widths: dict[str, list[int]] = {}
    words: dict[str, int] = {}
    parts = {"": config} | {f"{n}.": p for n, p in vars(config).items() if hasattr(p, "to_dict")}
    for prefix, part in parts.items():
        for name, value in vars(part).items():
            if name == "vocab_size" and isinstance(value, int):
                pad = getattr(part, "pad_token_id", None)
                words[f"{prefix}{name}"] = min(value, max(pad + 1 if isinstance(pad, int) else 0, 256))
            if not _WIDTH.search(name) or _NO_WIDTH.search(name):
                continue
            found = list(value) if isinstance(value, (list, tuple)) else [value]
            if found and all(type(n) is int and n > 0 for n in found):
                widths[f"{prefix}{name}"] = found
    sizes = {n for found in widths.values() for n in found}
    for factor in range(64, 0, -1):
        if 2 * sum(n % factor == 0 for n in sizes) < len(sizes):
            continue
        options: dict[str, object] = dict(words)
        for name, found in widths.items():
            small = [max(n // factor, 1) for n in found]
            given = getattr(
                parts[name.rpartition(".")[0] + "." if "." in name else ""], name.rpartition(".")[2]
            )
            options[name] = (
                small if isinstance(given, list) else tuple(small) if isinstance(given, tuple) else small[0]
            )
        yield options
