import pytest
import torch
from torch import Tensor, nn

from isthmus.measure import cost
from isthmus.program import Cut, export, keep_apart
from isthmus.zoo import vgg16


def test_a_linear_layer_is_counted_by_hand() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3, bias=False))
    counted = cost(export(model, torch.zeros(4, 5)), torch.zeros(4, 5))
    assert counted.parameters == 5 * 7 + 7 + 2 * 7 + 7 * 3  # running statistics are no parameters
    assert counted.flops == 2 * (5 * 7 + 7 * 3)  # one example, whatever the batch


def test_a_tied_weight_is_counted_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    counted = cost(export(model, torch.zeros(2, 4)), torch.zeros(2, 4))
    assert counted.parameters == 4 * 4 + 2 * 4
    assert counted.flops == 2 * 2 * 4 * 4


def test_factories_of_the_graph_follow_to_meta() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)
            self.register_buffer("scale", torch.ones(6), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x + torch.arange(x.shape[1]) * self.scale)

    assert cost(export(Positions(), torch.zeros(2, 6)), torch.zeros(2, 6)).flops == 2 * 36


# Preserve-First Merging of VGG16 on 32x32 images, as published: depth kept, parameters, FLOPs.
PUBLISHED = [(3, "1.008", "1.19"), (6, "1.08", "1.49"), (8, "1.20", "1.67"), (12, "1.84", "1.97")]


def test_preserving_first_layers_of_vgg16_costs_what_is_published() -> None:
    with torch.device("meta"):
        model, image = vgg16(base=64), torch.zeros(2, 3, 32, 32)
    program = export(model, image)
    assert program.layers == 14
    plain = cost(program, image)
    assert plain.parameters == sum(p.numel() for p in model.parameters())
    for depth, parameters, flops in PUBLISHED:
        kept, _ = keep_apart(program, Cut(preserve_first=depth), (0.5, 0.5))
        found = cost(kept, image).over(plain)
        for finding, published in zip(found, (parameters, flops), strict=True):
            digits = len(published.partition(".")[2])
            assert f"{finding.value:.{digits}f}" == published, (depth, finding)


@pytest.mark.parametrize("models", [2, 3])
def test_everything_kept_apart_costs_n_models(models: int) -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    program = export(model, torch.zeros(2, 5))
    kept, _ = keep_apart(program, Cut(preserve_first=2), (1 / models,) * models)
    found = cost(kept, torch.zeros(2, 5)).over(cost(program, torch.zeros(2, 5)))
    assert [finding.value for finding in found] == [models, models]
