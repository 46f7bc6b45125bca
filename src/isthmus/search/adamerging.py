"""AdaMerging: coefficients of task vectors that make the merged model sure of unlabelled test data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from isthmus import progress
from isthmus.combine import combine
from isthmus.errors import InputError
from isthmus.measure import logits_of, reusable
from isthmus.program import Batch, batches, home
from isthmus.search.members import Members, Weights
from isthmus.search.mixing import By, Mixture, parameters_of
from isthmus.search.result import Searched, Step
from isthmus.search.standing import Standing, moments, restore
from isthmus.search.table import SEARCHES, Data, Search

#: Steps of the trace.
_SHOWN = 20


@SEARCHES.register(
    "adamerging",
    needs=("base", "model"),
    claims=("seeded",),
    costs="`iterations` gradient steps, each on a batch of every task; no evaluation",
    source="Yang et al. 2024 (arXiv:2310.02575), Eq. 5 and 6, and AdaMerging++",
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
    density: float | None = None,
) -> Searched:
    """The base and a sum of lam_i task vectors, lam learned by the entropy of the answers to test inputs.

    No label is used, but the inputs are those that the model will be tested on: a result of this search is
    not to be compared with one that never saw them, and says so in its notes. In a folder, it is kept every so
    often: killed and called again it goes on, to the same numbers if data comes in the same order each time.

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
        density: AdaMerging++: of each task vector this part is kept, the largest elements of the whole model,
            and of these the ones with the sign that `ties` elects. The authors take 0.2; None keeps all. All models
            are then in memory. Running statistics stay as they are.

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
    moved = () if density is None else _elected(members, parameters, density)
    mixture = Mixture(members, by, parameters, members.base, apart, moved)
    settings = {"by": by, "lam": lam, "lr": lr, "heads": tuple(heads), "density": density}
    asked = {**settings, "iterations": iterations, "tasks": len(given)}
    standing = Standing(
        search.folder,
        "adamerging",
        lambda: {**asked, "models": list(members.digests), "base": members.base_digest},
    )
    coefficients = torch.full((len(mixture.rows), len(members)), lam, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([coefficients], lr=lr)
    trace: list[tuple[int, Tensor, float]] = []  # iteration, coefficients, entropy
    begun, entropy = 0, math.nan
    if kept := standing.read():
        begun, entropy = int(kept["begun"]), float(kept["entropy"])
        trace = list(zip(kept["at"].tolist(), kept["passed"], kept["entropies"].tolist(), strict=True))
        with torch.no_grad():
            coefficients.copy_(kept["coefficients"])
        restore(optimizer, kept)
    endless = [itertools.islice(_again(source), begun, None) for source in given]
    seen, every = int(kept["seen"]) if kept else 0, max(iterations // _SHOWN, 1)
    for step in progress.track(range(begun, iterations), "adamerging"):
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
            trace.append((step, coefficients.detach().clone(), entropy))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            coefficients.clamp_(0, 1)
        if (step + 1) % every == 0 or step + 1 == iterations:
            standing.keep(_tensors(step + 1, seen, entropy, coefficients, trace, optimizer))
    search.steps += [
        Step(
            f"iteration {at}",
            dict(zip(members.names, then.mean(0).tolist(), strict=True)),
            -value,
            True,
            None,
        )
        for at, then, value in trace
    ]
    last = coefficients.detach()
    weights = search.finished({**mixture.stored(last), **own[0]})
    return search.found(
        "adamerging",
        weights,
        -entropy,
        dict(zip(members.names, last.mean(0).tolist(), strict=True)),
        {**settings, "iterations": iterations},
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


def _elected(members: Members, parameters: Sequence[str], density: float) -> list[Weights]:
    """The models with their task vectors as TIES has them before they are added up.

    That is `ties` with one model's weight 1 and the others' 0, where weights do not count in the vote.
    """
    assert members.base is not None
    base, *models = ({key: state[key] for key in parameters} for state in (members.base, *members.states))
    options = {"density": density, "weighted_vote": False, "divide": "none"}
    found: list[Weights] = []
    for index, state in enumerate(members.states):
        alone = [float(i == index) for i in range(len(models))]
        merged = combine(models, "ties", base=base, weights=alone, options=options, names=members.names)
        found.append({**state, **merged})
    return found


def _tensors(
    begun: int,
    seen: int,
    entropy: float,
    coefficients: Tensor,
    trace: Sequence[tuple[int, Tensor, float]],
    optimizer: torch.optim.Optimizer,
) -> dict[str, Tensor]:
    """All that the next iteration depends on, and what is told at the end."""
    at, passed, entropies = zip(*trace, strict=True)
    return {
        "begun": torch.tensor(begun),
        "seen": torch.tensor(seen),
        "entropy": torch.tensor(entropy, dtype=torch.float64),
        "coefficients": coefficients.detach(),
        "at": torch.tensor(at),
        "passed": torch.stack(passed),
        "entropies": torch.tensor(entropies, dtype=torch.float64),
        **moments(optimizer),
    }
