"""Results as a run on CIFAR-10 gives them: numbers made up in the shape of the published ones."""

from __future__ import annotations

import math

import pytest

from isthmus.diagnose import Attempt, Cause, Diagnosis, Recipe
from isthmus.measure import Finding
from isthmus.report import (
    Alignment,
    Curve,
    Profile,
    Provenance,
    Published,
    Results,
    Row,
    Series,
    Setting,
    SpaceCost,
    Verification,
)

TABLE = "activation matching, VGG16 on CIFAR-10, Table 1 of the Vanishing Feature paper"
LAYERS = [f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)] + ["classifier"]


def _published(accuracy: float, spread: float) -> Published:
    return Published(accuracy=accuracy / 100, spread=spread / 100, source=TABLE)


def _curve(name: str, middle: float, loss: float, flat: float) -> Curve:
    """A valley from 85.6 % down to `middle`, steeper where `flat` is larger."""
    ts = [i / 24 for i in range(25)]
    depth = [(1 - abs(2 * t - 1) ** flat) ** 1.6 for t in ts]
    accuracy = [0.8572 - 0.0024 * t - (0.856 - middle) * d for t, d in zip(ts, depth, strict=True)]
    losses = [0.512 + 0.011 * t + (loss - 0.517) * d for t, d in zip(ts, depth, strict=True)]
    return Curve(
        name=name,
        t=ts,
        accuracy=accuracy,
        loss=losses,
        accuracy_barrier=0.856 - min(accuracy),
        loss_barrier=max(losses) - 0.517,
    )


@pytest.fixture
def results() -> Results:
    decay = [math.exp(-0.19 * i) for i in range(14)]
    return Results(
        title="Two VGG16, trained apart, on CIFAR-10",
        verdict="Averaged as they are, the two networks fall to chance; aligned and rescaled they make one "
        "network of the same size at 75.8 %, and with the first 8 of 14 layers kept apart one at 86.4 %, "
        "above both.",
        rows=[
            Row(name="edge vgg16_s1", kind="edge", accuracy=0.8572, loss=0.512, parameters=1.0, flops=1.0),
            Row(name="edge vgg16_s2", kind="edge", accuracy=0.8548, loss=0.523, parameters=1.0, flops=1.0),
            Row(
                name="ensemble",
                kind="ensemble",
                accuracy=0.8736,
                loss=0.411,
                parameters=2.0,
                flops=2.0,
                published=_published(92.93, 0.29),
            ),
            Row(
                name="direct average",
                accuracy=0.1,
                loss=2.3026,
                parameters=1.0,
                flops=1.0,
                published=_published(10, 0),
            ),
            Row(
                name="aligned",
                accuracy=0.3122,
                loss=1.9418,
                parameters=1.0,
                flops=1.0,
                published=_published(46.5, 1.59),
            ),
            Row(
                name="aligned + repair",
                accuracy=0.7581,
                loss=0.7713,
                parameters=1.0,
                flops=1.0,
                published=_published(84.68, 0.85),
                note="rescale",
            ),
            Row(
                name="preserve-first 3 of 14",
                kind="kept-apart",
                accuracy=0.7903,
                loss=0.6624,
                parameters=1.0077,
                flops=1.19,
                published=_published(86.77, 0.06),
            ),
            Row(
                name="preserve-first 8 of 14",
                kind="kept-apart",
                accuracy=0.8641,
                loss=0.4388,
                parameters=1.1983,
                flops=1.67,
                published=_published(92.43, 0.23),
            ),
            Row(
                name="preserve-first 12 of 14",
                kind="kept-apart",
                accuracy=0.8727,
                loss=0.4127,
                parameters=1.8392,
                flops=1.97,
                published=_published(92.87, 0.21),
            ),
        ],
        curves=[
            _curve("direct", 0.1, 2.3026, 4.5),
            _curve("aligned", 0.3122, 1.9418, 2.6),
            _curve("aligned + repair", 0.7581, 0.7713, 2.0),
        ],
        profiles=[
            Profile.vanishing(
                LAYERS,
                {
                    "direct": [0.71 * d**2.2 for d in decay],
                    "aligned": [0.86 * d**0.75 for d in decay],
                    "aligned + repair": [0.97 - 0.012 * i + 0.02 * math.sin(2 * i) for i in range(14)],
                },
                note="Mean over 5,000 test images; f(0) is the response to the mean image.",
            ),
            Profile.variance(
                LAYERS,
                {
                    "direct": [0.5 * d**4 for d in decay],
                    "aligned": [0.74 * d**1.5 for d in decay],
                    "aligned + repair": [1.0 - 0.004 * i + 0.01 * math.cos(3 * i) for i in range(14)],
                },
                note="Before the nonlinearity, 5,000 training images.",
            ),
        ],
        verification=Verification(
            error=3.14e-13,
            bound=1e-9,
            spaces=13,
            moved=0.9994,
            frozen=["input: channel (3)", "output: class (10)"],
            note="On a float64 copy with every parameter redrawn; each space alone, then all together.",
        ),
        alignment=Alignment(
            method="Activation matching",
            cost="1 - correlation of matched units, summed over the space",
            spaces=[
                SpaceCost(space=layer, size=size, before=0.93 * size, after=(0.35 + 0.03 * i) * size)
                for i, (layer, size) in enumerate(
                    zip(LAYERS, [16, 16, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 128], strict=False)
                )
            ],
            note="5,000 training images, post-activation; ties broken by weight similarity.",
        ),
        settings=[
            Setting(name="align", value="activation-matching", default=False),
            Setting(name="repair", value="rescale", default=False),
            Setting(name="preserve_first", value=[3, 8, 12], default=False),
            Setting(name="preserve_variant", value="junction"),
            Setting(name="weights", value=[0.5, 0.5]),
            Setting(name="align.moment", value="correlation"),
            Setting(name="align.value", value="post-activation"),
            Setting(name="calibration examples", value=5000),
            Setting(name="calibration augmentation", value=False),
            Setting(name="repair.gain_clamp", value=None),
            Setting(name="repair.reference", value="weighted mean of the parents"),
            Setting(name="path points", value=25),
            Setting(name="dtype", value="float32, accumulated in float64"),
        ],
        provenance=Provenance(
            isthmus="0.1.0",
            torch="2.13.0+cpu",
            python="3.11.7",
            device="cpu, 2 threads",
            created="2026-11-22T01:40:00Z",
            command="isthmus merge vgg16_s1.safetensors vgg16_s2.safetensors --arch models:vgg base=16 "
            "--data cifar10.npz --align activation-matching --repair rescale --preserve-first 3,8,12",
            seeds={"alignment": 0, "split": 0},
            splits={"train": 45000, "validation": 5000, "test": 10000},
            evaluated="test",
            chance=0.1,
            checkpoints={"vgg16_s1": "sha256:4f1c9a60", "vgg16_s2": "sha256:b02e77d1"},
        ),
    )


