"""Bounds on merged weights and on outputs, against what is measured."""

import math

import pytest
import torch
from torch import Tensor, nn

from isthmus.errors import DataError, InputError
from isthmus.measure import (
    as_pictures,
    class_means,
    magnified,
    not_finite,
    output_bound,
    spread,
    template_cosines,
    variance_bound,
)
from isthmus.zoo import demo_vgg


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shared", [0.0, 0.9, -0.5])
@pytest.mark.parametrize("weights", [None, [0.7, 0.2, 0.1]])
def test_with_its_covariances_the_variance_of_an_average_is_explained(shared: float, weights):
    common = drawn(40, 30)
    models = [shared * common + drawn(40, 30, seed=s) for s in (1, 2, 3)]
    found = spread(models, weights)
    shares = weights or [1 / 3] * 3
    mean = sum(w * m for w, m in zip(shares, models, strict=True))
    assert found.variance == pytest.approx(mean.var(correction=0).item(), rel=1e-12)
    assert found.explained == pytest.approx(found.variance, rel=1e-12)
    assert found.variance <= found.variance_each
    assert found.largest <= found.largest_mean <= found.largest_each
    if shared == 0.9:
        assert found.independent < 0.75 * found.variance, "models that share something vary more than apart"


def test_of_models_that_cancel_nothing_is_left():
    found = spread([drawn(5), -drawn(5)])
    assert found.variance == found.largest == 0.0 and found.independent > 0.1


def test_shares_and_shapes_are_checked():
    for tensors, weights in (
        ([], None),
        ([drawn(2), drawn(3)], None),
        ([drawn(2)], [0.5]),
        ([drawn(2)] * 2, [2.0, -1.0]),
    ):
        with pytest.raises(InputError):
            spread(tensors, weights)


@pytest.mark.parametrize("biases", [0.0, 0.3])
def test_theorem_1_bounds_the_variance_of_random_networks(biases: float):
    widths, x = [20, 30, 10, 5], drawn(15)
    deviations = [0.1, 0.2, 0.15, 0.3]
    outputs = []
    generator = torch.Generator().manual_seed(1)
    for _ in range(400):
        h = x
        for n, s in zip(widths, deviations, strict=True):
            weight = s * torch.randn(n, len(h), generator=generator, dtype=torch.float64)
            h = (weight @ h + biases * torch.randn(n, generator=generator, dtype=torch.float64)).relu()
        outputs.append(h)
    measured = torch.stack(outputs).var(0).sum().item()
    layers = [(s, biases) for s in deviations]
    loose = variance_bound(layers, widths, x.norm().item())
    tight = variance_bound(layers, widths, x.norm().item(), own_widths=True)
    assert measured <= math.exp(tight.total) <= math.exp(loose.total)
    assert math.exp(tight.total) < 100 * measured, "with each layer's own width it is within two orders"
    assert (tight.last == -math.inf) == (biases == 0.0)


def test_theorem_1_is_the_recursion_that_it_unrolls():
    layers, widths, length, lipschitz = [(0.3, 0.1), (0.2, 0.4), (0.5, 0.2)], [4, 7, 3], 1.7, 1.3
    for own in (True, False):
        value = length**2
        for (sw, sb), n in zip(layers, widths, strict=True):
            value = lipschitz**2 * (n if own else 7) * (sw**2 * value + sb**2)
        bound = variance_bound(layers, widths, length, lipschitz=lipschitz, own_widths=own)
        assert bound.total == pytest.approx(math.log(value), rel=1e-12)


def test_a_bound_of_a_thousand_layers_is_a_number():
    bound = variance_bound([(3.0, 1.0)] * 1000, [500] * 1000, 1.0)
    assert math.isfinite(bound.total) and bound.total > 709, "e to this is none"
    assert math.isfinite(output_bound([3 * drawn(9, 9)] * 1000).property_1)
    with pytest.raises(InputError, match="2 widths for 1 layers"):
        variance_bound([(1.0, 1.0)], [1, 2], 1.0)


def test_outputs_stay_below_both_bounds():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 3, (3, 2), stride=2, bias=False),
        nn.ReLU(), nn.Flatten(), nn.LazyLinear(5, bias=False),
    ).double()  # fmt: skip
    x = drawn(50, 2, 8, 8)
    gain = (net(x).norm(dim=1) / x.flatten(1).norm(dim=1)).max().log().item()
    bound = output_bound(list(net.parameters()))
    assert gain <= bound.spectral and gain <= bound.property_1
    assert 0.8 < bound.probability < 1
    matrix = drawn(6, 6)
    assert output_bound([matrix]).spectral == pytest.approx(torch.linalg.matrix_norm(matrix, 2).log().item())
    with pytest.raises(InputError):
        output_bound([drawn(3)])


def test_larger_weights_with_statistics_that_follow_are_the_same_network_but_for_the_head():
    torch.manual_seed(0)
    net, x = demo_vgg(base=2, norm="bn").double().train(), drawn(32, 1, 8, 8)
    for _ in range(20):
        net(x)
    net.eval()
    larger = magnified(net.state_dict(), 50.0, "weights")
    torch.testing.assert_close(
        torch.func.functional_call(net, larger, x),
        50 * (net(x) - net.classifier.bias) + net.classifier.bias,
        rtol=1e-2, atol=1e-3,  # the norms' eps does not grow along
    )  # fmt: skip
    released = magnified(net.state_dict(), 50.0)
    assert released["features.1.num_batches_tracked"] == 1000
    assert not_finite(torch.func.functional_call(net, released, x)) == 0.0
    with pytest.raises(InputError):
        magnified(larger, float("nan"))


# Templates


def test_least_squares_templates_look_like_class_means():
    torch.manual_seed(0)
    centres = drawn(3, 1, 4, 4)
    y = torch.arange(300) % 3
    x = centres[y] + 0.5 * drawn(300, 1, 4, 4, seed=1)
    means = class_means([(x[:100], y[:100]), (x[100:], y[100:])])
    torch.testing.assert_close(means.each[1], x[y == 1].mean(0))
    torch.testing.assert_close(means.all, x.mean(0))
    rows = x.flatten(1) - x.flatten(1).mean(0)
    weight = torch.linalg.lstsq(rows, nn.functional.one_hot(y, 3).double()).solution.T
    cosines = template_cosines(weight, means)
    assert cosines.diagonal().min() > 0.5 and (cosines - cosines.diagonal().diag()).max() < 0.3
    itself = template_cosines((means.each - means.all).flatten(1), means)
    torch.testing.assert_close(itself.diagonal(), torch.ones(3).double(), rtol=1e-3, atol=1e-3)
    assert template_cosines(torch.zeros(3, 16), means).abs().max() == 0


def test_pictures_are_stretched_over_all_channels_together():
    image = torch.tensor([[[0.0, 1.0]], [[2.0, 4.0]]])
    found = as_pictures(torch.stack([image, torch.full_like(image, 3.0)]))
    assert found.shape == (2, 1, 2, 2)
    assert found[0].flatten().tolist() == [0, 128, 64, 255] and not found[1].any()


def test_classes_without_images_are_named():
    with pytest.raises(DataError, match="class 1"):
        class_means([(drawn(2, 1, 2, 2), torch.tensor([0, 2]))])
    with pytest.raises(DataError, match="class numbers"):
        class_means([drawn(2, 1, 2, 2)])
