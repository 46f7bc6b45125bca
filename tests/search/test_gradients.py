"""Searches by gradient: learned soups and AdaMerging."""

import pytest
import torch
from torch import nn

from isthmus import export, soup
from isthmus.errors import DataError, InputError
from isthmus.search import gather
from isthmus.search.mixing import Mixture, parameters_of


def loss_of(model, weights, data):
    total = 0.0
    for x, y in data:
        with torch.no_grad():
            out = torch.func.functional_call(model, weights, (x,))
        total += float(nn.functional.cross_entropy(out, y, reduction="sum"))
    return total / sum(len(y) for _, y in data)


@pytest.mark.parametrize("by", ["model", "layer", "tensor"])
def test_a_gradient_is_that_of_finite_differences(by, net, nets, data):
    members = gather([{k: v.double() if v.is_floating_point() else v for k, v in s.items()} for s in nets])
    program = export(net.double(), data[0][0].double())
    mixture = Mixture(members, by, parameters_of(members, program))
    rows = {"model": 1, "layer": 4, "tensor": 7}[by]
    assert len(mixture.rows) == rows, mixture.rows
    run = program.compile()
    from isthmus.program import Batch

    def value(coefficients):
        out = run(mixture(coefficients), Batch((data[0][0].double(),), {}))
        return nn.functional.cross_entropy(out, data[0][1])

    start = torch.full((rows, 4), 0.25, dtype=torch.float64)
    start += 0.05 * torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    free = start.clone().requires_grad_()
    value(free).backward()
    statistics = {"first", "norm"}
    for row in range(rows):
        if by != "tensor" and mixture.rows[row] in {*statistics, "all"}:
            continue  # running statistics move along, but pass no gradient
        for model in range(4):
            if by == "tensor" and mixture.rows[row].startswith("norm"):
                continue
            ahead, behind = start.clone(), start.clone()
            ahead[row, model] += 1e-6
            behind[row, model] -= 1e-6
            slope = float(value(ahead) - value(behind)) / 2e-6
            assert float(free.grad[row, model]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_a_mixture_of_one_model_is_that_model(net, nets, data):
    members = gather(nets)
    program = export(net, data[0][0])
    mixture = Mixture(members, "tensor", parameters_of(members, program))
    coefficients = torch.zeros(len(mixture.rows), 4, dtype=torch.float64)
    coefficients[:, 2] = 1
    made = mixture.stored(coefficients)
    assert all(torch.equal(made[key], value) for key, value in nets[2].items())
    assert made["third.weight"] is made["second.weight"]
    base = {k: v + 1 if v.is_floating_point() else v for k, v in nets[0].items()}
    around = Mixture(members, "model", parameters_of(members, program), base)
    back = around.stored(torch.zeros(1, 4, dtype=torch.float64))
    torch.testing.assert_close(back["first.weight"], base["first.weight"])


@pytest.mark.parametrize("by", ["model", "layer", "tensor"])
def test_a_learned_soup_lowers_the_loss_and_never_the_score(by, net, nets, data):
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = soup(nets, None, "learned", model=net, data=data, by=by, epochs=4)
    uniform = next(s for s in found.steps if s.label == "uniform")
    assert found.score >= uniform.score
    assert found.extra["losses"][-1] < found.extra["losses"][0]
    for parts in found.coefficients.values():
        assert sum(parts.values()) == pytest.approx(1) and min(parts.values()) >= 0
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    net.load_state_dict(found.weights, strict=True)


def test_a_learned_soup_finds_the_model_that_the_data_are_of(net, data):
    right = {key: value.clone() for key, value in net.state_dict().items()}
    wrong = {key: -value if key.startswith("head") else value.clone() for key, value in right.items()}

    def score(weights):
        return -loss_of(net, {k: v for k, v in weights.items() if k != "third.weight"}, data)

    options = {"epochs": 20, "lr": 0.3, "temperature": False}
    found = soup([wrong, right], score, "learned", model=net, data=data, **options)
    assert found.chosen["models[1]"] > 0.95 and found.extra["temperature"] == 1.0
    free = soup([wrong, right], score, "learned", model=net, data=data, simplex=False, **options)
    assert free.chosen["models[0]"] < 0, "beyond the right one, answers are surer still"
    assert free.score > found.score
    start = soup([wrong, right], lambda w: 0.0, "learned", model=net, data=data, simplex=False, **options)
    assert start.chosen == {"models[0]": 0.5, "models[1]": 0.5}, "the first of equally good ones"
    warm = soup([wrong, right], score, "learned", model=net, data=data, epochs=3)
    assert warm.extra["temperature"] != 1.0


def test_a_loss_of_ones_own_is_used_and_must_be_a_number(net, nets, data):
    seen = []

    def squares(logits, targets):
        seen.append(logits.shape)
        return (logits - nn.functional.one_hot(targets, 3)).square().mean()

    found = soup(nets, None, "learned", model=net, data=data, loss=squares, epochs=1)
    assert len(seen) == 2 and found.settings["loss"] == "squares"
    with pytest.raises(InputError, match="smaller lr"):
        soup(nets, None, "learned", model=net, data=data, loss=lambda a, b: a.sum() * torch.nan)
    with pytest.raises(DataError, match="no targets"):
        soup(nets, lambda w: 0.0, "learned", model=net, data=[x for x, _ in data])
    with pytest.raises(InputError, match="nothing is learned"):
        soup(nets, None, "learned", model=net, data=data, epochs=0)


def test_a_learned_soup_repeats_itself(net, nets, data):
    runs = [soup(nets, None, "learned", model=net, data=data) for _ in range(2)]
    assert all(torch.equal(runs[0].weights[key], runs[1].weights[key]) for key in runs[0].weights)


class Counted:
    """Data that counts its batches, and ends with Ctrl-C after so many."""

    def __init__(self, batches, most=10**9):
        self.batches, self.read, self.most = batches, 0, most

    def __iter__(self):
        for batch in self.batches:
            if self.read == self.most:
                raise KeyboardInterrupt
            self.read += 1
            yield batch


@pytest.mark.parametrize("by", ["model", "tensor"])
def test_an_interrupted_learned_soup_goes_on_to_the_same_bytes(by, net, nets, data, tmp_path):
    from isthmus import score

    def learn(source, **options):
        rate = score(net, data, "loss")
        return soup(nets, rate, "learned", model=export(net, data[0][0]), data=source, by=by, **options)

    whole = Counted(data)
    expected = learn(whole, epochs=5)
    assert whole.read == 10
    with pytest.raises(KeyboardInterrupt):
        learn(Counted(data, most=7), epochs=5, folder=tmp_path)  # in the fourth epoch
    rest = Counted(data)
    found = learn(rest, epochs=5, folder=tmp_path)
    assert rest.read == 4, "three epochs are known"
    assert found.coefficients == expected.coefficients and found.extra == expected.extra
    assert [s.score for s in found.steps] == [s.score for s in expected.steps]
    assert all(torch.equal(found.weights[key], value) for key, value in expected.weights.items())
    more = Counted(data)
    longer = learn(more, epochs=6, folder=tmp_path)
    assert more.read == 2 and longer.extra["losses"][:5] == expected.extra["losses"]
    shorter = learn(Counted(data, most=0), epochs=3, folder=tmp_path)
    assert shorter.extra["losses"] == expected.extra["losses"][:3] and shorter.evaluated == 0
    other = Counted(data)
    learn(other, epochs=5, folder=tmp_path, lr=0.2)
    assert other.read == 10, "another question"


def test_an_interrupted_adamerging_goes_on_to_the_same_bytes(net, nets, data, tmp_path):
    inputs = [x for x, _ in data] + [data[0][0] + 1]
    base = {k: v.clone() for k, v in net.state_dict().items()}

    def merge(source, **options):
        program = export(net, inputs[0])
        return soup(nets, None, "adamerging", model=program, data=source, base=base, iterations=40, **options)

    whole = Counted(inputs)
    expected = merge(whole)
    assert whole.read == 40
    with pytest.raises(KeyboardInterrupt):
        merge(Counted(inputs, most=25), folder=tmp_path)
    rest = Counted(inputs)
    found = merge(rest, folder=tmp_path)
    assert rest.read == 40, "those of before are read past"
    assert found.coefficients == expected.coefficients and found.extra == expected.extra
    assert [(s.label, s.score) for s in found.steps] == [(s.label, s.score) for s in expected.steps]
    assert all(torch.equal(found.weights[key], value) for key, value in expected.weights.items())
    done = merge(Counted(inputs, most=0), folder=tmp_path)
    assert done.score == expected.score


def test_a_kept_search_that_cannot_be_read_is_an_error(net, nets, data, tmp_path):
    soup(nets, None, "learned", model=net, data=data, epochs=1, folder=tmp_path)
    (kept,) = tmp_path.glob("learned-*.safetensors")
    kept.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be read") as told:
        soup(nets, None, "learned", model=net, data=data, epochs=1, folder=tmp_path)
    assert "remove it" in told.value.hint


def test_adamerging_plus_plus_mixes_trimmed_and_elected_task_vectors(net, nets, data):
    inputs = [x for x, _ in data]
    base = {k: v.clone() for k, v in net.state_dict().items()}
    base["third.weight"] = base["second.weight"]
    options = {"model": net, "data": inputs, "base": base}
    parameters = [k for k in base if "num_batches" not in k and "running" not in k and k != "third.weight"]
    vectors = [torch.cat([(s[k] - base[k]).flatten() for k in parameters]) for s in nets]
    trimmed = []
    for vector in vectors:
        least = vector.abs().sort(descending=True).values[int(0.3 * len(vector))]  # one rank below the kept
        trimmed.append(torch.where(vector.abs() >= least, vector, 0.0))
    sign = torch.stack(trimmed).sum(0).sign()
    sign[sign == 0] = 1 if sign.sum() >= 0 else -1
    kept = [torch.where(v * sign > 0, v, 0.0) for v in trimmed]
    expected = 0.3 * torch.stack(kept).sum(0)
    start = soup(nets, None, "adamerging", density=0.3, iterations=1, lr=1e-12, **options)
    moved = torch.cat([(start.weights[k] - base[k]).flatten() for k in parameters])
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-6)
    means = torch.stack([s["norm.running_mean"] - base["norm.running_mean"] for s in nets]).sum(0)
    torch.testing.assert_close(
        start.weights["norm.running_mean"], base["norm.running_mean"] + 0.3 * means, rtol=1e-5, atol=1e-6
    )
    found = soup(nets, None, "adamerging", density=0.3, iterations=40, lr=0.02, **options)
    assert -found.steps[-1].score < -found.steps[0].score and found.settings["density"] == 0.3
    whole = soup(nets, None, "adamerging", density=1.0, iterations=1, lr=1e-12, **options)
    assert not torch.equal(whole.weights["first.weight"], start.weights["first.weight"])
    with pytest.raises(InputError, match="density"):
        soup(nets, None, "adamerging", density=0.0, **options)


