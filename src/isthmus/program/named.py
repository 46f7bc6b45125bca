"""Models named in text: `torchvision:NAME`, `timm:NAME`, `hf:PATH` or `package.module:factory`."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from isthmus.program.batches import Inputs

#: How a model is named, for messages.
USAGE = (
    "torchvision:NAME, timm:NAME, hf:PATH (a folder or hub name with a config.json) or package.module:factory"
)

#: The shape of an input where nothing else is known: small images.
SHAPE = (2, 3, 32, 32)


@dataclass(frozen=True)
class Named:
    """A model that can be made, also at other sizes.

    Attributes:
        title: what the user called it.
        make: (options) -> (model, example), on torch's default device.
        narrower: options of narrower models, narrowest first.
        weigh: whether it is made on the meta device first, to see whether it fits.
    """

    title: str
    make: Callable[[Mapping[str, object]], tuple[nn.Module, Inputs]]
    narrower: Callable[[], Iterator[dict[str, object]]] = lambda: iter(())
    weigh: bool = True


def find(name: str, options: Mapping[str, object], shape: Sequence[int] | None, tokens: bool) -> Named:
    """What a name means.

    Args:
        name: as the user wrote it.
        options: arguments of the factory.
        shape: of the input; None for what the model says itself.
        tokens: whether the input is integers.

    Raises:
        InputError: there is no such model, or it does not say what it takes.
        MissingExtraError: the library that has it is not installed.
    """
    source, colon, rest = name.partition(":")
    if not colon or not rest:
        raise InputError(f"{name!r} names no model", hint=f"a model is {USAGE}")
    if source == "torchvision":
        return _torchvision(rest, options, shape)
    if source == "timm":
        return _timm(rest, options, shape)
    if source == "hf":
        if shape is not None or tokens:
            raise InputError(
                "--shape and --tokens do not go with hf:, whose inputs follow from its config.json",
                hint="to trace it as you call it, write a factory: package.module:factory",
            )
        from isthmus.program.pretrained import pretrained

        found = pretrained(rest, options)
        return Named(found.title, found.make, found.narrower)

    def make(more: Mapping[str, object]) -> tuple[nn.Module, Inputs]:
        return build(name, {**options, **more}), _example(shape or SHAPE, tokens)

    said = " ".join([name, *(f"{key}={value}" for key, value in options.items())])
    return Named(said, make, weigh=False)


def imported(
    name: str, kind: str, option: str = "", broken: tuple[type[Exception], ...] = (ImportError,)
) -> Callable[..., Any]:
    """What `package.module:name` means; a module of the current folder is found as python would find it.

    Args:
        name: as typed; `torchvision:name` is one of its models.
        kind: what is looked for, in errors: "factory", "function".
        option: that the name was given to, in errors.
        broken: what importing the module may raise.

    Raises:
        InputError: no such module, or nothing to call in it.
    """
    said = f"{option} {name}".lstrip()
    module_name, colon, attribute = name.partition(":")
    if not colon or not attribute:
        raise InputError(f"{said}: a {kind} is missing", hint=f"write it as package.module:{kind}")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(
            "torchvision.models" if module_name == "torchvision" else module_name
        )
    except broken as error:
        raise InputError(f"{said}: {module_name} cannot be imported", [str(error)]) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise InputError(f"{said}: {module_name} has no {kind} {attribute!r}")
    return found


def build(name: str, options: Mapping[str, object]) -> nn.Module:
    """Call the factory that a name means.

    Args:
        name: `package.module:factory`, or `torchvision:NAME`.
        options: arguments of the factory.

    Raises:
        InputError: no such module or factory, or arguments it does not take.
    """
    # RuntimeError: what a torchvision built for another torch says.
    factory = imported(name, "factory", broken=(ImportError, RuntimeError))
    try:
        model = factory(**options)
    except TypeError as error:
        raise InputError(f"{name}: {error}") from error
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        raise InputError(
            f"{name} made no model",
            [f"{type(error).__name__}: {said[0]}"],
            hint="its arguments are given as KEY=VALUE behind its name",
        ) from error
    from torch import nn

    if not isinstance(model, nn.Module):
        raise InputError(f"{name} made a {type(model).__name__}, not a torch module")
    return model.eval()


def separate(items: Sequence[str]) -> tuple[list[str], dict[str, object]]:
    """Tell names and files from key=value arguments of an architecture.

    Values are read as JSON where they are JSON (16, true, [1, 2]) and as text otherwise (bn).

    Args:
        items: words, as a shell or a recipe gives them.

    Examples:
        >>> separate(["isthmus.zoo:vgg16", "base=16", "norm=bn"])
        (['isthmus.zoo:vgg16'], {'base': 16, 'norm': 'bn'})
    """
    paths: list[str] = []
    arguments: dict[str, object] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if equals and key.isidentifier() and not Path(item).exists():
            try:
                arguments[key] = json.loads(value)
            except json.JSONDecodeError:
                arguments[key] = value
        else:
            paths.append(item)
    return paths, arguments


def _example(shape: Sequence[int], tokens: bool = False) -> Tensor:
    import torch

    return torch.ones(list(shape), dtype=torch.long) if tokens else torch.randn(list(shape))


def _known(name: str, names: Sequence[str], source: str) -> None:
    if name not in names:
        import difflib

        near = difflib.get_close_matches(name, names, 3)
        raise InputError(
            f"{source} has no model {name!r}", hint=f"did you mean {', '.join(near)}?" if near else None
        )


def _torchvision(name: str, options: Mapping[str, object], shape: Sequence[int] | None) -> Named:
    from isthmus.program.pretrained import library

    library("torchvision", "torchvision:NAME")
    models = importlib.import_module("torchvision.models")
    _known(name, models.list_models(), "torchvision")
    module = str(models.get_model_builder(name).__module__)
    if shape is None and ".detection" in module:
        raise InputError(
            f"torchvision:{name} chooses boxes by value, which no exported graph can hold",
            hint="trace its backbone: a factory of your own, package.module:factory, that returns model.backbone",
        )
    size = 299 if name == "inception_v3" else 224
    video = (2, 3, 16, size, size) if ".video" in module else None

    def make(more: Mapping[str, object]) -> tuple[nn.Module, Inputs]:
        given: dict[str, object] = {"weights": None}
        if ".segmentation" in module or ".detection" in module:
            given["weights_backbone"] = None
        if name in ("googlenet", "inception_v3"):
            given["init_weights"] = False
        model = _called(models.get_model, f"torchvision:{name}", name, **{**given, **options, **more})
        return model.eval(), _example(shape or video or (2, 3, size, size))

    return Named(f"torchvision:{name}", make)


def _timm(name: str, options: Mapping[str, object], shape: Sequence[int] | None) -> Named:
    from isthmus.program.pretrained import library

    library("torchvision", "timm:NAME")
    timm: Any = library("timm", "timm:NAME")
    _known(name.partition(".")[0], timm.list_models(), "timm")

    def make(more: Mapping[str, object]) -> tuple[nn.Module, Inputs]:
        model = _called(timm.create_model, f"timm:{name}", name, **{**options, **more})
        size = options.get("img_size")
        usual = tuple(getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224)))
        if isinstance(size, int):
            usual = (usual[0], size, size)
        return model.eval(), _example(shape or (2, *usual))

    return Named(f"timm:{name}", make)


def _called(function: Callable[..., Any], title: str, *args: object, **options: object) -> Any:
    try:
        return function(*args, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise InputError(f"{title} cannot be made with {options}", [str(error)]) from error
