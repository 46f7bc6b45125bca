"""The one call: what is pruned, what comes out, and that repairs leave zeros alone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isthmus import prune
from isthmus.errors import DataError, InputError, MismatchError, WeightsError
from isthmus.measure import evaluate
from isthmus.program import Batch, export
from isthmus.prune import load_mask, masked, prunable
from isthmus.repair import REPAIRS
from isthmus.zoo import MLP, VGG, ViT


def nets() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    return {
        "mlp": (MLP(d_in=6, widths=(12, 10), num_classes=3), torch.randn(32, 6)),
        "conv-bn": (
            VGG((1, "M", 2), base=4, norm="bn", in_channels=1, num_classes=3),
            torch.randn(32, 1, 6, 6),
        ),
        "conv-ln": (
            VGG((1, "M", 2), base=4, norm="ln", in_channels=1, num_classes=3),
            torch.randn(32, 1, 6, 6),
        ),
    }


NETS = nets()


def _repaired(name: str, model: nn.Module, x: Tensor):
    """Pruned and repaired; None where the repair says why it has nothing to do on such a network."""
    try:
        return prune(model, sparsity=0.6, data=[x], repair=name)
    except InputError:
        return None


@pytest.mark.parametrize("repair", REPAIRS.names())
def test_a_repair_leaves_pruned_weights_at_zero(repair: str):
    found = {name: _repaired(repair, model, x) for name, (model, x) in NETS.items()}
    assert any(pruned is not None for pruned in found.values()), "it repairs none of these networks"
    for name, pruned in found.items():
        if pruned is None:
            continue
        plain = prune(NETS[name][0], sparsity=0.6, data=[NETS[name][1]])
        assert pruned.sparsity == pytest.approx(0.6, abs=0.01)
        for key, keep in pruned.mask.items():
            assert torch.equal(keep, plain.mask[key])
            assert not pruned.weights[key][~keep].any()
        assert all(bool(t.isfinite().all()) for t in pruned.weights.values() if t.is_floating_point())


@pytest.mark.parametrize(
    ("repair", "name", "value", "over"),
    [
        ("reset", "conv-bn", "batch_norm", (0, 2, 3)),
        ("repair", "mlp", "linear_1", 0),
        ("rescale", "mlp", "linear_1", 0),
    ],
)
def test_repairs_by_a_scale_fill_nothing_and_bring_statistics_back(
    repair: str, name: str, value: str, over: int | tuple[int, ...]
):
    model, x = NETS[name]
    pruned = prune(model, sparsity=0.8, data=[x], repair=repair)
    assert pruned.refilled == 0 and pruned.repaired is not None
    run = pruned.program.compile([value])

    def spread(weights: dict[str, Tensor]) -> Tensor:
        out = run(weights, Batch((x,), {}))
        assert isinstance(out, dict)
        return out[value].std(over)

    with torch.no_grad():
        goal, before, after = (spread(w) for w in (pruned.original, pruned.unrepaired, pruned.weights))
    if repair == "reset":  # to the norm's own weight
        goal = model.state_dict()["features.1.weight"]
    alive = before > 0
    assert (after - goal)[alive].abs().sum() < 0.5 * (before - goal)[alive].abs().sum()


def test_only_matrices_of_linear_and_conv_operations_are_pruned_and_the_model_stays_what_it_is():
    model, x = NETS["conv-bn"]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pruned = prune(model, sparsity=0.5, example=x)
    assert set(pruned.mask) == {"features.0.weight", "features.4.weight", "classifier.weight"}
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
        if key not in pruned.mask:
            assert torch.equal(pruned.weights[key], value)
    model.load_state_dict(pruned.weights)
    try:
        with torch.no_grad():
            assert torch.allclose(model.eval()(x), pruned.module()(x), atol=1e-6)
    finally:
        model.load_state_dict(before)


def test_a_transformer_is_pruned_everywhere_at_once():
    torch.manual_seed(0)
    model = ViT(image=8, patch=4, dim=8, depth=2, heads=2)
    pruned = prune(model, "wanda", sparsity=0.5, data=[torch.randn(8, 3, 8, 8)])
    assert not pruned.left
    assert pruned.sparsity == 0.5
    matrices = {
        k for k, v in model.named_parameters() if v.ndim > 1 and "token" not in k and "position" not in k
    }
    assert matrices >= set(pruned.mask) and len(pruned.mask) >= 9


class Mixed(nn.Module):
    """A tied embedding, a weight that is computed, one applied both ways, one that is plain."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.scale = nn.Parameter(torch.rand(4, 4))
        self.both = nn.Parameter(torch.rand(4, 4))
        self.plain, self.again = nn.Linear(4, 4), nn.Linear(4, 4)
        self.again.weight = self.plain.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) @ (self.scale * 2)
        h = (h @ self.both) @ self.both.T
        return self.again(self.plain(h)) @ self.embed.weight.T


