"""Least squares: against dense solutions, and on networks whose layers can be fitted exactly."""

import pytest
import torch
from torch import nn

import isthmus
from isthmus.errors import DataError, InputError
from isthmus.features import Patches
from isthmus.program import Batch, Cut, export, keep_apart
from isthmus.repair import Models, least_squares
from isthmus.repair.by_name import apply
from isthmus.repair.regression import Regression
from isthmus.repair.targets import Averager, target_of

EVERY = ("mlp", "linear", "vgg", "vgg-ln", "vgg-bn", "resnet", "resnet-bn", "resnet-ln", "mobilenet", "vit")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def averaged(models, shares=(0.5, 0.5)):
    first = models[0]
    return {
        k: sum(w * m[k] for w, m in zip(shares, models, strict=True)) if t.is_floating_point() else t
        for k, t in first.items()
    }


def run(program, weights, data):
    with torch.no_grad():
        return program.compile()(weights, Batch((data,), {}))


# The regression.


def problem(groups=1, samples=200, inputs=5, outputs=4):
    """Inputs that are correlated and far from zero, targets that no layer reaches, weights and their outputs."""
    x = drawn(samples, groups, inputs) @ drawn(inputs, inputs, seed=1) + 30
    weight, bias = drawn(groups, outputs, inputs, seed=2), drawn(groups, outputs, seed=3)
    y = torch.einsum("ngi,goi->ngo", x, weight) + bias
    t = y.roll(1, 2) + drawn(samples, groups, outputs, seed=4).square()
    return x, y, t, weight


