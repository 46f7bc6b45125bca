"""What the verbs share: architectures, checkpoints and data named on the command line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from isthmus.errors import InputError, MismatchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from isthmus.comparing import Splits
    from isthmus.program import Inputs, Variant
    from isthmus.program.keep import Outputs
    from isthmus.zoo import Dataset, Loader

ARCH = "The architecture, as package.module:factory (or torchvision:NAME); key=value arguments go to it."
ARCHS = (
    f"{ARCH} Of checkpoints of several widths repeat it, one for each in order, its own arguments within: "
    "--arch 'isthmus.zoo:vgg16 base=8'."
)
MODEL = (
    "torchvision:NAME, timm:NAME, hf:PATH (a folder or hub name with a config.json), "
    "package.module:factory, or a graph that was saved (.json)."
)
WIDTHS = (
    "--arch takes arguments, as base=16; align and merge also take checkpoints of several widths: repeat --arch, "
    "one for each in order"
)
EXAMPLE = "Shape of one input with its batch, such as 2,3,32,32; without, that of --data, or the model's own."
KINDS = "digits, cifar10:FOLDER, fashion-mnist:FOLDER, npz:FILE, or a path to one of these"
DATA = f"Data: {KINDS}."
OPTIONS = "With options of its own as 'NAME KEY=VALUE', in quotes."


def build(arch: str | None, arguments: dict[str, object]) -> nn.Module:
    """Make the architecture that `--arch` names.

    Raises:
        InputError: none is named, no such module or factory, or arguments it does not take.
    """
    if arch is None:
        raise InputError(
            "which architecture the checkpoints are of is not known",
            hint="--arch package.module:factory, for example --arch isthmus.zoo:vgg16 base=16",
        )
    from isthmus.program import named

    name, given = _own(arch, arguments)
    try:
        return named.build(name, given)
    except InputError as error:
        raise InputError(f"--arch {error.what}", error.where, error.hint) from error


def build_each(archs: Sequence[str], arguments: dict[str, object], paths: Sequence[str]) -> list[nn.Module]:
    """The architecture of each checkpoint: one module for all of them, or one for each.

    Args:
        archs: as typed, in the order of the checkpoints; arguments within the text of one are its own.
        arguments: of all of them.
        paths: the checkpoints.

    Raises:
        InputError: there is neither one nor one for each; or as `build`.
    """
    if len(archs) > 1 and len(archs) != len(paths):
        raise InputError(
            f"--arch is given {len(archs)} times for {len(paths)} checkpoints",
            hint="once for all of them, or once for each, in the same order",
        )
    if len(archs) > 1:
        return [build(arch, arguments) for arch in archs]
    return [build(archs[0] if archs else None, arguments)] * len(paths)


def _own(arch: str, arguments: dict[str, object]) -> tuple[str, dict[str, object]]:
    """The name of an architecture and its arguments: those in its text, and those that stand beside it.

    Raises:
        InputError: the text names none, or several.
    """
    hint = "--arch isthmus.zoo:vgg16, or with arguments of its own --arch 'isthmus.zoo:vgg16 base=16'"
    name, own = _words(arch, "--arch", "architecture", hint)
    return name, {**arguments, **own}


def method(text: str, option: str) -> str | dict[str, object]:
    """A method as typed: its name, or in one text its name and its options.

    Args:
        text: "zipit", or "zipit alpha=0.3 beta=0.125".
        option: of the command line, for errors.

    Raises:
        InputError: the text names none, or several.
    """
    name, own = _words(
        text, option, "method", f"{option} NAME, or with options of its own {option} 'NAME KEY=VALUE'"
    )
    return {"method": name, **own} if own else name


def repairs(texts: Sequence[str] | None) -> Literal["best"] | list[str | dict[str, object]] | None:
    """Repairs to choose among, as typed: each as `method` reads it, or all that there are ("best")."""
    if not texts:
        return None
    return "best" if list(texts) == ["best"] else [method(text, "--repair") for text in texts]


def _words(text: str, option: str, kind: str, hint: str) -> tuple[str, dict[str, object]]:
    """The one name in a text, and its arguments."""
    from isthmus.program import named

    try:
        names, own = named.separate(shlex.split(text))
    except ValueError as error:  # a quotation without an end
        raise InputError(f"{option} {text} names no {kind}", [str(error)], hint) from None
    if len(names) != 1:
        raise InputError(f"{option} {text!r} names {len(names)} {kind}s", hint=hint)
    return names[0], own


def example(
    arch: str, arguments: dict[str, object], splits: Splits | None, shape: str | None, tokens: bool
) -> Inputs:
    """Inputs to read the architecture with: the first of the data, or of the shape that was given.

    Args:
        arch: the architecture.
        arguments: of its factory.
        splits: the data, where there is some.
        shape: as typed.
        tokens: whether inputs are integers.

    Raises:
        InputError: no shape was given, and small images do not fit.
    """
    if splits is not None and shape is None:
        from isthmus.program import first_example

        return first_example(splits.calibration)
    from isthmus.program import named

    asked = named.find(*_own(arch, arguments), sizes(shape), tokens)
    model, made = asked.make({})
    if shape is None and not asked.weigh:  # a factory, which does not say what its model takes
        try:
            model(made)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"what --arch {arch} takes is not known, and images of 3 x 32 x 32 do not fit",
                [str(error).splitlines()[0]],
                hint="--shape 2,1,8,8, the shape of a batch; or --data",
            ) from error
    return made


def sizes(shape: str | None) -> tuple[int, ...] | None:
    """A shape as it is typed: sizes separated by commas.

    Raises:
        InputError: it is no such thing.
    """
    if shape is None:
        return None
    try:
        found = tuple(int(n) for n in shape.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise InputError(f"--shape {shape}: sizes separated by commas are expected", hint="--shape 2,3,32,32")
    return found


def checkpoint(path: str, model: nn.Module) -> dict[str, Tensor]:
    """Read a checkpoint that fits an architecture, in the architecture's dtypes.

    Raises:
        MismatchError: keys or shapes disagree; all of them are listed.
    """
    from isthmus import weights
    from isthmus.program.module import completed

    state = model.state_dict()
    found = completed(weights.load(path), model)
    try:
        weights.check_same(dict(state), found, ("the architecture", path))
    except MismatchError as error:
        same = state.keys() == found.keys()
        hint = WIDTHS if same else f"{error.hint}; --arch takes arguments, as base=16"
        raise MismatchError(error.what, error.where, hint) from None
    weights.check_finite(found, path)
    # A checkpoint may be stored in half precision; the architecture says what it computes in.
    return {key: found[key].to(value.dtype) for key, value in state.items()}


def names(paths: Sequence[str]) -> list[str]:
    """What checkpoints are called: as their files, by whole paths where these have one name; each differently."""
    found = [Path(path).stem for path in paths]
    if len(set(found)) < len(found):
        found = [str(Path(path).with_suffix("")) for path in paths]
    return [
        f"{name} ({found[: place + 1].count(name)})" if found.count(name) > 1 else name
        for place, name in enumerate(found)
    ]


def dataset(spec: str | None, validation: int | None, seed: int) -> Dataset:
    """Open the data that `--data` names, with a validation split kept from its training data."""
    if spec is None:
        raise InputError("data is needed", hint=f"--data {KINDS}")
    from isthmus.zoo import open_data

    return open_data(spec).split(validation=validation, seed=seed)


def splits(images: Dataset, calibration: int | None, validation: int | None, test: int | None) -> Splits:
    """The loaders of a comparison: calibration and validation from the training data, and test.

    Args:
        images: with a validation split.
        calibration: at most this many; all where None.
        validation: likewise.
        test: likewise.
    """
    from isthmus.comparing import Splits

    def loader(split: str, limit: int | None) -> Loader:
        return images.loader(split, batch_size=250, limit=limit)

    sizes = {
        "training": len(images.arrays("train")[1]),
        "calibration": loader("train", calibration).samples,
        "validation": loader("validation", validation).samples,
        "test": loader("test", test).samples,
    }
    return Splits(loader("train", calibration), loader("validation", validation), loader("test", test), sizes)


def variant(name: str) -> Variant:
    """Check the name of a variant."""
    if name == "junction":
        return "junction"
    if name == "paper":
        return "paper"
    raise InputError(f"--variant {name} is neither junction nor paper")


def outputs(name: str) -> Outputs:
    """Check what is made of outputs that are kept apart."""
    if name == "average":
        return "average"
    if name == "each":
        return "each"
    raise InputError(f"--outputs {name} is neither average nor each")


def depths(texts: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Ranges of layers as typed: "3-5", or "4" for one layer.

    Raises:
        InputError: one is no such thing; all of them are listed.
    """
    found: list[tuple[int, int]] = []
    wrong: list[str] = []
    for text in texts:
        low, dash, high = text.partition("-")
        if low.isdecimal() and (high.isdecimal() if dash else True):
            found.append((int(low), int(high if dash else low)))
        else:
            wrong.append(text)
    if wrong:
        raise InputError(
            "--depths takes ranges of layers, counted from 1", wrong, hint="--depths 3-5 --depths 8"
        )
    return tuple(found)
