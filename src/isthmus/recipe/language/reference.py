"""Models as recipes name them."""

from __future__ import annotations

from typing import Annotated, cast

from pydantic import BeforeValidator

from isthmus.recipe.language.strict import Strict, short

#: What stands for a model that the recipe gives wrongly: so that the rest can be read.
UNKNOWN_MODEL = "?"


class Reference(Strict):
    """A model: `path@revision+adapter@revision`, the last three optional.

    Attributes:
        path: a folder, a file or the id of a Hugging Face repository.
        revision: of the repository.
        lora: folder or id of a LoRA adapter that is added to the model.
        lora_revision: of the adapter's repository.
    """

    path: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None

    def __str__(self) -> str:
        model = f"{self.path}@{self.revision}" if self.revision else self.path
        if not self.lora:
            return model
        return f"{model}+{self.lora}@{self.lora_revision}" if self.lora_revision else f"{model}+{self.lora}"


def read_reference(value: object) -> object:
    """A model as mergekit writes it: text, or a mapping of its parts."""
    if isinstance(value, Reference):
        return value
    if isinstance(value, str):
        model, plus, lora = value.partition("+")
        if "+" in lora or value.count("@") > 1 + bool(plus) or model.count("@") > 1:
            raise ValueError(f"{value!r} is not path@revision+adapter@revision")
        path, _, revision = model.partition("@")
        adapter, _, adapter_revision = lora.partition("@")
        if not path.strip() or (plus and not adapter.strip()) or "\0" in value:
            raise ValueError(f"{value!r} names no model")
        return {
            "path": path,
            "revision": revision or None,
            "lora": adapter or None,
            "lora_revision": adapter_revision or None,
        }
    if isinstance(value, dict):
        return _from_parts(cast("dict[str, object]", value))
    raise ValueError(f"{short(value)} is no model: write its path or its id as text")


def _from_parts(parts: dict[str, object]) -> dict[str, object]:
    """mergekit's long form: {model: path or {path, revision}, lora: the same}."""
    if unknown := set(parts) - {"model", "lora"}:
        raise ValueError(f"a model is text, or {{model: ..., lora: ...}}; {min(unknown)!r} is neither")
    found: dict[str, object] = {}
    for key, path, revision in (("model", "path", "revision"), ("lora", "lora", "lora_revision")):
        value = parts.get(key)
        if value is None and key == "lora":
            continue
        entry = cast("dict[str, object]", value) if isinstance(value, dict) else {"path": value}
        if not isinstance(entry.get("path"), str) or not set(entry) <= {"path", "revision"}:
            raise ValueError(f"{key} is text, or {{path: ..., revision: ...}}")
        name, _, at = str(entry["path"]).partition("@") if entry is not value else (entry["path"], "", "")
        found[path], found[revision] = name, entry.get("revision") or at or None
    return found


Model = Annotated[Reference, BeforeValidator(read_reference)]
