"""What weights are run in and on, where a recipe asks for more than a merge: checked before there is any merge.

The model is made on the meta device: its names and shapes are compared with the plan's, and no weight is held.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isthmus.errors import InputError, IsthmusError
from isthmus.recipe.language.ours import Ours
from isthmus.recipe.language.text import Problems, Where
from isthmus.recipe.parents import places
from isthmus.recipe.parents.layers import counts, natural
from isthmus.recipe.rows.row import Row

if TYPE_CHECKING:
    from torch import nn

    from isthmus.program import Inputs

#: What is said where a model is missing, or where there is no data.
MODEL_HINT = (
    "model: isthmus.zoo:vgg16 base=16, torchvision:NAME, timm:NAME, hf:PATH or package.module:factory, "
    "as isthmus merge --arch has it"
)
DATA_HINT = "data: digits, npz:FILE, cifar10:FOLDER or fashion-mnist:FOLDER; text:FILE for a language model"
_TEXT = "text:"


@dataclass(frozen=True)
class Rig:
    """A model that can be made, and data to run it on.

    Args:
        model: what weights are run in, as the recipe says; empty for what the configuration describes.
        data: what it is run on, with the path that was found; empty where it is run on nothing.
        config: the output's config.json; empty where it has none.
        tokenizer: the output's tokenizer.json; empty where it has none, or the data is no text.
    """

    model: str
    data: str
    config: str = ""
    tokenizer: str = ""

    @property
    def text(self) -> Path | None:
        """The text that it is run on, where the data is one."""
        return Path(self.data.removeprefix(_TEXT)) if self.data.startswith(_TEXT) else None

    def make(self) -> tuple[nn.Module, Inputs]:
        """The model and an example of its inputs, on torch's default device.

        Raises:
            InputError: there is no such model, or it cannot be made.
            MissingExtraError: the library that has it is not installed.
        """
        from isthmus.program.named import find, separate

        if not self.model:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "config.json").write_text(self.config)
                try:
                    return find(f"hf:{folder}", {}, None, False).make({})
                except IsthmusError as error:
                    raise _without(f"hf:{folder}", "the output's config.json", error) from None
        try:
            names, options = separate(shlex.split(self.model))
        except ValueError as error:  # a quotation without an end
            raise InputError(f"{self.model!r} names no model", [str(error)], MODEL_HINT) from None
        if len(names) != 1:
            raise InputError(f"{self.model!r} names {len(names)} models", hint=MODEL_HINT)
        return find(names[0], options, None, False).make({})


def _without(folder: str, name: str, error: IsthmusError) -> IsthmusError:
    where = [line.replace(folder, name) for line in error.where]
    return type(error)(error.what.replace(folder, name), where, error.hint)


def read(ours: Ours, roots: Sequence[Path], inside: Path | None, problems: Problems) -> Rig:
    """What a recipe names to be run, whose model is not looked at yet.

    Args:
        ours: the recipe's block.
        roots: folders that relative paths begin in.
        inside: where given, the recipe is not trusted: it names no code, and no data outside this folder.
        problems: told what is wrong.
    """
    if ours.model is not None and inside is not None and not ours.model.startswith("isthmus.zoo:"):
        problems.add(
            ("isthmus", "model"),
            f"{ours.model.split()[0]} is code, and a recipe from inside a model runs none but isthmus.zoo",
            "if you trust it, run the recipe.yml beside the model",
        )
    return Rig(ours.model or "", _find_data(ours, roots, inside, problems))


def _find_data(ours: Ours, roots: Sequence[Path], inside: Path | None, problems: Problems) -> str:
    if ours.data is None:
        return ""
    from isthmus.zoo.data import find_data

    try:
        if ours.data.startswith(_TEXT):
            kind, path = "text", places.find(ours.data.removeprefix(_TEXT), roots)
            if path is None or not path.is_file():
                raise InputError(f"{ours.data}: there is no such file")
        else:
            kind, path = find_data(ours.data, roots)
    except IsthmusError as error:
        problems.add(
            ("isthmus", "data"), error.what, error.hint and f"{error.hint}; text:FILE for a language model"
        )
        return ""
    if path is not None and inside is not None and not path.resolve().is_relative_to(inside.resolve()):
        problems.add(
            ("isthmus", "data"),
            f"{ours.data} is not in {inside}, and a recipe from inside a model leads nowhere else",
        )
    return kind if path is None else f"{kind}:{path.absolute()}"


def check_fit(rig: Rig, place: Where, traced: bool, rows: Sequence[Row], problems: Problems) -> None:
    """Compare the model with what will be written, by names and shapes.

    Args:
        rig: with the output's configuration.
        place: what asks for it.
        traced: whether it is run, rather than looked at.
        rows: of the plan.
        problems: told what does not fit.
    """
    import torch

    place = ("isthmus", "model") if rig.model else place
    layers = max(counts(json.loads(rig.config)).values(), default=0) if rig.config and not rig.model else 0
    if layers > len(rows):  # a model of so many would take its time to make, on any device
        problems.add(place, f"config.json says {layers:,} layers, and there are {len(rows)} tensors")
        return
    try:
        try:
            with torch.device("meta"):
                model, example = rig.make()
        except (RuntimeError, NotImplementedError):  # a factory that computes with what it has drawn
            model, example = rig.make()
    except IsthmusError as error:
        problems.add(place, "\n".join([error.what, *error.where]), error.hint)
        return
    if rig.data and rig.text is None and not _takes_images(example):
        problems.add(
            place,
            f"{type(model).__name__} takes no images, and {rig.data} is of images",
            "data: text:FILE runs a language model; others in Python: isthmus.evaluate(model, data)",
        )
    if rig.text is not None:
        _check_text(rig, type(model).__name__, example, problems)
    if traced and not rig.data:
        _check_example(model, example, place, problems)
    from isthmus.program.pretrained import stored_names

    names = stored_names(model)
    state = {names.get(name, name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    made = {row.name: row.shape for row in rows}
    tied = {id(tensor) for name, tensor in state.items() if name in made}
    wrong = [
        f"{name}    model {tuple(tensor.shape)}    "
        + (f"recipe {made[name]}" if name in made else "not in the recipe")
        for name, tensor in state.items()
        if (made[name] != tuple(tensor.shape) if name in made else id(tensor) not in tied)
    ]
    wrong += [
        f"{name}    not in the model    recipe {shape}" for name, shape in made.items() if name not in state
    ]
    if wrong:
        shown = sorted(wrong, key=natural)[:6]
        more = [f"and {len(wrong) - 6} more"] if len(wrong) > 6 else []
        problems.add(
            place,
            "\n".join([f"{len(wrong)} tensors do not fit {rig.model or 'config.json'}", *shown, *more]),
            None if rig.model else MODEL_HINT,
        )


def _check_example(model: nn.Module, example: Inputs, place: Where, problems: Problems) -> None:
    """Whether a model that is read with its own example takes it."""
    import torch

    from isthmus.program.batches import example_of

    batch = example_of(example)
    try:
        with torch.no_grad():
            model(*batch.args, **batch.kwargs)
    except NotImplementedError:  # an operation without a meaning on the meta device
        return
    except Exception as error:  # noqa: BLE001 - each model refuses inputs in its own way
        shapes = ", ".join(str(tuple(v.shape)) for v in batch.args if isinstance(v, torch.Tensor))
        problems.add(
            place,
            f"{type(model).__name__} is read with an example of its inputs, and takes none of shape {shapes}\n"
            f"{(str(error).splitlines() or [type(error).__name__])[0]}",
            f"data that it is run on shows what it takes; {DATA_HINT}",
        )


def _check_text(rig: Rig, title: str, example: object, problems: Problems) -> None:
    place: Where = ("isthmus", "data")
    if not _takes(example, 2, False):
        problems.add(place, f"{title} takes no tokens, and {rig.data} is a text", DATA_HINT)
    elif not rig.tokenizer:
        problems.add(
            place,
            "a text is cut into tokens by the output's tokenizer.json, and there is none",
            "tokenizer_source: base, or a parent whose folder has one; older tokenizers are converted by "
            "transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    if importlib.util.find_spec("tokenizers") is None:
        problems.add(place, "a text needs tokenizers", "pip install 'isthmus[tokenizers]'")


def _takes_images(example: object) -> bool:
    return _takes(example, 4, True)


def _takes(example: object, dimensions: int, floating: bool) -> bool:
    """Whether a model's one input has so many dimensions, of numbers with a point or of integers."""
    import torch

    values = example if isinstance(example, tuple) else (example,)
    first = values[0]
    return (
        len(values) == 1
        and isinstance(first, torch.Tensor)
        and first.is_floating_point() == floating
        and first.ndim == dimensions
    )