@pytest.fixture
def pruning() -> Results:
    """A pruned VGG16: what went of each layer, what features were left, and what the repair multiplied them by."""
    decay = [math.exp(-0.3 * i) for i in range(14)]
    factors = {"smallest factor": 0.9, "median factor": 1.5, "largest factor": 40.0}
    gains = Profile(
        name="What the repair did",
        quantity="factor of a channel",
        layers=LAYERS[:-1],
        series=[Series(name=name, values=[value] * 13) for name, value in factors.items()],
        reference=1.0,
        reference_name="unchanged",
        scale="log",
    )
    return Results(
        title="VGG16, pruned by magnitude",
        verdict="With 90% of the weights pruned, the model scores 14.20% where it scored 85.72%; repaired, 79.10%.",
        rows=[
            Row(name="as it was", kind="edge", accuracy=0.8572, loss=0.512, parameters=1.0),
            Row(name="pruned", kind="pruned", accuracy=0.142, loss=2.31, parameters=0.101),
            Row(name="repaired", kind="pruned", accuracy=0.791, loss=0.64, parameters=0.101, note="rescale"),
        ],
        profiles=[
            Profile.sparsity({layer: 1 - 0.6 * d for layer, d in zip(LAYERS, decay, strict=True)}, 0.9),
            Profile.vanishing(LAYERS, {"pruned": decay, "repaired": [0.9] * 14}, beside="unpruned"),
            gains,
        ],
        provenance=Provenance(isthmus="0.1.0", torch="2.13.0+cpu", evaluated="test", chance=0.1),
    )


@pytest.fixture
def diagnosis() -> Diagnosis:
    """A diagnosis of two models, with a hostile name, a finding that is not finite and a recipe that was refused."""
    said = {
        "means": "What that means.",
        "source": "Somebody 2024 (arXiv:0000.00000)",
        "conditions": ("x at most 1 (0.2)",),
    }
    found = [
        Finding(
            "matched correlation",
            0.25,
            better="higher",
            bounds=(-1.0, 1.0),
            layers={"conv1": 0.5, "conv2": 0.25, "head": math.nan},
            note="at 100 examples",
        ),
        Finding("parents' accuracy", 85.0, "%", layers={"a": 85.0, "b<script>": 84.0}),
        Finding("sign conflict", 0.4),
    ]
    best = Attempt(Recipe("activation-matching", "repair"), 1.0, 0.8, 0.8123)
    large = Attempt(Recipe("activation-matching", "rescale", 4), 1.25, 0.86, 0.8525)
    refused = Attempt(Recipe("zipit"), refused="zipit needs something that is not there")
    return Diagnosis(
        names=("a", "b<script>"),
        relation=Cause("strangers", found="They are unlike.", advice="Align them.", **said),
        causes=(Cause("other-order", found="In another order.", advice="Reorder them.", **said),),
        findings={finding.name: finding for finding in found},
        attempts=(best, large, refused),
        best={1.0: best, 2.0: large},
        ensemble=0.87,
        parents=(0.85, 0.84),
        chance=0.1,
        examples=500,
        left=3,
        settings={"subset": 300, "seed": 0},
        program=("isthmus", "merge", "a.safetensors", "b.safetensors"),
    )
