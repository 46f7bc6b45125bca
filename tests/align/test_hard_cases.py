"""What goes wrong in practice: every method says so or counts it, and never gives weights that are no numbers."""

from collections.abc import Sequence

import pytest
import torch
from small_nets import BRIEFLY, Weights, build
from torch import Tensor

import isthmus
from isthmus.align import ALIGNMENTS, Alignment, align
from isthmus.errors import DataError, InputError, MismatchError
from isthmus.zoo import MLP

each_method = pytest.mark.parametrize("method", BRIEFLY)

#: They take weights alone; the others read data here.
BY_WEIGHTS = {"c2m3", "sinkhorn", "weight-matching"}

#: They count what does not vary. The others go by weights or by a task, where a silent unit is one like any other.
COUNTING = {"activation-matching", "cca", "relu-scaling", "transformer-transport", "transport", "zipit"}


def found(method: str, models: Sequence[Weights], inputs: Tensor, **options: object) -> Alignment:
    """An alignment of two models of the small MLP, whose moved weights and average are numbers."""
    data = [(part, torch.arange(len(part)) % 3) for part in inputs.split(16)]
    alignment = align(build("mlp").graph, models, {**BRIEFLY[method], **options}, data=data)
    shares = (0.3, 0.7)
    moved = alignment.apply(models, shares)
    for weights in (*moved, isthmus.combine(moved, weights=shares)):
        assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    return alignment


def pair() -> list[Weights]:
    return [build("mlp").drawn(seed) for seed in (1, 2)]


def silenced(weights: Weights, units: slice) -> Weights:
    """Units of the first layer that answer nothing, whatever they are shown."""
    held = {key: tensor.clone() for key, tensor in weights.items()}
    held["layers.0.weight"][units], held["layers.0.bias"][units] = 0, -1
    return held


def test_every_method_is_tried():
    assert set(BRIEFLY) == set(ALIGNMENTS.names())


@each_method
def test_no_data_is_an_error_where_data_is_needed(method: str):
    net = build("mlp")
    for data, words in (([], "the data is empty"), ([(net.data[:0], torch.zeros(0))], "holds no example")):
        if method in BY_WEIGHTS | {"matched-averaging"}:
            align(net.graph, pair(), BRIEFLY[method], data=data)
        else:
            with pytest.raises(DataError, match=words):
                align(net.graph, pair(), BRIEFLY[method], data=data)


@each_method
def test_data_that_is_no_numbers_is_an_error_where_it_is_read(method: str):
    inputs = torch.full_like(build("mlp").data, float("nan"))
    if method in BY_WEIGHTS | {"matched-averaging"}:
        found(method, pair(), inputs)
    else:
        with pytest.raises(DataError, match="NaN"):
            found(method, pair(), inputs)


@each_method
@pytest.mark.parametrize("units", [slice(3), slice(None)], ids=["some", "all of a layer"])
def test_dead_units_are_counted(method: str, units: slice):
    models = [silenced(model, units) for model in pair()]
    told = " ".join(found(method, models, build("mlp").data).notes)
    if method in COUNTING:
        assert "dead units" in told or "answer nothing alike" in told


@each_method
def test_inputs_that_are_all_the_same_make_every_unit_constant(method: str):
    told = " ".join(found(method, pair(), torch.zeros_like(build("mlp").data)).notes)
    if method in COUNTING:
        assert "dead units" in told or "answer nothing alike" in told


@each_method
def test_a_singular_covariance(method: str):
    """Two units that answer the same, and fewer samples than units."""
    models = pair()
    for model in models:
        for key in ("layers.0.weight", "layers.0.bias"):
            model[key][1] = model[key][0]
    found(method, models, build("mlp").data)
    if method == "cca":
        with pytest.raises(DataError, match="singular"):
            found(method, models, build("mlp").data, gamma=0.0)


@each_method
@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_samples(method: str, count: int):
    inputs = build("mlp").data[:count]
    if count == 1 and method in ("annealing", "straight-through"):
        with pytest.raises(DataError, match="1 examples cannot be split"):
            found(method, pair(), inputs)
        return
    notes = found(method, pair(), inputs).notes
    if method == "cca":
        assert f"layers.0: {count} samples of 8 units are few" in notes


@each_method
def test_a_model_of_zeros(method: str):
    models = pair()
    found(method, [models[0], {key: torch.zeros_like(t) for key, t in models[1].items()}], build("mlp").data)


@each_method
def test_half_precision_stays_half_precision(method: str):
    models = [{key: t.bfloat16() for key, t in model.items()} for model in pair()]
    moved = found(method, models, build("mlp").data).apply(models)
    assert all(t.dtype == torch.bfloat16 for state in moved for t in state.values())


@each_method
def test_models_of_other_depths_do_not_fit(method: str):
    deep = MLP(d_in=6, widths=(8, 7, 7), num_classes=3).double().state_dict()
    with pytest.raises(MismatchError, match=r"layers\.3\.weight"):
        found(method, [pair()[0], dict(deep)], build("mlp").data)


@each_method
def test_weights_that_are_no_numbers_are_refused(method: str):
    models = pair()
    models[1]["layers.1.weight"][0, 0] = float("inf")
    with pytest.raises(InputError, match=r"layers\.1\.weight"):
        found(method, models, build("mlp").data)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("weight-matching", {"max_sweeps": 1}, "stopped after 1 sweeps"),
        ("c2m3", {"max_rounds": 1}, "stopped after 1 rounds"),
        ("straight-through", {"max_sweeps": 1}, "2 matchings stopped after 1 sweeps"),
        ("sinkhorn", {"steps": 1, "start": "identity"}, "still getting closer after 1 steps"),
        (
            "relu-scaling",
            {"fit": "sinkhorn", "steps": 1},
            "2 Sinkhorn fits were still improving after 1 steps",
        ),
        ("matched-averaging", {"sweeps": 0}, "2 spaces still changed after 0 sweeps"),
        ("transport", {"solver": "sinkhorn", "regularization": 1e-5}, "couplings stopped early"),
        ("transformer-transport", {"solver": "sinkhorn", "regularization": 1e-5}, "couplings stopped early"),
    ],
)
def test_what_does_not_come_to_an_end_says_so(method: str, options: dict[str, object], words: str):
    assert words in found(method, pair(), build("mlp").data, **options).status


def test_transport_that_leaves_everything_behind_is_an_error():
    with pytest.raises(InputError, match="carry no mass"):
        found("transport", pair(), build("mlp").data, solver="sinkhorn", regularization=1e-4, unbalanced=1e-7)
