"""Soft orders, the Sinkhorn operator, and running a network again from where it changed."""

import functools

import pytest
import torch
from torch import Tensor

from isthmus.align.learned.doubly_stochastic import sinkhorn_operator
from isthmus.align.learned.labelled import Task, mean_of
from isthmus.align.learned.relaxed import Relaxation
from isthmus.align.learned.rerun import Rerun
from isthmus.errors import DataError
from isthmus.program import Batch
from isthmus.symmetry import reorder
from isthmus.symmetry.elements import random_orders
from isthmus.testing.subjects import subject_of

NAMES = ("mlp", "conv-bn", "attention")


@pytest.mark.parametrize("name", NAMES)
def test_a_corner_is_an_order(name: str):
    subject = subject_of(name)
    graph, weights = subject.graph, subject.models[0]
    relaxation = Relaxation(graph)
    orders = random_orders(graph, torch.Generator().manual_seed(0))
    corner = relaxation.corner(orders, torch.zeros((), dtype=torch.float64))
    for key, moved in relaxation.apply(weights, corner).items():
        assert torch.equal(moved, reorder(weights[key], graph.layout[key], orders, graph.spaces))
    assert {n: m.shape for n, m in corner.items()} == {n: torch.Size(relaxation.shape(n)) for n in corner}
    again = relaxation.best(corner)
    assert all(torch.equal(again[n], order) for n, order in orders.items())


@pytest.mark.parametrize("name", NAMES)
def test_the_best_corner_beats_others(name: str):
    relaxation = Relaxation(subject_of(name).graph)
    generator = torch.Generator().manual_seed(0)
    like = torch.zeros((), dtype=torch.float64)
    gradient = {
        n: torch.randn(relaxation.shape(n), generator=generator, dtype=torch.float64)
        for n in relaxation.known
    }

    def value(orders: dict[str, Tensor]) -> float:
        corner = relaxation.corner(orders, like)
        return sum(float((corner[n] * gradient[n]).sum()) for n in gradient)

    best = value(relaxation.best(gradient))
    assert all(value(random_orders(relaxation.graph, generator)) < best for _ in range(30))


def test_soft_weights_have_the_gradient_of_their_matrices():
    subject = subject_of("mlp")
    relaxation = Relaxation(subject.graph)
    shapes = {n: relaxation.shape(n) for n in relaxation.known}
    generator = torch.Generator().manual_seed(0)
    soft = [torch.rand(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes.values()]

    def moved(*matrices: Tensor) -> tuple[Tensor, ...]:
        return tuple(relaxation.apply(subject.models[0], dict(zip(shapes, matrices, strict=True))).values())

    assert torch.autograd.gradcheck(moved, soft)


# The Sinkhorn operator.


def test_rows_and_columns_sum_to_one_at_any_scale():
    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 1e3):
        scores = scale * torch.randn(4, 6, 6, generator=generator, dtype=torch.float64)
        found = sinkhorn_operator(scores, 2000)
        assert bool(found.isfinite().all())
        torch.testing.assert_close(found.sum(-1), torch.ones(4, 6).double())
    torch.testing.assert_close(sinkhorn_operator(scores / 1e3, 2000).sum(-2), torch.ones(4, 6).double())


def test_the_derivative_is_that_of_all_rounds():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64).requires_grad_()
    weights = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    (implicit,) = torch.autograd.grad((sinkhorn_operator(scores, 300) * weights).sum(), scores)
    log = scores
    for _ in range(300):
        log = log - log.logsumexp(-2, keepdim=True)
        log = log - log.logsumexp(-1, keepdim=True)
    (unrolled,) = torch.autograd.grad((log.exp() * weights).sum(), scores)
    torch.testing.assert_close(implicit, unrolled)


# Running again.


@pytest.mark.parametrize("name", NAMES)
def test_running_again_from_where_weights_changed_is_running_all(name: str):
    subject = subject_of(name)
    program, graph = subject.program, subject.graph
    batch = Batch((subject.data,), {}, subject.targets)
    parts = {name: {m.key for m in space.members} for name, space in graph.spaces.items()}
    weights, other = subject.models[:2]
    task = Task(program, [(subject.data, subject.targets)], "cross-entropy", 0.0, weights)
    run = Rerun(program, [batch], parts, task.norms)
    _, kept = run(weights, task.of)
    for part, keys in parts.items():
        changed = {k: other[k] if k in keys else w for k, w in weights.items()}
        again, after = run(changed, task.of, part, kept)
        whole, fresh = run(changed, task.of)
        assert again == pytest.approx(whole, rel=1e-12)
        assert again == pytest.approx(task.held_loss(changed), rel=1e-9)
        for ours, theirs in zip(after, fresh, strict=True):
            assert ours.keys() == theirs.keys()
            torch.testing.assert_close([ours[k] for k in theirs], list(theirs.values()))


# Labelled data.


def test_what_is_held_out_is_not_learned_from():
    subject = subject_of("mlp")
    data = list(zip(subject.data.split(10), subject.targets.split(10), strict=True))
    make = functools.partial(Task, subject.program, data, "cross-entropy", like=subject.models[0])
    task = make(held_out=0.25)
    assert [b.size for b in task.batches] == [10, 8]
    assert [b.size for b in task.held] == [2, 4]
    rows = torch.cat([b.args[0] for part in (task.batches, task.held) for b in part])  # type: ignore[misc]
    assert torch.equal(rows, subject.data)
    assert sum(b.size for b in make(held_out=0.0, limit=7).held) == 7
    with pytest.raises(DataError, match="1 examples cannot be split"):
        make(held_out=0.5, limit=1)


def test_the_mean_of_models_leaves_counters_alone():
    models = [
        {"w": torch.tensor([1.0]), "n": torch.tensor(3)},
        {"w": torch.tensor([3.0]), "n": torch.tensor(5)},
    ]
    assert mean_of(models)["w"] == 2
    assert mean_of(models)["n"] == 3
