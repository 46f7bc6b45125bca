"""What weights look like: linear templates beside class means, merged templates, first-layer kernels, features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from averaging import Bench
from PIL import Image
from torch import Tensor, nn

import isthmus
from isthmus import zoo
from isthmus.measure import as_pictures, class_means, template_cosines

State = dict[str, Tensor]


def linear(
    data: zoo.Dataset, decay: float, epochs: int, limit: int
) -> tuple[nn.Linear, float, list[tuple[Tensor, Tensor]]]:
    """One linear layer on raw pixels in [0, 1], trained as released: a rate of 0.01, cut by ten four times.

    Returns:
        The layer, its test accuracy in per cent, and the training images with their classes.
    """
    split: dict[str, tuple[Tensor, Tensor]] = {}
    for name, count in (("train", limit), ("test", 2000)):
        x, y = data.arrays(name)
        images = torch.from_numpy(x[:count].copy()).permute(0, 3, 1, 2).float() / data.scale
        split[name] = images, torch.from_numpy(y[:count].astype(np.int64))
    images, targets = split["train"]
    torch.manual_seed(0)
    layer = nn.Linear(images[0].numel(), data.num_classes)
    moving = torch.optim.SGD(layer.parameters(), 0.01, 0.9, weight_decay=decay)
    shape = torch.optim.lr_scheduler.MultiStepLR(
        moving, [round(epochs * m) for m in (0.2, 0.4, 0.6, 0.8)], 0.1
    )
    flat = images.flatten(1)
    for _ in range(epochs):
        for rows in torch.randperm(len(flat)).split(64):
            loss = F.cross_entropy(layer(flat[rows]), targets[rows])
            moving.zero_grad()
            loss.backward()
            moving.step()
        shape.step()
    x, y = split["test"]
    accuracy = 100 * (layer(x.flatten(1)).argmax(1) == y).double().mean().item()
    return layer, accuracy, list(zip(images.split(500), targets.split(500), strict=True))


def templates(data: zoo.Dataset, epochs: int, limit: int, out: Path) -> dict[str, Any]:
    """Cosines of templates with class means, with the paper's weight decay and without; pictures of those with."""
    found: dict[str, Any] = {"images": limit, "epochs": epochs}
    for decay in (0.1, 0.0):
        layer, accuracy, batches = linear(data, decay, epochs, limit)
        means = class_means(batches)
        cosines = template_cosines(layer.weight, means)
        off = cosines[~torch.eye(len(cosines), dtype=torch.bool)]
        half = len(cosines) // 2
        merged = (layer.weight[:half] + layer.weight[half : 2 * half]) / 2
        # A merged template with the mean images of its own two classes.
        pair = [replace(means, each=means.each[i * half : (i + 1) * half]) for i in (0, 1)]
        both = torch.stack([template_cosines(merged, own).diagonal() for own in pair])
        found[f"decay {decay:g}"] = {
            "accuracy": accuracy,
            "own class": cosines.diagonal().mean().item(),
            "lowest own": cosines.diagonal().min().item(),
            "other classes": off.mean().item(),
            "nearest is own": (cosines.argmax(1) == torch.arange(len(cosines))).double().mean().item(),
            "merged, own two classes": both.mean().item(),
            "each": cosines.diagonal().tolist(),
        }
        if decay:
            shape = means.each.shape[1:]
            grid(means.each, out / "class-means.png")
            grid(layer.weight.view(-1, *shape), out / "templates.png")
            grid(merged.view(-1, *shape), out / "merged-templates.png")
    return found


def grid(images: Tensor, path: Path, columns: int = 10, zoom: int = 2) -> None:
    """Small pictures side by side, each stretched to its own range, as one PNG."""
    shown = as_pictures(images).numpy()
    count, height, width, channels = shown.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1), columns * (width + 1), channels), 255, np.uint8)
    for index, picture in enumerate(shown):
        top, left = (index // columns) * (height + 1), (index % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = picture
    image = Image.fromarray(sheet if channels == 3 else sheet[..., 0])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((sheet.shape[1] * zoom, sheet.shape[0] * zoom), Image.Resampling.NEAREST).save(path)


def kernels(states: Sequence[Mapping[str, Tensor]], trunk: Mapping[str, Tensor], out: Path) -> dict[str, Any]:
    """First-layer kernels of models of one trunk: how alike to each other, to the trunk's, to their average."""
    key = next(k for k, v in states[0].items() if v.ndim == 4)
    soup = isthmus.combine(states)[key]
    grid(states[0][key], out / "kernels-first.png", columns=8, zoom=8)
    grid(soup, out / "kernels-soup.png", columns=8, zoom=8)

    def alike(a: Tensor, b: Tensor) -> float:
        return F.cosine_similarity(a.flatten(1).double(), b.flatten(1).double()).mean().item()

    pairs = [alike(a[key], b[key]) for i, a in enumerate(states) for b in states[:i]]
    return {
        "with each other": float(np.mean(pairs)),
        "with the trunk": float(np.mean([alike(s[key], trunk[key]) for s in states])),
        "with the soup": float(np.mean([alike(s[key], soup) for s in states])),
        "kernels": len(soup),
    }


def features(bench: Bench, states: Sequence[State], limit: int) -> dict[str, Any]:
    """How alike the features of models of one trunk are, unit by unit, and the soup's to their mean."""
    images, _ = bench.inputs("test", limit)
    rows = [bench.features(s, images).double() for s in states]
    soup = bench.features(bench.reset(isthmus.combine(states)), images).double()

    def correlation(a: Tensor, b: Tensor) -> float:
        a, b = a - a.mean(0), b - b.mean(0)
        lengths = a.norm(dim=0) * b.norm(dim=0)
        alive = lengths > 0
        return ((a * b).sum(0)[alive] / lengths[alive]).mean().item()

    pairs = [correlation(a, b) for i, a in enumerate(rows) for b in rows[:i]]
    mean = torch.stack(rows).mean(0)
    return {
        "same unit, two models": float(np.mean(pairs)),
        "soup with the mean of features": correlation(soup, mean),
        "length of the soup's features over that of the mean": (soup.norm() / mean.norm()).item(),
    }