def regression(x, y, t, size=37):
    found = Regression()
    for rows in zip(x.split(size), y.split(size), t.split(size), strict=True):
        found.add(*rows)
    return found


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_the_fit_is_the_minimum_of_what_it_says(groups, bias):
    x, y, t, weight = problem(groups)
    if not bias:
        y = torch.einsum("ngi,goi->ngo", x, weight)
    ridge = 0.05
    found = regression(x, y, t).fit(weight, ridge=ridge, bias=bias)
    for g in range(groups):
        a, b = (x[:, g] - x[:, g].mean(0), t[:, g] - t[:, g].mean(0)) if bias else (x[:, g], t[:, g])
        made = a @ weight[g].T
        gain = (made * b).sum(0) / made.square().sum(0)
        penalty = ridge * a.square().mean(0).mean()
        n = len(a)
        stacked = torch.cat([a, (n * penalty).sqrt() * torch.eye(a.shape[1], dtype=a.dtype)])
        rest = torch.cat([b - made * gain, torch.zeros(a.shape[1], b.shape[1], dtype=a.dtype)])
        expected = (gain.unsqueeze(1) * weight[g]) + torch.linalg.lstsq(stacked, rest).solution.T
        torch.testing.assert_close(found.gain[g], gain, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(found.weight[g], expected, rtol=1e-8, atol=1e-9)
        offset = t[:, g].mean(0) - expected @ x[:, g].mean(0) if bias else torch.zeros_like(gain)
        torch.testing.assert_close(found.bias[g], offset, rtol=1e-8, atol=1e-8)
    left = t - torch.einsum("ngi,goi->ngo", x, found.weight) - found.bias
    whole = t - t.mean(0) if bias else t
    assert found.left == pytest.approx(float(left.square().sum() / whole.square().sum()), rel=1e-6)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_a_correction_of_low_rank_is_the_best_of_its_rank(rank):
    x, y, t, weight = problem()
    found = regression(x, y, t)
    ridge = 1e-9
    full, low = found.fit(weight, ridge=ridge), found.fit(weight, ridge=ridge, rank=rank)
    correction = low.weight[0] - low.gain[0].unsqueeze(1) * weight[0]
    assert torch.linalg.matrix_rank(correction, tol=1e-8) == rank
    # Eckart-Young in the metric of what is read: the part of the full correction's outputs that it keeps.
    a = x[:, 0] - x[:, 0].mean(0)
    whole = a @ (full.weight[0] - full.gain[0].unsqueeze(1) * weight[0]).T
    values = torch.linalg.svdvals(whole)
    lost = (whole - a @ correction.T).square().sum()
    torch.testing.assert_close(lost, values[rank:].square().sum(), rtol=1e-5, atol=1e-5)


def test_where_nothing_is_missing_nothing_changes_to_the_bit():
    x, y, _, weight = problem()
    found = regression(x, y, y).fit(weight, ridge=1e-3)
    assert torch.equal(found.weight, weight)
    assert found.left < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_constant_is_explained_by_the_bias(dtype):
    """A learned query is the same for every example, and kernels round the rows of a batch in other ways."""
    x = drawn(1, 1, 5).expand(200, 1, 5) * (1 + 1e-7 * drawn(200, 1, 1, seed=5).sign())
    weight, shift = drawn(1, 4, 5, seed=2), drawn(1, 4, seed=3)
    y = torch.einsum("ngi,goi->ngo", x, weight)
    t = (y.roll(1, 2) + shift).to(dtype)
    fit = regression(x.to(dtype), y.to(dtype), t).fit(weight, ridge=1e-3)
    assert fit.left == 0
    torch.testing.assert_close(fit.weight @ x[0, 0] + fit.bias, t.mean(0).double(), rtol=1e-4, atol=1e-4)


def test_a_row_that_puts_out_nothing_and_inputs_that_are_constant_give_finite_weights():
    x, _, t, weight = problem()
    weight = weight.clone()
    weight[0, 1] = 0
    x = torch.ones_like(x)
    y = torch.einsum("ngi,goi->ngo", x, weight)
    found = regression(x, y, t).fit(weight, ridge=1e-3)
    assert found.weight.isfinite().all()
    torch.testing.assert_close((x[0] @ found.weight[0].T)[0] + found.bias[0], t.mean(0)[0])


# Networks.


@pytest.mark.parametrize("aim", ["layer", "activation"])
@pytest.mark.parametrize("net", EVERY, indirect=True)
def test_ruined_weights_are_healed_where_a_model_shows_how(net, aim):
    own = net.weights[0]
    noise = torch.Generator().manual_seed(5)
    ruined = {
        k: t + 0.3 * t.std(unbiased=False) * torch.randn(t.shape, generator=noise, dtype=t.dtype)
        if t.is_floating_point() and t.ndim > 1
        else t
        for k, t in own.items()
    }
    program = net.program
    before = run(program, ruined, net.data)
    # Embeddings are no layers: they stay as they are.
    kept = {k: own[k] if "pos" in k or "cls" in k else t for k, t in ruined.items()}
    models = Models(program, (own, own), (0.3, 0.7))
    found = least_squares(program, kept, net.data.split(9), models=models, ridge=1e-12, aim=aim)
    after, expected = run(program, found.weights, net.data), run(program, own, net.data)
    scale = expected.abs().max()
    assert (after - expected).abs().max() < 1e-3 * scale
    assert (before - expected).abs().max() > 10 * (after - expected).abs().max()
    assert max(change.left for change in found.changed.values()) < 1e-4


@pytest.mark.parametrize("net", EVERY, indirect=True)
def test_a_merge_comes_nearer_to_its_models(net):
    merged = averaged(net.weights)
    models = Models(net.program, tuple(net.weights), (0.5, 0.5))
    found = least_squares(net.program, merged, net.data.split(8), models=models)
    goal = sum(run(net.program, w, net.data) for w in net.weights) / 2
    before = (run(net.program, merged, net.data) - goal).square().mean()
    after = (run(net.program, found.weights, net.data) - goal).square().mean()
    assert after < 0.5 * before
    assert all(w.isfinite().all() for w in found.weights.values())
    assert found.weights.keys() == merged.keys() and found.program is net.program


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_the_rectifier_makes_the_average_of_what_it_makes_in_the_models(slope):
    first = nn.Linear(4, 7)
    rectifier = nn.LeakyReLU(slope) if slope else nn.ReLU()
    module, data = nn.Sequential(first, rectifier, nn.Linear(7, 3)).double(), drawn(30, 4)
    program = export(module, data[:2])
    state = dict(module.state_dict())
    (place,) = [n.name for n in program.graph.nodes if program.module_of(n.name) == "0"]
    models = Models(program, (state,) * 3, (0.5, 0.3, 0.2))
    values = [drawn(30, 7, seed=s) for s in range(3)]
    plain = sum(w * v for w, v in zip(models.shares, values, strict=True))
    seen = sum(w * rectifier(v) for w, v in zip(models.shares, values, strict=True))
    average = Averager(models, target_of(program, place, 1, "activation"))
    torch.testing.assert_close(rectifier(average(values)), seen)
    torch.testing.assert_close(Averager(models, target_of(program, place, 1, "layer"))(values), plain)
    if not slope:
        off = seen == 0
        torch.testing.assert_close(average(values)[off], plain[off])


def test_only_the_layers_that_are_asked_for_change(get_net):
    net = get_net("mlp")
    models = Models(net.program, tuple(net.weights), (0.5, 0.5))
    found = least_squares(net.program, net.average, [net.data], models=models, layers=["layers.0"])
    changed = {k for k, t in net.average.items() if not torch.equal(found.weights[k], t)}
    assert changed == {key for change in found.changed.values() for key in change.into}
    assert len(found.changed) == 1


def test_what_is_kept_apart_stays(get_net):
    net = get_net("vgg-bn")
    program, _ = keep_apart(net.program, Cut(preserve_first=1), [0.5, 0.5])
    merged = averaged(net.weights)
    weights = {
        key: (merged if branch is None else net.weights[branch])[old]
        for key, (branch, old) in program.sources.items()
    }
    models = Models(net.program, tuple(net.weights), (0.5, 0.5))
    found = least_squares(program, weights, [net.data], models=models)
    changed = {key for key in weights if not torch.equal(found.weights[key], weights[key])}
    assert changed and not any(key.startswith("branch") for key in changed)
    assert any("kept apart" in reason for reason in found.skipped.values())


@pytest.mark.parametrize("align", ["zipit", "cca", "weight-matching", "activation-matching"])
def test_it_repairs_what_any_alignment_merged(get_net, align):
    net = get_net("vgg")
    module = net.model
    kwargs = {"model": module, "align": align, "data": list(net.data.split(8)), "example": net.data[:2]}
    plain = isthmus.merge(net.weights, **kwargs)
    repaired = isthmus.merge(net.weights, repair="least-squares", **kwargs)
    goal = sum(run(net.program, w, net.data) for w in net.weights) / 2

    def error(merged):
        with torch.no_grad():
            return float(
                (merged.program.compile()(merged.weights, Batch((net.data,), {})) - goal).square().mean()
            )

    assert error(repaired) < 0.5 * error(plain)


def test_models_of_two_widths():
    torch.manual_seed(0)
    small, large = (
        nn.Sequential(nn.Linear(5, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 3)).double()
        for n in (8, 12)
    )
    data = drawn(200, 5)
    for pair in ((small, large), (large, small)):
        kwargs = {"align": "transport", "data": list(data.split(50)), "example": data[:2]}
        plain = isthmus.merge(list(pair), **kwargs)
        repaired = isthmus.merge(list(pair), repair="least-squares", **kwargs)
        with torch.no_grad():
            goal = (small(data) + large(data)) / 2
            errors = [float((m.model(data) - goal).square().mean()) for m in (plain, repaired)]
        assert errors[1] < 0.5 * errors[0]


def test_a_rank_of_zero_leaves_rows_in_their_direction(get_net):
    net = get_net("vgg")
    merged = averaged(net.weights)
    models = Models(net.program, tuple(net.weights), (0.5, 0.5))
    found = least_squares(net.program, merged, [net.data], models=models, rank=0)
    for key, old in merged.items():
        if old.ndim > 1:
            new = found.weights[key].flatten(1)
            cosine = nn.functional.cosine_similarity(new, old.flatten(1), dim=1)
            torch.testing.assert_close(cosine.abs(), torch.ones_like(cosine))


def test_chunks_of_examples_change_nothing(get_net, monkeypatch):
    net = get_net("vgg")
    merged = averaged(net.weights)
    models = Models(net.program, tuple(net.weights), (0.5, 0.5))
    whole = least_squares(net.program, merged, [net.data], models=models)
    monkeypatch.setattr("isthmus.repair.fitting.CHUNK", 1)
    monkeypatch.setattr("isthmus.repair.tape.HOLD", 0)
    parts = least_squares(net.program, merged, [net.data], models=models)
    for key, tensor in whole.weights.items():
        torch.testing.assert_close(parts.weights[key], tensor, rtol=1e-7, atol=1e-9)


class Columns(nn.Module):
    """A layer that sees one example per column."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Parameter(torch.randn(9, 4)), nn.Linear(9, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first @ x.T).T)


def test_examples_that_are_columns_are_not_cut(monkeypatch):
    torch.manual_seed(0)
    nets = [Columns().double() for _ in range(2)]
    states, data = [net.state_dict() for net in nets], drawn(40, 4, seed=3)
    program, merged = export(nets[0], data[:2]), averaged(states)
    models = Models(program, tuple(states), (0.5, 0.5))
    whole = least_squares(program, merged, [data], models=models)
    assert len(whole.changed) == 2
    monkeypatch.setattr("isthmus.repair.fitting.CHUNK", 1)
    parts = least_squares(program, merged, [data], models=models)
    for key, tensor in whole.weights.items():
        torch.testing.assert_close(parts.weights[key], tensor, rtol=1e-7, atol=1e-9)


def test_inputs_are_not_changed_and_dtypes_stay(get_net):
    net = get_net("vgg-bn")
    states = [{k: t.float() if t.is_floating_point() else t for k, t in w.items()} for w in net.weights]
    merged = averaged(states)
    copies = {k: t.clone() for k, t in merged.items()}
    program = export(net.model.float(), net.data.float()[:2])
    found = least_squares(
        program, merged, [net.data.float()], models=Models(program, tuple(states), (0.5, 0.5))
    )
    assert all(torch.equal(merged[k], copies[k]) for k in merged)
    assert all(found.weights[k].dtype == t.dtype for k, t in merged.items())


def test_layers_that_cannot_be_fitted_say_why():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.out = nn.ConvTranspose2d(2, 3, 2), nn.Conv2d(3, 1, 1)

        def forward(self, x):
            return self.out(self.up(x).relu())

    module, data = Two().double(), drawn(6, 2, 4, 4)
    program = export(module, data[:2])
    own = dict(module.state_dict())
    found = least_squares(program, own, [data], models=Models(program, (own,), (1.0,)))
    assert list(found.skipped.values()) == ["a transposed convolution, or one without a batch dimension"]
    assert len(found.changed) == 1


def test_it_says_what_is_wrong(get_net):
    net = get_net("mlp")
    own = net.weights[0]
    models = Models(net.program, (own,), (1.0,))
    for options, words in (
        ({"ridge": 0.0}, "ridge"),
        ({"rank": -1}, "rank"),
        ({"layers": ["nothing"]}, "nothing"),
    ):
        with pytest.raises(InputError, match=words):
            least_squares(net.program, own, [net.data], models=models, **options)
    with pytest.raises(DataError):
        least_squares(net.program, own, [], models=models)
    with pytest.raises(DataError, match="one sample"):
        least_squares(net.program, own, [net.data[:1]], models=models)
    with pytest.raises(DataError, match="not finite"):
        least_squares(net.program, own, [net.data * torch.inf], models=models)
    with pytest.raises(InputError, match="shares"):
        Models(net.program, (own, own), (1.0,))
    with pytest.raises(InputError, match="aim"):
        apply(
            net.program,
            net.program,
            own,
            [own],
            [1.0],
            {"method": "least-squares", "aim": "there"},
            [net.data],
        )


def test_windows_and_weights_agree_on_the_order_of_groups():
    module = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), nn.ReLU()).double()
    data = drawn(5, 4, 9, 9)
    program = export(module, data[:2])
    (node,) = [n for n in program.graph.nodes if "conv2d" in str(n.target)]
    patches, groups = isthmus.features.windows(program, node)
    assert isinstance(patches, Patches) and groups == 2
    wide = patches.of(data).unflatten(1, (groups, -1))
    weight = module[0].weight.detach().flatten(1).unflatten(0, (groups, -1))
    made = torch.einsum("ngi,goi->ngo", wide, weight).flatten(1) + module[0].bias.detach()
    expected = module[0](data).detach().movedim(1, -1).reshape(-1, 6)
    torch.testing.assert_close(made, expected)
