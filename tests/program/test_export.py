"""A model as a program: the same numbers to the bit, and the user's model left as it was."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus import zoo
from isthmus.errors import DataError, ExportError, MismatchError
from isthmus.program import Batch, export
from isthmus.program.batches import example_of


class Conv(nn.Module):
    """Convolution, batch norm, an in-place ReLU, pooling, a view."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        )
        self.head = nn.Linear(4 * 3 * 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).view(x.shape[0], -1))


class Recipe(nn.Module):
    """Takes a mapping, returns a mapping with a tuple and a None in it."""

    def __init__(self):
        super().__init__()
        self.words, self.image = nn.Embedding(7, 4), nn.Linear(3, 4)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, object]:
        both = self.words(inputs["tokens"]).mean(1) + self.image(inputs["image"])
        return {"pair": (both, both.sum(-1)), "nothing": None}


class Keywords(nn.Module):
    """Two inputs that must not be confused, and a mask with a default."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
        made = self.left(a) - 2 * self.right(b)
        return made if mask is None else made * mask


class Tied(nn.Module):
    """A decoder that reads with the weight it writes with; positions made on the way."""

    def __init__(self):
        super().__init__()
        self.embed, self.places = nn.Embedding(11, 6), nn.Embedding(8, 6)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("rate", torch.arange(6.0), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embed(tokens) + self.places(positions) + torch.sin(self.rate)
        mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
        x = F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], attn_mask=mask)[:, 0]
        return self.head(self.norm(x))


class Output(nn.Module):
    """A dropout and a dtype cast, which evaluation and float64 change."""

    def __init__(self):
        super().__init__()
        self.linear, self.drop = nn.Linear(4, 3), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.linear(x)).to(torch.float32).softmax(-1)


@dataclass
class Case:
    make: Callable[[], nn.Module]
    inputs: Callable[[int], object]


def image(n: int) -> Tensor:
    return torch.randn(n, 3, 8, 8)


CASES = {
    "conv": Case(Conv, image),
    "resnet": Case(lambda: zoo.resnet(8, base=2), image),
    "vit": Case(lambda: zoo.vit(8, 4, 6, 2, 2, 2), image),
    "mapping": Case(Recipe, lambda n: ({"tokens": torch.randint(7, (n, 5)), "image": torch.randn(n, 3)},)),
    "keywords": Case(Keywords, lambda n: {"a": torch.randn(n, 3), "b": torch.randn(n, 3)}),
    "tied": Case(Tied, lambda n: torch.randint(11, (n, 4))),
    "dropout": Case(Output, lambda n: torch.randn(n, 4)),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = CASES[name].make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def leaves(value: object) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("name", CASES)
def test_a_program_computes_its_model_to_the_bit_at_any_batch_size(name: str):
    model = made(name)
    program = export(model, CASES[name].inputs(2))  # type: ignore[arg-type]
    run = program.compile()
    model.eval()
    for count in (1, 2, 5):
        batch = example_of(CASES[name].inputs(count))  # type: ignore[arg-type]
        with torch.no_grad():
            want, got = model(*batch.args, **batch.kwargs), run(model.state_dict(), batch)
        assert torch.utils._pytree.tree_structure(got) == torch.utils._pytree.tree_structure(want)
        assert all(map(torch.equal, leaves(got), leaves(want))) and leaves(want)


def test_an_example_of_one_leaves_the_batch_free():
    model = made("conv").eval()
    x = image(4)
    program = export(model, x[:1])
    with torch.no_grad():
        assert torch.equal(program.compile()(model.state_dict(), Batch((x,), {})), model(x))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
def test_the_users_model_is_left_as_it_was(name: str):
    model = made(name)
    model.train()
    next(model.children()).eval()
    flags = {path: module.training for path, module in model.named_modules()}
    attributes = {path: set(vars(module)) for path, module in model.named_modules()}
    state = {key: (id(tensor), tensor.clone()) for key, tensor in model.state_dict(keep_vars=True).items()}
    program = export(model, CASES[name].inputs(2))  # type: ignore[arg-type]
    program.compile()(model.state_dict(), example_of(CASES[name].inputs(3)))  # type: ignore[arg-type]
    assert {path: module.training for path, module in model.named_modules()} == flags
    assert {path: set(vars(module)) for path, module in model.named_modules()} == attributes
    after = model.state_dict(keep_vars=True)
    assert {key: id(tensor) for key, tensor in after.items()} == {key: i for key, (i, _) in state.items()}
    assert all(torch.equal(after[key], tensor) for key, (_, tensor) in state.items())
    assert all(tensor.requires_grad for tensor in model.parameters())


def test_the_model_is_restored_when_it_cannot_be_exported():
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    model = Branching().train()
    with pytest.raises(ExportError) as caught:
        export(model, torch.randn(2, 3))
    assert model.training
    assert caught.value.what == "Branching cannot be exported to a graph"
    assert any("data-dependent" in line for line in caught.value.where), caught.value
    assert caught.value.hint is not None and "free of branches on tensor values" in caught.value.hint


def test_an_example_that_does_not_fit_is_said_before_export():
    with pytest.raises(ExportError, match="Keywords does not take the example's inputs") as caught:
        export(Keywords(), {"a": torch.zeros(2, 3), "c": torch.zeros(2, 3)})
    assert "'b'" in str(caught.value) or "'c'" in str(caught.value)


def test_an_example_of_the_wrong_shape_says_both_shapes():
    with pytest.raises(ExportError, match="Sequential cannot be exported") as caught:
        export(nn.Sequential(nn.Linear(4, 3)), torch.zeros(2, 5))
    assert "5" in str(caught.value) and "4" in str(caught.value)


def test_keywords_are_told_apart_by_name_whatever_their_order():
    model = made("keywords").eval()
    a, b = torch.randn(3, 3), torch.randn(3, 3)
    run = export(model, {"a": a, "b": b}).compile()
    with torch.no_grad():
        want = model(a, b)
    for kwargs in ({"a": a, "b": b}, {"b": b, "a": a}):
        assert torch.equal(run(model.state_dict(), Batch((), kwargs)), want)  # type: ignore[arg-type]


def test_inputs_that_are_not_those_it_was_traced_with_are_refused():
    model = made("keywords").eval()
    a = torch.randn(3, 3)
    run = export(model, {"a": a, "b": a}).compile()
    for wrong in (Batch((a,), {}), Batch((), {"a": a, "mask": a}), Batch((), {"a": a, "b": a, "mask": a})):
        with pytest.raises(DataError) as caught:
            run(model.state_dict(), wrong)
        assert "a" in str(caught.value) and "b" in str(caught.value)


def test_a_single_input_may_come_by_position_or_by_name():
    model = made("conv").eval()
    x = image(3)
    program = export(model, {"x": x})
    want = program.compile()(model.state_dict(), Batch((), {"x": x}))
    assert torch.equal(program.compile()(model.state_dict(), Batch((x,), {})), want)  # type: ignore[arg-type]


def test_every_missing_weight_is_named():
    model = made("conv")
    program = export(model, image(2))
    with pytest.raises(MismatchError) as caught:
        program.lookup({key: t for key, t in model.state_dict().items() if "head" not in key})
    assert caught.value.where == ("head.weight", "head.bias")


def test_a_tied_weight_enters_once_and_may_come_under_either_key():
    model = made("tied").eval()
    program = export(model, torch.randint(11, (2, 4)))
    assert sorted(next(iter(program.tied.items()))) == ["embed.weight", "head.weight"]
    assert [*program.weights.values()].count("embed.weight") + [*program.weights.values()].count(
        "head.weight"
    ) == 1
    state = model.state_dict()
    batch = Batch((torch.randint(11, (3, 4)),), {})
    for left_out in ("embed.weight", "head.weight"):
        some = {key: tensor for key, tensor in state.items() if key != left_out}
        assert torch.equal(program.compile()(some, batch), model(*batch.args))  # type: ignore[arg-type]


def test_a_buffer_in_no_state_dict_is_a_constant_of_the_program():
    model = made("tied")
    program = export(model, torch.randint(11, (2, 4)))
    assert "rate" not in model.state_dict()
    assert any(torch.equal(value, model.rate) for value in program.constants.values())


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (lambda: zoo.vgg16(base=1, norm="bn"), 14),
        (lambda: zoo.vgg11(base=1), 9),
        (lambda: zoo.resnet20(base=1), 20),
        (lambda: zoo.resnet20(base=1, shortcut="conv3x3"), 20),
        (lambda: zoo.resnet20(base=2, shortcut="pad"), 20),
        (lambda: zoo.mlp(192, (4, 4), 3), 3),
        # Patches, then four linear maps per block (fused queries, output, two of the MLP), then the classifier.
        (lambda: zoo.vit(8, 4, 6, 2, 2, 2), 1 + 2 * 4 + 1),
    ],
    ids=["vgg16", "vgg11", "resnet20", "resnet20 conv3x3", "resnet20 pad", "mlp", "vit"],
)
def test_depth_counts_linear_and_conv_operations_on_the_longest_path(
    model: Callable[[], nn.Module], layers: int
):
    size = 32 if layers in (9, 14) else 8
    program = export(model(), torch.randn(2, 3, size, size))
    assert program.layers == layers
    assert all(program.depth[name] == 0 for name in (*program.weights, *program.inputs))
    deepest = [n.name for n in program.graph.nodes if n.op != "output" and program.depth[n.name] == layers]
    assert program.linear_weight(program.nodes[deepest[0]]) is not None


def test_the_weight_of_a_linear_operation_is_its_matrix_also_where_tokens_are_weights():
    class Latent(nn.Module):
        def __init__(self):
            super().__init__()
            self.latents = nn.Parameter(torch.randn(1, 3, 4))
            self.linear, self.matrix = nn.Linear(4, 5), nn.Parameter(torch.randn(3, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.latents) + self.matrix @ x

    program = export(Latent(), torch.randn(2, 5, 5))
    found = [program.linear_weight(node) for node in program.graph.nodes]
    assert [program.weights[name] for name in found if name is not None] == ["linear.weight", "matrix"]
