"""Choose the timm architectures of the experiment: every family, its smallest members first.

A family is a module of timm together with the letters that a name begins with (`vit`, `deit`, `eva`, ...),
digits and sizes left out. Each family gives its smallest member; then every module gives its next
smallest, until there are at least `--count`. Writes timm.txt, one `name parameters` a line.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

HERE = Path(__file__).parent
LARGEST = 120_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=320)
    count = parser.parse_args().count
    import imports

    imports.prepare()
    import timm

    sizes: dict[str, int] = {}
    for name in timm.list_models():
        try:
            with torch.device("meta"):
                sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
        except Exception as error:  # noqa: BLE001 - counted as of unknown size
            print(f"{name}: not on meta: {type(error).__name__}: {str(error)[:80]}", flush=True)
            sizes[name] = 10_000_000
    modules = {name: module for module in timm.list_modules() for name in timm.list_models(module=module)}
    ordered = sorted(sizes, key=lambda name: (sizes[name], name))
    chosen: dict[str, None] = {}
    families: set[tuple[str, str]] = set()
    for name in ordered:
        letters = re.match(r"[a-z]*", name.lower().replace("test_", "")).group()  # type: ignore[union-attr]
        family = (modules.get(name, ""), letters)
        if family not in families:
            families.add(family)
            chosen[name] = None
    while len(chosen) < count:
        for module in timm.list_modules():
            rest = [n for n in ordered if modules.get(n) == module and n not in chosen and sizes[n] < LARGEST]
            if rest:
                chosen[rest[0]] = None
    lines = [f"{name} {sizes[name]}" for name in ordered if name in chosen]
    (HERE / "timm.txt").write_text("\n".join(lines) + "\n")
    print(len(lines), "architectures,", len(families), "families")


if __name__ == "__main__":
    main()
