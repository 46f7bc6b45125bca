"""Gram matrices of inputs, and RegMean with them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import isthmus
from isthmus.errors import InputError
from isthmus.statistics import gram_matrices
from isthmus.zoo import GPT, demo_vgg


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("stride", [1, 2, (2, 3)])
@pytest.mark.parametrize("padding", [0, 1, (2, 0)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_gram_matrix_of_a_convolution_is_that_of_its_unfolded_input(stride, padding, dilation):
    x = drawn(5, 3, 9, 8)
    model = nn.Conv2d(3, 4, (3, 2), stride=stride, padding=padding, dilation=dilation).double()
    rows = functional.unfold(x, (3, 2), dilation, padding, stride).mT.flatten(0, 1)
    known = gram_matrices(model, x.split(2), microbatch=3)
    close(known["weight"], rows.T @ rows / len(rows))
    close(rows @ model.weight.flatten(1).T + model.bias, model(x).flatten(2).mT.flatten(0, 1))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    ("kind", "shape"), [(nn.Conv1d, (4, 2, 9)), (nn.Conv2d, (3, 2, 6, 5)), (nn.Conv3d, (2, 2, 4, 5, 4))]
)
def test_a_convolution_of_any_rank_applied_to_its_patches_is_itself(kind, shape, padding):
    from isthmus.statistics.grams import _readings

    model = kind(2, 3, 2, padding=padding, dilation=2).double()
    x = drawn(*shape)
    program = isthmus.export(model, x)
    ((request,),) = _readings(program, ())[0].values()
    assert request.patches is not None
    rows = request.patches.of(x)
    close(rows @ model.weight.flatten(1).T + model.bias, model(x).flatten(2).mT.flatten(0, 1))
    close(gram_matrices(model, [x])["weight"], rows.T @ rows / len(rows))


def test_tokens_are_samples_of_a_linear_map():
    model, x = nn.Linear(4, 2).double(), drawn(6, 5, 4)
    rows = x.flatten(0, 1)
    close(gram_matrices(model, [x])["weight"], rows.T @ rows / len(rows))


def test_a_map_applied_twice_pools_what_it_reads():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4, bias=False).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.linear(x))

    model, x = Twice(), drawn(30, 4)
    rows = torch.cat([x, model.linear(x).detach()])
    close(gram_matrices(model, [x])["linear.weight"], rows.T @ rows / len(rows))


def test_reg_mean_of_linear_regressions_is_the_regression_on_all_data():
    """Least squares on its own data each: merged, they are least squares on all of it, exactly."""
    x, y = [drawn(n, 5, seed=n) for n in (30, 50)], [drawn(n, 2, seed=n + 1) for n in (30, 50)]
    models, known = [], []
    for inputs, targets in zip(x, y, strict=True):
        model = nn.Linear(5, 2, bias=False).double()
        with torch.no_grad():
            model.weight.copy_(torch.linalg.lstsq(inputs, targets).solution.T)
        models.append(model)
        known.append(gram_matrices(model, inputs.split(7)))
    shares = [30 / 80, 50 / 80]  # Gram matrices are means: data counts by its share
    merged = isthmus.merge(
        models, combine={"method": "reg-mean", "alpha": 1.0}, statistics=known, weights=shares
    )
    close(merged.weights["weight"], torch.linalg.lstsq(torch.cat(x), torch.cat(y)).solution.T, 1e-9)


def test_merge_gathers_by_itself_after_it_has_aligned():
    torch.manual_seed(0)
    model, x = demo_vgg(base=3).double(), drawn(20, 1, 8, 8)
    graph = isthmus.trace(model, x[:2])
    moved = isthmus.Element(graph.random_element(1).orders, {}).apply(graph, model.state_dict())
    merged = isthmus.merge(
        [model, moved], model=model, align="weight-matching", combine="reg-mean", data=[x], graph=graph
    )
    for key, value in model.state_dict().items():
        close(merged.weights[key], value, 1e-6)
    assert merged.settings["statistics.kind"] == "gram"


def test_what_has_no_gram_matrix_is_named():
    torch.manual_seed(0)

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.groups = nn.Conv2d(4, 4, 1, groups=2)
            self.back = nn.ConvTranspose2d(4, 4, 2)
            self.sliced = nn.Parameter(torch.randn(4, 6))
            self.plain = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.back(self.groups(x)).mean((2, 3))
            return self.plain(functional.linear(x, self.sliced[:, :4]))

    known = gram_matrices(Odd(), [torch.randn(3, 4, 4, 4)])
    assert set(known) == {"plain.weight"}
    assert "in 2 groups" in known.left["groups.weight"]
    assert "conv_transpose2d" in known.left["back.weight"] and "slice" in known.left["sliced"]
    assert "none of groups.weight" in str(known)
    tokens = gram_matrices(
        GPT(vocabulary=5, context=4, dim=8, depth=1, heads=2), [torch.randint(0, 5, (3, 4))]
    )
    assert "embedding" in tokens.left["tokens.weight"]


def test_what_is_wrong_is_said():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    with pytest.raises(InputError, match="no weight is called 'head"):
        gram_matrices(model, [x], skip=["head.*"])
    with pytest.raises(InputError, match=r"no weight is applied as a linear map[\s\S]*left out"):
        gram_matrices(model, [x], skip=["weight"])
    with pytest.raises(InputError, match="microbatch=0"):
        gram_matrices(model, [x], microbatch=0)
