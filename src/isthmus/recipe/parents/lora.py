"""LoRA adapters as PEFT writes them: which tensor each factor belongs to, and its scale.

    W' = W + (alpha / r) B A        with rank-stabilised LoRA: alpha / sqrt(r)

Source: Hu et al., LoRA, arXiv:2106.09685, section 4.1; Kalajdzievski, arXiv:2312.03732; the files and keys are those
of PEFT (adapter_config.json, adapter_model.safetensors). A kind that this cannot express is refused: to leave out a
part of an adapter would give a model that nobody trained.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from isthmus.errors import InputError, WeightsError
from isthmus.recipe.parents.headers import Checkpoint, read


@dataclass(frozen=True)
class Factor:
    """A low-rank addition to one weight."""

    up: str
    down: str
    scale: float
    transposed: bool


@dataclass(frozen=True)
class Adapter:
    """An adapter, matched to the tensors of its base.

    Args:
        path: of its safetensors file.
        factors: by the name of the weight that they are added to.
        replaced: weight of the base -> tensor of the adapter that stands in its place
            (`modules_to_save`, and biases that were trained).
        checkpoint: its headers.
        rank: largest rank of a factor.
        remote: where its weights are on the hub, `org/name@commit`, if they are not here yet; a run fetches them.
    """

    path: Path
    factors: Mapping[str, Factor]
    replaced: Mapping[str, str]
    checkpoint: Checkpoint
    rank: int
    remote: str | None = None


#: The files of an adapter, by PEFT's names.
SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


# Keys of adapter_config.json that say nothing of the arithmetic of a trained adapter, or that are read below.
# Any other key with a value that is not empty is refused, so that a later kind of LoRA is not taken for this one.
_HARMLESS = frozenset(
    "alpha_pattern auto_mapping base_model_name_or_path bias ensure_weight_tying eva_config exclude_modules"
    " fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform loftq_config lora_alpha"
    " lora_dropout megatron_core modules_to_save peft_type peft_version qalora_group_size r rank_pattern revision"
    " target_modules task_type use_rslora".split()
)

# Ways to begin that leave the base alone; the others (PiSSA, OLoRA, CorDA, LoftQ) also change its weights.
_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")


def read_adapter(path: Path, base: Checkpoint, held: Checkpoint | None = None) -> Adapter:
    """Read an adapter's configuration and headers, and find the weight that each tensor belongs to.

    Args:
        path: the adapter's folder.
        base: headers of the model that it was trained on.
        held: its headers, where its weights are not in the folder yet.

    Raises:
        WeightsError: the folder holds no adapter, or a broken one.
        InputError: it is of a kind that cannot be applied, or of another model; all reasons are listed.
    """
    settings_file, weights_file = path / SETTINGS, path / WEIGHTS
    if not settings_file.is_file() or not (held or weights_file.is_file()):
        missing = settings_file if not settings_file.is_file() else weights_file
        hint = (
            "save it with peft's save_pretrained"
            if not (path / "adapter_model.bin").is_file()
            else ("it is a pickle: load it with peft and save it again, which writes safetensors")
        )
        raise WeightsError(f"{path} is no LoRA adapter: it has no {missing.name}", hint=hint)
    try:
        content: object = json.loads(settings_file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{settings_file} is not readable JSON", [str(error)]) from None
    if not isinstance(content, dict):
        raise WeightsError(f"{settings_file} is no JSON object")
    settings = cast("dict[str, object]", content)
    wrong = _refusals(settings)
    held = held or read(weights_file)
    factors, replaced, strange = _match(held, base, settings)
    if wrong or strange:
        raise InputError(
            f"the adapter {path} cannot be added to its model",
            [*wrong, *strange],
            hint="merge it with peft's merge_and_unload, and name the folder of the result",
        )
    rank = max((min(held.entries[f.up].shape) for f in factors.values()), default=0)
    return Adapter(weights_file, factors, replaced, held, rank)


def _refusals(settings: Mapping[str, object]) -> list[str]:
    wrong: list[str] = []
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        wrong.append(f"it is a {kind} adapter, not LORA")
    for key, value in settings.items():
        if key not in _HARMLESS and value:
            wrong.append(f"{key} = {json.dumps(value)[:60]}: this arithmetic is not known here")
    if settings.get("init_lora_weights") not in _BEGINNINGS:
        wrong.append(
            f"init_lora_weights = {settings['init_lora_weights']!r}: it changed the model's own weights too"
        )
    for key in ("alpha_pattern", "rank_pattern"):
        patterns = settings.get(key)
        if isinstance(patterns, dict):
            wrong += [
                f"{key} has {name!r}: only plain names of modules are read"
                for name in cast("dict[str, object]", patterns)
                if not re.fullmatch(r"\^?[\w.-]+", name)
            ]
    if settings.get("bias", "none") not in ("none", "all", "lora_only"):
        wrong.append(f"bias = {settings['bias']!r} is not known")
    if kind == "LORA" and (not _positive(settings.get("r")) or not _number(settings.get("lora_alpha"))):
        wrong.append("r and lora_alpha are not both numbers")
    return wrong


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_PREFIX = "base_model.model."
_FACTOR = re.compile(r"\.lora_(A|B|embedding_A|embedding_B)(\.weight)?$")
_SAVED = re.compile(r"\.modules_to_save(\.[^.]+)?(?=\.)")


def _match(
    held: Checkpoint, base: Checkpoint, settings: Mapping[str, object]
) -> tuple[dict[str, Factor], dict[str, str], list[str]]:
    """Sort the adapter's tensors to the base's; the third is what fits nothing."""
    halves: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    strange: list[str] = []
    for name in held.entries:
        bare = name.removeprefix(_PREFIX)
        if match := _FACTOR.search(bare):
            target = _find(f"{bare[: match.start()].replace('.base_layer', '')}.weight", base)
            half = "A" if match[1].endswith("A") else "B"
            if target is None:
                strange.append(f"{name}    fits no tensor of the model")
            else:
                halves.setdefault(target, {})[half] = name
                if match[1].startswith("embedding"):
                    halves[target]["embedding"] = name
            continue
        target = _find(_SAVED.sub("", bare).replace(".base_layer", ""), base)
        if target is None or ".lora_" in bare:
            strange.append(f"{name}    is no part of a LoRA adapter that is known here")
        elif held.entries[name].shape != base.entries[target].shape:
            strange.append(f"{name}    {held.entries[name].shape} for {target} {base.entries[target].shape}")
        else:
            replaced[target] = name
    factors: dict[str, Factor] = {}
    for target, pair in halves.items():
        if "A" not in pair or "B" not in pair:
            strange.append(f"{target}    has one half of a factor only")
        elif (factor := _factor(target, pair, held, base, settings)) is None:
            a, b = held.entries[pair["A"]].shape, held.entries[pair["B"]].shape
            strange.append(f"{target}    {base.entries[target].shape} is not B {b} times A {a}")
        else:
            factors[target] = factor
    return factors, replaced, strange


def _find(name: str, base: Checkpoint) -> str | None:
    """The base's name of a tensor: adapters are saved with the prefix of the class they were trained in."""
    if name in base.entries:
        return name
    for prefix in ("model.", "transformer.", "bert.", "roberta."):
        if name.removeprefix(prefix) in base.entries:
            return name.removeprefix(prefix)
        if prefix + name in base.entries:
            return prefix + name
    return None


