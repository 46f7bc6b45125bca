"""Deep linear networks on Fashion-MNIST: the exact split of features and biases, with and without residuals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.bench import Results
from torch import Tensor

import isthmus
from isthmus import weights as files
from isthmus import zoo
from isthmus.measure import barrier
from isthmus.measure.linear_split import linear_split
from isthmus.paths import Segment
from isthmus.repair import rescale_parameters

Batches = list[tuple[Tensor, Tensor]]

#: Name -> arguments, as in sections 4.2 and 5.2 of the paper.
KINDS: dict[str, dict[str, Any]] = {
    "8 layers": {"depth": 8},
    "5 layers": {"depth": 5},
    "5 layers, residual": {"depth": 5, "residual": True},
}
PAIRS = (1, 2, 3)
EPOCHS = 5
#: The paper has 0.01 on MNIST; at that rate eight linear layers do not settle on Fashion-MNIST.
RATE = 0.002


def measure(data: zoo.Dataset, results: Results, models: Path, device: str) -> None:
    """Every kind and pair."""
    test = [(x.to(device), y.to(device)) for x, y in data.loader("test", batch_size=1000)]
    for kind, arguments in KINDS.items():
        for index in PAIRS:
            results.once(
                f"{kind} {index}", lambda a=arguments, i=index: pair(a, i, data, test, models, device)
            )


def pair(
    arguments: dict[str, Any], index: int, data: zoo.Dataset, test: Batches, models: Path, device: str
) -> dict[str, Any]:
    """One pair: barriers, the split at the midpoint, and how large parameters are."""
    net = zoo.build("linear_network", **arguments).to(device).eval()
    states = [trained(arguments, seed, data, models, device) for seed in (2 * index - 1, 2 * index)]
    example = test[0][0][:2]
    graph = isthmus.verified(isthmus.trace(net, example), example, weights=states[0])[0]
    matched = isthmus.align(graph, states, "weight-matching").apply(states)
    program = graph.program
    found: dict[str, Any] = {"parents": [isthmus.evaluate(program, test, s).accuracy for s in states]}
    for name, ends in (("direct", states), ("aligned", matched)):
        path = Segment(ends[0], ends[1])
        curve = barrier(program, path, test)
        middle = path.at(0.5)
        larger = rescale_parameters(
            program, middle, parents=ends, shares=(0.5, 0.5), layers=program_layers(program)
        )
        found[name] = {
            "t": list(curve.t),
            "accuracy": list(curve.accuracy),
            "rescaled": isthmus.evaluate(program, test, larger.weights).accuracy,
            "scale": scales(middle, ends),
            **split(program, middle, test),
            "rescaled split": split(program, larger.weights, test),
        }
    found["network"] = split(program, states[0], test)
    return found


def program_layers(program: isthmus.Program) -> list[str]:
    """Every layer, the last one too."""
    return [
        name
        for name in program.nodes
        if name in program.dynamic and program.applies_weight(program.nodes[name])
    ]


def split(program: isthmus.Program, weights: Mapping[str, Tensor], test: Batches) -> dict[str, Any]:
    """Norms of g and h at every layer, and of the last bias's own term and all before it at the output."""
    found = linear_split(program, weights, test[:2], split="test")
    return {
        "features": list(found.features),
        "offset": list(found.offset),
        "biases": {key: values[-1] for key, values in found.biases.items()},
    }


def scales(middle: Mapping[str, Tensor], ends: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean |parameter| of the midpoint over the mean of the networks'."""
    return {
        key: (value.abs().mean() / (sum(end[key].abs().mean() for end in ends) / len(ends))).item()
        for key, value in middle.items()
    }


def trained(
    arguments: dict[str, Any], seed: int, data: zoo.Dataset, models: Path, device: str
) -> dict[str, Tensor]:
    """A network's weights, trained first if need be."""
    told = "-".join(f"{key}{value}" for key, value in arguments.items())
    path = models / f"linear-{told}_s{seed}.safetensors"
    net = zoo.build("linear_network", **arguments)
    if not path.exists():
        loader = data.loader("train", batch_size=128, shuffle=True, drop_last=True)
        result = zoo.train(
            zoo.init(net, seed).to(device),
            loader,
            epochs=EPOCHS,
            lr=RATE,
            optimizer="adam",
            schedule="constant",
            weight_decay=1e-4,
            seed=seed,
        )
        files.save(result.model.cpu().state_dict(), path)
    found = files.load(path)
    return {key: found[key].to(device) for key in net.state_dict()}
