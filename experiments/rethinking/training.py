"""Trunks, and the models fine-tuned from them: trained once, kept as safetensors."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import nets
import torch
import torch.nn.functional as F
from data import Data, Task
from nets import Narrow
from torch import Tensor, nn

from isthmus import weights as files

State = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How much is trained.

    Attributes:
        base: channels of the first layer.
        trunk: epochs of a trunk.
        tuned: epochs of a model.
        rate: largest learning rate of a trunk; models take half of it.
        models: fine-tuned from one trunk.
        device: where.
    """

    base: int = 8
    trunk: int = 10
    tuned: int = 3
    rate: float = 0.03
    models: int = 10
    device: str = "cpu"


def loss_of(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, or, where several labels may hold, that of each."""
    return (
        F.binary_cross_entropy_with_logits(outputs, targets)
        if task.many
        else F.cross_entropy(outputs, targets)
    )


def train(
    net: nn.Module,
    task: Task,
    *,
    epochs: int,
    rate: float,
    seed: int,
    device: str,
    adam: bool,
    mirrored: bool = False,
) -> float:
    """Train in place with momentum (transformers: Adam); the rate rises for a fifth of the steps, then falls.

    Args:
        net: what is trained.
        task: on whose training images.
        epochs: passes over them.
        rate: the largest.
        seed: of their order, of dropout and of mirroring.
        device: where.
        adam: AdamW, at a twentieth of the rate.
        mirrored: half of the images are shown left to right, drawn anew each time; there is no other augmentation.

    Returns:
        Seconds.
    """
    images, targets = task.splits["train"]
    images, targets = task.normalised(images).to(device), targets.to(device)
    if images.ndim == 4:
        images = images.contiguous(memory_format=torch.channels_last)  # a fifth faster
    began, size = time.perf_counter(), 64
    steps = epochs * (len(images) // size)
    net.to(device, memory_format=torch.channels_last).train()
    if adam:
        moving: torch.optim.Optimizer = torch.optim.AdamW(net.parameters(), rate / 20, weight_decay=0.01)
    else:
        moving = torch.optim.SGD(net.parameters(), rate, 0.9, weight_decay=5e-4, nesterov=True)
    shape = torch.optim.lr_scheduler.LambdaLR(
        moving, lambda s: min((s + 1) / (0.2 * steps), max(1 - (s - 0.2 * steps) / (0.8 * steps), 0.01))
    )
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for rows in order[: len(order) // size * size].split(size):
            shown = images[rows]
            if mirrored:
                shown = torch.where(
                    (torch.rand(size) < 0.5).to(device).view(-1, 1, 1, 1), shown.flip(3), shown
                )
            loss = loss_of(task, net(shown), targets[rows])
            moving.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            moving.step()
            shape.step()
    net.eval().to("cpu", memory_format=torch.contiguous_format)
    return time.perf_counter() - began


def trunk(name: str, data: Data, recipe: Recipe, folder: Path) -> Narrow:
    """The trained trunk of a network, with the head that it was trained with.

    That of a VGG without batch norms is the one with, its norms folded in: from scratch, nineteen plain layers learn
    next to nothing in minutes.
    """
    if nets.plain(name):
        return nets.folded(trunk(f"{name}_bn", data, recipe, folder), name, data.trunk.outputs, recipe.base)
    net = nets.build(name, data.trunk.outputs, recipe.base)
    path = folder / f"trunk-{name}.safetensors"
    if path.exists():
        net.load_state_dict(files.load(path))
        return net.eval()
    net = nets.drawn(name, data.trunk.outputs, recipe.base, 0)
    seconds = train(
        net,
        data.trunk,
        epochs=recipe.trunk,
        rate=recipe.rate,
        seed=0,
        device=recipe.device,
        adam=name in nets.ADAM,
        mirrored=name not in nets.TEXT,
    )
    images, targets = (t[:1000] for t in data.trunk.splits["train"])
    with torch.no_grad():
        right = (net(data.trunk.normalised(images)).argmax(1) == targets).double().mean().item()
    print(f"trunk {name}: {seconds:.0f} s, {100 * right:.0f}% of training images", flush=True)
    files.save(net.state_dict(), path)
    return net


def tuned(
    name: str, task: Task, data: Data, recipe: Recipe, folder: Path, models: int | None = None
) -> list[State]:
    """Models of one trunk, each with a new head and an order of the data of its own."""
    found: list[State] = []
    for seed in range(models or recipe.models):
        path = folder / f"{name}-{task.name}-{seed}.safetensors"
        if not path.exists():
            start = trunk(name, data, recipe, folder)
            torch.manual_seed(1000 + seed)
            net = nets.build(name, task.outputs, recipe.base)
            net.trunk.load_state_dict(start.trunk.state_dict())
            seconds = train(
                net,
                task,
                epochs=recipe.tuned,
                rate=recipe.rate / 2,
                seed=1000 + seed,
                device=recipe.device,
                adam=name in nets.ADAM,
            )
            files.save(net.state_dict(), path)
            print(f"{path.stem}: {seconds:.0f} s", flush=True)
        found.append(files.load(path))
    order = nets.build(name, task.outputs, recipe.base).state_dict()  # a file's is that of the alphabet
    return [{key: state[key] for key in order} for state in found]
