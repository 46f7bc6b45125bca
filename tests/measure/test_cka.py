"""CKA and Procrustes: what they see, what they do not see, and against other arithmetic."""

import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from isthmus.errors import DataError, InputError
from isthmus.measure.cka import cka
from isthmus.measure.places import pairs_of, places
from isthmus.measure.procrustes import procrustes
from isthmus.program import Batch, Program, export
from isthmus.zoo import MLP, VGG, ResNet, ViT

KERNELS = ("linear", "normalised", "relu", "relu-median")


class Read(nn.Module):
    """A network whose only activation is its input times a matrix, rectified or as it is."""

    def __init__(self, matrix: Tensor, rectified: bool):
        super().__init__()
        self.first = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        self.first.weight.data = matrix
        self.last = nn.Linear(matrix.shape[0], 2)
        self.rectified = rectified

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(torch.relu(h) if self.rectified else h)


def read(matrix: Tensor, rectified: bool = True) -> tuple[Program, dict[str, Tensor]]:
    net = Read(matrix.double(), rectified).double()
    return export(net, torch.zeros(2, matrix.shape[1], dtype=torch.float64)), net.state_dict()


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(seed: int = 0, n: int = 40) -> tuple[list, Tensor]:
    """Two networks of other widths, and data."""
    return [*read(drawn(seed, 6, 5)), *read(drawn(seed + 1, 7, 5))], drawn(seed + 2, n, 5)


def features(side: list, x: Tensor) -> Tensor:
    return torch.relu(x @ side[1]["first.weight"].T)


def test_the_biased_linear_estimate_is_the_quotient_of_norms():
    (*sides,), x = pair()
    a, b = (features(side, x) for side in (sides[:2], sides[2:]))
    a, b = a - a.mean(0), b - b.mean(0)
    expected = (b.T @ a).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())
    found = cka(*sides, [x[:15], x[15:]], biased=True)
    assert found.findings[0].value == pytest.approx(float(expected), abs=1e-9)
    assert found.examples == 40 and "biased" in found.note


def hsic(k: Tensor, other: Tensor) -> Tensor:
    """Equation 5 of Song et al. 2012, as it is written."""
    n = len(k)
    k, other = k - k.diagonal().diag(), other - other.diagonal().diag()
    one = torch.ones(n, dtype=torch.float64)
    total = (k @ other).trace() + (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * one @ k @ other @ one) / (n * (n - 3))


def kernel_of(name: str, h: Tensor) -> Tensor:
    if name == "linear":
        return h @ h.T
    unit = (h - h.mean(0)) / (h - h.mean(0)).norm(dim=0)
    each = unit.T.unsqueeze(2) * unit.T.unsqueeze(1)
    return each.sum(0) if name == "normalised" else each.amax(0) if name == "relu" else each.median(0).values


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_unbiased_estimate_is_that_of_song(kernel: str):
    (*sides,), x = pair()
    ks = [kernel_of(kernel, features(side, x)) for side in (sides[:2], sides[2:])]
    expected = hsic(*ks) / (hsic(ks[0], ks[0]) * hsic(ks[1], ks[1])).sqrt()
    found = cka(*sides, [x], kernel=kernel)
    assert found.findings[0].value == pytest.approx(float(expected), abs=1e-9)


def test_batches_are_averaged_before_the_quotient():
    (*sides,), x = pair()
    sums = torch.zeros(3, dtype=torch.float64)
    for part in x.split(10):
        k, other = (features(side, part) @ features(side, part).T for side in (sides[:2], sides[2:]))
        sums += torch.stack([hsic(k, other), hsic(k, k), hsic(other, other)])
    found = cka(*sides, list(x.split(10)))
    assert found.findings[0].value == pytest.approx(float(sums[0] / (sums[1] * sums[2]).sqrt()), abs=1e-9)


