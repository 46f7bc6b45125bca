"""Weight matching with less work: the same steps as the plain algorithm, for any memory, threads and block size."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import isthmus
from isthmus import weights as files
from isthmus.align import align
from isthmus.align.orders import similarity, votes
from isthmus.align.orders.assignment import Evidence
from isthmus.align.orders.matching import Matching
from isthmus.errors import InputError, MismatchError
from isthmus.symmetry import Space, SymmetryGraph
from isthmus.symmetry.saved import load, save
from isthmus.zoo import MLP, VGG, ViT

Weights = dict[str, Tensor]


class Grouped(nn.Module):
    """A grouped convolution, whose units within a group have an order per group."""

    def __init__(self):
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(1, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.last, self.head = nn.Conv2d(12, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.stem, self.grouped, self.last):
            x = torch.relu(conv(x))
        return self.head(x.mean((2, 3)))


class Stream(nn.Module):
    """A residual stream, whose weights carry it twice where they write what they read."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.head = (
            nn.Linear(i, o) for i, o in ((5, 16), (16, 16), (16, 16), (16, 3))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + torch.tanh(self.a(x))
        return self.head(x + torch.relu(self.b(x)))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(d_in=6, widths=(20, 30, 16), num_classes=3), (6,)),
    "conv": (lambda: VGG((1, 1, "M", 2), base=8, in_channels=1, num_classes=3), (1, 6, 6)),
    "grouped": (Grouped, (1, 5, 5)),
    "stream": (Stream, (5,)),
    "heads": (
        lambda: ViT(
            image=4, patch=2, dim=12, depth=2, heads=3, mlp_ratio=2, pool="mean", in_channels=1, num_classes=3
        ),
        (1, 4, 4),
    ),
}


@functools.cache
def graph(name: str) -> SymmetryGraph:
    make, shape = NETS[name]
    return isthmus.trace(make(), torch.zeros(2, *shape))


def drawn(name: str, seed: int, dtype: torch.dtype = torch.float32) -> Weights:
    torch.manual_seed(seed)
    return {key: torch.randn(t.shape).to(dtype) for key, t in NETS[name][0]().state_dict().items()}


def pair(name: str, dtype: torch.dtype = torch.float32) -> tuple[Weights, Weights]:
    return drawn(name, 0, dtype), drawn(name, 1, dtype)


def one_by_one(matching: Matching, sweeps: int) -> Matching:
    """The same visits, one after another, each from all of the weights."""
    with_dots = {key: matching.votes.dots(key) for key in matching.votes.keys}
    matching._dots = with_dots
    names = list(matching.known)
    for _ in range(sweeps):
        for i in torch.randperm(len(names), generator=matching.generator).tolist():
            space = matching.known[names[i]]
            found = matching.solve(space, matching.evidence(space))
            matching.orders |= matching._better(found) or {}
    return matching


@pytest.mark.parametrize("name", NETS)
def test_rounds_and_corrections_take_the_steps_of_one_after_another(name: str):
    models = pair(name, torch.float64)
    ours = Matching(graph(name), *models, seed=3).run(100)
    plain = one_by_one(Matching(graph(name), *models, seed=3), ours.sweeps)
    assert ours.converged and ours.sweeps > 1
    assert all(torch.equal(ours.orders[n], order) for n, order in plain.orders.items())
    assert ours.solved <= ours.sweeps * len(ours.known)


