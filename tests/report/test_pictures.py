"""First-layer units as pictures, in results and on pages."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import isthmus
from isthmus.errors import InputError
from isthmus.measure import class_means, first_layer, likely_first_layer
from isthmus.report import Panel, Pictures, Results, render
from isthmus.report.pictures import SHOWN, panel, panels, png
from isthmus.report.search import render_search


def program(net, *shape):
    return isthmus.export(net.eval(), torch.zeros(2, *shape))


def convolutions(channels=3, units=20):
    return nn.Sequential(nn.Conv2d(channels, units, 3), nn.ReLU(), nn.Conv2d(units, 4, 3))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_the_file_that_others_read(channels):
    generator = torch.Generator().manual_seed(channels)
    image = torch.randint(0, 256, (5, 7, channels), generator=generator, dtype=torch.uint8)
    read = np.asarray(Image.open(io.BytesIO(png(image.tolist()))))
    assert np.array_equal(read.reshape(5, 7, channels), image.numpy())


def test_the_layer_that_reads_the_image_is_found():
    kernels = first_layer(program(convolutions(), 3, 8, 8))
    assert kernels is not None and (kernels.key, kernels.kind, kernels.shape) == (
        "0.weight",
        "kernels",
        (3, 3, 3),
    )
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 10))
    found = first_layer(program(linear, 3, 4, 5))
    assert found is not None and (found.kind, found.shape) == ("templates", (3, 4, 5))
    weights = linear.state_dict()
    assert torch.equal(found.of(weights)[2, 1], weights["1.weight"][2].view(3, 4, 5)[1])
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3))
    units = first_layer(program(mlp, 1, 4, 4))
    assert units is not None and units.kind == "units"

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 3)

        def forward(self, x):
            return self.linear(x.transpose(2, 3).flatten(1))

    assert first_layer(program(Turned(), 1, 4, 4)) is None, "pixels are elsewhere"
    assert first_layer(program(convolutions(5), 5, 8, 8)) is None, "no picture has five channels"
    assert first_layer(program(nn.Linear(4, 2), 4)) is None


def test_without_an_architecture_one_likely_weight_is_taken_or_none():
    state = convolutions().state_dict()
    found = likely_first_layer(state)
    assert found is not None and found.key == "0.weight"
    assert likely_first_layer({**state, "other": torch.zeros(4, 3, 3, 3)}) is None, "which of the two?"
    grey = likely_first_layer({"a": torch.zeros(4, 1, 5, 5), "b": torch.zeros(4, 4, 5, 5)})
    assert grey is not None and grey.shape == (1, 5, 5)
    assert likely_first_layer({"a": torch.zeros(4, 3, 1, 1), "b": torch.zeros(3)}) is None


def test_rows_say_how_alike_units_are_and_equal_ones_are_left_out():
    net = convolutions()
    own = {k: v.detach() for k, v in net.state_dict().items()}
    found = panels(program(net, 3, 8, 8), {"a": own, "same": dict(own), "less": _times(own, -1)}, [])
    (shown,) = found
    assert [row.name for row in shown.rows] == ["a", "less"]
    assert [round(row.cosine or 0, 6) for row in shown.rows] == [1.0, -1.0]
    assert all(len(row.images) == SHOWN for row in shown.rows) and shown.note == f"{SHOWN} of 20 units"
    first = Image.open(io.BytesIO(base64.b64decode(shown.rows[0].images[0])))
    assert first.size == (shown.width, shown.height) == (3, 3)


def _times(state, factor):
    return {key: factor * value for key, value in state.items()}


def test_templates_stand_below_the_mean_images_of_their_classes():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(60, 1, 4, 4, generator=generator), torch.arange(60) % 3
    means = class_means([(x, y)])
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        net[1].weight.copy_(means.each.flatten(1))
    (shown,) = panels(program(net, 1, 4, 4), {"a": net.state_dict()}, [(x, y)])
    assert [row.name for row in shown.rows] == ["mean images", "a"]
    assert shown.rows[0].cosine is None and shown.rows[1].cosine == pytest.approx(1.0)
    assert shown.rows[0].images == shown.rows[1].images, "each is stretched to its own range"
    assert "mean images of their classes" in shown.read


def test_pictures_too_large_for_a_page_are_left_out():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 70 * 70, 2))
    layer = first_layer(program(net, 3, 70, 70))
    assert layer is not None and panel(layer, {"a": net.state_dict()}) is None


def test_panels_are_part_of_the_results_and_of_the_page(results, tmp_path):
    net = convolutions()
    shown = panels(program(net, 3, 8, 8), {"<a>": net.state_dict()}, [])
    with_panels = results.model_copy(update={"panels": shown})
    with_panels.to_json(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == with_panels
    page = render(with_panels, tmp_path / "report.html").read_text()
    assert (
        page.count('<img src="data:image/png;base64,') == SHOWN
        and "&lt;a&gt;" in page
        and "First-layer kernels" in page
    )
    assert "What the first layer looks for" not in render(results, tmp_path / "without.html").read_text()
    found = json.loads((tmp_path / "results.json").read_text())
    found["panels"][0]["rows"][0]["images"][0] = "bm8="
    (tmp_path / "results.json").write_text(json.dumps(found))
    with pytest.raises(InputError) as told:
        Results.read(tmp_path / "results.json")
    assert "no PNG" in str(told.value.where)
    with pytest.raises(ValueError, match="base64"):
        Pictures(name="a", images=["<script>"])


def test_a_search_shows_them_too(tmp_path):
    states = [{"w": torch.full((2, 1, 3, 3), float(i))} for i in range(2)]
    found = isthmus.soup(states, lambda w: 0.0, "uniform")
    layer = likely_first_layer(found.weights)
    assert layer is not None
    shown = panel(layer, {"a": states[1], "soup": found.weights})
    assert isinstance(shown, Panel)
    page = render_search(found, tmp_path / "report.html", panels=[shown]).read_text()
    assert page.count("<img") == 4
