"""The exact split of a linear network: what of each layer comes from the input, and what from each bias."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from isthmus.errors import InputError
from isthmus.features import explained, feed, placed
from isthmus.measure.answers import Weights
from isthmus.measure.finding import Finding
from isthmus.measure.layers import batch_dim
from isthmus.program import Batch, Program, Runner, home

#: Relative error, in float64, up to which sums are said to be equal.
EXACT = 1e-9


@dataclass(frozen=True)
class LinearSplit:
    """f^l(x) = g^l(x) + sum over j of h^l(b_j), layer by layer. Norms are root mean squares over units.

    Attributes:
        layers: labels, in order of execution. f^l is what the next layer reads, skips added, or the output.
        features: mean over the examples of the norm of g^l(x).
        offset: norm of h^l, the sum of the bias terms.
        biases: key of each bias -> the norm of its own term at each layer.
        examples: size of the split.
        split: the caller's name for the data.
    """

    layers: tuple[str, ...]
    features: tuple[float, ...]
    offset: tuple[float, ...]
    biases: dict[str, tuple[float, ...]]
    examples: int
    split: str = "data"

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Features, offset, and the term of each bias; the value is that of the last layer."""
        rows = {"input-induced features": self.features, "bias offset": self.offset}
        rows |= {f"bias term of {key}": values for key, values in self.biases.items()}
        note = f"root mean square over units; {self.split}: {self.examples} examples"
        return tuple(
            Finding(n, v[-1], "1", None, (0.0, None), dict(zip(self.layers, v, strict=True)), note)
            for n, v in rows.items()
        )


def linear_split(
    program: Program, weights: Weights, data: Iterable[object], *, split: str = "data"
) -> LinearSplit:
    """Split every layer of a network without nonlinearities into its input's part and that of each bias.

    It is measured on the program, in float64, so that residual connections, convolutions and pooling by means are
    split as well: the term of one bias is what zeros give when all other biases are zero.

    Args:
        program: of the network.
        weights: its state dict, merged or not.
        data: yields inputs, or (inputs, targets). Targets are not used.
        split: what the data is, for the notes.

    Raises:
        InputError: the network is not linear in its input, or its offset is not the sum of its biases' terms.

    Source: Qu and Horváth 2025 (arXiv:2402.05966): equation 4.1, and with residual connections equation 5.2, whose
        elementary symmetric polynomials are what is measured here.

    Examples:
        >>> from isthmus.program import export
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> for p in net.parameters():
        ...     _ = torch.nn.init.ones_(p)
        >>> found = linear_split(export(net, torch.ones(2, 2)), net.state_dict(), [torch.ones(1, 2)])
        >>> found.features, found.offset
        ((2.0, 4.0), (1.0, 3.0))
        >>> found.biases  # the first bias passes the second layer: 1 + 1
        {'0.bias': (1.0, 2.0), '1.bias': (0.0, 1.0)}
    """
    exact = program.to(dtype=torch.float64)
    state = {k: v.double() if v.is_floating_point() else v for k, v in placed(program, weights, None).items()}
    labels = _states(program)
    run = exact.compile(labels)
    biases = program.biases
    norms, examples = dict.fromkeys(labels, 0.0), 0
    nothing: dict[str, Tensor] = {}
    terms: dict[str, dict[str, Tensor]] = {}
    for batch in feed(data, "linear split"):
        own = batch.to(*home(state))
        if not examples:
            zero = _mapped(own, lambda v: torch.zeros_like(v[:1]))
            nothing = _values(program, run, state, zero, labels)
            for key in biases:
                alone = {k: torch.zeros_like(v) if k in biases and k != key else v for k, v in state.items()}
                terms[key] = _values(program, run, alone, zero, labels)
            _check_sum(nothing, terms, labels)
            _check_linear(program, run, state, own, nothing, labels)
        found = _values(program, run, state, own, labels)
        for name in labels:
            norms[name] += float((found[name] - nothing[name]).square().mean(1).sqrt().sum())
        examples += batch.size
    return LinearSplit(
        layers=tuple(labels.values()),
        features=tuple(norms[name] / examples for name in labels),
        offset=tuple(_size(nothing[name]) for name in labels),
        biases={key: tuple(_size(term[name]) for name in labels) for key, term in terms.items()},
        examples=examples,
        split=split,
    )


