"""Transformers architectures from tiny random configurations: name -> () -> (model, example)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, object]

VOCAB = 97
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**TINY, "num_key_value_heads": 2, "head_dim": 8}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
GPT = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SEQ = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
T5 = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
VISION = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SPEECH = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def tokens(length: int = 10) -> Tensor:
    return torch.randint(3, VOCAB, (2, length), generator=torch.Generator().manual_seed(0))


def images(size: int = 16, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def _build(kind: str, head: str, inputs: Callable[[], object], options: dict[str, object]) -> Built:
    import imports

    imports.prepare()
    import transformers
    from transformers import AutoConfig

    options = dict(options)
    attention = str(options.pop("attention", "sdpa"))
    config = AutoConfig.for_model(kind, **options)
    for item in (config, *(v for v in vars(config).values() if hasattr(v, "use_cache"))):
        item.use_cache = False
    kind_of = getattr(transformers, head)
    make = getattr(kind_of, "from_config", None) or kind_of._from_config
    config.architectures = config.architectures or []
    try:
        model = make(config, attn_implementation=attention)
    except (ValueError, ImportError):
        model = make(config, attn_implementation="eager")
    given = dict(inputs())  # type: ignore[call-overload]
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    return Answer(model, tuple(tensors), use_cache="use_cache" in given).eval(), tuple(tensors.values())


class Answer(nn.Module):
    """A model with its answer as the only output; where it answers with hidden states, a classifier reads them.

    Hidden states that a model returns are outputs: their order is fixed, and with it the residual stream.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...], use_cache: bool):
        super().__init__()
        self.model, self.names = model, names
        self.options = {"use_cache": False} if use_cache else {}
        width = getattr(model.config, "hidden_size", None) or getattr(model.config, "d_model", None)
        self.probe = nn.Linear(width, 3) if isinstance(width, int) else None

    def forward(self, *inputs: Tensor) -> Tensor:
        result = self.model(**dict(zip(self.names, inputs, strict=True)), **self.options)
        for name in ANSWERS:
            if getattr(result, name, None) is not None:
                return getattr(result, name)
        assert self.probe is not None
        return self.probe(result.last_hidden_state)


ANSWERS = (
    "logits",
    "logits_per_image",
    "prediction_logits",
    "predicted_depth",
    "prediction_outputs",
    "action_preds",
)


def text() -> object:
    return {"input_ids": tokens(), "use_cache": False}


def plain() -> object:
    return {"input_ids": tokens()}


def pair() -> object:
    return {"input_ids": tokens(), "decoder_input_ids": tokens(7), "use_cache": False}


def masked_pair() -> object:
    ones = torch.ones(2, 10, dtype=torch.long)
    return {
        "input_ids": tokens(),
        "attention_mask": ones,
        "decoder_input_ids": tokens(7),
        "decoder_attention_mask": ones[:, :7],
        "use_cache": False,
    }


def pixels() -> object:
    return {"pixel_values": images()}


def wide_pixels() -> object:
    return {"pixel_values": images(64)}


def both() -> object:
    return {"input_ids": tokens(), "pixel_values": images()}


def wave() -> object:
    return {"input_values": torch.randn(2, 800, generator=torch.Generator().manual_seed(0))}


def mel() -> object:
    features = torch.randn(2, 16, 40, generator=torch.Generator().manual_seed(0))
    return {"input_features": features, "decoder_input_ids": tokens(7), "use_cache": False}


CAUSAL, BASE, MASKED = "AutoModelForCausalLM", "AutoModel", "AutoModelForMaskedLM"
IMAGES, PAIR = "AutoModelForImageClassification", "AutoModelForSeq2SeqLM"

