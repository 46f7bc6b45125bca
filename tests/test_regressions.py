"""Mistakes that were made once: each test is the smallest model that showed one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import isthmus
from isthmus.errors import DataError, InputError, WeightsError


class Scaled(nn.Module):
    """A weight that reaches the activations through an operation of its own (layer scale)."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.gamma = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x) * self.gamma.reshape(1, -1)))


class Normed(nn.Module):
    """Weight norm: the matrix is computed from two parameters."""

    def __init__(self):
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Linear(3, 4))
        self.second = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Embedding(7, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(self.up(x))))


def two(kind: type[nn.Module]) -> list[nn.Module]:
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        made.append(kind().eval())
    return made


@pytest.mark.parametrize("kind", [Scaled, Normed])
def test_weights_behind_an_operation_of_their_own_stay_in_their_branch(kind: type[nn.Module]):
    a, b = two(kind)
    x = torch.randn(5, 3)
    kept = isthmus.merge([a, b], example=x, preserve_first=2)
    assert kept.model is not None
    torch.testing.assert_close(kept.model(x), (a(x) + b(x)) / 2)


def test_a_weight_normed_layer_counts_as_a_layer():
    a, _ = two(Normed)
    assert isthmus.export(a, torch.randn(2, 3)).layers == 2


def test_tensors_that_one_model_shares_and_another_does_not_are_no_ties():
    z = torch.zeros(3)
    for models in (
        [{"a": z, "b": z}, {"a": z + 1, "b": z + 2}],
        [{"a": z + 1, "b": z + 2}, {"a": z, "b": z}],
    ):
        merged = isthmus.merge(models).weights
        assert merged["a"].tolist() == [0.5] * 3 and merged["b"].tolist() == [1.0] * 3


@pytest.mark.parametrize("options", [{}, {"preserve_first": 1}])
def test_a_checkpoint_may_leave_out_the_second_name_of_a_tied_weight(options: dict[str, int]):
    models = two(Tied)
    x = torch.randint(0, 7, (4, 3))
    states = [m.state_dict() for m in models]
    whole = isthmus.merge(states, model=models[0], example=x, align="weight-matching", **options)  # type: ignore[arg-type]
    for missing in ("head.weight", "up.weight"):
        parts = [{k: v for k, v in s.items() if k != missing} for s in states]
        merged = isthmus.merge(parts, model=models[0], example=x, align="weight-matching", **options)  # type: ignore[arg-type]
        assert all(torch.equal(whole.weights[k], v) for k, v in merged.weights.items())


def test_a_module_of_the_users_may_be_called_like_a_branch():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch0, self.branch1 = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.branch1(torch.relu(self.branch0(x)))

    a, b = two(Branches)
    x = torch.randn(5, 3)
    kept = isthmus.merge([a, b], example=x, preserve_first=2)
    assert kept.model is not None
    torch.testing.assert_close(kept.model(x), (a(x) + b(x)) / 2)


@pytest.mark.parametrize("cut", [{}, {"preserve_first": 1}])
def test_new_parameters_of_a_repair_are_saved_and_loaded(cut: dict[str, int], tmp_path: Path):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(3, 6, bias=False),
                nn.ReLU(),
                nn.Linear(6, 6, bias=False),
                nn.ReLU(),
                nn.Linear(6, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    models, x = two(Bare), torch.randn(64, 3)
    merged = isthmus.merge(
        models,
        data=[x],
        repair={"method": "repair", "allow_new_parameters": True},
        **cut,  # type: ignore[arg-type]
    )
    assert any(key.startswith("repair.") for key in merged.weights) and merged.model is not None
    merged.save(tmp_path / "m.safetensors")
    again = isthmus.load(tmp_path / "m.safetensors", model=Bare)
    assert torch.equal(again(x), merged.model(x))


def test_a_limit_on_examples_holds_for_the_goals_too():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    data = [torch.randn(8, 3), 5 * torch.randn(8, 3) + 3]
    merged = isthmus.merge([model, model], data=data, repair={"method": "repair", "limit": 8})
    for key, value in model.state_dict().items():
        torch.testing.assert_close(merged.weights[key], value, rtol=1e-4, atol=1e-4)


def test_all_options_of_a_repair_are_in_the_settings():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    merged = isthmus.merge([model, model], data=[torch.randn(8, 3)], repair="rescale")
    assert {"repair.layers", "repair.mode", "repair.max_gain", "repair.eps", "repair.examples"} <= set(
        merged.settings
    )


def test_weights_saved_over_a_kept_apart_model_load_by_themselves(tmp_path: Path):
    models, x = two(Scaled), torch.randn(2, 3)
    path = tmp_path / "m.safetensors"
    isthmus.merge(models, example=x, preserve_first=1).save(path)
    isthmus.merge(models).save(path)
    assert type(isthmus.load(path, model=Scaled)) is Scaled


def test_weights_and_json_of_different_saves_are_told_apart(tmp_path: Path):
    models, x = two(Scaled), torch.randn(2, 3)
    path = tmp_path / "m.safetensors"
    isthmus.merge(models, example=x, preserve_first=1).save(path)
    described = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(described | {"weights": [0.1, 0.9]}))
    with pytest.raises(WeightsError, match="not the JSON"):
        isthmus.load(path, model=Scaled)
    path.with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        isthmus.load(path, model=Scaled)


