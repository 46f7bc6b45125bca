"""One method whole: what it needs, claims and costs, its options, where it comes from, and how it is asked for."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from isthmus.combine import terms_of
from isthmus.recipe.language.dialect import REQUIRED
from isthmus.recipe.language.dialect import Method as Dialect
from isthmus.recipe.language.methods import method_of
from isthmus.registry import LAWS, Method, hints_of

_Row = Method[Callable[..., object]]

#: What a caller brings, and how; of everything else that a method needs, whoever calls it has it.
BROUGHT = {
    "data": "calibration data (--data)",
    "targets": "targets with the data",
    "base": "the model that all were trained from (--base)",
    "statistics": "what `isthmus statistics` measures of each model, or --data to measure it on",
    "score": "a score (--score), or the architecture and validation data to make one of",
    "model": "the architecture (--arch)",
    "seed": "a seed, for what it draws (--seed); 0 where none is given",
}
_KEPT = {
    "passes": "to measure whole tensors before it writes",
    "goals": "the statistics of the parents' activations, which a merge measures",
    "models": "the parents as networks, which a merge has",
    "parents": "the parents' weights, which a merge has",
    "terms": "the moved parents, which a merge has",
}

_WIDTH = 80
_DATA = "npz:my_data.npz"
_ARCH = "my_package.models:build"


@dataclass(frozen=True)
class Option:
    """An option of a method.

    Attributes:
        name: as it is written in Python, on the command line and in a recipe.
        kind: what may be given.
        default: where nothing is.
        meaning: from the method's docstring.
    """

    name: str
    kind: str
    default: object
    meaning: str


@dataclass(frozen=True)
class Description:
    """A method, as `isthmus methods NAME` shows it.

    Attributes:
        name, kind, summary: as listed.
        about: the rest of what its docstring says of it.
        needs: what it needs -> what that is.
        claims: the laws that it is tested against -> what they say.
        costs: what it costs.
        source: the paper or code that it comes from.
        options: its own.
        command, python: examples of how it is asked for.
        recipe: likewise in a recipe; empty where it has no place in one.
    """

    name: str
    kind: str
    summary: str
    about: str
    needs: Mapping[str, str]
    claims: Mapping[str, str]
    costs: str
    source: str
    options: tuple[Option, ...]
    command: str
    python: str
    recipe: str

    def as_dict(self) -> dict[str, object]:
        """All of it as plain data, for JSON."""
        return json.loads(json.dumps(asdict(self), default=str))

    def __str__(self) -> str:
        def said(rows: Mapping[str, str]) -> str:
            return "\n".join(f"{name}: {text}" for name, text in rows.items())

        lines = [
            f"{self.name}, {'an' if self.kind[0] in 'aeiou' else 'a'} {self.kind}",
            "",
            _filled(self.summary),
        ]
        lines += ["", *(_filled(part) for part in self.about.split("\n\n"))] if self.about else []
        lines.append("")
        brought = {need: text for need, text in self.needs.items() if need not in _KEPT}
        parts = (("needs", said(brought) or "nothing"), ("claims", said(self.claims) or "nothing"))
        for title, text in (*parts, ("costs", self.costs), ("source", self.source)):
            lines += _beside(title, text)
        lines += ["", "options, with their defaults"] if self.options else []
        for option in self.options:
            default = "" if option.default is None else f" = {_yaml(option.default)}"
            lines += [
                _filled(f"{option.name}{default}  ({option.kind})", "  ", "    "),
                _filled(option.meaning, " " * 6),
            ]
        for title, text in (("command", self.command), ("Python", self.python), ("recipe", self.recipe)):
            lines += ["", title, textwrap.indent(text, "  ")] if text else []
        return "\n".join(lines)


def described(method: _Row) -> Description:
    """Everything that there is to say of a method.

    Args:
        method: a row of a table.

    Examples:
        >>> import isthmus
        >>> described(isthmus.methods("alignment")[-1]).options[0].name
        'alpha'
    """
    paragraphs, meanings = _docstring(method.function)
    hints = hints_of(method.function)
    options = tuple(
        Option(name, _kind(hints.get(name), default), default, meanings.get(name, ""))
        for name, default in method.options.items()
    )
    plain = (
        o for o in options if isinstance(o.default, (int, float, str)) and o.name not in ("seed", "limit")
    )
    example = next(({o.name: o.default} for o in plain if not isinstance(o.default, bool)), {})
    command, python, recipe = _FORMS[method.kind](method, example)
    return Description(
        name=method.name,
        kind=method.kind,
        summary=paragraphs[0],
        about="\n\n".join(paragraphs[1:]),
        needs={need: {**BROUGHT, **_KEPT}.get(need, need) for need in method.needs},
        claims={law: LAWS[law] for law in method.claims},
        costs=method.costs or "not said",
        source=method.source or "not said",
        options=options,
        command=command,
        python=python,
        recipe=recipe,
    )


# -- reading ----------------------------------------------------------------------------------------


def _docstring(function: Callable[..., object]) -> tuple[list[str], dict[str, str]]:
    """The paragraphs before the first section, and what `Args:` says of each argument."""
    text, _, rest = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    text = re.split(r"\n(?:Returns|Raises|Source|Examples):", text)[0]
    section = re.split(r"\n(?=\S)", rest)[0]
    meanings: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", section):
        names, colon, meaning = entry.strip().partition(":")
        if colon:
            meanings |= dict.fromkeys(re.split(r",\s*", names), " ".join(meaning.split()))
    return [" ".join(part.split()) for part in text.strip().split("\n\n")], meanings


_PLAIN: dict[object, str] = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def _kind(hint: object, default: object) -> str:
    """What an option takes, in words."""
    parts = (
        get_args(hint)
        if get_origin(hint) in (Union, UnionType)
        else (type(default) if hint is None else hint,)
    )
    words: list[str] = []
    for part in parts:
        origin = get_origin(part)
        if origin is Literal:
            words += [_yaml(value) for value in get_args(part)]
        elif part in _PLAIN:
            words.append(_PLAIN[part])
        elif part is not type(None):
            words.append(_named(part, origin))
    return ", ".join(dict.fromkeys(words)) or "anything"


def _named(part: Any, origin: Any) -> str:
    if isinstance(part, TypeVar):
        return "anything"
    name = getattr(origin or part, "__name__", str(part))
    return {"Sequence": "list", "Iterable": "list", "Callable": "function", "Path": "file"}.get(
        name, name.lower()
    )


# -- forms ------------------------------------------------------------------------------------------

_Forms = tuple[str, str, str]


def _alignment(method: _Row, example: Mapping[str, object]) -> _Forms:
    data = _given(method, ("data", "targets"))
    command = [
        "isthmus merge a.safetensors b.safetensors",
        f"--arch {_ARCH}",
        *data,
        f"--align {_words(method, example)}",
    ]
    block = {"align": _asked(method, example), **({"data": _DATA} if data else {})}
    return (
        _command(command),
        _call("merge([a, b]", align=_asked(method, example), **_loader(data)),
        _block(block),
    )


def _combination(method: _Row, example: Mapping[str, object]) -> _Forms:
    terms = terms_of(method.name)
    count = min(max(2, terms.least), terms.most or 2)
    models = [chr(ord("a") + i) for i in range(count)]
    files = " ".join(f"{name}.safetensors" for name in models)
    base = ["--base base.safetensors"] if terms.base == "needed" else []
    gathered = terms.statistics == "needed"
    measured = [f"--arch {_ARCH}", f"--data {_DATA}"] if gathered else []
    command = ["isthmus merge", files, *base, *measured, f"--method {method.name}", *_options(example)]
    python = _call(
        f"merge([{', '.join(models)}]",
        combine=_asked(method, example),
        **({"base": _Name("base")} if base else {}),
        **(_loader(measured)),
    )
    found = None if gathered else method_of(method.name)
    return _command(command), python, "" if found is None else _recipe(found, models, example)


def _recipe(method: Dialect, models: Sequence[str], example: Mapping[str, object]) -> str:
    """A merge by a method as recipes know it; what they must say has a value."""
    parameters = {name: 0.5 for name, value in method.parameters.items() if value is REQUIRED}
    parameters |= {name: value for name, value in example.items() if name in method.parameters}
    based = method.base == "required"
    if based and method.most == 2:  # the base is one of two
        models = ["base", models[0]]
    lines = [f"merge_method: {method.name}", *(["base_model: base"] if based else [])]
    lines += ["models:", *(f"  - model: {name}" for name in models)]
    return "\n".join([*lines, *([f"parameters: {_yaml(parameters)}"] if parameters else [])])


def _repair(method: _Row, example: Mapping[str, object]) -> _Forms:
    command = [
        "isthmus merge a.safetensors b.safetensors", f"--arch {_ARCH}", f"--data {_DATA}",
        "--align activation-matching", f"--repair {_words(method, example)}",
    ]  # fmt: skip
    python = _call(
        "merge([a, b]", align="activation-matching", repair=_asked(method, example), data=_Name("loader")
    )
    return _command(command), python, _block({"repair": _asked(method, example), "data": _DATA})


def _pruner(method: _Row, example: Mapping[str, object]) -> _Forms:
    command = [
        "isthmus prune a.safetensors", f"--arch {_ARCH}", f"--data {_DATA}", f"--method {method.name}",
        "--sparsity 0.5", *_options(example),
    ]  # fmt: skip
    return (
        _command(command),
        _call(f"prune(model, {method.name!r}", sparsity=0.5, data=_Name("loader"), **example),
        "",
    )


def _search(method: _Row, example: Mapping[str, object]) -> _Forms:
    base = _given(method, ("base",))
    files = "isthmus soup a.safetensors b.safetensors c.safetensors"
    command = [
        files,
        f"--arch {_ARCH}",
        f"--data {_DATA}",
        *base,
        f"--kind {method.name}",
        *_options(example),
    ]
    python = _call(
        f"soup([a, b, c], kind={method.name!r}",
        model=_Name("model"),
        data=_Name("loader"),
        **({"base": _Name("base")} if base else {}),
        **example,
    )
    return _command(command), python, ""


_FORMS: dict[str, Callable[[_Row, Mapping[str, object]], _Forms]] = {
    "alignment": _alignment,
    "combination": _combination,
    "repair": _repair,
    "pruner": _pruner,
    "search": _search,
}


class _Name(str):
    """A variable, which is written without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _given(method: _Row, needs: Sequence[str]) -> list[str]:
    texts = {"data": f"--data {_DATA}", "targets": f"--data {_DATA}", "base": "--base base.safetensors"}
    return list(dict.fromkeys(texts[need] for need in method.needs if need in needs))


