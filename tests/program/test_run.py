"""Running part of a program: value to value, watched, replaced, elsewhere; and as a module again."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus import zoo
from isthmus.program import Batch, Program, ProgramModule, export
from isthmus.testing import TOLERANCE


class Small(nn.Module):
    """A convolution with its norm, a factory operation and a cast, and a linear layer behind."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.register_buffer("rate", torch.rand(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x))).mean((2, 3))
        ramp = torch.arange(4, device=x.device, dtype=torch.float32)
        return self.head(y * self.rate + ramp).to(torch.float32)


@pytest.fixture(scope="module")
def model() -> Small:
    torch.manual_seed(0)
    model = Small().eval()
    assert model.norm.running_mean is not None
    model.norm.running_mean.normal_()
    return model


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def program(model: Small, x: Tensor) -> Program:
    return export(model, x)


def node(program: Program, operation: str) -> str:
    """The only value made by an operation."""
    (found,) = [n.name for n in program.graph.nodes if str(n.target).startswith(f"aten.{operation}.")]
    return found


def batch(x: Tensor) -> Batch:
    return Batch((x,), {})


def test_values_on_the_way_are_what_the_model_computes(model: Small, x: Tensor, program: Program):
    conv, norm = node(program, "conv2d"), node(program, "batch_norm")
    found = program.compile([norm, conv])(model.state_dict(), batch(x))
    assert isinstance(found, dict) and list(found) == [norm, conv]
    with torch.no_grad():
        assert torch.equal(found[conv], model.conv(x))
        assert torch.equal(found[norm], model.norm(model.conv(x)))


def test_from_value_to_value_nothing_before_is_computed(model: Small, x: Tensor, program: Program):
    relu = node(program, "relu")
    given = torch.rand(7, 4, 2, 2)
    run = program.compile(given=[relu])
    head = {key: t for key, t in model.state_dict().items() if key.startswith("head")}
    rest = {key: torch.zeros_like(t) / 0 for key, t in model.state_dict().items() if key not in head}
    some = {**head, **rest}
    with torch.no_grad():
        want = model.head(given.mean((2, 3)) * model.rate + torch.arange(4.0))
        assert torch.equal(run(some, batch(x), given={relu: given}), want)  # type: ignore[arg-type]


def test_a_value_that_is_given_may_be_asked_for(model: Small, x: Tensor, program: Program):
    relu = node(program, "relu")
    given = torch.rand(3, 4, 4, 4)
    found = program.compile([relu], given=[relu])(model.state_dict(), batch(x), given={relu: given})
    assert isinstance(found, dict) and torch.equal(found[relu], given)


def test_a_tap_sees_values_in_order_and_what_it_returns_takes_their_place(
    model: Small, x: Tensor, program: Program
):
    conv, relu = node(program, "conv2d"), node(program, "relu")
    seen: list[tuple[str, Tensor]] = []

    def tap(name: str, value: Tensor) -> Tensor | None:
        seen.append((name, value))
        return 2 * value if name == conv else None

    run = program.compile(taps=[relu, conv])
    with torch.no_grad():
        got = run(model.state_dict(), batch(x), tap=tap)
        doubled = F.relu(model.norm(2 * model.conv(x)))
        want = model.head(doubled.mean((2, 3)) * model.rate + torch.arange(4.0))
    assert [name for name, _ in seen] == [conv, relu]
    assert torch.equal(seen[0][1], model.conv(x)), "a tap sees the value before it is replaced"
    assert torch.equal(seen[1][1], doubled)
    assert torch.equal(got, want)  # type: ignore[arg-type]


def test_a_watched_program_without_a_tap_is_the_model(model: Small, x: Tensor, program: Program):
    run = program.compile(taps=[node(program, "relu")])
    assert torch.equal(run(model.state_dict(), batch(x)), model(x))  # type: ignore[arg-type]


def test_batch_statistics_are_those_of_training(model: Small, x: Tensor, program: Program):
    norm = node(program, "batch_norm")
    found = program.compile([norm], batch_statistics=[norm])(model.state_dict(), batch(x))
    trained = copy.deepcopy(model).train()
    with torch.no_grad():
        assert torch.equal(found[norm], trained.norm(trained.conv(x)))  # type: ignore[index]


def test_values_that_do_not_exist_are_refused_when_compiled(program: Program):
    for options in ({"outputs": ["nothing"]}, {"given": ["nothing"]}, {"taps": ["nothing"]}):
        with pytest.raises(KeyError, match="the program has no value 'nothing'"):
            program.compile(**options)  # type: ignore[arg-type]


def test_gradients_flow_to_the_weights(model: Small, x: Tensor, program: Program):
    weights = dict(model.state_dict(keep_vars=True))
    loss = program.compile()(weights, batch(x)).square().sum()  # type: ignore[attr-defined]
    (ours,) = torch.autograd.grad(loss, [weights["conv.weight"]])
    (theirs,) = torch.autograd.grad(model(x).square().sum(), [model.conv.weight])
    assert torch.equal(ours, theirs) and bool(ours.any())


