"""AdaMerging: coefficients of task vectors that make the merged model sure of unlabelled test data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from isthmus import progress
from isthmus.errors import InputError
from isthmus.measure import logits_of, reusable
from isthmus.program import Batch, batches, home
from isthmus.search.mixing import By, Mixture, parameters_of
from isthmus.search.result import Searched, Step
from isthmus.search.table import SEARCHES, Data, Search

#: Steps of the trace.
_SHOWN = 20


@SEARCHES.register(
    "adamerging",
    needs=("base", "model"),
    claims=("seeded",),
    source="Yang et al. 2024 (arXiv:2310.02575), Eq. 5 and 6",
)
def adamerging(
    search: Search,
    *,
    tasks: Sequence[Data] = (),
    by: By = "tensor",
    lam: float = 0.3,
    iterations: int = 500,
    lr: float = 1e-3,
    heads: Sequence[str] = (),
) -> Searched:
    """The base and a sum of lam_i task vectors, lam learned by the entropy of the answers to test inputs.

    No label is used, but the inputs are those that the model will be tested on: a result of this search is
    not to be compared with one that never saw them, and says so in its notes.

    Args:
        search: what is asked: models of one base and the architecture; test inputs as data where all models have
            one task.
        tasks: where each model has a task of its own: the test inputs of each, in the order of the models.
        by: coefficients per tensor (the paper's layer-wise), per layer, or per model (task-wise).
        lam: where every coefficient starts. They are kept within 0 and 1.
        iterations: gradient steps; each reads one batch of every task. The authors take 500, batches of 16.
        lr: of Adam.
        heads: globs of tensors that stay each model's own. The weights have the first model's; all are in
            `extra["heads"]`.

    Raises:
        InputError: wrong options, no test inputs, those of another number of tasks, or a broken model.
        DataError: inputs that can be read only once.
    """
    members = search.members
    assert members.base is not None, "the table says that it is needed"
    given = list(tasks) if tasks else [search.data] if search.data is not None else []
    if tasks and len(given) != len(members):
        raise InputError(f"test inputs of {len(given)} tasks for {len(members)} models")
    if not given:
        raise InputError("test inputs are needed", hint="data=, or tasks= with those of each model's task")
    for source in given:
        reusable(source)
    search.data = given[0]
    if iterations < 1 or lr <= 0:
        raise InputError(f"nothing is learned in {iterations} iterations at a rate of {lr:g}")
    apart = [key for key in members.states[0] if any(fnmatchcase(key, glob) for glob in heads)]
    if heads and not apart:
        raise InputError(f"no tensor is called {' or '.join(heads)}")
    own = [{key: state[key].clone() for key in apart} for state in members.states]
    parameters = [key for key in parameters_of(members, search.program) if key not in set(apart)]
    mixture = Mixture(members, by, parameters, members.base, apart)
    shape = (len(mixture.rows), len(members))
    coefficients = torch.full(shape, lam, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([coefficients], lr=lr)
    endless = [_again(source) for source in given]
    seen, every, entropy = 0, max(iterations // _SHOWN, 1), math.nan
    for step in progress.track(range(iterations), "adamerging"):
        weights = mixture(coefficients.clamp(0, 1))
        loss = torch.zeros((), dtype=torch.float64)
        for task, inputs in enumerate(endless):
            batch = next(inputs)
            seen += batch.size
            answers = logits_of(search.run({**weights, **own[task]}, batch.to(*home(weights))))
            loss = loss + _entropy(answers)
        entropy = float(loss.detach()) / len(endless)
        if not math.isfinite(entropy):
            raise InputError(
                "the answers of the merged model are not finite", hint="begin with a smaller lam"
            )
        if step % every == 0:
            _note(search, f"iteration {step}", members.names, coefficients, entropy)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            coefficients.clamp_(0, 1)
    last = coefficients.detach()
    weights = search.finished({**mixture.stored(last), **own[0]})
    settings = {"by": by, "lam": lam, "iterations": iterations, "lr": lr, "heads": tuple(heads)}
    return search.found(
        "adamerging",
        weights,
        -entropy,
        dict(zip(members.names, last.mean(0).tolist(), strict=True)),
        settings,
        notes=[
            f"test-time data: adapted on {seen} unlabelled inputs of the {len(given)} test sets, repeats counted"
        ],
        coefficients=mixture.table(last),
        extra={"heads": tuple(own), "test-time examples": seen} if apart else {"test-time examples": seen},
        by="minus the mean entropy of the answers, nats, over the last batches",
    )


def _entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the softmax over the last dimension, in nats."""
    logs = logits.double().log_softmax(-1)
    return -(logs.exp() * logs).sum(-1).mean()


def _again(source: Data) -> Iterator[Batch]:
    return itertools.chain.from_iterable(batches(source) for _ in itertools.count())


def _note(search: Search, label: str, names: Sequence[str], coefficients: Tensor, entropy: float) -> None:
    shown = dict(zip(names, coefficients.detach().mean(0).tolist(), strict=True))
    search.steps.append(Step(label, shown, -entropy, True, None))
