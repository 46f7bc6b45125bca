"""What the verbs share: architectures, checkpoints and data named on the command line."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isthmus.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from isthmus.comparing import Splits
    from isthmus.program import Variant
    from isthmus.zoo import Dataset, Loader

ARCH = "The architecture, as package.module:factory (or torchvision:NAME); key=value arguments go to it."
DATA = "Data: digits, cifar10:FOLDER, fashion-mnist:FOLDER, npz:FILE, or a path to one of these."


def separate(items: Sequence[str]) -> tuple[list[str], dict[str, object]]:
    """Tell files from key=value arguments of the architecture.

    Values are read as JSON where they are JSON (16, true, [1, 2]) and as text otherwise (bn).
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


def build(arch: str | None, arguments: dict[str, object]) -> nn.Module:
    """Make the architecture that `--arch` names.

    Raises:
        InputError: no such module or factory, or arguments it does not take.
    """
    if arch is None:
        raise InputError(
            "which architecture the checkpoints are of is not known",
            hint="--arch package.module:factory, for example --arch isthmus.zoo:vgg16 base=16",
        )
    module_name, colon, name = arch.partition(":")
    if not colon or not name:
        raise InputError(f"--arch {arch}: a factory is missing", hint="write it as package.module:factory")
    # A factory in a file of the current folder is found as python would find it.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(
            "torchvision.models" if module_name == "torchvision" else module_name
        )
    except (ImportError, RuntimeError) as error:
        # RuntimeError: what a torchvision built for another torch says.
        raise InputError(f"--arch {arch}: {module_name} cannot be imported", [str(error)]) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise InputError(f"--arch {arch}: {module_name} has no factory {name!r}")
    try:
        model = factory(**arguments)
    except TypeError as error:
        raise InputError(f"--arch {arch}: {error}") from error
    from torch import nn

    if not isinstance(model, nn.Module):
        raise InputError(f"--arch {arch} made a {type(model).__name__}, not a torch module")
    return model.eval()


def checkpoint(path: str, model: nn.Module) -> dict[str, Tensor]:
    """Read a checkpoint that fits an architecture, in the architecture's dtypes.

    Raises:
        MismatchError: keys or shapes disagree; all of them are listed.
    """
    from isthmus import weights
    from isthmus.merging import completed

    state = model.state_dict()
    found = completed(weights.load(path), model)
    weights.check_same(dict(state), found, ("the architecture", path))
    weights.check_finite(found, path)
    # A checkpoint may be stored in half precision; the architecture says what it computes in.
    return {key: found[key].to(value.dtype) for key, value in state.items()}


def dataset(spec: str | None, validation: int | None, seed: int) -> Dataset:
    """Open the data that `--data` names, with a validation split kept from its training data."""
    if spec is None:
        raise InputError("data is needed", hint=f"--data: {DATA}")
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