@pytest.mark.parametrize("name", NETS)
def test_corrected_evidence_is_the_evidence(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(similarity, "WORTH", 100.0)
    matching = Matching(graph(name), *pair(name, torch.float64), seed=0).run(3)
    corrected = 0
    for space, kept in matching.similarity._kept.items():
        fresh = matching.similarity.evidence(space, {**matching.orders, **kept.orders})
        held = matching.similarity._evidence(space, kept.sums)
        torch.testing.assert_close(held.direct, fresh.direct, rtol=1e-10, atol=1e-10)
        assert held.inner.keys() == fresh.inner.keys()
        for inner, found in held.inner.items():
            torch.testing.assert_close(found, fresh.inner[inner], rtol=1e-10, atol=1e-10)
        corrected += kept.corrections
    assert name == "conv" or corrected, "otherwise this says nothing"


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_changes_no_bit(name: str, threads: int):
    once, again = (Matching(graph(name), *pair(name), seed=1, threads=n).run(100) for n in (1, threads))
    assert once.objective == again.objective and once.sweeps == again.sweeps
    assert all(torch.equal(once.orders[n], order) for n, order in again.orders.items())


def test_threads_are_put_back():
    before = torch.get_num_threads()
    Matching(graph("mlp"), *pair("mlp"), seed=0, threads=3).run(2)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", ["conv", "heads", "stream"])
def test_memory_and_block_size_change_no_order(name: str, monkeypatch: pytest.MonkeyPatch):
    models = pair(name, torch.float64)
    usual = Matching(graph(name), *models, seed=1).run(100)
    without = Matching(graph(name), *models, seed=1, memory=0.0).run(100)
    assert not without.similarity._kept
    monkeypatch.setattr(votes, "BLOCK", 40)
    monkeypatch.setattr(similarity, "TASK", 100.0)
    pieces = Matching(graph(name), *models, seed=1).run(100)
    for other in (without, pieces):
        assert other.objective == pytest.approx(usual.objective, rel=1e-12)
        assert all(torch.equal(usual.orders[n], order) for n, order in other.orders.items())


@pytest.mark.parametrize("name", ["mlp", "heads"])
def test_no_step_loses_whatever_the_solver_says(name: str):
    generator = torch.Generator().manual_seed(0)

    def guess(space: Space, evidence: Evidence) -> dict[str, Tensor]:
        return {space.name: torch.rand(evidence.direct.shape[:-1], generator=generator).argsort(-1)}

    matching = Matching(graph(name), *pair(name), seed=0, solve=guess, threads=1)
    last = -float("inf")
    for _ in range(4):
        matching.converged, matching.sweeps = False, 0
        matching._seen.clear()
        value = matching.run(1).objective
        assert value >= last - 1e-6
        last = value
    assert last >= matching.start


def test_what_has_not_changed_is_not_solved_again():
    model = drawn("conv", 0)
    found = Matching(graph("conv"), model, dict(model), seed=0).run(100)
    assert found.sweeps == 1 and found.solved == len(found.known)
    torch.testing.assert_close(found.objective, found.start)


def test_half_precision_is_not_widened_before_it_is_compared():
    ours, theirs = pair("heads", torch.bfloat16)
    half = Matching(graph("heads"), ours, theirs, seed=0).run(100)
    wide = Matching(
        graph("heads"), *({k: t.float() for k, t in m.items()} for m in (ours, theirs)), seed=0
    ).run(100)
    assert half.objective == wide.objective
    assert half.votes.ours(half.votes.keys[0]).dtype == torch.bfloat16


@pytest.mark.parametrize("biases", ["vote", "follow"])
def test_a_saved_graph_matches_two_files_as_the_model_does(tmp_path: Path, biases: str):
    models = pair("heads")
    for name, weights in zip("ab", models, strict=True):
        files.save(weights, tmp_path / f"{name}.safetensors")
    again = load(save(graph("heads"), tmp_path / "graph.json"))
    opened = [files.open(tmp_path / f"{name}.safetensors") for name in "ab"]
    found, expected = (
        align(again, opened, "weight-matching", biases=biases),
        align(graph("heads"), models, "weight-matching", biases=biases),
    )
    assert found.notes == expected.notes and found.costs == expected.costs
    ours, theirs = found.apply(opened)[1], expected.apply(models)[1]
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_tied_weights_may_come_under_either_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mid, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.mid(self.embed(x))))

    found = isthmus.trace(Tied(), torch.zeros(2, 3, dtype=torch.long))
    model = Tied().state_dict()
    other = {k: torch.randn_like(v) for k, v in model.items()}
    other["head.weight"] = other["embed.weight"]
    notes = set()
    for gone in ("embed.weight", "head.weight"):
        pairs = [{k: v for k, v in copy.copy(m).items() if k != gone} for m in (model, other)]
        notes.add(align(found, pairs, "weight-matching").notes)
    assert len(notes) == 1


def test_weights_that_do_not_fit_the_graph_are_listed():
    model = drawn("mlp", 0)
    short = {k: v[..., :-1] for k, v in model.items()}
    with pytest.raises(MismatchError, match="shapes of the graph"):
        align(graph("mlp"), [short, short], "weight-matching")


@pytest.mark.parametrize(
    ("options", "words"), [({"memory": -1.0}, "negative"), ({"threads": 0}, "at least 1")]
)
def test_wrong_options(options: dict[str, object], words: str):
    with pytest.raises(InputError, match=words):
        align(graph("mlp"), list(pair("mlp")), "weight-matching", **options)
