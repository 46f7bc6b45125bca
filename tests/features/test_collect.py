"""The statistics pass against the same statistics computed from all activations at once."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from isthmus.errors import DataError, InputError, MismatchError
from isthmus.features import Features, Request, collect
from isthmus.program import Program, export
from isthmus.zoo import MLP, VGG, ViT, demo_vgg

Weights = dict[str, Tensor]


def redrawn(model: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {
        k: (v + 0.3 * torch.rand(v.shape, generator=generator)).to(dtype) if v.is_floating_point() else v
        for k, v in model.state_dict().items()
    }


def by_hand(program: Program, weights: Weights, data: Tensor, value: str, axis: int) -> Tensor:
    """All samples of a value, samples x channels, in float64."""
    from isthmus.program import Batch

    double = {k: v.double() if v.is_floating_point() else v for k, v in weights.items()}
    out = program.compile([value])(double, Batch((data.double(),), {}))
    assert isinstance(out, dict)
    return out[value].detach().movedim(axis, -1).flatten(0, -2)


@pytest.fixture(scope="module")
def conv() -> tuple[Program, list[Weights], Tensor]:
    torch.manual_seed(0)
    model = demo_vgg(base=4, norm="bn")
    data = torch.randn(12, 1, 8, 8) + 1
    return export(model, data[:2]), [redrawn(model, s, torch.float64) for s in range(3)], data


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-30)


def check_joint(features: Features, value: str, samples: list[Tensor], tolerance: float) -> None:
    found = features[value]
    assert found.samples == samples[0].shape[0]
    for i, x in enumerate(samples):
        close(found.mean[i], x.mean(0), tolerance)
        close(found.variance[i], x.var(0, correction=0), tolerance)
        for j, y in enumerate(samples):
            close(found.covariance(i, j), (x - x.mean(0)).T @ (y - y.mean(0)) / len(x), tolerance)
            close(found.second(i, j), x.T @ y / len(x), tolerance)
    stacked = torch.cat(samples, 1)
    mean, covariance = found.joint()
    close(mean, stacked.mean(0), tolerance)
    close(covariance, stacked.T.cov(correction=0), tolerance)


@pytest.mark.parametrize("value", ["conv2d_4", "relu_2", "mean", "linear"])
def test_every_statistic_is_that_of_all_samples_at_once(
    conv: tuple[Program, list[Weights], Tensor], value: str
) -> None:
    program, models, data = conv
    features = collect(program, models, data.split(5), [Request(value, 1, "joint")])
    assert features.examples == 12
    assert features.batch_sizes == (5, 5, 2)
    check_joint(features, value, [by_hand(program, m, data, value, 1) for m in models], 1e-12)


def test_float32_is_close_to_float64(conv: tuple[Program, list[Weights], Tensor]) -> None:
    program, models, data = conv
    single = [{k: v.float() if v.is_floating_point() else v for k, v in m.items()} for m in models]
    features = collect(program, single, data.split(5), [Request("relu_1", 1, "joint")])
    assert features["relu_1"].mean[0].dtype == torch.float64
    check_joint(features, "relu_1", [by_hand(program, m, data, "relu_1", 1) for m in single], 5e-6)


@functools.cache
def mlp() -> tuple[Program, MLP, Tensor]:
    torch.manual_seed(0)
    model = MLP(d_in=6, widths=(5, 7), num_classes=3)
    data = torch.randn(40, 6)
    return export(model, data[:2]), model, data


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(1, 39), max_size=6, unique=True), offset=st.sampled_from([0.0, 100.0]))
def test_statistics_do_not_depend_on_batching(cuts: list[int], offset: float) -> None:
    program, model, data = mlp()
    weights = [redrawn(model, s) for s in range(2)]
    for own in weights:
        own["layers.0.bias"] += offset  # a mean far from zero is where naive sums fail
    requests = [Request("linear", -1, "joint"), Request("linear_1", -1, "reference"), Request("relu", 1)]
    whole = collect(program, weights, [data], requests)
    split = collect(program, weights, data.tensor_split(sorted(cuts)), requests)
    for key, want in whole.moments.items():
        got = split.moments[key]
        for i in range(2):
            # The activations themselves are rounded to float32, differently in batches of other sizes.
            rounding = 1e-6 * (1 + want.mean[i].abs().max() / want.std[i].max())
            close(got.mean[i], want.mean[i], 1e-6)
            close(got.variance[i], want.variance[i], rounding)
        for pair, block in want.blocks.items():
            close(got.blocks[pair], block, rounding)


def test_sorted_data_pools_to_the_same(conv: tuple[Program, list[Weights], Tensor]) -> None:
    """The first batch may be nothing like the rest."""
    program, models, data = conv
    data = torch.cat([torch.zeros_like(data), data * 50])
    features = collect(program, models, data.split(3), [Request("conv2d", 1, "joint")])
    check_joint(features, "conv2d", [by_hand(program, m, data, "conv2d", 1) for m in models], 1e-11)


def test_tokens_are_samples_and_any_axis_can_be_the_channels() -> None:
    torch.manual_seed(0)
    model = ViT(image=8, patch=4, dim=16, depth=1, heads=2).double()
    data = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    program, weights = export(model, data[:2]), dict(model.state_dict())
    requests = [Request("linear_2", -1, "joint"), Request("scaled_dot_product_attention", 1, "joint")]
    requests.append(Request("scaled_dot_product_attention", 3))
    features = collect(program, [weights], data.split(4), requests)
    assert features["linear_2"].samples == 6 * 5
    check_joint(features, "linear_2", [by_hand(program, weights, data, "linear_2", -1)], 1e-12)
    heads = by_hand(program, weights, data, "scaled_dot_product_attention", 1)
    close(features["scaled_dot_product_attention", 1].covariance(0, 0), heads.T.cov(correction=0), 1e-12)
    with pytest.raises(KeyError, match="along 2 axes"):
        features["scaled_dot_product_attention"]


def test_reference_blocks_are_model_0_with_the_others(conv: tuple[Program, list[Weights], Tensor]) -> None:
    program, models, data = conv
    joint = collect(program, models, [data], [Request("relu", 1, "joint")])["relu"]
    found = collect(program, models, [data], [Request("relu", 1, "reference")])["relu"]
    assert set(found.blocks) == {(0, 1), (0, 2)}
    for j in (1, 2):
        close(found.covariance(j, 0), joint.covariance(0, j).T, 1e-12)
    with pytest.raises(InputError, match="models 1 and 2 have no covariance block of relu"):
        found.covariance(1, 2)


def test_correlation_is_one_with_itself_and_zero_for_dead_channels() -> None:
    model = MLP(d_in=4, widths=(3,), num_classes=2)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    weights["layers.0.weight"][1] = 0
    data = torch.randn(64, 4)
    program = export(model, data[:2])
    found = collect(program, [weights, weights], [data], [Request("linear", 1, "joint")])["linear"]
    correlation = found.correlation(0, 1)
    assert torch.allclose(correlation.diag(), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64), atol=1e-6)
    assert correlation.isfinite().all()
    assert (correlation[1] == 0).all()


def test_requests_of_one_value_are_merged_to_the_larger(conv: tuple[Program, list[Weights], Tensor]) -> None:
    program, models, data = conv
    requests = [Request("relu", 1, "joint"), Request("relu", -3), Request("relu", 1, "reference")]
    found = collect(program, models[:2], [data], requests)
    assert list(found.moments) == [("relu", 1)]
    assert set(found["relu"].blocks) == {(0, 0), (0, 1), (1, 1)}


def test_models_of_different_widths_each_with_its_program() -> None:
    torch.manual_seed(0)
    models = [VGG((1, "M", 2), base).double() for base in (2, 3)]
    data = torch.randn(7, 3, 8, 8)
    programs = [export(m, data[:2].double()) for m in models]
    weights = [dict(m.state_dict()) for m in models]
    features = collect(programs, weights, data.split(4), [Request("relu_1", 1, "joint")])
    assert features["relu_1"].covariance(0, 1).shape == (4, 6)
    samples = [by_hand(p, w, data, "relu_1", 1) for p, w in zip(programs, weights, strict=True)]
    check_joint(features, "relu_1", samples, 1e-12)


def test_values_before_an_in_place_operation_are_what_they_were() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)).double()
    data = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    program, weights = export(model, data[:2]), dict(model.state_dict())
    found = collect(program, [weights], [data], [Request("conv2d", 1), Request("relu_", 1)])
    close(found["conv2d"].mean[0], model[0](data).mean((0, 2, 3)), 1e-12)
    assert (found["relu_"].mean[0] > found["conv2d"].mean[0]).all()


def test_half_precision_activations_are_accumulated_wider() -> None:
    model = nn.Sequential(nn.Linear(8, 4)).bfloat16()
    data = torch.randn(4096, 8) + 3
    program = export(model, data[:2].bfloat16())
    found = collect(program, [dict(model.state_dict())], data.split(1000), [Request("linear", 1, "joint")])
    out = model(data.bfloat16()).double()
    close(found["linear"].mean[0], out.mean(0), 1e-5)
    close(found["linear"].covariance(0, 0), out.T.cov(correction=0), 1e-5)


def test_limit_stops_after_that_many_examples(conv: tuple[Program, list[Weights], Tensor]) -> None:
    program, models, data = conv

    def endless():
        while True:
            yield data[:5], torch.zeros(5)

    features = collect(program, models[:1], endless(), [Request("relu", 1)], limit=12)
    assert features.batch_sizes == (5, 5, 2)
    assert features["relu"].samples == 12 * 64


def test_only_what_is_asked_for_is_computed_and_a_single_sample_will_do() -> None:
    model = MLP(d_in=4, widths=(3,), num_classes=2)
    weights = dict(model.state_dict())
    weights["layers.1.bias"] = torch.full((2,), float("nan"))  # never reached
    program = export(model, torch.randn(2, 4))
    found = collect(program, [weights], [torch.randn(1, 4)], [Request("relu", 1, "joint")])["relu"]
    assert found.samples == 1
    assert (found.variance[0] == 0).all()
    assert (found.correlation(0, 0) == 0).all()


def test_nothing_asked_for_is_nothing_done(conv: tuple[Program, list[Weights], Tensor]) -> None:
    assert collect(conv[0], conv[1], [], []).moments == {}


def test_models_are_left_alone(conv: tuple[Program, list[Weights], Tensor]) -> None:
    program, models, data = conv
    before = {k: v.clone() for k, v in models[0].items()}
    collect(program, models, [data], [Request("relu", 1, "joint")])
    assert all(torch.equal(before[k], models[0][k]) for k in before)


# What is said when something is wrong.


def test_empty_data_is_named(conv: tuple[Program, list[Weights], Tensor]) -> None:
    program, models, data = conv
    once = iter([data])
    collect(program, models, once, [Request("relu", 1)])
    with pytest.raises(DataError, match=r"(?s)the data is empty.*hint: an iterator is empty after one pass"):
        collect(program, models, once, [Request("relu", 1)])


def test_a_model_that_is_not_finite_is_named_with_its_first_value(
    conv: tuple[Program, list[Weights], Tensor],
) -> None:
    program, models, data = conv
    broken = {k: v.clone() for k, v in models[1].items()}
    broken["features.3.weight"][0, 0] = float("nan")
    requests = [Request(v, 1, "reference") for v in ("relu_3", "relu", "conv2d_1")]
    with pytest.raises(
        DataError, match=r"(?s)not finite.*model 1: conv2d_1, batch 0.*weights of these"
    ) as error:
        collect(program, [models[0], broken], [data], requests)
    assert "model 0" not in str(error.value)
    data = data.clone()
    data[3] = float("inf")
    with pytest.raises(DataError, match=r"(?s)model 0: relu, batch 1.*hint: batch 1 of the data itself"):
        collect(program, models, data.split(2), requests)


def test_inputs_that_do_not_fit_are_compared_with_the_traced_ones(
    conv: tuple[Program, list[Weights], Tensor],
) -> None:
    program, models, _ = conv
    wanted = r"(?s)cannot be run on the data.*model 0, batch 0: input x is \(4, 3, 8, 8\) torch.float64, "
    with pytest.raises(DataError, match=wanted + r"the model was traced with \(batch, 1, 8, 8\)"):
        collect(program, models, [torch.randn(4, 3, 8, 8)], [Request("relu", 1)])
    with pytest.raises(DataError, match="takes 1 inputs, the data gives 2"):
        collect(program, models, [((torch.randn(4, 1, 8, 8), torch.randn(4)), None)], [Request("relu", 1)])


def test_every_wrong_request_is_named(conv: tuple[Program, list[Weights], Tensor]) -> None:
    program, models, data = conv
    requests = [Request("nowhere", 1), Request("relu", 4), Request("relu", 1)]
    with pytest.raises(InputError, match=r"(?s)2 requests.*nowhere: .* no such value.*relu: has no axis 4"):
        collect(program, models, [data], requests)
    with pytest.raises(InputError, match="0 models and 0 programs"):
        collect(program, [], [data], [Request("relu", 1)])
    with pytest.raises(InputError, match="limit=0"):
        collect(program, models, [data], [Request("relu", 1)], limit=0)


def test_weights_of_another_shape_are_named_before_anything_runs(
    conv: tuple[Program, list[Weights], Tensor],
) -> None:
    program, models, data = conv
    wide = demo_vgg(base=5, norm="bn").state_dict()
    with pytest.raises(
        MismatchError, match=r"(?s)shapes differ.*features.0.weight: \(5, 1, 3, 3\), the program"
    ):
        collect(program, [models[0], wide], [data], [Request("relu", 1)])
