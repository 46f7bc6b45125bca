"""Nothing is believed until verified: what the check must catch, and what it must own not to have seen."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus
from isthmus import zoo
from isthmus.errors import InputError, MismatchError, VerificationError
from isthmus.symmetry import Leaf, SymmetryGraph
from isthmus.symmetry.elements import random_orders
from isthmus.symmetry.verify import BOUND


class Block(nn.Module):
    """A stream, and a block whose contribution a scale multiplies."""

    def __init__(self, scale: float = 1.0, dead: bool = False):
        super().__init__()
        self.stem, self.up, self.down, self.head = (
            nn.Linear(3, 6),
            nn.Linear(6, 5),
            nn.Linear(5, 6),
            nn.Linear(6, 2),
        )
        self.scale = nn.Parameter(torch.full((6,), scale))
        self.dead = dead

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(F.gelu(self.up(x))) * self.scale
        return self.head(x + (0.0 * y if self.dead else y))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, generator=torch.Generator().manual_seed(0))


def wrong(graph: SymmetryGraph, key: str, axis: int) -> SymmetryGraph:
    """The graph with one axis of one weight forgotten."""
    axes = list(graph.layout[key])
    axes[axis] = Leaf(axes[axis].size)
    return replace(graph, layout={**graph.layout, key: tuple(axes)})


def test_what_is_right_is_verified_to_rounding(x: Tensor):
    model = Block().eval()
    found = isthmus.trace(model, x).verify(model, x)
    assert found.ok and found.error < 1e-13 and found.require() is found
    assert found.own_weights is not None and found.own_weights <= found.error
    assert found.elements == 1 + 2 + 1 + 1, "all together, each alone, signs too, the model's own weights"
    assert str(found).startswith("verified: relative error") and f"(bound {BOUND:.0e})" in str(found)


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize(
    ("key", "axis", "space"), [("down.weight", 1, "up"), ("up.bias", 0, "up"), ("head.weight", 1, "stem")]
)
def test_a_forgotten_axis_is_caught_and_its_space_named(
    x: Tensor, key: str, axis: int, space: str, each: bool
):
    model = Block().eval()
    found = wrong(isthmus.trace(model, x), key, axis).verify(model, x, each=each)
    assert not found.ok and list(found.failed) == [space] and found.failed[space] > 1e-3
    with pytest.raises(VerificationError) as caught:
        found.require()
    assert caught.value.where == (f"{space}: relative error {found.failed[space]:.1e}",)
    assert caught.value.hint is not None and "isthmus.verified" in caught.value.hint


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e-30])
def test_a_block_that_hardly_contributes_is_checked_all_the_same(x: Tensor, scale: float):
    model = Block(scale).eval()
    graph = wrong(isthmus.trace(model, x), "down.weight", 1)
    found = graph.verify(model, x)
    assert list(found.failed) == ["up"]
    # On the model's own weights the fault would hide.
    assert found.own_weights is not None and found.own_weights <= scale + 1e-12


def test_zero_initialised_norms_behind_a_residual_do_not_hide_a_block():
    torch.manual_seed(0)
    model = zoo.resnet(8, base=2).eval()
    for name, parameter in model.named_parameters():
        if "norm2" in name:
            parameter.data.zero_()
    x = torch.randn(2, 3, 8, 8)
    graph = isthmus.trace(model, x)
    assert graph.verify(model, x).ok
    found = wrong(graph, "layer1.0.conv2.weight", 1).verify(model, x, each=False)
    assert list(found.failed) == ["layer1.0.conv1"]


def test_a_branch_that_the_output_does_not_see_is_reported(x: Tensor):
    model = Block(dead=True).eval()
    graph = isthmus.trace(model, x)
    found = graph.verify(model, x)
    assert found.ok and found.unobservable == ("up",)
    assert "not seen by the output: up" in str(found)
    # And a fault in it could not have been found.
    assert wrong(graph, "down.weight", 1).verify(model, x).ok


def test_a_seed_draws_the_same_check(x: Tensor):
    model = Block().eval()
    graph = wrong(isthmus.trace(model, x), "up.bias", 0)
    assert graph.verify(model, x, seed=3) == graph.verify(model, x, seed=3)
    assert graph.verify(model, x, seed=3).error != graph.verify(model, x, seed=4).error


def test_the_model_is_left_alone(x: Tensor):
    model = Block().train()
    before = {key: (id(t), t.clone()) for key, t in model.state_dict(keep_vars=True).items()}
    isthmus.trace(model, x).verify(model, x)
    after = model.state_dict(keep_vars=True)
    assert model.training and {k: id(t) for k, t in after.items()} == {k: i for k, (i, _) in before.items()}
    assert (
        all(torch.equal(after[k], t) for k, (_, t) in before.items())
        and next(model.parameters()).grad is None
    )


def test_without_a_model_or_an_example_redrawn_weights_and_random_inputs_are_used(x: Tensor):
    graph = isthmus.trace(Block().eval(), x)
    found = graph.verify()
    assert found.ok and found.own_weights is None and found.elements == 4
    assert not wrong(graph, "up.bias", 0).verify().ok


def test_a_state_dict_will_do_and_must_fit(x: Tensor):
    model = Block().eval()
    graph = isthmus.trace(model, x)
    assert graph.verify(model.state_dict(), x).own_weights is not None
    with pytest.raises(MismatchError) as caught:
        graph.verify({key: t for key, t in model.state_dict().items() if "up" not in key}, x)
    assert caught.value.where == ("up.weight", "up.bias")


def test_a_buffer_that_only_the_model_has_is_asked_for():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
            self.register_buffer("table", torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) * self.table)

    model, x = Table().eval(), torch.randn(2, 3)
    graph = isthmus.trace(model, x)
    assert graph.verify(model, x).error == 0.0 and graph.verify(model, x).note == "nothing moves"
    with pytest.raises(InputError) as caught:
        graph.verify(None, x)
    assert caught.value.where == ("table",) and "pass the model" in str(caught.value.hint)


def test_what_nothing_reads_is_not_asked_for(x: Tensor):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unused = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    graph = isthmus.trace(Model(), x)
    assert graph.verify(None, x).ok and graph.verify(Model(), x).ok


def test_a_model_that_casts_inside_is_verified_in_float64(x: Tensor):
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 40), nn.Linear(40, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)).to(torch.bfloat16).to(torch.float32))

    model = Casts().eval()
    assert isthmus.trace(model, x).verify(model, x).error < 1e-13


def test_outputs_that_are_no_numbers_are_not_taken_for_a_proof(x: Tensor):
    class Picks(nn.Module):
        def __init__(self, how: str):
            super().__init__()
            self.a, self.b, self.how = nn.Linear(3, 4), nn.Linear(4, 2), how

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(torch.relu(self.a(x)))
            return y.argmax(-1) if self.how == "index" else y / 0.0 - y / 0.0

    for how in ("index", "nan"):
        model = Picks(how).eval()
        found = isthmus.trace(model, x).verify(model, x)
        assert math.isnan(found.error) and not found.ok
        with pytest.raises(VerificationError, match="were not verified"):
            found.require()


def test_a_mask_of_infinities_in_the_output_is_compared_where_it_is_finite(x: Tensor):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(torch.relu(self.a(x)))
            return torch.cat([y, torch.full_like(y, -torch.inf)], -1)

    model = Masked().eval()
    graph = isthmus.trace(model, x)
    assert graph.verify(model, x).ok and not wrong(graph, "b.weight", 1).verify(model, x).ok


def test_a_graph_taken_on_meta_says_that_it_is_unverified():
    with torch.device("meta"):
        model = zoo.vit(8, 4, 6, 1, 2, 2).eval()
        x = torch.empty(2, 3, 8, 8)
    graph = isthmus.trace(model, x)
    assert len(graph.spaces) == 5
    found = graph.verify(model, x)
    assert math.isnan(found.error) and not found.ok
    assert str(found).startswith("unverified: taken on the meta device; verify a smaller model")


def test_elements_have_no_fixed_points_and_differ_per_head():
    model = zoo.vit(8, 4, 12, 1, 3, 2).eval()
    graph = isthmus.trace(model, torch.randn(2, 3, 8, 8))
    element = random_orders(graph, torch.Generator().manual_seed(0))
    for name, order in element.items():
        space = graph.spaces[name]
        assert order.shape == (*(graph.spaces[o].size for o in space.within), space.size)
        assert torch.equal(order.sort(-1).values, torch.arange(space.size).expand(order.shape))
        assert not (order == torch.arange(space.size)).any()
    inner = next(n for n, s in graph.spaces.items() if s.within)
    assert len(element[inner].unique(dim=0)) > 1


def test_what_fails_is_fixed_and_named_with_the_operation(x: Tensor):
    model = Block().eval()
    graph, found = isthmus.verified(wrong(isthmus.trace(model, x), "down.weight", 1), x, weights=model)
    assert found.ok and list(graph.spaces) == ["stem"] and found.frozen == {"up": "down:linear"}
    assert any(f.key == "up.weight" and "fails verification at down:linear" in f.reason for f in graph.fixed)


def test_a_program_that_does_not_run_on_the_example_is_told_and_not_thrown():
    graph = isthmus.trace(nn.Linear(4, 3), torch.randn(2, 4))
    with pytest.raises(VerificationError, match="cannot be run in float64") as caught:
        graph.verify(None, torch.randint(0, 2, (2, 4)))
    assert caught.value.where == ("an input is (2, 4) torch.int64",)
