"""`isthmus: {repair, evaluate, report}`: what a recipe asks for beyond the merge, and whether that can be done.

It takes a model that can be made and data to run it on, so this is where a plan imports torch. The model is made
on the meta device: its names and shapes are compared with the plan's, and no weight is held.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isthmus.errors import InputError, IsthmusError
from isthmus.recipe.layers import counts, natural
from isthmus.recipe.schema import Ours, Recipe
from isthmus.recipe.text import Problems, Where

if TYPE_CHECKING:
    from torch import nn

    from isthmus.program import Inputs
    from isthmus.recipe.parents import Parent
    from isthmus.recipe.rows import Row

_WAYS = ("repair", "evaluate", "report")
_NEEDED = {
    "repair": ("model", "data", "calibration", "validation"),
    "evaluate": ("model", "data", "validation"),
}

_MODEL_HINT = (
    "model: isthmus.zoo:vgg16 base=16, torchvision:NAME, timm:NAME, hf:PATH or package.module:factory, "
    "as isthmus merge --arch has it"
)
_DATA_HINT = "data: digits, npz:FILE, cifar10:FOLDER or fashion-mnist:FOLDER; text:FILE for a language model"
_TEXT = "text:"


@dataclass(frozen=True)
class Afterwards:
    """What is done with the merged model, all of it possible as far as headers and configurations tell.

    Args:
        model: what its weights are run in, as the recipe says; empty for what the configuration describes.
        config: the output's config.json; empty where it has none.
        tokenizer: the output's tokenizer.json; empty where it has none, or the data is no text.
        data: what it is run on, with the path that was found.
        repair: the repair with its options, if any.
        goals: whether the repair looks at the parents, as one that brings the merge to what they have.
        whole: whether each parent is a model of the output's shape, which can be run beside it.
    """

    model: str
    config: str
    tokenizer: str
    data: str
    repair: Mapping[str, object] | None
    goals: bool
    whole: bool

    @property
    def text(self) -> Path | None:
        """The text that it is measured on, where the data is one."""
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
            raise InputError(f"{self.model!r} names no model", [str(error)], _MODEL_HINT) from None
        if len(names) != 1:
            raise InputError(f"{self.model!r} names {len(names)} models", hint=_MODEL_HINT)
        return find(names[0], options, None, False).make({})


def _without(folder: str, name: str, error: IsthmusError) -> IsthmusError:
    where = [line.replace(folder, name) for line in error.where]
    return type(error)(error.what.replace(folder, name), where, error.hint)


@dataclass(frozen=True)
class Asked:
    """What the recipe alone says; its models are not looked at yet.

    Args:
        ways: those of repair, evaluate and report that are asked for.
        data: with the path that was found; empty where there is none.
        goals: whether the repair looks at the parents, as one that brings the merge to what they have.
    """

    ways: tuple[str, ...]
    data: str
    goals: bool


def read(recipe: Recipe, roots: Sequence[Path], inside: Path | None, problems: Problems) -> Asked | None:
    """What a recipe asks for beyond the merge, or None.

    Args:
        recipe: as read.
        roots: folders that relative paths begin in.
        inside: where given, the recipe is not trusted: it names no code, and no data outside this folder.
        problems: told what is wrong.
    """
    ours = recipe.isthmus
    ways = tuple(way for way in _WAYS if getattr(ours, way) is not None)
    _check_of_use(ours, ways, problems)
    if not ways or ways == ("report",):
        return None
    goals = _check_repair(ours, problems)
    if goals and not _whole(recipe):
        problems.add(
            ("isthmus", "repair"),
            "it gives the merge what its parents have, and no parent has the layers of these slices",
            "repair: reset asks nothing of parents; or repair whole models, and cut the result into slices",
        )
    if ours.model is not None and inside is not None and not ours.model.startswith("isthmus.zoo:"):
        problems.add(
            ("isthmus", "model"),
            f"{ours.model.split()[0]} is code, and a recipe from inside a model runs none but isthmus.zoo",
            "if you trust it, run the recipe.yml beside the model",
        )
    return Asked(ways, _find_data(ours, ("isthmus", ways[0]), roots, inside, problems), goals)


def of(recipe: Recipe, asked: Asked, parents: Mapping[str, Parent], problems: Problems) -> Afterwards:
    """The same with the models at hand.

    Args:
        recipe: as read.
        asked: by it.
        parents: by the recipe's own names.
        problems: told what is wrong.
    """
    ours = recipe.isthmus
    donor = recipe.base_model or next(iter(parents.values())).reference
    if ours.model is None and not parents[str(donor)].config:
        problems.add(
            ("isthmus", asked.ways[0]),
            f"{asked.ways[0]} runs the merged model, and there is no config.json that says what it is",
            _MODEL_HINT,
        )
    return Afterwards(ours.model or "", "", "", asked.data, ours.repair, asked.goals, _whole(recipe))


def _whole(recipe: Recipe) -> bool:
    return all(part.slices is None for part in (recipe, *(recipe.modules or {}).values()))


def _check_of_use(ours: Ours, asked: Sequence[str], problems: Problems) -> None:
    """What is said for nothing is a mistake."""
    for key in ("model", "data", "calibration", "validation"):
        ways = [way for way, needed in _NEEDED.items() if key in needed]
        if key in ours.model_fields_set and not set(ways) & set(asked):
            problems.add(("isthmus", key), f"{key} is for {' and '.join(ways)}, and there is none here")
    if "report" not in asked:
        return
    if "evaluate" not in asked:
        problems.add(("isthmus", "report"), "a report shows what was measured", "evaluate: accuracy, or loss")
    for package in ("jinja2", "plotly"):
        if importlib.util.find_spec(package) is None:
            problems.add(("isthmus", "report"), f"a report needs {package}", "pip install 'isthmus[report]'")


def _check_repair(ours: Ours, problems: Problems) -> bool:
    """Whether the repair that is asked for looks at the parents."""
    if ours.repair is None:
        return False
    from isthmus.repair.by_name import OF_MODELS, needs_of

    if ours.repair.get("allow_new_parameters"):
        problems.add(
            ("isthmus", "repair", "allow_new_parameters"),
            "a merged folder holds the tensors of its parents, and no others",
            "in Python, isthmus.merge(repair=...) returns such a model",
        )
    try:
        return not OF_MODELS.isdisjoint(needs_of(ours.repair))
    except InputError as error:
        problems.add(("isthmus", "repair"), "\n".join([error.what, *error.where]), error.hint)
        return False


def _find_data(
    ours: Ours, first: Where, roots: Sequence[Path], inside: Path | None, problems: Problems
) -> str:
    if ours.data is None:
        problems.add(
            first, f"{first[-1]} runs the merged model on data, and the recipe names none", _DATA_HINT
        )
        return ""
    from isthmus.recipe.parents import find
    from isthmus.zoo.data import find_data

    try:
        if ours.data.startswith(_TEXT):
            kind, path = "text", find(ours.data.removeprefix(_TEXT), roots)
            if path is None or not path.is_file():
                raise InputError(f"{ours.data}: there is no such file")
        else:
            kind, path = find_data(ours.data, roots)
    except IsthmusError as error:
        problems.add(("isthmus", "data"), error.what, error.hint)
        return ""
    if path is not None and inside is not None and not path.resolve().is_relative_to(inside.resolve()):
        problems.add(
            ("isthmus", "data"),
            f"{ours.data} is not in {inside}, and a recipe from inside a model leads nowhere else",
        )
    return kind if path is None else f"{kind}:{path.absolute()}"


def check_fit(after: Afterwards, rows: Sequence[Row], problems: Problems) -> None:
    """Compare the model with what will be written, by names and shapes.

    Args:
        after: with the output's configuration.
        rows: of the plan.
        problems: told what does not fit.
    """
    import torch

    place: Where = (
        "isthmus",
        "model" if after.model else "repair" if after.repair is not None else "evaluate",
    )
    layers = (
        max(counts(json.loads(after.config)).values(), default=0) if after.config and not after.model else 0
    )
    if layers > len(rows):  # a model of so many would take its time to make, on any device
        problems.add(place, f"config.json says {layers:,} layers, and there are {len(rows)} tensors")
        return
    try:
        try:
            with torch.device("meta"):
                model, example = after.make()
        except (RuntimeError, NotImplementedError):  # a factory that computes with what it has drawn
            model, example = after.make()
    except IsthmusError as error:
        problems.add(place, "\n".join([error.what, *error.where]), error.hint)
        return
    if after.text is None and not _takes_images(example):
        problems.add(
            place,
            f"{type(model).__name__} takes no images, and {after.data or 'such data'} is of images",
            "data: text:FILE measures a language model; others in Python: isthmus.evaluate(model, data)",
        )
    if after.text is not None:
        _check_text(after, type(model).__name__, example, problems)
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
            "\n".join([f"{len(wrong)} tensors do not fit {after.model or 'config.json'}", *shown, *more]),
            None if after.model else _MODEL_HINT,
        )


def _check_text(after: Afterwards, title: str, example: object, problems: Problems) -> None:
    place: Where = ("isthmus", "data")
    if not _takes(example, 2, False):
        problems.add(place, f"{title} takes no tokens, and {after.data} is a text", _DATA_HINT)
    elif not after.tokenizer:
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