@pytest.mark.parametrize("by", ["model", "tensor"])
def test_adamerging_makes_answers_sure_and_says_what_it_saw(by, net, nets, data):
    inputs = [x for x, _ in data]
    base = {k: v.clone() for k, v in net.state_dict().items()}
    found = soup(nets, None, "adamerging", model=net, data=inputs, base=base, by=by, iterations=40, lr=0.02)
    entropies = [-s.score for s in found.steps]
    assert entropies[-1] < entropies[0]
    assert any("test-time data: adapted on" in note for note in found.notes)
    assert found.extra["test-time examples"] == 40 * 30
    assert all(0 <= part <= 1 for parts in found.coefficients.values() for part in parts.values())
    assert "entropy" in found.by
    net.load_state_dict(found.weights, strict=True)


def test_adamerging_starts_from_task_arithmetic(net, nets, data):
    from isthmus import combine

    base = {k: v.clone() for k, v in net.state_dict().items()}
    base["third.weight"] = base["second.weight"]
    found = soup(
        nets, None, "adamerging", model=net, data=[x for x, _ in data], base=base, iterations=1, lr=1e-12
    )
    expected = combine(nets, "task-arithmetic", base=base, options={"lam": 0.3})
    for key, value in expected.items():
        torch.testing.assert_close(found.weights[key], value, rtol=1e-5, atol=1e-6)