def test_a_rotated_copy_is_the_same_to_linear_cka_and_to_the_orthogonal_group_only():
    matrix, x = drawn(0, 6, 5), drawn(1, 200, 5)
    rotation = torch.linalg.qr(drawn(2, 6, 6))[0]

    # Activations behind a linear layer, where a rotation passes.
    sides = [*read(matrix, rectified=False), *read(rotation @ matrix, rectified=False)]
    assert cka(*sides, [x]).findings[0].value == pytest.approx(1, abs=1e-9)
    assert cka(*sides, [x], biased=True).findings[0].value == pytest.approx(1, abs=1e-9)
    assert procrustes(*sides, [x], group="orthogonal").value == pytest.approx(1, abs=1e-6)
    assert cka(*sides, [x], kernel="relu").findings[0].value < 0.95
    assert procrustes(*sides, [x]).value < 0.9


@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_what_relu_lets_through_is_not_seen(kernel: str):
    matrix, x = drawn(0, 6, 5), drawn(1, 60, 5)
    order, scales = torch.tensor([3, 1, 0, 5, 4, 2]), drawn(2, 6).abs() + 0.1
    sides = [*read(matrix), *read((matrix * scales.unsqueeze(1))[order])]
    assert cka(*sides, [x[:30], x[30:]], kernel=kernel).findings[0].value == pytest.approx(1, abs=1e-9)
    assert procrustes(*sides, [x]).value == pytest.approx(1, abs=1e-6)
    assert cka(*sides, [x]).findings[0].value < 0.999


def test_unbiased_cka_of_noise_is_about_zero_where_the_biased_one_is_not():
    values, biased = [], []
    for seed in range(0, 60, 3):
        # 24 features that share nothing: other inputs are read.
        left, right = torch.zeros(24, 48), torch.zeros(24, 48)
        left[:, :24], right[:, 24:] = torch.eye(24), torch.eye(24)
        sides, x = [*read(left), *read(right)], drawn(seed, 32, 48)
        values.append(cka(*sides, [x]).findings[0].value)
        biased.append(cka(*sides, [x], biased=True).findings[0].value)
    mean = sum(values) / len(values)
    assert abs(mean) < 0.03
    assert min(values) < 0 < max(values)
    assert sum(biased) / len(biased) > 0.3


def test_procrustes_against_every_order():
    (*sides,), x = pair()
    sides = [*sides[:2], *read(drawn(9, 6, 5))]
    a, b = (features(side, x) for side in (sides[:2], sides[2:]))
    a, b = a / a.norm(dim=0), b / b.norm(dim=0)
    least = min(float((a - b[:, list(order)]).norm()) for order in itertools.permutations(range(6)))
    assert procrustes(*sides, [x[:11], x[11:]]).value == pytest.approx(1 - least / 24**0.5, abs=1e-9)


@pytest.mark.parametrize("side", [8, 7])
def test_maps_of_other_sizes_are_laid_over_each_other(side: int):
    torch.manual_seed(0)
    small = VGG((1, "M", 2), base=4, in_channels=1, num_classes=3).double()
    x = torch.rand(10, 1, side, side, dtype=torch.float64)
    program = export(small, x[:2])
    first, second = (place.value for place in places(program))
    found = procrustes(program, small.state_dict(), program, small.state_dict(), [x], at=[(first, second)])
    seen = program.compile([first, second])(small.state_dict(), Batch((x,), {}))
    assert isinstance(seen, dict)
    a, b = seen[first].detach(), seen[second].detach()
    nearest = torch.arange(side) * b.shape[2] // side  # of 7 places and 3: 0 0 0 1 1 2 2
    up = b[:, :, nearest][:, :, :, nearest]
    flat = [t.movedim(1, 0).flatten(1).T for t in (a, up)]
    flat = [f[:, f.norm(dim=0) > 0] for f in flat]
    flat = [f / f.norm(dim=0) for f in flat]
    cosines = flat[0].T @ flat[1]
    best = float(cosines[linear_sum_assignment(cosines.numpy(), maximize=True)].sum())
    n = flat[0].shape[1] + flat[1].shape[1]
    assert found.value == pytest.approx(1 - ((n - 2 * best) / (2 * n)) ** 0.5, abs=1e-9)