def _loader(data: Sequence[str]) -> dict[str, object]:
    return {"data": _Name("loader")} if data else {}


def _asked(method: _Row, example: Mapping[str, object]) -> object:
    return {"method": method.name, **example} if example else method.name


def _words(method: _Row, example: Mapping[str, object]) -> str:
    return shlex.quote(" ".join([method.name, *(f"{k}={_yaml(v)}" for k, v in example.items())]))


def _options(example: Mapping[str, object]) -> list[str]:
    return [f"--option {name}={_yaml(value)}" for name, value in example.items()]


def _command(parts: Sequence[str]) -> str:
    return _folded(list(parts), " ", " \\")


def _call(head: str, **given: object) -> str:
    parts = [f"isthmus.{head}", *(f"{name}={value!r}" for name, value in given.items())]
    return _folded([f"{part}," for part in parts[:-1]] + [f"{parts[-1]})"], " ", "")


def _folded(parts: list[str], space: str, end: str) -> str:
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + len(end) + 1 > _WIDTH - 2:
            lines[-1] += end
            lines.append(f"    {part}")
        else:
            lines[-1] += f"{space}{part}"
    return "\n".join(lines)


def _block(entries: Mapping[str, object]) -> str:
    return "\n".join(["isthmus:", *(f"  {name}: {_yaml(value)}" for name, value in entries.items())])


def _yaml(value: object) -> str:
    """A value as recipes and the command line have it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_yaml(item)}" for name, item in value.items()) + "}"
    return "[" + ", ".join(map(_yaml, value)) + "]" if isinstance(value, (tuple, list)) else str(value)


# -- lines ------------------------------------------------------------------------------------------


def _filled(text: str, indent: str = "", more: str = "") -> str:
    """Text in lines; `more` is the indent of all but the first beyond its own."""
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + more,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _beside(title: str, text: str) -> list[str]:
    """A title, and lines of text beside it."""
    lines = [line for entry in text.split("\n") for line in _filled(entry, " " * 9).split("\n")]
    return [f"{title:<9}{lines[0][9:]}", *lines[1:]]
