"""What the verbs share: architectures, checkpoints and data named on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isthmus.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from isthmus.comparing import Splits
    from isthmus.program import Inputs, Variant
    from isthmus.zoo import Dataset, Loader

ARCH = "The architecture, as package.module:factory (or torchvision:NAME); key=value arguments go to it."
MODEL = (
    "torchvision:NAME, timm:NAME, hf:PATH (a folder or hub name with a config.json), "
    "package.module:factory, or a graph that was saved (.json)."
)
EXAMPLE = "Shape of one input with its batch, such as 2,3,32,32; without, that of --data, or the model's own."
DATA = "Data: digits, cifar10:FOLDER, fashion-mnist:FOLDER, npz:FILE, or a path to one of these."


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

    try:
        return named.build(arch, arguments)
    except InputError as error:
        raise InputError(f"--arch {error.what}", error.where, error.hint) from error


def example(
    arch: str | None, arguments: dict[str, object], splits: Splits | None, shape: str | None, tokens: bool
) -> Inputs:
    """Inputs to read the architecture with: the first of the data, or of the shape that was given.

    Args:
        arch: the architecture.
        arguments: of its factory.
        splits: the data, where there is some.
        shape: as typed.
        tokens: whether inputs are integers.
    """
    if splits is not None and shape is None:
        from isthmus.merging import first_example

        return first_example(splits.calibration)
    from isthmus.program import named

    assert arch is not None, "it has been built"
    return named.find(arch, arguments, sizes(shape), tokens).make({})[1]


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
