"""Chat templates: the plurality of the models', one by name, or the text itself."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from isthmus.recipe.language.text import Problems, nearest
from isthmus.recipe.parents.parent import Parent, read_json

# The formats that mergekit has by name, written from each model's published description of its prompt.
_TURN = "{% for message in messages %}"
TEMPLATES: Mapping[str, str] = {
    "chatml": _TURN + "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "llama3": "{{ bos_token }}" + _TURN
    + "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "mistral": "{{ bos_token }}" + _TURN + "{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% endif %}{% endfor %}",
    "alpaca": _TURN + "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
    "{% else %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}",
    "exaone": _TURN + "{{ '[|' + message['role'] + '|]' + message['content'] }}"
    "{% if message['role'] == 'user' %}{{ '\\n' }}{% else %}{{ '[|endofturn|]\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}",
}  # fmt: skip


def chat_template(asked: str, parents: Sequence[Parent], problems: Problems) -> str | None:
    """The template that `chat_template:` means: auto, a name, or the text itself."""
    if asked == "auto":
        found = Counter(text.strip() for p in parents if (text := _template_of(p.folder)))
        if not found:
            problems.add(("chat_template",), "auto: none of the models has a chat template")
            return None
        return found.most_common(1)[0][0]
    if asked in TEMPLATES:
        return TEMPLATES[asked]
    if "{" not in asked or len(asked) < 20:
        near = nearest(asked, ["auto", *TEMPLATES])
        problems.add(("chat_template",), f"{asked[:40]!r} is no Jinja text, nor the name of a template{near}")
        return None
    return asked


@functools.lru_cache(maxsize=64)
def _template_of(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")[:1_000_000]
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = {str(e.get("name")): e.get("template") for e in cast("list[dict[str, object]]", template)}
        template = named.get("default")
    return template if isinstance(template, str) else None
