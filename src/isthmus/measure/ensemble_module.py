"""Ensembles as modules: several models that answer as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, fx, nn

from isthmus.errors import InputError
from isthmus.measure.answers import Weights, logits_of
from isthmus.measure.ensemble import check_shares, even
from isthmus.program import Batch, Inputs, Program, ProgramModule, example_of, export

#: What is averaged.
Of = Literal["logits", "probabilities", "features"]


class Ensemble(nn.Module):
    """The mean of N models' answers, or of their features, as one module in eval mode.

    - "logits": the mean of un-normalised logits.
    - "probabilities": the logarithm of the mean of softmax probabilities, which are logits of them.
    - "features": the mean of what the last linear operation reads, answered by one head: the mean of the members'
      heads, or the head of one member. It is what keeps everything but the head apart
      (`preserve_first` = layers - 1), and runs as many trunks.

    Members' weights are this module's parameters, `members.0.<key>` and so on.

    Args:
        model: the architecture, a module or a program; it is not changed.
        weights: a state dict of each member.
        of: what is averaged.
        head: for features: "mean" of the heads, or the index of the member whose head it is.
        shares: each member's part, summing to 1; equal by default.
        example: example inputs, where `model` is a module.
        at: for features: the value to average, by its name in the program; by default what the last linear
            operation on the way to the output reads.

    Raises:
        InputError: no member, wrong shares, no such head, or a model that has no single value of features.
        MismatchError: weights that do not fit the model.
        ExportError: the module cannot be read.

    Source: Wortsman et al. 2022 (arXiv:2203.05482) for logits; "Rethinking weight-averaged model-merging"
        (arXiv:2411.09263) for features: its "Ens Features" is `head="mean"`, its "Ens Features*" `head=0`.

    Examples:
        >>> import torch
        >>> a, b, x = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2), torch.randn(4, 3)
        >>> joined = Ensemble(a, [a.state_dict(), b.state_dict()], example=x)
        >>> torch.allclose(joined(x), (a(x) + b(x)) / 2, atol=1e-6)
        True
    """

    def __init__(
        self,
        model: nn.Module | Program,
        weights: Sequence[Weights],
        *,
        of: Of = "logits",
        head: Literal["mean"] | int = "mean",
        shares: Sequence[float] | None = None,
        example: Inputs | None = None,
        at: str | None = None,
    ):
        super().__init__()
        if of not in ("logits", "probabilities", "features"):
            raise InputError(f"of = {of!r} is none of 'logits', 'probabilities', 'features'")
        if of != "features" and (head != "mean" or at is not None):
            raise InputError(f"an ensemble of {of} has no head of its own", hint="of='features' has")
        self.shares = even(len(weights)) if shares is None else tuple(float(share) for share in shares)
        check_shares(self.shares, len(weights))
        if isinstance(head, int) and not 0 <= head < len(weights):
            raise InputError(f"head = {head} is none of the {len(weights)} members")
        if isinstance(model, nn.Module) and example is None:
            raise InputError(
                "an example input is needed to read the model", hint="pass example=, or a program"
            )
        if isinstance(model, nn.Module):
            assert example is not None
            model = export(model, example_of(example))
        self.of = of
        self.head = head
        self.members = nn.ModuleList(ProgramModule(model, one) for one in weights)
        if of == "features":
            self.at = at or features_of(model)
            self._trunk = model.compile([self.at])
            self._tail = model.compile(given=[self.at])
            self._tail_keys = _read_after(model, self.at)
        self.eval()

    def forward(self, *args: object, **kwargs: object) -> object:
        """Logits of the ensemble: (batch, classes), or whatever shape the members give."""
        if self.of == "features":
            return self._of_features(Batch(args, kwargs))
        answers = [logits_of(member(*args, **kwargs)) for member in self.members]
        if self.of == "logits":
            return self._mean(answers)
        return self._mean([answer.softmax(-1) for answer in answers]).log()

    def _of_features(self, batch: Batch) -> object:
        states = [_state(member) for member in self.members]
        features: list[Tensor] = []
        for state in states:
            made = self._trunk(state, batch)
            assert isinstance(made, dict)
            features.append(made[self.at])
        tail = dict(states[self.head if isinstance(self.head, int) else 0])
        if self.head == "mean":
            tail |= {
                k: self._mean([s[k] for s in states]) for k in self._tail_keys if tail[k].is_floating_point()
            }
        return self._tail(tail, batch, given={self.at: self._mean(features)})

    def _mean(self, tensors: Sequence[Tensor]) -> Tensor:
        total = tensors[0] * self.shares[0]
        for share, tensor in zip(self.shares[1:], tensors[1:], strict=True):
            total = total + share * tensor
        return total


def features_of(program: Program) -> str:
    """The value that the last linear operation before the output reads: the features that its head answers from.

    Raises:
        InputError: there is none, or other values reach the output beside it.
    """
    linear = [
        node
        for node in program.graph.nodes
        if node.name in program.dynamic
        and program.applies_weight(node)
        and program.depth[node.name] == program.layers
    ]
    found = [a.name for node in linear for a in node.all_input_nodes if a.name in program.dynamic]
    if len(set(found)) != 1:
        raise InputError(
            "the model has no single last linear operation to take features from",
            [program.origin[node.name] for node in linear],
            hint="say which value the features are: at=, a name in program.nodes",
        )
    if left := sorted(set(program.inputs) & _before_output(program, found[0])):
        raise InputError(
            f"the output also depends on {', '.join(left)} past the features", hint="name another: at="
        )
    return found[0]


def _before_output(program: Program, given: str) -> frozenset[str]:
    """What the output is computed from, once a value is given."""
    needed: set[str] = set()
    stack: list[fx.Node] = [program.nodes[name] for name in program.outputs if name is not None]
    while stack:
        node = stack.pop()
        if node.name not in needed:
            needed.add(node.name)
            stack += [] if node.name == given else node.all_input_nodes
    return frozenset(needed)


def _read_after(program: Program, given: str) -> tuple[str, ...]:
    """Keys of the weights that are read after a value."""
    if given not in program.nodes:
        raise InputError(f"the program has no value {given!r}")
    needed = _before_output(program, given)
    return tuple(key for name, key in program.weights.items() if name in needed)


def _state(member: nn.Module) -> Mapping[str, Tensor]:
    return {**dict(member.named_parameters()), **dict(member.named_buffers())}
