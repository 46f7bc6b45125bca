"""Every repair after alignments of every kind, with parts kept apart and without: it runs, fused and finite."""

import functools

import pytest
import torch
from torch import nn

import isthmus
from isthmus.errors import InputError
from isthmus.program import Batch
from isthmus.repair import REPAIRS
from isthmus.zoo import MLP, VGG, ResNet, ViT

NETS = {
    "mlp": (lambda w: MLP(d_in=12, widths=(w * 4, w * 3), num_classes=4), (12,)),
    "vgg-bn": (lambda w: VGG((1, "M", 1.5), base=2 * w, norm="bn", in_channels=1), (1, 6, 6)),
    "resnet": (lambda w: ResNet(8, base=w + 1, norm="none"), (3, 8, 8)),
    "vgg-ln": (lambda w: VGG((1, "M", 1.5), base=2 * w, norm="ln", in_channels=1), (1, 6, 6)),
    "vit": (lambda w: ViT(image=8, patch=4, dim=4 * w, depth=1, heads=2), (3, 8, 8)),
}
ALIGNMENTS = ("weight-matching", "zipit", "cca", "transport")

#: What a repair says of networks that it is not for.
REFUSED = ("no batch normalisation", "biases cannot be calibrated")


@functools.cache
def setting(name):
    make, shape = NETS[name]
    torch.manual_seed(0)
    models = [make(2).eval(), make(2).eval(), make(3).eval()]  # the third is wider
    for model in models:
        for value in model.state_dict().values():
            if value.is_floating_point() and value.ndim == 1:
                value += 0.1 * torch.randn(value.shape).abs()
    data = [torch.randn(24, *shape) + 0.3]
    graphs = [isthmus.trace(m, data[0][:2]) for m in models]
    return models, graphs, data


@functools.cache
def aligned(name, how):
    models, graphs, data = setting(name)
    wide = how == "transport" and name != "vit"  # heads of other sizes are not aligned
    chosen = [models[0], models[2 if wide else 1]]
    graph = [graphs[0], graphs[2]] if wide else graphs[0]
    return chosen, isthmus.align(graph, chosen, how, data=data)


@pytest.mark.parametrize("apart", [0, 1])
@pytest.mark.parametrize("how", ALIGNMENTS)
@pytest.mark.parametrize("name", NETS)
def test_every_repair_of_every_merge_is_finite_and_fused(name, how, apart):
    if how == "transport" and apart:
        pytest.skip("of models of different widths nothing is kept apart")
    models, alignment = aligned(name, how)
    _, graphs, data = setting(name)
    done = set()
    for repair in REPAIRS.names():
        merged = merged_or_refused(models, graphs[0], alignment, repair, data, apart)
        if merged is None:
            continue
        done.add(repair)
        assert merged.repaired is not None
        assert merged.repaired.changed, repair
        assert not merged.repaired.new_parameters
        assert all(v.isfinite().all() for v in merged.weights.values()), repair
        assert isinstance(merged.model, nn.Module)
        with torch.no_grad():
            ours = merged.model(data[0])
            theirs = merged.program.compile()(merged.weights, Batch((data[0],), {}))
        assert ours.isfinite().all()
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max(), repair
    refused = set(REPAIRS.names()) - done
    assert refused <= ({"calibrate-bias"} if name == "vgg-bn" else {"reset", "calibrate-bias"})
    assert ("calibrate-bias" in done) == (name == "mlp")


def merged_or_refused(models, graph, alignment, repair, data, apart):
    """A merge; None where the repair is not for such networks, and says so."""
    try:
        return isthmus.merge(
            models,
            graph=graph,
            align=alignment,
            repair=repair,
            data=data,
            preserve_first=apart,
            verify=False,
        )
    except InputError as error:
        if any(words in str(error) for words in REFUSED):
            return None
        raise AssertionError(f"{repair} after {alignment.method}") from error
