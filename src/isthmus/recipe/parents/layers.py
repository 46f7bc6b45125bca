"""Where the layers are, read off the names: `model.layers.3.mlp.up_proj.weight` is of layer 3.

mergekit keeps one description per architecture. Nearly all of them say one thing: layers are numbered, and
the number stands in the names. So a run of names that differ only in their first number, 0, 1, 2, ..., is
a stack of layers, in any architecture; and what has no number lies before the layers or after them, which
only its name can tell. What is guessed so is said in the plan.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_NUMBER = re.compile(r"(?<![^.])(\d+)(?![^.])")

# Words in the names of what lies behind the layers: the last norm, the head. Source: the pre_weights and
# post_weights of the architectures that transformers has, as their names show them.
_AFTER = re.compile(
    r"(^|[._])(lm_head|head|score|classifier|pooler|cls|predictions|qa_outputs|ln_f|final\w*|norm_f|norm|"
    r"layer_?norm|ln|post_layernorm|output|out|logits|vocab_transform|vocab_projector|vocab_layer_norm|embed_out)"
    r"([._]|$)",
    re.IGNORECASE,
)
_BEFORE = re.compile(r"(emb|wte|wpe|patch|token|tok_|position|conv|rotary|pre_|stem|shared)", re.IGNORECASE)


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts layer 2 before layer 10.

    Examples:
        >>> sorted(["h.10.w", "h.2.w", "h.b"], key=natural)
        ['h.2.w', 'h.10.w', 'h.b']
    """
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


@dataclass(frozen=True)
class Stack:
    """A run of numbered layers.

    Args:
        prefix: what stands before the number: `model.layers`.
        count: how many there are, from 0 on.
        members: what stands behind the number, of any layer.
    """

    prefix: str
    count: int
    members: tuple[str, ...]

    def name(self, layer: int, member: str) -> str:
        """The full name of a member in a layer."""
        return f"{self.prefix}.{layer}.{member}" if self.prefix else f"{layer}.{member}"


@dataclass(frozen=True)
class Layout:
    """The names of a model, in order.

    Args:
        stacks: by prefix.
        place: of each name in a stack: prefix, layer, member.
        before: names without a layer that lie before the layers.
        after: names without a layer that lie after them.
        unsure: names of these two of which nothing says where they lie.
    """

    stacks: Mapping[str, Stack]
    place: Mapping[str, tuple[str, int, str]]
    before: tuple[str, ...]
    after: tuple[str, ...]
    unsure: tuple[str, ...]

    def main(self, counts: Iterable[int] = ()) -> Stack | None:
        """The stack that `slices` without a module mean: the only one, or the only one of a known length."""
        known = set(counts)
        fitting = [s for s in self.stacks.values() if s.count in known] or list(self.stacks.values())
        return fitting[0] if len(fitting) == 1 else None


def numbered(name: str) -> tuple[str, int, str] | None:
    """What stands before the first number of a name, that number, and what stands behind it; None without one.

    Examples:
        >>> numbered("model.layers.3.mlp.experts.0.weight")
        ('model.layers', 3, 'mlp.experts.0.weight')
    """
    match = _NUMBER.search(name)
    if match is None or match.end() == len(name):
        return None
    return name[: match.start()].rstrip("."), int(match[1]), name[match.end() + 1 :]


def layout(names: Iterable[str]) -> Layout:
    """Read the layers off names.

    Args:
        names: of the tensors of one model, or of several alike.

    Examples:
        >>> found = layout(["embed.weight", "h.0.w", "h.1.w", "h.1.experts.0.w", "ln_f.bias"])
        >>> found.stacks["h"].count, found.before, found.after
        (2, ('embed.weight',), ('ln_f.bias',))
    """
    ordered = sorted(names, key=natural)
    groups: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    place: dict[str, tuple[str, int, str]] = {}
    for name in ordered:
        if (found := numbered(name)) is None:
            continue
        prefix, layer, member = place[name] = found
        groups[prefix][layer].append(member)
    stacks: dict[str, Stack] = {}
    for prefix, layers in groups.items():
        # Numbers that miss one, or whose members have nothing in common, are no layers but a list of
        # different things: nn.Sequential, branches.
        whole = sorted(layers) == list(range(len(layers)))
        shared = set.intersection(*(set(members) for members in layers.values()))
        if whole and shared and (len(layers) > 1 or len(shared) > 2):
            members = dict.fromkeys(member for layer in sorted(layers) for member in layers[layer])
            stacks[prefix] = Stack(prefix, len(layers), tuple(members))
    place = {name: spot for name, spot in place.items() if spot[0] in stacks}
    before, after, unsure = _around([name for name in ordered if name not in place])
    return Layout(stacks, place, before, after, unsure)


