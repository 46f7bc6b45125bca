"""Coverage-guided fuzzing of the recipe reader and the planner; CI runs a search of a few seconds (tests/recipe).

    pip install atheris
    python tests/hostile/fuzz_recipe.py -max_total_time=600

Any text is a plan or an error of ours that can be printed, soon, and the folder it was read in stays as it was. As for
a recipe from inside a model, nothing may be named outside that folder.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

SOON = 20.0  # seconds of a processor: YAML of a megabyte is slow, a loop without an end is slower

WORDS = [
    *(
        "models slices modules sources model layer_range parameters weight density filter value merge_method "
        "linear ties slerp dare_ties breadcrumbs karcher passthrough base_model dtype out_dtype bfloat16 "
        "tokenizer tokenizer_source tokens source union base kind zero model_token token_id force "
        "pad_to_multiple_of chat_template chatml isthmus blocks match layers limits memory threads shard_size "
        "skip preset peak cosine ramp from to seed convention paper align weight-matching reference residual "
        "graph zipit c2m3 transport method alpha start "
        "repair reset rescale evaluate accuracy loss report page.html data digits calibration "
        "validation isthmus.zoo:mlp hf:a torchvision:resnet18 << & * !! | > --- ... 1e999 .nan .inf true null "
        "[0,1] [0,2] {} [] ../a a+b a@b a/b -1 0.5"
    ).split(),
    "|\n ",
    "!!float ''",
]

SEEDS = [
    b"""
models: [{model: a, parameters: {weight: [0, 1]}}, {model: b}]
merge_method: linear
parameters: {weight: 1}
""",
    b"""
slices:
- sources:
  - {model: a, layer_range: [0, 2], parameters: {t: [{filter: mlp, value: 1}, {value: 0}]}}
  - {model: b, layer_range: [1, 3]}
base_model: a
merge_method: slerp
parameters: {t: 0.5}
dtype: bfloat16
""",
    b"""
modules: {layers: {models: [{model: a}, {model: b}]}}
base_model: a
merge_method: dare_ties
parameters: {weight: 1e-1, density: 0.5, normalize: yes, lambda: 2}
out_dtype: float32
""",
    b"""
models: [{model: a}, {model: {model: {path: b}}}]
merge_method: linear
parameters: {weight: 1}
tokenizer:
  source: union
  tokens:
    <s>: {source: {kind: zero}, force: true}
    x: {source: {kind: model_token, model: a, token: one}}
  pad_to_multiple_of: 8
chat_template: chatml
""",
    b"""
x: &x {weight: 1}
models: [{model: a, parameters: *x}, {model: b, parameters: {<<: *x}}]
merge_method: linear
isthmus:
  seed: 1
  skip: ['*.nothing']
  convention: mergekit
  limits: {memory: 2GB}
  blocks:
  - {match: '*mlp*', layers: [0, 2], model: a, parameters: {weight: {preset: peak, from: 0, to: 1}}}
""",
    b"""
models: [{model: a}, {model: b}]
merge_method: ties
base_model: a
parameters: {weight: 1}
isthmus:
  align: {method: weight-matching, residual: match}
  repair: {method: rescale, mode: joint}
  data: digits
  evaluate: loss
  report: page.html
""",
    b"""
models: [{model: a}, {model: b}]
merge_method: linear
parameters: {weight: 1}
isthmus:
  align: {method: zipit, alpha: 1e-1, limit: 5}
  model: isthmus.zoo:mlp d_in=64 widths=[4]
  data: digits
  limits: {memory: 2GB}
""",
]


def world(root: Path) -> None:
    """Two small models with tokenizers."""
    import torch
    from safetensors.torch import save_file

    for seed, name in enumerate("ab"):
        (root / name).mkdir()
        generator = torch.Generator().manual_seed(seed)
        state = {
            f"model.layers.{i}.{part}.weight": torch.randn(4, 4, generator=generator)
            for i in range(3)
            for part in ("mlp", "self_attn")
        }
        state |= {"model.embed_tokens.weight": torch.randn(4, 4), "model.norm.weight": torch.ones(4)}
        save_file(state, root / name / "model.safetensors")
        config = {"model_type": "llama", "num_hidden_layers": 3, "vocab_size": 4, "hidden_size": 4}
        (root / name / "config.json").write_text(json.dumps(config))
        words = {word: i for i, word in enumerate(["?", "one", name, "four"])}
        content = {"added_tokens": [], "model": {"type": "WordLevel", "vocab": words, "unk_token": "?"}}
        (root / name / "tokenizer.json").write_text(json.dumps(content))


def check(text: str, root: Path) -> None:
    """Read and plan one text."""
    from isthmus.errors import IsthmusError
    from isthmus.recipe.plan import plan_text

    before = sorted(root.rglob("*"))
    start = time.process_time()
    try:
        plan = plan_text(text, "fuzz.yml", root / "fuzz.yml", (root,), inside=root)
        str(plan)
        plan.table()
        assert all(parent.path.resolve().is_relative_to(root.resolve()) for parent in plan.parents.values())
    except IsthmusError as error:
        error.render().encode("utf-8", "backslashreplace")
    assert time.process_time() - start < SOON, "too slow"
    assert sorted(root.rglob("*")) == before, "something was written"


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["isthmus.recipe", "yaml"]):
        import isthmus.recipe.plan  # noqa: F401

    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    (root := folder / "world").mkdir()
    (corpus := folder / "corpus").mkdir()
    world(root)
    for number, seed in enumerate(SEEDS):
        (corpus / str(number)).write_bytes(seed)
    dictionary = folder / "words"
    plain = (word.replace("\\", "\\\\").replace('"', '\\"') for word in WORDS if word.isprintable())
    dictionary.write_text("".join(f'"{word}"\n' for word in plain))

    def one(data: bytes) -> None:
        check(data.decode("utf-8", "replace"), root)

    atheris.Setup([sys.argv[0], f"-dict={dictionary}", *sys.argv[1:], str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
