"""One call: merge, save, load."""

from pathlib import Path

import pytest
import torch
from torch import nn

import isthmus
from isthmus import zoo
from isthmus.errors import DataError, ExportError, InputError, MismatchError, WeightsError
from isthmus.symmetry.elements import random_orders
from isthmus.symmetry.verify import moved


def network(norm: str | None = None, seed: int = 0) -> nn.Module:
    return zoo.init(zoo.VGG((1, "M", 2, 2), base=4, norm=norm, in_channels=1), seed).eval()


@pytest.fixture
def data() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(32, 1, 8, 8, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("align", ["weight-matching", "activation-matching"])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_a_model_and_its_reordered_copy_merge_to_the_model(
    align: str, alpha: float, data: list[torch.Tensor]
):
    model = network("bn")
    graph = isthmus.trace(model, data[0])
    state = model.state_dict()
    other = moved(graph, state, random_orders(graph, torch.Generator().manual_seed(1)))
    merged = isthmus.merge([state, other], model=model, align=align, data=data, weights=[1 - alpha, alpha])
    assert merged.model is not None
    torch.testing.assert_close(merged.model(data[0]), model(data[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("norm", "repair"), [(None, "repair"), (None, "rescale"), ("bn", "reset")])
def test_the_result_loads_strictly_in_the_users_class(
    norm: str | None, repair: str, data: list[torch.Tensor]
):
    a, b = network(norm, 0), network(norm, 1)
    before = {key: value.clone() for key, value in a.state_dict().items()}
    a.train()
    merged = isthmus.merge([a, b], align="activation-matching", repair=repair, data=data)
    assert type(merged.model) is zoo.VGG
    network(norm, 2).load_state_dict(merged.weights, strict=True)
    assert a.training, "the user's model is left as it was"
    assert all(torch.equal(before[key], value) for key, value in a.state_dict().items())
    assert merged.verification is not None and merged.verification.ok
    assert f"* {'repair':<5}" in str(merged) and "reference" in str(merged)


def test_three_models_merge_to_a_reference(data: list[torch.Tensor]):
    merged = isthmus.merge(
        [network(seed=s) for s in range(3)], align="activation-matching", data=data, reference=2
    )
    assert merged.alignment is not None
    assert [len(t.maps) for t in merged.alignment.transports] == [3, 3, 0]


@pytest.mark.parametrize("variant", ["junction", "paper"])
@pytest.mark.parametrize("norm", [None, "bn"])
def test_keeping_everything_apart_is_the_ensemble(variant: str, norm: str | None, data: list[torch.Tensor]):
    a, b = network(norm, 0), network(norm, 1)
    merged = isthmus.merge(
        [a, b],
        align="activation-matching",
        data=data,
        preserve_first=4,
        variant=variant,  # type: ignore[arg-type]
        weights=[0.3, 0.7],
    )
    assert merged.model is not None
    torch.testing.assert_close(
        merged.model(data[0]), 0.3 * a(data[0]) + 0.7 * b(data[0]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "options", [{"preserve_first": 2}, {"preserve_last": 1}, {"modules": ["features.0"]}]
)
def test_a_kept_apart_model_is_saved_loaded_and_exported_again(
    options: dict[str, object], data: list[torch.Tensor], tmp_path: Path
):
    models = [network("bn", s) for s in range(2)]
    merged = isthmus.merge(models, align="activation-matching", repair="reset", data=data, **options)  # type: ignore[arg-type]
    merged.save(tmp_path / "kept.safetensors")
    again = isthmus.load(tmp_path / "kept.safetensors", model=lambda: network("bn", 5))
    assert merged.model is not None
    assert torch.equal(again(data[0]), merged.model(data[0]))
    torch.export.export(again, (data[0],))
    assert any(key.startswith("branch1.") for key in again.state_dict())


def test_a_plain_merge_is_saved_and_loads(tmp_path: Path, data: list[torch.Tensor]):
    models = [network(seed=s) for s in range(2)]
    merged = isthmus.merge(models)
    merged.save(tmp_path / "m.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    loaded = isthmus.load(tmp_path / "m.safetensors", model=network)
    assert merged.model is not None
    assert torch.equal(loaded(data[0]), merged.model(data[0]))


def test_files_merge_like_the_state_dicts_in_them(tmp_path: Path):
    from isthmus import weights

    states = [network(seed=s).state_dict() for s in range(2)]
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for state, path in zip(states, paths, strict=True):
        weights.save(state, path)
    of_files, of_states = isthmus.merge(paths, weights=[0.3, 0.7]), isthmus.merge(states, weights=[0.3, 0.7])
    assert all(torch.equal(of_files.weights[k], of_states.weights[k]) for k in of_states.weights)


def test_a_saved_alignment_is_used_again(data: list[torch.Tensor], tmp_path: Path):
    models = [network(seed=s) for s in range(2)]
    first = isthmus.merge(models, align="activation-matching", data=data)
    assert first.alignment is not None and first.graph is not None
    first.alignment.save(tmp_path / "maps.safetensors")
    loaded = isthmus.Alignment.load(tmp_path / "maps.safetensors", first.graph)
    second = isthmus.merge(models, align=loaded, example=data[0])
    assert all(torch.equal(first.weights[k], second.weights[k]) for k in first.weights)


# Bad input: what, where, hint.


def test_one_model_is_no_merge():
    with pytest.raises(InputError, match="two or more models, got 1"):
        isthmus.merge([network()])


def test_every_key_that_does_not_fit_is_named():
    a, b = network().state_dict(), network().state_dict()
    b["extra"] = b.pop("features.0.bias")
    b["classifier.bias"] = torch.zeros(11)
    with pytest.raises(MismatchError) as raised:
        isthmus.merge([a, b])
    for word in ("features.0.bias", "extra", "classifier.bias", "(11,)"):
        assert word in str(raised.value)


def test_different_architectures_are_refused(data: list[torch.Tensor]):
    with pytest.raises(MismatchError):
        isthmus.merge([network(), nn.Linear(3, 3)], example=data[0])


def test_weights_that_are_not_numbers_are_named():
    a, b = network().state_dict(), network(seed=1).state_dict()
    b["features.0.weight"][0] = float("nan")
    with pytest.raises(WeightsError, match=r"features\.0\.weight"):
        isthmus.merge([a, b])


def test_weights_of_models_must_sum_to_one():
    with pytest.raises(InputError, match=r"sum to 1\.2, not 1"):
        isthmus.merge([network(), network(seed=1)], weights=[0.5, 0.7])


def test_data_of_the_wrong_shape_says_so(data: list[torch.Tensor]):
    wrong = [torch.randn(4, 3, 8, 8)]
    with pytest.raises(DataError, match=r"shape|channels|traced"):
        isthmus.merge([network(), network(seed=1)], example=data[0], align="activation-matching", data=wrong)


def test_a_model_that_cannot_be_exported_says_why(data: list[torch.Tensor]):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) if x.sum() > 0 else x

    with pytest.raises(ExportError, match="cannot be exported") as raised:
        isthmus.merge([Branching(), Branching()], example=data[0], align="weight-matching")
    assert "hint" in str(raised.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"align": "activation-matcing"}, "did you mean 'activation-matching'"),
        ({"align": {"method": "weight-matching", "speed": 1}}, "no option 'speed'"),
        ({"repair": "repiar"}, "did you mean 'repair'"),
        ({"repair": {"method": "repair", "gain": 1}}, "no option 'gain'"),
        ({"method": "averge"}, "did you mean 'average'"),
        ({"density": 0.3}, "no option 'density'"),
        ({"preserve_first": 9}, "the model has 4 layers"),
        ({"modules": ["nowhere.*"]}, "no module of the model matches"),
        ({"align": "weight-matching", "reference": 7}, "reference model 7 of 2"),
    ],
)
def test_a_wrong_option_is_named_with_a_hint(
    options: dict[str, object], words: str, data: list[torch.Tensor]
):
    with pytest.raises(InputError) as raised:
        isthmus.merge([network(), network(seed=1)], data=data, **options)  # type: ignore[arg-type]
    assert words in str(raised.value)


def test_alignment_of_bare_state_dicts_asks_for_the_architecture(data: list[torch.Tensor]):
    states = [network(seed=s).state_dict() for s in range(2)]
    with pytest.raises(InputError, match="the architecture is needed"):
        isthmus.merge(states, align="weight-matching", data=data)


def test_repair_asks_for_data(data: list[torch.Tensor]):
    with pytest.raises(InputError, match="repair needs calibration data"):
        isthmus.merge([network(), network(seed=1)], repair="repair", example=data[0])


def test_of_models_of_two_widths_the_chosen_reference_says_the_width(data: list[torch.Tensor]):
    narrow, wide = (
        zoo.init(zoo.VGG((1, "M", 2), base=w, norm=None, in_channels=1), w).eval() for w in (3, 5)
    )
    how = {
        "method": "transport",
        "reference": "best",
        "score": lambda state: 1.0 * len(state["features.0.weight"]),
    }
    merged = isthmus.merge([narrow, wide], align=how, data=data, repair="rescale")
    assert merged.alignment is not None and merged.alignment.reference == 1
    assert merged.model is not None and merged.verification is not None and merged.verification.ok
    assert merged.graph is merged.alignment.graph
    wide.load_state_dict(merged.weights, strict=True)
    torch.testing.assert_close(merged.model(data[0]), wide(data[0]))
    base = wide.state_dict()
    task = {"align": "transport", "data": data, "base": base, "method": "task-arithmetic"}
    assert isthmus.merge([narrow, wide], reference=1, **task).weights["features.0.weight"].shape[0] == 5
    with pytest.raises(MismatchError, match="the base"):
        isthmus.merge([narrow, wide], reference=0, **task)
    with pytest.raises(MismatchError, match=r"aligned by .*transport"):
        isthmus.merge([narrow, wide], data=data)