def _around(names: list[str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    before: list[str] = []
    after: list[str] = []
    unsure: list[str] = []
    for name in names:
        # The innermost module that says something decides: embeddings.LayerNorm lies before.
        if _BEFORE.search(name) and not name.startswith(("cls.", "lm_head", "embed_out")):
            before.append(name)
        elif _AFTER.search(name):
            after.append(name)
        else:
            before.append(name)
            unsure.append(name)
    return tuple(before), tuple(after), tuple(unsure)


# Where configurations of transformers keep the number of layers.
_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "n_layers",
    "encoder_layers",
    "decoder_layers",
    "num_encoder_layers",
    "num_decoder_layers",
    "depth",
)

# Words that tell one stack of a model from another, in names of tensors and in keys of configurations alike.
_KINDS = {
    "encoder": ("encoder",),
    "decoder": ("decoder",),
    "vision": ("vision", "visual", "image"),
    "audio": ("audio", "speech"),
}


def counts(config: Mapping[str, object]) -> dict[tuple[str, ...], int]:
    """Every number of layers in a configuration, with the path of its key."""
    found: dict[tuple[str, ...], int] = {}
    for key, value in config.items():
        if key in _COUNTS and isinstance(value, int) and not isinstance(value, bool):
            found[(key,)] = value
        elif (key.endswith("_config") or key in _KINDS) and isinstance(value, dict):
            for path, count in counts(value).items():
                found[(key, *path)] = count
    return found


def counted(config: Mapping[str, object], stacks: Mapping[str, int]) -> dict[tuple[str, ...], str]:
    """Which stack of layers each number of a configuration counts.

    It is one of as many layers. Of several such the names decide: `decoder_layers` and `vision_config`. A number
    that names none counts the stack that no other number names, else the encoder, as in transformers.

    Args:
        config: of a model.
        stacks: its numbers of layers, by prefix.

    Returns:
        The prefix, by the path of the number's key; without numbers that may count several stacks, or none.

    Examples:
        >>> numbers = {"num_hidden_layers": 6, "encoder_layers": 6, "decoder_layers": 6}
        >>> counted(numbers, {"encoder.layers": 6, "decoder.layers": 6})[("num_hidden_layers",)]
        'encoder.layers'
    """
    numbers = counts(config)
    if len(numbers) == len(stacks) == 1:  # whatever it says: some models store a layer more than they count
        return dict(zip(numbers, stacks, strict=True))
    near: dict[tuple[str, ...], list[str]] = {}
    strange: dict[tuple[str, ...], int] = {}
    for path, number in numbers.items():
        said = _kinds("_".join(path))
        apart = {
            prefix: (len(said - _kinds(prefix)), len(_kinds(prefix) - said))
            for prefix, count in stacks.items()
            if count == number
        }
        least = min(apart.values(), default=(0, 0))
        near[path], strange[path] = [prefix for prefix in apart if apart[prefix] == least], least[0]
    named = {prefixes[0] for prefixes in near.values() if len(prefixes) == 1}
    for path, prefixes in near.items():
        if len(prefixes) > 1:
            left = [prefix for prefix in prefixes if prefix not in named]
            near[path] = left or [prefix for prefix in prefixes if "encoder" in _kinds(prefix)]
    found = {path: prefixes[0] for path, prefixes in near.items() if len(prefixes) == 1}
    # A number of a part that the model has not, as of the images that a language model was trained with.
    least = {p: min(strange[path] for path in found if found[path] == p) for p in found.values()}
    return {path: prefix for path, prefix in found.items() if strange[path] == least[prefix]}


def _kinds(name: str) -> set[str]:
    words = set(re.split(r"[._]", name.lower()))
    return {kind for kind, told in _KINDS.items() if words & set(told)}
