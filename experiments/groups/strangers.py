"""Training the strangers: small decoders that share nothing but the text."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from corpus import Corpus, bits
from torch import nn
from torch.overrides import TorchFunctionMode

from isthmus import weights as files
from isthmus import zoo
from isthmus.measure import evaluate

CONTEXT = 128

#: family -> factory and its arguments.
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "gpt": ("gpt", {"act": "relu"}),
    "llama-learned": ("llama", {"positions": "learned"}),
    "llama-rotary": ("llama", {"positions": "rotary"}),
}

#: Steps of 16 windows of 128 characters; rotary positions learn faster than tables. The learning rates are the
#: best of 1e-3, 2e-3 and 4e-3 on the validation works after 500 steps (of `gpt` and `llama-rotary`).
RECIPE: dict[str, Any] = {
    "steps": {"gpt": 2400, "llama-learned": 2400, "llama-rotary": 1600},
    "batch": 16,
    "lr": {"gpt": 2e-3, "llama-learned": 4e-3, "llama-rotary": 4e-3},
    "warmup": 0.1,
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
    "clip": 1.0,
}


class AttentionInFloat32(TorchFunctionMode):
    """Attention outside autocast: torch's bfloat16 backward of it takes four times as long on processors."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            with torch.autocast("cpu", enabled=False):
                return func(*(a.float() for a in args), **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def build(family: str, corpus: Corpus) -> nn.Module:
    factory, arguments = FAMILIES[family]
    return zoo.build(factory, vocabulary=len(corpus.alphabet), context=CONTEXT, **arguments)


def train(
    family: str,
    seed: int,
    corpus: Corpus,
    device: str = "cpu",
    steps: int | None = None,
    lr: float | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """One stranger: its initial weights and its windows are drawn from the seed.

    Returns:
        The network, on the processor and in evaluation mode, and what is to be known of its training.
    """
    steps = steps or RECIPE["steps"][family]
    lr = lr or RECIPE["lr"][family]
    model = zoo.init(build(family, corpus), seed).to(device)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    moving = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": RECIPE["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ],
        lr,
        RECIPE["betas"],
        fused=True,
    )
    rising = max(1, int(steps * RECIPE["warmup"]))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        moving, lambda step: min((step + 1) / rising, (steps - step) / (steps - rising))
    )
    text, places = corpus.splits["train"].to(device), torch.arange(CONTEXT + 1, device=device)
    generator = torch.Generator().manual_seed(seed)
    began, running = time.process_time(), 0.0
    for step in range(1, steps + 1):
        starts = torch.randint(len(text) - CONTEXT, (RECIPE["batch"], 1), generator=generator).to(device)
        rows = text[starts + places]
        with AttentionInFloat32(), torch.autocast(device, torch.bfloat16):
            logits = model(rows[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        moving.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), RECIPE["clip"])
        moving.step()
        schedule.step()
        running += loss.item()
        if step % 100 == 0:
            took = time.process_time() - began
            print(
                f"{family} {seed}: step {step}, training {bits(running / 100):.3f} bits, {took:.0f} s",
                flush=True,
            )
            running = 0.0
    took = time.process_time() - began
    model = model.cpu().eval()
    validation = evaluate(model, corpus.batches("validation", CONTEXT, limit=1024)).loss
    print(f"{family} {seed}: validation {bits(validation):.3f} bits", flush=True)
    return model, {
        "seconds": took,
        "validation": validation,
        "steps": steps,
        "lr": lr,
        "threads": torch.get_num_threads(),
    }


def strangers(
    family: str, seeds: Sequence[int], corpus: Corpus, folder: Path, device: str
) -> dict[int, tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """The networks of a family, from their files where they are there, else trained and written.

    Returns:
        For each seed the weights and what is to be known of their training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for seed in seeds:
        path = folder / f"{family}_s{seed}.safetensors"
        story = path.with_suffix(".json")
        if not path.exists():
            model, told = train(family, seed, corpus, device)
            story.write_text(json.dumps(told, indent=1) + "\n")
            files.save(model.state_dict(), path)
        found[seed] = (files.load(path), json.loads(story.read_text()))
    return found
