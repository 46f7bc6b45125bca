"""Every registered search is held to what it claims, and is listed."""

import inspect

import pytest
import torch

from isthmus import methods, score, soup
from isthmus.search import SEARCHES

OPTIONS = {
    "optuna": {"trials": 4},
    "adamerging": {"iterations": 3},
    "learned": {"epochs": 1},
    "wise-ft": {"points": 3},
    "grid": {"resolution": 3},
}
CLAIMS = [(row.name, claim) for row in SEARCHES.rows() for claim in row.claims]


@pytest.fixture
def call(net, data):
    """(kind, models, seed) -> what the search finds, given all that it needs."""
    base = {key: value.clone() for key, value in net.state_dict().items()}
    base["third.weight"] = base["second.weight"]

    def ask(kind, models, seed=0):
        given = {"model": net, "data": data, "base": base, "seed": seed}
        return soup(models, score(net, data, "loss"), kind, **given, **OPTIONS.get(kind, {}))

    return ask


def same(a, b, rtol=0.0):
    for key, value in a.weights.items():
        torch.testing.assert_close(value, b.weights[key], rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("kind", "claim"), CLAIMS)
def test_a_search_keeps_the_law_that_it_claims(kind, claim, call, nets):
    if claim == "copies-give-the-model":
        # For one model, the copy of it is the base.
        models = [nets[0]] * (1 if kind == "wise-ft" else 3)
        found = call(kind, models) if kind != "wise-ft" else soup(models, lambda w: 0.0, kind, base=nets[0])
        for key, value in nets[0].items():
            torch.testing.assert_close(found.weights[key], value, rtol=1e-6, atol=1e-6)
    elif claim == "order-free":
        same(call(kind, nets), call(kind, nets[::-1]), rtol=1e-7)
    elif claim == "seeded":
        same(call(kind, nets, 3), call(kind, nets, 3))
    else:
        pytest.fail(f"nothing checks {claim}")


@pytest.mark.parametrize("kind", SEARCHES.names())
def test_a_search_leaves_models_alone_and_tells_its_options(kind, call, net, nets):
    models = nets[:1] if kind == "wise-ft" else nets
    before = [{key: value.clone() for key, value in state.items()} for state in (net.state_dict(), *models)]
    found = call(kind, models)
    for state, copy in zip((net.state_dict(), *models), before, strict=True):
        assert all(torch.equal(value, copy[key]) for key, value in state.items())
    assert found.kind == kind and list(found.weights) == list(models[0])
    assert found.weights["third.weight"] is found.weights["second.weight"]
    net.load_state_dict(found.weights, strict=True)
    options = inspect.signature(SEARCHES.get(kind).function).parameters
    told = {name for name, p in options.items() if p.kind is p.KEYWORD_ONLY} - {"tasks"}
    assert told <= set(found.settings), "every option is in the result"


def test_searches_are_listed_with_what_they_need():
    rows = {row.name: row for row in methods("search")}
    assert set(rows) == set(SEARCHES.names())
    assert rows["wise-ft"].needs == ("score", "base") and all(row.source for row in rows.values())