def test_what_is_no_plain_matrix_is_left_and_named():
    model, x = Mixed(), torch.randint(0, 7, (2, 3))
    pruned = prune(model, sparsity=0.5, example=x)
    (key,) = pruned.mask
    assert key in ("plain.weight", "again.weight")
    assert "also read by" in pruned.left["embed.weight"]
    assert "computed" in pruned.left["scale"]
    assert "both ways" in pruned.left["both"]
    assert "not pruned: scale, what is applied is computed from it" in str(pruned)
    # A tied weight has both of its names, and counts once.
    assert torch.equal(pruned.weights["again.weight"], pruned.weights["plain.weight"])
    assert pruned.sparsity == 0.5
    assert model.load_state_dict(pruned.weights)


def test_masks_are_saved_loaded_and_put_on_again(tmp_path: Path):
    model, x = NETS["mlp"]
    pruned = prune(model, "wanda", sparsity=0.7, data=[x], repair="rescale")
    path = pruned.save_mask(tmp_path / "mask.safetensors")
    again = prune(model, mask=path, data=[x], repair="rescale")
    assert again.settings["method"] is None
    for key, value in pruned.weights.items():
        assert torch.equal(again.weights[key], value)
    assert load_file(path)["layers.2.weight"].dtype == torch.bool
    weights = load_file(pruned.save(tmp_path / "pruned.safetensors"))
    assert all(torch.equal(weights[key], value) for key, value in pruned.weights.items())
    assert torch.equal(masked(weights, load_mask(path))["layers.2.weight"], weights["layers.2.weight"])
    assert prune(model, sparsity=0.7, weights=again.weights, example=x).sparsity == pytest.approx(
        0.7, abs=0.01
    )


def test_a_file_that_is_no_mask_is_refused(tmp_path: Path):
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"is no mask[\s\S]*w: torch.float32"):
        load_mask(tmp_path / "w.safetensors")
    with pytest.raises(MismatchError, match=r"2 tensors of the mask[\s\S]*w    mask[\s\S]*v    mask"):
        masked({"w": torch.ones(2)}, {"w": torch.ones(3).bool(), "v": torch.ones(1).bool()})
    model, x = NETS["mlp"]
    with pytest.raises(MismatchError, match=r"fc1.bias: no layer|: no layer that can be pruned"):
        prune(
            model,
            mask={next(k for k in model.state_dict() if k.endswith("bias")): torch.ones(12).bool()},
            example=x,
        )


def test_layers_that_are_skipped_stay_whole_and_are_named():
    model, x = NETS["mlp"]
    pruned = prune(model, sparsity=0.5, example=x, skip=["layers.2.*"])
    assert "layers.2.weight" not in pruned.mask
    assert pruned.left["layers.2.weight"] == "left out (skip)"
    with pytest.raises(InputError, match=r"called 'head\.\*'[\s\S]*hint: skip= takes patterns"):
        prune(model, sparsity=0.5, example=x, skip=["head.*"])
    with pytest.raises(InputError, match="no layer to prune"):
        prunable(export(model, x[:2]), ["*"])


