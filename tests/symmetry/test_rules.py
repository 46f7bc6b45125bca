"""Rules: what has none is fixed and named; one can be added; one that does not fit counts as none."""

import importlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import isthmus
from isthmus.symmetry import rules
from isthmus.symmetry.rules import pointwise
from isthmus.testing import TOLERANCE


@torch.library.custom_op("isthmus_tests::halve", mutates_args=())
def halve(x: Tensor) -> Tensor:
    """An operation that no library knows."""
    return x / 2


@halve.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


OPERATION = torch.ops.isthmus_tests.halve.default


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(halve(self.a(x)))))


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rules registered in a test are gone after it; the library's own are there before it."""
    isthmus.trace(nn.Linear(3, 2), torch.randn(2, 3))
    monkeypatch.setattr(rules, "TABLE", dict(rules.TABLE))
    return


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


def test_an_operation_without_a_rule_fixes_what_it_touches_and_is_named(net: Net):
    graph = isthmus.trace(net, X)
    assert list(graph.spaces) == ["b"], "only what it does not touch moves"
    assert graph.unknown == {"isthmus_tests.halve.default": ("isthmus_tests.halve",)}
    assert {f.reason for f in graph.fixed if f.key == "a.weight" and f.axis == 0} == {"isthmus_tests.halve"}
    assert "operations without a rule (what they touch is fixed):" in str(graph)
    assert "  isthmus_tests.halve.default at isthmus_tests.halve" in str(graph).splitlines()


def test_a_model_with_an_operation_that_has_no_derivative_is_verified(net: Net):
    found = isthmus.trace(net, X).verify(net, X)
    assert found.ok and not found.unobservable


def test_a_rule_frees_what_it_speaks_for(net: Net):
    @isthmus.rule(OPERATION)
    def halved(trace: object, node: torch.fx.Node) -> object:
        return trace.axes(node.args[0])  # type: ignore[attr-defined]

    graph = isthmus.trace(net, X)
    assert list(graph.spaces) == ["a", "b"] and graph.unknown == {}
    assert graph.verify(net, X).error <= TOLERANCE[torch.float64]
    assert halved.__name__ == "halved", "the function itself is handed back"


def test_a_rule_may_give_up(net: Net):
    isthmus.rule(OPERATION)(lambda trace, node: None)
    graph = isthmus.trace(net, X)
    assert list(graph.spaces) == ["b"] and list(graph.unknown) == [
        "isthmus_tests.halve.default (in this form)"
    ]


def test_a_rule_that_meets_what_it_was_not_written_for_counts_as_none(net: Net):
    isthmus.rule(OPERATION)(lambda trace, node: trace.axes(node.args[7]))
    graph = isthmus.trace(net, X)
    assert list(graph.spaces) == ["b"] and graph.verify(net, X).ok
    (name,) = graph.unknown
    assert name.startswith("isthmus_tests.halve.default (IndexError: ")


def test_a_wrong_rule_is_caught_and_its_space_named(net: Net):
    # It says that the operation makes indices of a new set out of the old: nothing ties them.
    isthmus.rule(OPERATION)(lambda trace, node: [trace.axes(node.args[0])[0], trace.new(5)])
    found = isthmus.trace(net, X).verify(net, X)
    assert not found.ok and found.error > 0.01
    assert set(found.failed) == {"a", "b~2"}, "the two sides of the operation"
    with pytest.raises(isthmus.IsthmusError, match="do not leave its outputs alone") as caught:
        found.require()
    assert any(line.startswith("a: relative error") for line in caught.value.where)  # type: ignore[attr-defined]
    assert "FAILED" in str(found) and "a" in str(found)


def test_a_users_rule_comes_before_the_librarys_even_when_registered_before_it():
    @isthmus.rule(torch.ops.aten.relu.default)
    def mine(trace: object, node: torch.fx.Node) -> None:
        return None

    importlib.reload(pointwise)  # as on the first trace
    assert rules.TABLE[torch.ops.aten.relu.default] is mine
    assert rules.TABLE[torch.ops.aten.gelu.default] is not mine


def test_several_results_may_be_given_by_a_rule():
    class Chunked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.a(x).tensor_split(2, -1)
            return self.b(left + right)

    model = Chunked().eval()
    graph = isthmus.trace(model, X)
    assert [s.size for s in graph.spaces.values()] == [3] and graph.verify(model, X).ok


def test_every_rule_is_for_an_operation_of_torch_or_a_name():
    assert len(rules.TABLE) > 200
    for operation in rules.TABLE:
        assert isinstance(operation, str | torch._ops.OpOverload), operation