def test_in_float64_every_cast_and_constant_follows(model: Small, x: Tensor, program: Program):
    wide = program.to(dtype=torch.float64)
    double = copy.deepcopy(model).double()
    got = wide.compile()(double.state_dict(), batch(x.double()))
    assert isinstance(got, Tensor) and got.dtype == torch.float64
    # The model itself casts its output to float32; the program must not have, on the way.
    with torch.no_grad():
        y = F.relu(double.norm(double.conv(x.double()))).mean((2, 3))
        want = double.head(y * double.rate + torch.arange(4.0))
    torch.testing.assert_close(got, want, rtol=TOLERANCE[torch.float64], atol=TOLERANCE[torch.float64])
    assert {value.dtype for value in program.constants.values()} == {torch.float32}, (
        "the original is left alone"
    )


def test_a_program_moves_to_where_the_weights_are(model: Small, x: Tensor, program: Program):
    assert program.device == torch.device("cpu")
    elsewhere = program.to("meta")
    assert elsewhere.device == torch.device("meta")
    weights = {key: t.to("meta") for key, t in model.state_dict().items()}
    got = elsewhere.compile()(weights, batch(x.to("meta")))
    assert isinstance(got, Tensor) and got.is_meta and got.shape == (3, 5)


def test_a_program_baked_to_another_device_is_moved_on_the_first_call(x: Tensor):
    class Ramp(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + torch.arange(3.0, device=x.device))

    with torch.device("meta"):
        baked = export(Ramp(), torch.zeros(2, 3))
    model, given = Ramp(), torch.randn(4, 3)
    assert baked.device == torch.device("meta")
    with torch.no_grad():
        assert torch.equal(baked.compile()(model.state_dict(), batch(given)), model(given))  # type: ignore[arg-type]


def test_moving_a_program_leaves_the_original(program: Program):
    before = str(program.graph)
    moved = program.to("meta", torch.float64)
    assert str(program.graph) == before and str(moved.graph) != before
    # Only floating dtypes change.
    kept = [
        str(a) for n in moved.graph.nodes for a in (*n.args, *n.kwargs.values()) if isinstance(a, torch.dtype)
    ]
    assert set(kept) == {"torch.float64"}


def test_a_program_is_a_module_that_exports_again(model: Small, x: Tensor, program: Program):
    module = ProgramModule(program, model.state_dict())
    assert set(module.state_dict()) == set(model.state_dict())
    assert {key for key, _ in module.named_parameters()} == {key for key, _ in model.named_parameters()}
    with torch.no_grad():
        assert torch.equal(module(x), model(x))
        again = export(module, x)
        assert torch.equal(again.compile()(module.state_dict(), batch(x)), model(x))  # type: ignore[arg-type]
        assert again.layers == program.layers and again.weights.keys() == program.weights.keys()
    # The copy is its own: the user's weights are not shared with it.
    module.get_parameter("head.bias").data.zero_()
    assert bool((model.head.bias != 0).all())


def test_a_module_of_a_program_loads_copies_and_stays_in_evaluation(
    model: Small, x: Tensor, program: Program
):
    module = ProgramModule(program, {key: torch.zeros_like(t) for key, t in model.state_dict().items()})
    module.load_state_dict(model.state_dict(), strict=True)
    module.train()
    with torch.no_grad():
        assert torch.equal(module(x), model(x))
        assert torch.equal(copy.deepcopy(module)(x), model(x))


def test_names_of_the_users_modules_do_not_meet_those_of_the_module():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.program, self.forward_ = nn.Linear(3, 3), nn.Linear(3, 3)
            self._run = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self._run(self.forward_(self.program(x)))

    torch.manual_seed(0)
    model = Named().eval()
    x = torch.randn(4, 3)
    module = ProgramModule(export(model, x), model.state_dict())
    assert set(module.state_dict()) == set(model.state_dict())
    assert torch.equal(module(x), model(x))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_larger_models_become_modules(kind: str):
    torch.manual_seed(0)
    model = (zoo.vit(8, 4, 6, 1, 2, 2) if kind == "vit" else zoo.resnet(8, base=2, shortcut="pad")).eval()
    x = torch.randn(3, 3, 8, 8)
    module = ProgramModule(export(model, x[:2]), model.state_dict())
    with torch.no_grad():
        assert torch.equal(module(x), model(x))


def test_what_a_model_makes_from_nothing_follows_the_dtype_too():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(x.shape[0], 3) + torch.full((3,), 0.5) + torch.arange(3).sum()
            return self.cell(torch.cat([x, state], 1))

    model, x = Recurrent().double(), torch.randn(2, 3).double()
    program = export(Recurrent(), x.float()).to(dtype=torch.float64)
    found = program.compile()(model.state_dict(), batch(x))
    assert isinstance(found, Tensor) and found.dtype == torch.float64
    with torch.no_grad():
        want = model.cell(torch.cat([x, torch.full((2, 3), 3.5).double()], 1))
    torch.testing.assert_close(found, want, rtol=TOLERANCE[torch.float64], atol=TOLERANCE[torch.float64])
