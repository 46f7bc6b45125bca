"""Growth of tracing with depth: export and reading of Llamas of 70B's width and of more and more layers, on meta.

    python benchmarks/depth.py [--layers 10 20 40 80] [--small] [--unet]

Seconds are of processor time. `export` is torch's own and the baseline; `reading` is ours. With --small the graph
is also verified by a narrower model of as many layers, --unet does the same for a UNet of SDXL's size. Nothing of
a meta model is allocated.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path

import torch

from isthmus.program import export
from isthmus.symmetry import trace
from isthmus.symmetry.stand_in import verified_by

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "zoo"))


def llama(layers: int, width: int, inner: int, words: int) -> tuple[torch.nn.Module, torch.Tensor]:
    import imports

    imports.prepare()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=words, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), torch.ones(2, 16, dtype=torch.long)


def unet(base: int, head: int, context: int, groups: int) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    from own import UNet

    model = UNet(base, (1, 2, 4), (0, 2, 10), context=context, head=head, groups=groups, blocks=2)
    return model.eval(), (torch.randn(2, 4, 8, 8), torch.ones(2), torch.randn(2, 5, context))


def measure(name: str, large: tuple, small: tuple | None) -> None:
    model, example = large
    start = time.process_time()
    program = export(model, example)
    exported = time.process_time()
    graph = trace(program)
    groups = len(set(graph.groups.values()))
    read = time.process_time()
    text = f"{name:<18}{len(program.nodes):>8}{len(graph.spaces):>8}{exported - start:>10.1f}{read - exported:>10.2f}"
    if small is not None:
        _, found = verified_by(graph, None, *small)
        text += f"{time.process_time() - read:>10.1f}  {found.error:.1e}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{text}  {groups} groups, peak {peak:.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="*", default=[10, 20, 40, 80])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--unet", action="store_true")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    print(
        f"{'model':<18}{'values':>8}{'spaces':>8}{'export s':>10}{'reading s':>10}"
        + f"{'verify s':>10}" * options.small
    )
    for layers in options.layers:
        with torch.device("meta"):
            large = llama(layers, 8192, 28672, 128256)
        measure(f"llama, {layers} layers", large, llama(layers, 256, 192, 64) if options.small else None)
    if options.unet:
        with torch.device("meta"):
            large = unet(320, 64, 2048, 32)
            small = unet(64, 16, 24, 32)[0]
        example = (torch.randn(2, 4, 8, 8), torch.ones(2), torch.randn(2, 5, 24))
        measure("unet, as SDXL", large, (small, example) if options.small else None)


if __name__ == "__main__":
    main()