def test_changing_the_result_does_not_change_the_users_model():
    models, x = two(Scaled), torch.randn(2, 3)
    before = models[0].state_dict()["first.weight"].clone()
    kept = isthmus.merge(models, example=x, preserve_first=1)
    kept.weights["branch0.first.weight"].zero_()
    assert torch.equal(models[0].state_dict()["first.weight"], before)


def test_the_average_has_the_widest_dtype_in_any_order():
    half, single = {"w": torch.ones(2, dtype=torch.bfloat16)}, {"w": torch.zeros(2)}
    for models in ([half, single], [single, half]):
        assert isthmus.merge(models).weights["w"].dtype is torch.float32


def test_a_bf16_model_is_merged_and_evaluated_with_a_float32_loader():
    models = [m.to(torch.bfloat16) for m in two(Scaled)]
    data = [(torch.randn(16, 3), torch.randint(0, 2, (16,)))]
    merged = isthmus.merge(models, data=data, align="activation-matching", repair="rescale")
    assert merged.weights["first.weight"].dtype is torch.bfloat16 and merged.model is not None
    assert 0 <= isthmus.evaluate(merged.model, data).accuracy <= 1


def test_data_that_is_gone_once_read_is_refused():
    models = two(Scaled)
    with pytest.raises(DataError, match="only once"):
        isthmus.merge(models, data=iter([torch.randn(4, 3)]), align="activation-matching")


def test_evaluating_on_misshapen_data_is_a_clear_error():
    data = [(torch.randn(4, 5), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(DataError, match="cannot be run on the data"):
        isthmus.evaluate(two(Scaled)[0], data)


def test_merge_on_the_command_line_writes_nothing_when_evaluation_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from isthmus import zoo
    from isthmus.cli import main

    monkeypatch.chdir(tmp_path)
    for name in "ab":
        save_file(zoo.demo_vgg(base=4, in_channels=3).state_dict(), tmp_path / f"{name}.safetensors")
    command = (
        "merge a.safetensors b.safetensors --arch isthmus.zoo:demo_vgg base=4 in_channels=3 --data digits"
    )
    monkeypatch.setattr("sys.argv", ["isthmus", *command.split(), "--out", "out.safetensors"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert not (tmp_path / "out.safetensors").exists()


def test_costs_are_means():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=1, vocab_size=11, use_cache=False,
    )  # fmt: skip
    models = [LlamaForCausalLM(config).eval() for _ in range(2)]
    merged = isthmus.merge(models, data=[torch.randint(0, 11, (8, 6))], align="activation-matching")
    assert merged.alignment is not None
    assert {cost.space for cost in merged.alignment.costs} == set(merged.alignment.graph.spaces)
    assert all(-1 <= c.before <= 1 and -1 <= c.after <= 1 for c in merged.alignment.costs)


def test_an_unknown_kind_of_method_is_said():
    with pytest.raises(InputError, match="no kind of method 'align'"):
        isthmus.methods("align")


def test_repair_where_only_the_outputs_are_merged_changes_nothing():
    models, x = two(Scaled), torch.randn(16, 3)
    plain = isthmus.merge(models, data=[x], preserve_first=1)
    repaired = isthmus.merge(models, data=[x], preserve_first=1, repair="repair")
    assert repaired.repaired is not None and not repaired.repaired.changed
    assert all(torch.equal(plain.weights[k], v) for k, v in repaired.weights.items())