#: name: (model type, class, inputs, options)
SPECS: dict[str, tuple[str, str, Callable[[], object], dict[str, object]]] = {
    # decoders
    "llama": ("llama", CAUSAL, text, GROUPED),
    "llama-eager": ("llama", CAUSAL, text, {**GROUPED, "attention": "eager"}),
    "llama-tied": ("llama", CAUSAL, text, {**GROUPED, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", CAUSAL, text, GROUPED),
    "qwen2-moe": (
        "qwen2_moe",
        CAUSAL,
        text,
        {**GROUPED, **MOE, "shared_expert_intermediate_size": 24},
    ),
    "qwen3": ("qwen3", CAUSAL, text, GROUPED),
    "qwen3-moe": ("qwen3_moe", CAUSAL, text, {**GROUPED, **MOE}),
    "qwen3-next": (
        "qwen3_next",
        CAUSAL,
        text,
        {
            **GROUPED,
            **MOE,
            "shared_expert_intermediate_size": 24,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "mistral": ("mistral", CAUSAL, text, {**GROUPED, "sliding_window": 6}),
    "mixtral": ("mixtral", CAUSAL, text, {**GROUPED, **MOE}),
    "gemma": ("gemma", CAUSAL, text, GROUPED),
    "gemma2": ("gemma2", CAUSAL, text, {**GROUPED, **SLIDING, "query_pre_attn_scalar": 8}),
    "gemma2-eager": (
        "gemma2",
        CAUSAL,
        text,
        {**GROUPED, **SLIDING, "query_pre_attn_scalar": 8, "attention": "eager"},
    ),
    "gemma3": ("gemma3_text", CAUSAL, text, {**GROUPED, **SLIDING, "query_pre_attn_scalar": 8}),
    "phi": ("phi", CAUSAL, text, TINY),
    "phi3": ("phi3", CAUSAL, text, {**TINY, "num_key_value_heads": 2}),
    "olmo": ("olmo", CAUSAL, text, GROUPED),
    "olmo2": ("olmo2", CAUSAL, text, GROUPED),
    "olmoe": ("olmoe", CAUSAL, text, {**GROUPED, **MOE}),
    "cohere": ("cohere", CAUSAL, text, GROUPED),
    "granite": ("granite", CAUSAL, text, GROUPED),
    "glm": ("glm", CAUSAL, text, GROUPED),
    "glm4": ("glm4", CAUSAL, text, GROUPED),
    "starcoder2": ("starcoder2", CAUSAL, text, GROUPED),
    "stablelm": ("stablelm", CAUSAL, text, GROUPED),
    "smollm3": ("smollm3", CAUSAL, text, GROUPED),
    "ernie4.5": ("ernie4_5", CAUSAL, text, GROUPED),
    "exaone4": ("exaone4", CAUSAL, text, {**GROUPED, **SLIDING}),
    "nemotron": ("nemotron", CAUSAL, text, GROUPED),
    "deepseek-v3": (
        "deepseek_v3",
        CAUSAL,
        text,
        {
            **TINY,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 12,
            "q_lora_rank": 20,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 6,
            "v_head_dim": 8,
        },
    ),
    "gpt-oss": ("gpt_oss", CAUSAL, text, {**GROUPED, **MOE, **SLIDING}),
    "gpt2": ("gpt2", CAUSAL, text, GPT),
    "gpt2-eager": ("gpt2", CAUSAL, text, {**GPT, "attention": "eager"}),
    "gpt-neo": (
        "gpt_neo",
        CAUSAL,
        text,
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 6,
            "max_position_embeddings": 64,
        },
    ),
    "gpt-neox": ("gpt_neox", CAUSAL, text, {**TINY, "rotary_pct": 0.5}),
    "gptj": ("gptj", CAUSAL, text, {**GPT, "rotary_dim": 4}),
    "codegen": ("codegen", CAUSAL, text, {**GPT, "rotary_dim": 4}),
    "gpt-bigcode": ("gpt_bigcode", CAUSAL, text, GPT),
    "opt": (
        "opt",
        CAUSAL,
        text,
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
        },
    ),
    "falcon": ("falcon", CAUSAL, text, {**TINY, "multi_query": True, "new_decoder_architecture": False}),
    "falcon-alibi": ("falcon", CAUSAL, text, {**TINY, "alibi": True, "multi_query": False, "bias": True}),
    "falcon-40b": ("falcon", CAUSAL, text, {**TINY, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "bloom": (
        "bloom",
        CAUSAL,
        text,
        {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    ),
    "mpt": (
        "mpt",
        CAUSAL,
        text,
        {
            "vocab_size": VOCAB,
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "max_seq_len": 64,
            "expansion_ratio": 2,
        },
    ),
    "mamba": ("mamba", CAUSAL, text, {**TINY, "state_size": 6, "expand": 2, "conv_kernel": 4}),
    "mamba2": (
        "mamba2",
        CAUSAL,
        text,
        {**TINY, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "expand": 2, "chunk_size": 4},
    ),
    "xglm": (
        "xglm",
        CAUSAL,
        text,
        {"vocab_size": VOCAB, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    ),
    # encoders
    "bert": ("bert", MASKED, plain, TINY),
    "bert-eager": ("bert", MASKED, plain, {**TINY, "attention": "eager"}),
    "roberta": ("roberta", MASKED, plain, TINY),
    "xlm-roberta": ("xlm-roberta", MASKED, plain, TINY),
    "camembert": ("camembert", MASKED, plain, TINY),
    "deberta": (
        "deberta",
        MASKED,
        plain,
        {**TINY, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    ),
    "deberta-v2": (
        "deberta-v2",
        MASKED,
        plain,
        {
            **TINY,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_buckets": 8,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
        },
    ),
    "electra": ("electra", MASKED, plain, {**TINY, "embedding_size": 16}),
    "albert": ("albert", MASKED, plain, {**TINY, "embedding_size": 16}),
    "distilbert": (
        "distilbert",
        MASKED,
        plain,
        {
            "vocab_size": VOCAB,
            "dim": 32,
            "hidden_dim": 48,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "mobilebert": (
        "mobilebert",
        MASKED,
        plain,
        {**TINY, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    ),
    "squeezebert": ("squeezebert", MASKED, plain, {**TINY, "embedding_size": 32}),
    "mpnet": ("mpnet", MASKED, plain, TINY),
    "fnet": ("fnet", MASKED, plain, TINY),
    "modernbert": (
        "modernbert",
        MASKED,
        plain,
        {**TINY, "local_attention": 6, "global_attn_every_n_layers": 2},
    ),
    "convbert": (
        "convbert",
        MASKED,
        plain,
        {**TINY, "embedding_size": 16, "head_ratio": 2, "conv_kernel_size": 3},
    ),
    "roformer": ("roformer", MASKED, plain, {**TINY, "embedding_size": 32}),
    "xlnet": (
        "xlnet",
        BASE,
        plain,
        {"vocab_size": VOCAB, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    ),
    "layoutlm": ("layoutlm", MASKED, plain, TINY),
    "esm": ("esm", MASKED, plain, {**TINY, "position_embedding_type": "rotary", "mask_token_id": 3}),
    # sequence to sequence
    "t5": ("t5", PAIR, pair, T5),
    "t5-gated": ("t5", PAIR, pair, {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", PAIR, pair, T5),
    "umt5": ("umt5", PAIR, pair, T5),
    "longt5": ("longt5", PAIR, masked_pair, {**T5, "local_radius": 3}),
    "switch-transformers": (
        "switch_transformers",
        PAIR,
        masked_pair,
        {**T5, "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    ),
    "bart": ("bart", PAIR, pair, SEQ),
    "mbart": ("mbart", PAIR, pair, SEQ),
    "pegasus": ("pegasus", PAIR, pair, SEQ),
    "marian": ("marian", PAIR, pair, SEQ),
    "blenderbot": ("blenderbot", PAIR, pair, SEQ),
    "m2m-100": ("m2m_100", PAIR, pair, SEQ),
    "whisper": (
        "whisper",
        "AutoModelForSpeechSeq2Seq",
        mel,
        {**SEQ, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 24},
    ),
    # vision
    "vit": ("vit", IMAGES, pixels, VISION),
    "deit": ("deit", IMAGES, pixels, VISION),
    "beit": ("beit", IMAGES, pixels, {**VISION, "use_relative_position_bias": True, "out_indices": [0, 1]}),
    "data2vec-vision": ("data2vec-vision", IMAGES, pixels, {**VISION, "use_relative_position_bias": True}),
    "dinov2": ("dinov2", IMAGES, pixels, {**VISION, "mlp_ratio": 2}),
    "dinov2-swiglu": ("dinov2", IMAGES, pixels, {**VISION, "mlp_ratio": 2, "use_swiglu_ffn": True}),
    "dinov3-vit": ("dinov3_vit", BASE, pixels, {**VISION, "num_register_tokens": 2}),
    "ijepa": ("ijepa", IMAGES, pixels, VISION),
    "swin": (
        "swin",
        IMAGES,
        wide_pixels,
        {
            "image_size": 64,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    "swinv2": (
        "swinv2",
        IMAGES,
        wide_pixels,
        {
            "image_size": 64,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    "segformer": (
        "segformer",
        "AutoModelForSemanticSegmentation",
        wide_pixels,
        {
            "image_size": 64,
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 16,
        },
    ),
    "mobilevit": (
        "mobilevit",
        IMAGES,
        wide_pixels,
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
            "num_attention_heads": 2,
        },
    ),
    "convnext": ("convnext", IMAGES, wide_pixels, {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
    "convnextv2": (
        "convnextv2",
        IMAGES,
        wide_pixels,
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    ),
    "resnet": (
        "resnet",
        IMAGES,
        wide_pixels,
        {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1]},
    ),
    "poolformer": (
        "poolformer",
        IMAGES,
        wide_pixels,
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    ),
    "pvt-v2": (
        "pvt_v2",
        IMAGES,
        wide_pixels,
        {
            "image_size": 64,
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
        },
    ),
    "dpt": (
        "dpt",
        "AutoModelForDepthEstimation",
        wide_pixels,
        {
            **VISION,
            "image_size": 64,
            "patch_size": 16,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 16, 24, 32],
            "fusion_hidden_size": 16,
        },
    ),
    "yolos": (
        "yolos",
        "AutoModelForObjectDetection",
        pixels,
        {**VISION, "image_size": [16, 16], "num_detection_tokens": 5},
    ),
    "vit-mae": (
        "vit_mae",
        "AutoModelForPreTraining",
        lambda: {
            "pixel_values": images(),
            "noise": torch.rand(2, 16, generator=torch.Generator().manual_seed(0)),
        },
        {
            **VISION,
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 24,
        },
    ),
    # vision and language
    "clip": (
        "clip",
        BASE,
        both,
        {"text_config": {**TINY}, "vision_config": {**VISION, "patch_size": 4}, "projection_dim": 24},
    ),
    "siglip": (
        "siglip",
        BASE,
        both,
        {"text_config": {**TINY, "max_position_embeddings": 10}, "vision_config": VISION},
    ),
    "siglip-vision": ("siglip_vision_model", BASE, pixels, VISION),
    "blip": (
        "blip",
        BASE,
        both,
        {
            "text_config": {**TINY, "encoder_hidden_size": 32, "is_decoder": False},
            "vision_config": VISION,
            "projection_dim": 24,
        },
    ),
    "vilt": ("vilt", BASE, both, {**TINY, **VISION, "image_size": 16}),
    # speech
    "wav2vec2": ("wav2vec2", "AutoModelForCTC", wave, SPEECH),
    "wav2vec2-layernorm": (
        "wav2vec2",
        "AutoModelForCTC",
        wave,
        {**SPEECH, "feat_extract_norm": "layer", "do_stable_layer_norm": True},
    ),
    "hubert": ("hubert", "AutoModelForCTC", wave, SPEECH),
    "wavlm": ("wavlm", "AutoModelForCTC", wave, {**SPEECH, "num_buckets": 16, "max_bucket_distance": 32}),
    "sew": (
        "sew",
        "AutoModelForCTC",
        wave,
        {**SPEECH, "squeeze_factor": 2},
    ),
    "audio-spectrogram-transformer": (
        "audio-spectrogram-transformer",
        "AutoModelForAudioClassification",
        lambda: {"input_values": torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(0))},
        {**VISION, "max_length": 40, "num_mel_bins": 16},
    ),
    # others
    "decision-transformer": (
        "decision_transformer",
        BASE,
        lambda: {
            "states": torch.randn(2, 5, 7),
            "actions": torch.randn(2, 5, 3),
            "rewards": torch.randn(2, 5, 1),
            "returns_to_go": torch.randn(2, 5, 1),
            "timesteps": torch.arange(5).repeat(2, 1),
            "attention_mask": torch.ones(2, 5),
        },
        {"state_dim": 7, "act_dim": 3, "hidden_size": 32, "n_layer": 2, "n_head": 4, "max_ep_len": 20},
    ),
    "patchtst": (
        "patchtst",
        "PatchTSTForPrediction",
        lambda: {"past_values": torch.randn(2, 32, 3)},
        {
            "num_input_channels": 3,
            "context_length": 32,
            "patch_length": 4,
            "patch_stride": 4,
            "d_model": 32,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "prediction_length": 8,
        },
    ),
}

BUILDERS: dict[str, Callable[[], Built]] = {name: partial(_build, *spec) for name, spec in SPECS.items()}
