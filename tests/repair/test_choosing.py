"""`merge(repair=..., validation=...)`: a repair is kept where validation says that it helps."""

import functools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import isthmus
from isthmus.errors import DataError, InputError
from isthmus.repair import REPAIRS


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.three(self.two(self.one(x).relu()).relu())


@functools.cache
def setting():
    """Two noisy copies of a model, and inputs with the model's own answers as targets."""
    torch.manual_seed(0)
    model = Net().eval()
    x = torch.randn(200, 6)
    with torch.no_grad():
        targets = model(x).argmax(1)
    state = model.state_dict()
    generator = torch.Generator().manual_seed(1)
    noisy = [
        {k: v + 2 * v.std() * torch.randn(v.shape, generator=generator) for k, v in state.items()}
        for _ in range(2)
    ]
    graph = isthmus.trace(model, x[:2])
    return model, graph, noisy, [x[:100]], [(x[100:], targets[100:])]


def merge(repair, **options):
    model, graph, states, data, validation = setting()
    given = {"data": data, "validation": validation, **options}
    return isthmus.merge(states, model=model, graph=graph, repair=repair, **given)


def scored(merged, metric):
    model, _, _, _, validation = setting()
    return isthmus.score(model, validation, metric)(merged.weights)


def test_of_several_the_best_is_kept_and_every_score_is_said():
    merged = merge(["repair", "rescale", {"method": "remove-bias", "last": 2}], metric="loss")
    assert [t.name for t in merged.trials] == ["unrepaired", "repair", "rescale", "remove-bias (last 2)"]
    scores = [t.score for t in merged.trials]
    assert len(set(scores)) == 4
    assert scored(merged, "loss") == max(scores)
    kept = merged.trials[scores.index(max(scores))].name
    assert (merged.repaired.method if merged.repaired else "unrepaired") == kept.partition(" ")[0]
    assert "repair chosen by validation loss: " in str(merged)
    assert merged.settings["metric"] == "loss"
    assert merged.settings["repairs tried"] == tuple(f"{t.name} {t.score:.4g}" for t in merged.trials)


@pytest.mark.parametrize("repair", ["rescale", ["rescale", "repair"], "best"])
def test_a_repair_that_does_not_help_is_not_kept(repair):
    def indifferent(outputs, targets):
        return 0.5

    model, graph, states, _, _ = setting()
    plain = isthmus.merge(states, model=model, graph=graph)
    merged = merge(repair, metric=indifferent)
    assert merged.repaired is None
    assert (merged.settings["repair"], merged.settings["metric"]) == (None, "indifferent")
    assert all(torch.equal(v, merged.weights[k]) for k, v in plain.weights.items())
    assert "no repair is better than none" in str(merged)


def test_best_tries_all_that_there_are_and_says_which_cannot_be_done():
    merged = merge("best")
    tried = {trial.name.partition(" ")[0]: trial for trial in merged.trials}
    assert set(tried) == {"unrepaired", *REPAIRS.names()}
    assert tried["reset"].score is None and "no batch normalisation" in tried["reset"].note
    assert "not possible: the model has no batch" in str(merged)
    assert tried["remove-bias"].name == "remove-bias (last best)"
    assert scored(merged, "accuracy") == max(t.score for t in merged.trials if t.score is not None)


def test_the_number_of_layers_without_biases_is_chosen_on_validation_data():
    merged = merge({"method": "remove-bias", "last": "best"}, metric="loss")
    number = merged.settings.get("repair.last")
    if merged.repaired is None:
        number = 0
    scores = {}
    for last in range(4):
        model, _, _, _, validation = setting()
        one = merge({"method": "remove-bias", "last": last}, validation=None)
        scores[last] = isthmus.score(model, validation, "loss")(one.weights)
    assert number == max(scores, key=scores.get)
    assert merged.trials[-1].score == pytest.approx(max(scores.values()))


def test_one_repair_without_validation_is_done_and_not_judged():
    merged = merge("rescale", validation=None)
    assert merged.repaired is not None and merged.trials == ()
    assert "chosen" not in str(merged)


def test_repairs_of_weights_alone_need_no_data():
    model, graph, states, _, _ = setting()
    merged = isthmus.merge(states, model=model, graph=graph, repair="rescale-parameters")
    assert merged.repaired is not None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"repair": "best", "validation": None}, r"(?s)decided on validation data.*hint: pass validation="),
        ({"repair": ["repair", "reset"], "validation": None}, "decided on validation data"),
        ({"repair": {"method": "remove-bias", "last": "best"}, "validation": None}, "decided on validation"),
        ({"repair": None}, "validation= chooses a repair, and none is asked for"),
        ({"repair": []}, "repair= names no repair"),
        ({"repair": ["repair", "rescal"]}, "did you mean 'rescale'"),
        ({"repair": ["rescale"], "data": None}, "rescale needs calibration data"),
        ({"repair": "rescale", "metric": "f1"}, "no metric is called 'f1'"),
        ({"repair": ["rescale", "reset"]}, "no batch normalisation"),
    ],
)
def test_what_cannot_be_chosen_is_said(options, says):
    with pytest.raises(InputError, match=says):
        merge(**options)


def test_validation_data_is_read_again_and_again():
    with pytest.raises(DataError, match="read only once"):
        merge("best", validation=iter(setting()[4]))


class Counting(TorchDispatchMode):
    """Counts the products with some matrices, whichever way round they are given."""

    def __init__(self, matrices):
        super().__init__()
        self.places, self.count = {m.untyped_storage().data_ptr() for m in matrices}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if "mm" in str(func) and any(t.untyped_storage().data_ptr() in self.places for t in tensors):
            self.count += 1
        return func(*args, **(kwargs or {}))


def passes(repair, **options):
    """How often a merge runs its parents, over both of them and over batches."""
    parents = [state["one.weight"] for state in setting()[2]]
    with Counting(parents) as counting:
        merge(repair, **options)
    return counting.count


def test_the_parents_are_measured_once_for_all_repairs_that_aim_at_the_same():
    batches = [setting()[3][0][:50], setting()[3][0][50:]]
    one = passes("repair", data=batches, validation=None)
    assert one == 2 * len(batches)
    several = ["repair", "rescale", "reshift", {"method": "repair", "mode": "sequential"}]
    assert passes(several, data=batches) == one
    # Layers that are not known yet are measured, and no others again.
    assert passes([{"method": "repair", "layers": ["one"]}, "rescale"], data=batches) == 2 * one
    # Fewer examples and inputs of layers are other measurements.
    assert passes(["repair", {"method": "repair", "limit": 50}], data=batches) == one + one // 2
    assert passes(["repair", {"method": "rescale", "mode": "closed-form"}], data=batches) == 2 * one
    # Least squares runs the models beside the merge: nothing to hand on.
    assert passes("best", data=batches) == one + passes(["least-squares"], data=batches)


def test_repairs_do_not_depend_on_what_was_tried_before():
    alone, after = merge("rescale", validation=None), merge(["repair", "rescale"], metric=last_of(3))
    assert after.repaired is not None and after.repaired.method == "rescale"
    assert all(torch.equal(v, after.weights[k]) for k, v in alone.weights.items())


def last_of(number):
    """A metric that is better at each of so many calls: what is tried last is kept."""
    calls = iter(range(number))
    return lambda outputs, targets: float(next(calls))