@pytest.fixture(scope="module")
def convolutional() -> tuple[Program, dict[str, Tensor], dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    nets = [ResNet(8, base=3, norm="bn").eval() for _ in range(2)]
    x = torch.randn(12, 3, 8, 8)
    return export(nets[0], x[:2]), nets[0].state_dict(), nets[1].state_dict(), x


def test_a_network_has_places_at_every_depth_and_they_have_names(convolutional):
    program = convolutional[0]
    found = places(program)
    assert [place.depth for place in found] == sorted(place.depth for place in found)
    assert {place.depth for place in found} == set(range(1, program.layers))
    assert len({place.label for place in found}) == len(found)
    by = found[3]
    for asked in (by.value, by.depth):
        assert pairs_of(program, program, [asked]) == ((by, by),)
    assert pairs_of(program, program, [by.space])[0][0].space == by.space
    with pytest.raises(
        InputError, match=r"3 places are not there[\s\S]*network a[\s\S]*network b[\s\S]*hint: a has"
    ):
        pairs_of(program, program, ["nothing", (by.depth, 99)])


def test_a_profile_has_a_finding_per_layer_and_a_matrix(convolutional):
    program, own, other, x = convolutional
    alone = cka(program, own, program, own, [x])
    assert all(value == pytest.approx(1, abs=1e-5) for value in alone.diagonal.values())
    found = cka(program, own, program, other, [x[:6], x[6:]], kernel="relu", at=[1, 3, 5])
    assert len(found.matrix) == 3 and all(len(row) == 3 for row in found.matrix)
    (finding,) = found.findings
    assert finding.name == "G_ReLU-CKA" and list(finding.layers) == list(found.rows)
    assert finding.value == pytest.approx(sum(found.matrix[i][i] for i in range(3)) / 3)
    assert found.by_depth == {depth: found.matrix[i][i] for i, depth in enumerate((1, 3, 5))}
    again = procrustes(program, own, program, other, [x], at=[1, 3, 5])
    assert list(again.layers) == list(found.rows) and 0 < again.value < 1


def test_another_architecture_is_compared_where_depths_agree():
    torch.manual_seed(0)
    a, b = MLP(d_in=5, widths=(6, 4, 7), num_classes=3), MLP(d_in=5, widths=(3, 9), num_classes=2)
    x = torch.randn(20, 5)
    found = cka(export(a, x[:2]), a.state_dict(), export(b, x[:2]), b.state_dict(), [x])
    assert len(found.rows) == 2


@pytest.mark.parametrize("kernel", ["linear", "relu"])
def test_tokens_and_heads_have_places_too(kernel: str):
    torch.manual_seed(0)
    net, x = ViT(image=8, patch=4, dim=8, depth=2, heads=2).double().eval(), torch.randn(12, 3, 8, 8).double()
    program = export(net, x[:2])
    found = cka(program, net.state_dict(), program, net.state_dict(), [x], kernel=kernel)
    assert len(found.rows) >= 2 * 3
    assert all(value == pytest.approx(1, abs=1e-9) for value in found.diagonal.values())
    assert procrustes(program, net.state_dict(), program, net.state_dict(), [x]).value == pytest.approx(
        1, abs=1e-6
    )


def test_what_cannot_be_compared_is_said():
    (*sides,), x = pair()
    with pytest.raises(DataError, match="a batch of 3 examples"):
        cka(*sides, [x[:3]])
    with pytest.raises(DataError, match="not finite"):
        cka(*sides, [torch.full((5, 5), torch.inf, dtype=torch.float64)])
    with pytest.raises(DataError, match="not finite"):
        procrustes(*sides, [torch.full((5, 5), torch.inf, dtype=torch.float64)])
    dead = [*read(torch.zeros(6, 5)), *sides[2:]]
    found = cka(*dead, [x])
    assert all(value != value for value in found.diagonal.values()) and not found.by_depth
