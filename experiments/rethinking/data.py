"""The experiment's data: small images of several tasks, brought to one shape so that one trunk serves all.

CIFAR-10 and Fashion-MNIST come as `npz` files (see `isthmus.zoo.open_data`), the digits are built in, and any MedMNIST
file can be added. Everything is 16 x 16 pixels in three channels. The multi-label set is made of real images: two or
three Fashion-MNIST items laid over each other (the brighter pixel wins), labelled with all that is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isthmus import zoo

SIDE = 16
#: Means and standard deviations of CIFAR-100, which the released merge script normalises CIFAR-10 by.
CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """Images or passages with what is to be said of them, in splits that share none.

    Images are (n, 3, 16, 16) in [0, 1], passages (n, length) of character numbers.

    Attributes:
        name: how tables call it.
        splits: "train", "validation", "test" -> images and targets: class numbers, or zeros and ones (n, labels).
        outputs: number of classes or labels.
        mean, std: per channel, of the training images.
    """

    name: str
    splits: Mapping[str, Pair]
    outputs: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def many(self) -> bool:
        """Whether several labels may hold at once."""
        return self.splits["train"][1].ndim > 1

    @property
    def chance(self) -> float:
        """Per cent of the best constant answer on the test split; of an AUROC, 50."""
        targets = self.splits["test"][1]
        return 50.0 if self.many else 100 * targets.bincount().max().item() / len(targets)

    def normalised(
        self, images: Tensor, moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    ) -> Tensor:
        """What a network sees of the images; characters are seen as they are."""
        if not images.is_floating_point():
            return images
        mean, std = moments or (self.mean, self.std)
        return (images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def _small(images: np.ndarray) -> Tensor:
    """(n, h, w, c) bytes -> (n, 3, 16, 16) in [0, 1]: 28 and 8 by padding and repeating, others by area."""
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float()
    x = x / max(float(x.max()), 1.0)
    if x.shape[-1] == 28:
        x = torch.nn.functional.pad(torch.nn.functional.avg_pool2d(x, 2), (1, 1, 1, 1))
    elif x.shape[-1] != SIDE:
        x = torch.nn.functional.interpolate(x, (SIDE, SIDE), mode="area")
    return x.expand(-1, 3, -1, -1).contiguous() if x.shape[1] == 1 else x


def _take(images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Pair:
    return _small(images[rows]), torch.from_numpy(labels[rows].astype(np.int64).reshape(-1))


def _finished(name: str, splits: Mapping[str, Pair], outputs: int) -> Task:
    images = splits["train"][0]
    mean = tuple(images.mean((0, 2, 3)).tolist())
    std = tuple(images.std((0, 2, 3)).clamp_min(1e-3).tolist())
    return Task(name, splits, outputs, mean, std)


def _overlaid(pair: Pair, generator: torch.Generator) -> Pair:
    """Two or three items on one canvas, each moved by up to two pixels."""
    images, labels = pair
    count = len(images)
    canvas, found = torch.zeros_like(images), torch.zeros(count, 10)
    for layer in range(3):
        rows = torch.randperm(count, generator=generator)
        moves = torch.randint(-2, 3, (count, 2), generator=generator)
        shown = torch.rand(count, generator=generator) < (1.0 if layer < 2 else 0.5)
        for i in range(count):
            if shown[i]:
                moved = images[rows[i]].roll((int(moves[i, 0]), int(moves[i, 1])), (1, 2))
                canvas[i] = torch.maximum(canvas[i], moved)
                found[i, labels[rows[i]]] = 1.0
    return canvas, found


@dataclass(frozen=True)
class Data:
    """Everything that is trained and tested on.

    Attributes:
        trunk: the task that trunks are trained on first: classes of CIFAR-10 and of Fashion-MNIST together.
        tasks: by name.
        templates: CIFAR-10 as it is, for the linear classifier; texts have none.
    """

    trunk: Task
    tasks: Mapping[str, Task]
    templates: zoo.Dataset | None


def load(cifar: str, fashion: str, extra: str | None, scale: float) -> Data:
    """Read the files and cut the splits: no image of a task was seen by the trunk.

    Args:
        cifar: what `zoo.open_data` takes for CIFAR-10.
        fashion: for Fashion-MNIST.
        extra: a MedMNIST file, or None.
        scale: multiplies the numbers of images, as far as there are any.
    """

    def n(count: int, most: int) -> int:
        return min(int(count * scale), most)

    opened = {"cifar10": zoo.open_data(cifar), "fashion": zoo.open_data(fashion)}
    first, tasks = [], {}
    for name, own in opened.items():
        x, y = own.arrays("train")
        tx, ty = own.arrays("test")
        order = np.random.Generator(np.random.PCG64(0)).permutation(len(y))
        upstream = n(16000 if name == "cifar10" else 6000, len(y) // 2)
        first.append(_take(x, y, order[:upstream]))
        rest = order[upstream:]
        train, kept = n(4000, len(rest) - 2000), n(2000, 2000)
        splits = {
            "train": _take(x, y, rest[:train]),
            "validation": _take(x, y, rest[train : train + kept]),
            "test": _take(tx, ty, np.arange(n(5000, len(ty)))),
        }
        tasks[name] = _finished(name, splits, 10)
    images = torch.cat([x for x, _ in first])
    labels = torch.cat([y + 10 * i for i, (_, y) in enumerate(first)])
    trunk = _finished("trunk", {"train": (images, labels)}, 20)

    digits = zoo.open_data("digits").split(validation=150, seed=0)
    named = {s: digits.arrays(s) for s in ("train", "validation", "test")}
    tasks["digits"] = _finished(
        "digits", {s: _take(x, y, np.arange(len(y))) for s, (x, y) in named.items()}, 10
    )
    overlaid = {
        split: _overlaid(pair, torch.Generator().manual_seed(i))
        for i, (split, pair) in enumerate(tasks["fashion"].splits.items())
    }
    tasks["overlaid"] = _finished("overlaid", overlaid, 10)
    if extra is not None:
        own = zoo.open_data(extra).split(seed=0)
        splits = {s: _take(*own.arrays(s), np.arange(n(4000, len(own.arrays(s)[1])))) for s in own.splits}
        tasks[Path(extra).stem] = _finished(Path(extra).stem, splits, own.num_classes)
    return Data(trunk, tasks, opened["cifar10"])