def _factor(
    target: str, pair: Mapping[str, str], held: Checkpoint, base: Checkpoint, settings: Mapping[str, object]
) -> Factor | None:
    down, up = held.entries[pair["A"]].shape, held.entries[pair["B"]].shape
    weight = base.entries[target].shape
    if len(down) != 2 or len(up) != 2 or len(weight) != 2 or up[1] != down[0]:
        return None
    rank = down[0]
    module = target.removesuffix(".weight")
    alpha = _pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha", rank))
    own_rank = _pattern(settings.get("rank_pattern"), module, settings.get("r", rank))
    if not _number(alpha) or own_rank != rank:
        return None
    scale = cast("float", alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    # An embedding adds (B A)^T: its factors are A (r, tokens) and B (width, r).
    transposed = bool(settings.get("fan_in_fan_out")) or "embedding" in pair
    product = (up[0], down[1])
    if transposed and (product[1], product[0]) == weight:
        return Factor(pair["B"], pair["A"], scale, True)
    # PEFT itself corrects fan_in_fan_out where the layer is an nn.Linear.
    if product == weight and ("embedding" not in pair or product[0] == product[1]):
        return Factor(pair["B"], pair["A"], scale, False)
    if (product[1], product[0]) == weight:
        return Factor(pair["B"], pair["A"], scale, True)  # Conv1D, likewise corrected by PEFT
    return None


def _pattern(patterns: object, module: str, default: object) -> object:
    """A value by PEFT's patterns: keys are regular expressions for the end of a module's name."""
    if isinstance(patterns, dict):
        for key, value in cast("dict[str, object]", patterns).items():
            plain = re.escape(key.lstrip("^"))
            if re.search(rf"(^|\.){plain}$", module):
                return value
    return default
