"""Each pruner against numbers made another way."""

import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from isthmus.errors import DataError, InputError
from isthmus.program import export
from isthmus.prune import PRUNERS, keep_largest, prunable, prune
from isthmus.prune.gradients import mean_gradients
from isthmus.prune.woodfisher import Inverse, woodfisher


def gradients(rows: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = 10 ** (-2 * torch.rand(size, generator=generator, dtype=torch.float64))
    return torch.randn(rows, size, generator=generator, dtype=torch.float64) * scales


def fisher(g: Tensor, damping: float) -> Tensor:
    return damping * torch.eye(g.shape[1], dtype=torch.float64) + g.T @ g / len(g)


@pytest.mark.parametrize(("rows", "size"), [(5, 12), (12, 5), (1, 3)])
def test_the_inverse_through_gradients_is_the_dense_one_and_the_sources_recursion(rows: int, size: int):
    g, damping = gradients(rows, size), 1e-3
    dense = torch.linalg.inv(fisher(g, damping))
    step = torch.eye(size, dtype=torch.float64) / damping
    for row in g:  # equation 3 of the source
        v = step @ row
        step = step - torch.outer(v, v) / (rows + row @ v)
    torch.testing.assert_close(step, dense, rtol=1e-8, atol=1e-8)
    found = Inverse(g, damping)
    torch.testing.assert_close(found.diagonal, dense.diagonal(), rtol=1e-8, atol=1e-8)
    vector = torch.randn(size, dtype=torch.float64)
    torch.testing.assert_close(found.times(vector), dense @ vector, rtol=1e-8, atol=1e-8)


def test_the_exact_update_is_the_minimum_and_alone_it_is_the_independent_one():
    g, damping = gradients(6, 10), 1e-2
    f, found = fisher(g, damping), Inverse(g, damping)
    w = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    goes = torch.arange(10) < 4
    change = found.exact(w, goes)
    assert torch.equal((w + change)[goes], torch.zeros(4, dtype=torch.float64))
    # The minimum of d^T F d with part of d given, from the normal equations.
    expected = -w * goes
    expected[4:] = torch.linalg.solve(f[4:, 4:], f[4:, :4] @ w[:4])
    torch.testing.assert_close(change, expected)

    def rise(d: Tensor) -> float:
        return float(d @ f @ d) / 2

    assert rise(change) < rise(found.independent(w, goes))
    assert rise(change) < rise(-w * goes)
    one = torch.arange(10) == 3
    torch.testing.assert_close(found.independent(w, one), found.exact(w, one))
    assert rise(found.exact(w, one)) == pytest.approx(float(w[3] ** 2 / found.diagonal[3]) / 2)


def test_gradients_that_determine_everything_are_refused_without_damping():
    with pytest.raises(DataError, match=r"cannot be inverted[\s\S]*raise damping"):
        _ = Inverse(torch.ones(3, 2, dtype=torch.float64), 1e-30).diagonal


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


@pytest.fixture
def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    return [(x[:7], torch.arange(7) % 3), (x[7:], torch.arange(3) % 3)]


def test_mean_gradients_are_those_of_the_loss_whatever_the_batches(
    net: Net, data: list[tuple[Tensor, Tensor]]
):
    program = export(net, data[0][0])
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    y[4] = -100  # no observation
    cut = [(x[:5], y[:5]), (x[5:], y[5:])]
    found, part = mean_gradients(
        program, net.state_dict(), [("first.weight", slice(0, 20)), ("last.weight", slice(3, 9))], cut, 4, 3
    )
    assert found.shape == (4, 20) and part.shape == (4, 6)
    for row, rows in enumerate([slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]):
        loss = functional.cross_entropy(net(x[rows]), y[rows], reduction="sum") / len(x[rows])
        first, last = torch.autograd.grad(loss, [net.first.weight, net.last.weight])
        torch.testing.assert_close(found[row], -first.flatten())
        torch.testing.assert_close(part[row], -last.flatten()[3:9])


def test_gradients_need_targets_that_fit(net: Net, data: list[tuple[Tensor, Tensor]]):
    program, part = export(net, data[0][0]), [("last.weight", slice(0, 15))]
    with pytest.raises(DataError, match="needs targets"):
        mean_gradients(program, net.state_dict(), part, [data[0][0]], 2, 1)
    with pytest.raises(DataError, match="targets do not fit"):
        mean_gradients(program, net.state_dict(), part, [(data[0][0], torch.zeros(7, 2))], 2, 1)
    with pytest.raises(InputError, match="likelihood='odd'"):
        mean_gradients(program, net.state_dict(), part, data, 2, 1, "odd")


@pytest.mark.parametrize("update", ["exact", "independent", "none"])
@pytest.mark.parametrize("elements", [2**26, 40])
def test_woodfisher_is_the_dense_computation(
    net: Net, data: list[tuple[Tensor, Tensor]], update: str, elements: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys.modules[woodfisher.__module__], "ELEMENTS", elements)
    options = {"damping": 1e-3, "gradients": 5, "minibatch": 2, "update": update, "block": 6}
    found = prune(net, "woodfisher", sparsity=0.5, data=data, **options)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    scores, dense = {}, {}
    for key, weight in (("first.weight", net.first.weight), ("last.weight", net.last.weight)):
        g = torch.stack(
            [
                torch.autograd.grad(functional.cross_entropy(net(x[i : i + 2]), y[i : i + 2]), weight)[
                    0
                ].flatten()
                for i in range(0, 10, 2)
            ]
        )
        blocks = [torch.linalg.inv(fisher(part, 1e-3)) for part in g.split(6, dim=1)]
        dense[key] = torch.block_diag(*blocks)
        scores[key] = weight.detach().flatten().square() / dense[key].diagonal()
    cut = torch.cat(list(scores.values())).sort().values[17]
    for key, weight in net.state_dict().items():
        if key not in scores:
            assert torch.equal(found.weights[key], weight)
            continue
        w, goes = weight.flatten(), scores[key] < cut
        assert torch.equal(found.mask[key].flatten(), ~goes)
        if update == "none":
            expected = w
        elif update == "independent":
            expected = w - dense[key] @ torch.where(goes, w / dense[key].diagonal(), 0.0)
        else:
            inverse, q = dense[key], goes.nonzero().flatten()
            expected = w - inverse[:, q] @ torch.linalg.solve(inverse[q][:, q], w[q])
        torch.testing.assert_close(found.weights[key].flatten(), torch.where(goes, 0.0, expected))


def test_woodfisher_refuses_options_out_of_range_all_at_once(net: Net, data: list[tuple[Tensor, Tensor]]):
    with pytest.raises(InputError, match=r"block=0[\s\S]*gradients=0[\s\S]*damping=-1.0"):
        prune(net, "woodfisher", sparsity=0.5, data=data, block=0, gradients=0, damping=-1)
    with pytest.raises(InputError, match="update='odd' is none of exact, independent, none"):
        prune(net, "woodfisher", sparsity=0.5, data=data, update="odd")


def test_wanda_by_hand():
    layer = nn.Linear(3, 2, bias=False)
    layer.weight.data = torch.tensor([[3.0, -2.0, 1.0], [1.0, 1.0, -4.0]])
    x = torch.tensor([[1.0, 2.0, 3.0], [0.0, -2.0, 1.0]])  # squared norms 1, 8, 10
    found = prune(layer, "wanda", sparsity=0.34, data=[x])  # scores 3, 5.7, 3.2 and 1, 2.8, 12.6
    assert found.mask["weight"].tolist() == [[False, True, True], [False, True, True]]
    whole = prune(layer, "wanda", sparsity=0.5, data=[x], scope="layer")
    assert whole.mask["weight"].tolist() == [[False, True, True], [False, False, True]]


class Applied(nn.Module):
    """One weight, applied by a function."""

    def __init__(self, weight: Tensor, function):
        super().__init__()
        self.weight, self.function = nn.Parameter(weight), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


KINDS = {
    "linear": ((4, 3), (5, 3), functional.linear),
    "tokens": ((4, 3), (5, 2, 3), functional.linear),
    "matmul": ((3, 4), (5, 3), torch.matmul),
    "weight first": ((4, 3), (5, 3, 2), lambda x, w: torch.matmul(w, x)),
    "convolution": ((4, 3, 3, 2), (5, 3, 6, 5), lambda x, w: functional.conv2d(x, w, padding=(1, 0), stride=2)),
    "groups": ((4, 3, 3), (5, 6, 7), lambda x, w: functional.conv1d(x, w, groups=2, padding="same", dilation=2)),
    "depthwise": ((4, 1, 3), (5, 4, 7), lambda x, w: functional.conv1d(x, w, groups=4)),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_wanda_scores_by_what_each_weight_is_multiplied_with(kind: str):
    shape, inputs, function = KINDS[kind]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = torch.randn(inputs, generator=generator, dtype=torch.float64) + 0.5
    net = Applied(weight, function).double()
    # The sum over outputs of the square of what one weight adds to them, from the outputs' derivative.
    jacobian = torch.func.jacrev(lambda w: function(x, w).flatten())(weight).flatten(1)
    scores = (jacobian * weight.flatten()).square().sum(0).view(shape)
    found = prune(net, "wanda", sparsity=0.5, data=[x[:2], x[2:]], scope="layer")
    smallest = scores.flatten().argsort()[: weight.numel() // 2]
    assert set((~found.mask["weight"]).flatten().nonzero().flatten().tolist()) == set(smallest.tolist())
    ((layer,), _) = prunable(found.program)
    assert layer.rows(weight).shape[0] == 4
    assert torch.equal(layer.stored(layer.rows(weight)), weight)


@pytest.mark.parametrize("groups", [1, 2])
def test_wanda_of_a_transposed_convolution_has_one_norm_per_input_channel(groups: int):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 2, generator=generator, dtype=torch.float64)
    x = torch.randn(5, 4, 6, generator=generator, dtype=torch.float64)
    net = Applied(weight, lambda x, w: functional.conv_transpose1d(x, w, groups=groups)).double()
    found = prune(net, "wanda", sparsity=0.5, data=[x])
    scores = weight.abs() * x.square().sum((0, 2)).sqrt().view(4, 1, 1)
    rows = scores.view(groups, 4 // groups, 3, 2).movedim(2, 1).reshape(3 * groups, -1)
    ((layer,), _) = prunable(found.program)
    assert torch.equal(layer.rows(scores), rows)
    assert torch.equal(layer.stored(rows), scores)
    kept = layer.rows(found.mask["weight"])
    assert all(row[keep].min() >= row[~keep].max() for row, keep in zip(rows, kept, strict=True))


def test_wanda_looks_at_inputs_that_pruned_layers_made(net: Net, data: list[tuple[Tensor, Tensor]]):
    first = prune(net, "wanda", sparsity=0.5, data=data, skip=["last.*"])
    alone = prune(net, "wanda", sparsity=0.5, data=data, weights=first.weights, skip=["first.*"])
    both = prune(net, "wanda", sparsity=0.5, data=data, sequential=True)
    at_once = prune(net, "wanda", sparsity=0.5, data=data)
    assert torch.equal(both.mask["first.weight"], first.mask["first.weight"])
    assert torch.equal(both.mask["last.weight"], alone.mask["last.weight"])
    x = torch.cat([x for x, _ in data])
    scores = net.last.weight.abs() * torch.tanh(net.first(x)).norm(dim=0)
    smallest = [set(row.argsort()[:2].tolist()) for row in scores]
    assert [set((~row).nonzero().flatten().tolist()) for row in at_once.mask["last.weight"]] == smallest
    with pytest.raises(InputError, match="scope='global' is none of layer, row"):
        prune(net, "wanda", sparsity=0.5, data=data, scope="global")


def test_a_diagonal_fisher_score_is_the_mean_squared_change_of_the_loss(
    net: Net, data: list[tuple[Tensor, Tensor]]
):
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    scores = torch.zeros(3, 5, dtype=torch.float64)
    for one, target in zip(x, y, strict=True):
        loss = functional.cross_entropy(net(one[None]), target[None])
        scores += (torch.autograd.grad(loss, net.last.weight)[0] * net.last.weight.detach()).square()
    found = prune(net, "diagonal-fisher", sparsity=0.4, data=data)
    assert set((~found.mask["last.weight"]).flatten().nonzero().flatten().tolist()) == set(
        scores.flatten().argsort()[:6].tolist()
    )


def test_of_equal_scores_the_smallest_weights_go_and_of_those_the_first(net: Net):
    (layer, _), _ = prunable(export(net, torch.zeros(2, 4, dtype=torch.float64)))
    scores = torch.zeros(5, 4)
    scores[0] = torch.tensor([0.0, 0, 1, 2])
    weights = torch.ones(5, 4)
    weights[4, 3] = 0.5
    keep = keep_largest({layer.key: scores}, {layer.key: weights}, [layer], 0.1, "layer")[layer.key]
    assert (~keep).nonzero().tolist() == [[0, 0], [4, 3]]
    rows = keep_largest({layer.key: scores}, {layer.key: weights}, [layer], 0.25, "row")[layer.key]
    assert (~rows).nonzero().tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [4, 3]]


def test_seven_tenths_of_ten_are_seven():
    layer = nn.Linear(10, 1, bias=False)
    for tenths in range(10):
        found = prune(layer, sparsity=tenths / 10, example=torch.zeros(2, 10))
        assert int((~found.mask["weight"]).sum()) == tenths


def test_every_pruner_says_where_it_comes_from():
    assert {row.name for row in PRUNERS.rows()} >= {"magnitude", "diagonal-fisher", "woodfisher", "wanda"}
    assert all("arXiv" in row.source for row in PRUNERS.rows())


@pytest.mark.parametrize("method", ["diagonal-fisher", "woodfisher"])
def test_targets_that_are_no_classes_are_refused(method: str):
    model = nn.Linear(4, 3)
    data = [(torch.randn(6, 4), torch.tensor([1, 2, 3, 1, 2, -100]))]
    with pytest.raises(DataError, match="to 3, the model has 3 classes"):
        prune(model, method, sparsity=0.5, data=data)