def test_a_result_says_what_was_done():
    model, x = NETS["mlp"]
    pruned = prune(model, sparsity=0.5, data=[x], repair={"method": "rescale", "mode": "sequential"})
    (finding,) = pruned.findings
    assert finding.value == 50.0 and finding.unit == "%"
    assert set(finding.layers) == {pruned.labels[key] for key in pruned.mask}
    assert "pruned by magnitude: 50% of" in str(pruned)
    assert "rescale: " in str(pruned)
    assert pruned.settings["scope"] == "global"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "sparsity=, or mask="),
        ({"sparsity": 1.0}, "not from 0 to below 1"),
        ({"sparsity": 0.5, "speed": 1}, "magnitude has no option 'speed'"),
        ({"sparsity": 0.5, "method": "wanda"}, "wanda needs data"),
        ({"sparsity": 0.5, "repair": "rescale"}, "the repair needs data"),
        ({"sparsity": 0.5, "mask": {}}, "sparsity=0.5 beside a mask"),
        ({"sparsity": 0.5, "method": "magnitud"}, "did you mean 'magnitude'"),
    ],
)
def test_what_does_not_fit_together_is_said(arguments: dict, words: str):
    with pytest.raises(InputError) as raised:
        prune(NETS["mlp"][0], **{"example": NETS["mlp"][1], **arguments})
    assert words in str(raised.value)


def test_data_must_be_readable_twice_and_weights_finite():
    model, x = NETS["mlp"]
    with pytest.raises(DataError, match="only once"):
        prune(model, "wanda", sparsity=0.5, data=iter([x]))
    with pytest.raises(InputError, match="example inputs are needed"):
        prune(model, sparsity=0.5)
    broken = {key: value.clone() for key, value in model.state_dict().items()}
    broken["layers.2.weight"][0, 0] = torch.nan
    with pytest.raises(WeightsError, match="1 NaN"):
        prune(model, sparsity=0.5, weights=broken, example=x)


def test_a_pruned_model_has_no_new_parameters():
    model, x = Mixed(), torch.randint(0, 7, (8, 3))
    with pytest.raises(InputError, match="takes no parameters of its own"):
        prune(model, sparsity=0.5, data=[x], repair={"method": "rescale", "allow_new_parameters": True})


def test_half_precision_is_pruned_in_its_own_numbers():
    model, x = NETS["mlp"]
    half = {key: value.bfloat16() for key, value in model.state_dict().items()}
    pruned = prune(model, sparsity=0.5, weights=half, example=x)
    assert all(value.dtype == torch.bfloat16 for value in pruned.weights.values())
    assert pruned.sparsity == 0.5


def test_a_repair_is_kept_only_where_validation_data_says_that_it_helps():
    model, x = NETS["mlp"]
    held = [(x, model(x).argmax(1).detach())]
    plain = prune(model, sparsity=0.6, data=[x])
    harm = {"method": "least-squares", "ridge": 1e-9}

    def score(outputs: Tensor, targets: Tensor) -> float:
        """Near to what pruning left: every repair is worse."""
        return -float((outputs - plain.module()(x)).square().sum())

    kept = prune(model, sparsity=0.6, data=[x], repair=harm, validation=held, metric=score)
    assert kept.repaired is None and list(kept.stages) == ["as it was", "pruned"]
    assert all(torch.equal(kept.weights[key], value) for key, value in plain.weights.items())
    assert kept.settings["repair"] is None and "none is better" in str(kept)
    names = ["rescale", {"method": "repair", "mode": "sequential"}]
    best = prune(model, sparsity=0.6, data=[x], repair=names, validation=held, metric="loss")
    scores = {trial.name: trial.score for trial in best.trials}
    assert list(scores) == ["unrepaired", "rescale", "repair (mode sequential)"]
    alone = {name: plain.repair(how, [x]) for name, how in zip(list(scores)[1:], names, strict=True)}
    for name, other in {"unrepaired": plain, **alone}.items():
        assert scores[name] == pytest.approx(-evaluate(model, held, other.weights).loss, rel=1e-5)


def test_of_all_repairs_the_best_is_taken_with_zeros_put_back():
    model, x = NETS["mlp"]
    held = [(x, model(x).argmax(1).detach())]
    found = prune(model, sparsity=0.6, data=[x], repair="best", validation=held, metric="loss")
    assert {trial.name for trial in found.trials} >= {"unrepaired", "reset", "remove-bias (last best)"}
    reached = max(trial.score for trial in found.trials if trial.score is not None)
    assert reached == pytest.approx(-evaluate(model, held, found.weights).loss, rel=1e-5)
    assert all(not found.weights[key][~keep].any() for key, keep in found.mask.items())
    with pytest.raises(InputError, match="chosen on validation data"):
        prune(model, sparsity=0.6, data=[x], repair="best")