def test_adamerging_keeps_heads_and_takes_data_of_each_task(net, nets, data):
    inputs = [x for x, _ in data]
    base = {k: v.clone() for k, v in net.state_dict().items()}
    models = [dict(nets[0]), dict(nets[1])]
    models[1]["head.weight"], models[1]["head.bias"] = torch.randn(5, 8), torch.randn(5)
    found = soup(
        models, None, "adamerging", model=net, tasks=[inputs, inputs[:1]], base=base, iterations=5,
        heads=["head.*"],
    )  # fmt: skip
    assert torch.equal(found.weights["head.weight"], models[0]["head.weight"])
    assert torch.equal(found.extra["heads"][1]["head.weight"], models[1]["head.weight"])
    assert "head.weight" not in found.coefficients
    with pytest.raises(InputError, match="test inputs of 3 tasks for 2 models"):
        soup(models, None, "adamerging", model=net, tasks=[inputs] * 3, base=base, heads=["head.*"])
    with pytest.raises(InputError, match="test inputs are needed"):
        soup(nets, None, "adamerging", model=net, base=base)
    with pytest.raises(DataError, match="only once"):
        soup(models, None, "adamerging", model=net, tasks=[inputs, iter(inputs)], base=base, heads=["head.*"])
    with pytest.raises(InputError, match=r"no tensor is called tail\.\*"):
        soup(nets, None, "adamerging", model=net, data=inputs, base=base, heads=["tail.*"])


def test_statistics_of_mixtures_are_taken_anew_where_asked(net, nets, data):
    inputs = [x for x, _ in data]
    plain = soup(nets, None, model=net, data=data)
    assert any("BatchNorm" in note for note in plain.notes) == (len(plain.chosen) > 1)
    mixed = soup(nets, None, "uniform", model=net, data=data)
    assert any("BatchNorm statistics are means" in note for note in mixed.notes)
    found = soup(nets, None, "uniform", model=net, data=data, calibration=inputs)
    assert not any("BatchNorm" in note for note in found.notes)
    from isthmus.repair import reset

    mean = soup(nets, None, "uniform", model=net, data=data).weights
    expected = reset(export(net, inputs[0]), mean, inputs).weights
    torch.testing.assert_close(found.weights["norm.running_var"], expected["norm.running_var"])
    single = [s.score for s in found.steps[:4]]
    assert single == [s.score for s in soup(nets, None, "uniform", model=net, data=data).steps[:4]]
