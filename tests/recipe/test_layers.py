"""Layers, read off names."""

import pytest

from isthmus.recipe.parents.layers import counted, counts, layout, natural


def test_natural_order():
    assert sorted(["l.10.a", "l.9.b", "l.9.a", "head"], key=natural) == ["head", "l.9.a", "l.9.b", "l.10.a"]


@pytest.mark.parametrize(
    ("prefix", "before", "after"),
    [
        ("model.layers", "model.embed_tokens.weight", "model.norm.weight"),
        ("transformer.h", "transformer.wte.weight", "transformer.ln_f.bias"),
        ("h", "wpe.weight", "ln_f.weight"),
        ("encoder.layer", "embeddings.LayerNorm.weight", "pooler.dense.weight"),
        ("gpt_neox.layers", "gpt_neox.embed_in.weight", "embed_out.weight"),
        ("backbone.layers", "backbone.embeddings.weight", "backbone.norm_f.weight"),
        ("vit.encoder.layer", "vit.embeddings.patch_embeddings.projection.weight", "classifier.weight"),
        ("model.decoder.layers", "model.decoder.embed_positions.weight", "lm_head.weight"),
    ],
)
def test_layers_of_architectures(prefix: str, before: str, after: str):
    names = [
        f"{prefix}.{i}.{member}" for i in range(12) for member in ("attn.q.weight", "mlp.experts.3.w.weight")
    ]
    found = layout([*names, before, after])
    assert found.stacks[prefix].count == 12
    assert set(found.stacks) == {prefix}
    assert found.place[f"{prefix}.11.attn.q.weight"] == (prefix, 11, "attn.q.weight")
    assert found.before == (before,) and found.after == (after,)
    assert not found.unsure


def test_two_stacks_need_to_be_told_apart():
    names = [f"{s}.block.{i}.w" for s, n in (("encoder", 4), ("decoder", 6)) for i in range(n)]
    found = layout([*names, "mystery.weight"])
    assert found.main() is None
    stack = found.main([6])
    assert stack is not None and stack.prefix == "decoder.block"
    assert found.unsure == ("mystery.weight",)


def test_numbered_things_that_are_no_layers():
    found = layout(["features.0.weight", "features.1.running_mean", "features.3.weight", "classifier.0.bias"])
    assert not found.stacks
    assert layout(["m.0.w", "m.2.w"]).stacks == {}  # one is missing


def test_counts_of_a_configuration():
    config = {"n_layer": 3, "text_config": {"num_hidden_layers": 5}, "vocab_size": 7, "num_layers": True}
    assert counts(config) == {("n_layer",): 3, ("text_config", "num_hidden_layers"): 5}


HIDDEN, ENCODER, DECODER = ("num_hidden_layers",), ("encoder_layers",), ("decoder_layers",)
TEXT, VISION = ("text_config", "num_hidden_layers"), ("vision_config", "num_hidden_layers")


@pytest.mark.parametrize(
    ("numbers", "stacks", "expected"),
    [
        ([HIDDEN], {"model.layers": 7}, {HIDDEN: "model.layers"}),  # whatever it says
        ([HIDDEN, ("n_layer",)], {"h": 6}, {HIDDEN: "h", ("n_layer",): "h"}),
        ([HIDDEN, ENCODER, DECODER], {"model.encoder.layers": 6, "model.decoder.layers": 6},
         {HIDDEN: "model.encoder.layers", ENCODER: "model.encoder.layers", DECODER: "model.decoder.layers"}),
        ([("num_layers",), ("num_decoder_layers",)], {"encoder.block": 6, "decoder.block": 6},
         {("num_layers",): "encoder.block", ("num_decoder_layers",): "decoder.block"}),
        ([("encoder", "depth"), ("decoder", "depth")], {"encoder.encoder.layer": 6, "decoder.bert.encoder.layer": 6},
         {("encoder", "depth"): "encoder.encoder.layer", ("decoder", "depth"): "decoder.bert.encoder.layer"}),
        ([TEXT, VISION], {"text_model.encoder.layers": 6, "vision_model.encoder.layers": 6},
         {TEXT: "text_model.encoder.layers", VISION: "vision_model.encoder.layers"}),
        ([HIDDEN, ("vision_config", "depth")], {"model.layers": 6, "visual.blocks": 6},
         {HIDDEN: "model.layers", ("vision_config", "depth"): "visual.blocks"}),
        ([TEXT, VISION], {"model.layers": 6}, {TEXT: "model.layers"}),  # a language model whose images are left out
        ([HIDDEN], {"left": 6, "right": 6}, {}),
        ([HIDDEN], {"left": 5, "right": 7}, {}),
    ],
)  # fmt: skip
def test_which_layers_a_number_counts(
    numbers: list[tuple[str, ...]], stacks: dict[str, int], expected: dict[tuple[str, ...], str]
):
    config: dict[str, object] = {}
    for *path, key in numbers:
        part = config
        for step in path:
            part = part.setdefault(step, {})
        part[key] = 6
    assert counted(config, stacks) == expected