def _states(program: Program) -> dict[str, str]:
    """What the layers read, and the output: value -> the layer that it comes from."""
    linear = [n for n in program.graph.nodes if n.name in program.dynamic and program.applies_weight(n)]
    read = [a.name for n in linear for a in n.all_input_nodes if a.name in program.dynamic]
    named: dict[int, str] = {}
    for node in linear:
        named.setdefault(program.depth[node.name], program.module_of(node.name) or node.name)
    found: dict[str, str] = {}
    for name in dict.fromkeys([*read, *(o for o in program.outputs if o is not None)]):
        depth = program.depth[name]
        if depth and program.is_tensor(name) and batch_dim(program, name) is not None:
            found[name] = named[depth] if named[depth] not in found.values() else f"{named[depth]}:{name}"
    return found


def _values(
    program: Program, run: Runner, weights: Mapping[str, Tensor], batch: Batch, labels: Mapping[str, str]
) -> dict[str, Float[Tensor, "examples units"]]:
    with torch.no_grad(), explained(program, batch, "linear split"):
        found = run(weights, batch)
    assert isinstance(found, dict)

    def rows(name: str) -> Tensor:
        dim = batch_dim(program, name)
        assert dim is not None  # such values only
        return found[name].movedim(dim, 0).reshape(batch.size, -1)

    return {name: rows(name) for name in labels}


def _check_sum(
    whole: Mapping[str, Tensor], terms: Mapping[str, Mapping[str, Tensor]], labels: Mapping[str, str]
) -> None:
    wrong: list[str] = []
    for name, label in labels.items():
        parts = [term[name] for term in terms.values()]
        rest = _size(whole[name] - sum(parts, torch.zeros_like(whole[name])))
        if rest > EXACT * sum(map(_size, [whole[name], *parts])):
            wrong.append(f"{label}: {rest:.3g} of {_size(whole[name]):.3g} comes from no bias alone")
    if wrong:
        raise InputError("the offset is not the sum of what each bias gives", wrong, hint=_HINT)


def _check_linear(
    program: Program,
    run: Runner,
    weights: Mapping[str, Tensor],
    batch: Batch,
    nothing: Mapping[str, Tensor],
    labels: Mapping[str, str],
) -> None:
    """g(x) + g(y) = g(x + y), with y of the other sign, so that no half of an activation passes for linear."""
    other = _mapped(batch, lambda v: -0.7 * v.flip(0))
    both = _mapped(batch, lambda v: v - 0.7 * v.flip(0))
    x, y, z = (_values(program, run, weights, b, labels) for b in (batch, other, both))
    wrong: list[str] = []
    for name, label in labels.items():
        off = _size(x[name] + y[name] - nothing[name] - z[name])
        if off > EXACT * sum(_size(v[name]) for v in (x, y, z)):
            wrong.append(f"{label}: off by {off:.3g} where values are {_size(z[name]):.3g}")
    if wrong:
        raise InputError("the network is not linear in its input", wrong, hint=_HINT)


_HINT = "isthmus.vanishing splits any network into f(x) - f(0) and f(0)"


def _mapped(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """Another batch of floating inputs."""
    args, kwargs = pytree.tree_map(
        lambda v: function(v) if isinstance(v, Tensor) and v.is_floating_point() else v,
        (batch.args, dict(batch.kwargs)),
    )
    return Batch(args, kwargs)


def _size(value: Tensor) -> float:
    return float(value.square().mean().sqrt())
