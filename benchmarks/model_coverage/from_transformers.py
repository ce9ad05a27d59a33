"""Real classes of transformers in small configurations: random weights, nothing is downloaded."""

# mypy: disable-error-code="no-any-return, no-untyped-call, unused-ignore"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from model_coverage.entry import Args, Entry, Take
from torch import nn
from zoo.case import generator, seeded
from zoo.hf import transformers

WORDS, LENGTH, WIDTH, HEADS, DEPTH = 128, 12, 64, 4, 2

COMMON = {
    "vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS, "max_position_embeddings": 64, "pad_token_id": 0, "num_labels": 5,
}  # fmt: skip
GROUPED = COMMON | {"num_key_value_heads": 2}

ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", COMMON),
    "roberta": ("RobertaForSequenceClassification", COMMON | {"max_position_embeddings": 66}),
    "xlm_roberta": ("XLMRobertaForTokenClassification", COMMON | {"max_position_embeddings": 66}),
    "electra": ("ElectraForSequenceClassification", COMMON | {"embedding_size": 32}),
    "albert": ("AlbertForSequenceClassification", COMMON | {"embedding_size": 32}),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {"vocab_size": WORDS, "dim": WIDTH, "hidden_dim": 2 * WIDTH, "n_layers": DEPTH, "n_heads": HEADS, "pad_token_id": 0},
    ),
    "deberta": ("DebertaForSequenceClassification", COMMON | {"relative_attention": True, "pos_att_type": "c2p|p2c"}),
    "deberta_v2": (
        "DebertaV2ForSequenceClassification",
        COMMON | {"relative_attention": True, "pos_att_type": "c2p|p2c", "share_att_key": True, "position_buckets": 8},
    ),
    "mobilebert": (
        "MobileBertForSequenceClassification",
        COMMON | {"embedding_size": 32, "intra_bottleneck_size": 32, "num_feedforward_networks": 2},
    ),
    "mpnet": ("MPNetForSequenceClassification", COMMON | {"max_position_embeddings": 66}),
    "rembert": ("RemBertForSequenceClassification", COMMON | {"input_embedding_size": 32, "output_embedding_size": 48}),
    "squeezebert": ("SqueezeBertForSequenceClassification", COMMON | {"embedding_size": WIDTH}),
    "convbert": ("ConvBertForSequenceClassification", COMMON | {"embedding_size": 32}),
    "fnet": ("FNetForSequenceClassification", COMMON),
    "nystromformer": ("NystromformerForSequenceClassification", COMMON | {"num_landmarks": 4, "segment_means_seq_len": 12}),
    "roformer": ("RoFormerForSequenceClassification", COMMON | {"embedding_size": WIDTH}),
    "modernbert": ("ModernBertForSequenceClassification", COMMON | {"global_attn_every_n_layers": 2, "local_attention": 8}),
    "esm": ("EsmForMaskedLM", COMMON | {"mask_token_id": 4, "position_embedding_type": "rotary"}),
    "ernie": ("ErnieForSequenceClassification", COMMON),
    "layoutlm": ("LayoutLMForSequenceClassification", COMMON),
    "funnel": (
        "FunnelForSequenceClassification",
        {"vocab_size": WORDS, "d_model": WIDTH, "d_inner": 2 * WIDTH, "n_head": HEADS, "d_head": 16, "block_sizes": [1, 1]},
    ),
    "canine": ("CanineForSequenceClassification", COMMON | {"downsampling_rate": 4, "local_transformer_stride": 8}),
    "xlnet": (
        "XLNetForSequenceClassification",
        {"vocab_size": WORDS, "d_model": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "d_inner": 2 * WIDTH},
    ),
    "t5_encoder": (
        "T5EncoderModel",
        {"vocab_size": WORDS, "d_model": WIDTH, "d_kv": 16, "d_ff": 2 * WIDTH, "num_layers": DEPTH, "num_heads": HEADS},
    ),
}  # fmt: skip

UNMASKED = ("t5_encoder", "nystromformer")
"""Models fed without an attention mask (Nyströmformer's does not fit its own landmarks)."""

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": WORDS, "n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "n_positions": 64}),
    "gpt_bigcode": (
        "GPTBigCodeForCausalLM", {"vocab_size": WORDS, "n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "n_positions": 64},
    ),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {"vocab_size": WORDS, "hidden_size": WIDTH, "num_layers": DEPTH, "num_heads": HEADS, "max_position_embeddings": 64,
         "attention_types": [[["global", "local"], 1]], "window_size": 8},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", COMMON),
    "gptj": (
        "GPTJForCausalLM",
        {"vocab_size": WORDS, "n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "n_positions": 64, "rotary_dim": 8},
    ),
    "codegen": (
        "CodeGenForCausalLM",
        {"vocab_size": WORDS, "n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "n_positions": 64, "n_ctx": 64, "rotary_dim": 8},
    ),
    "opt": ("OPTForCausalLM", COMMON | {"ffn_dim": 2 * WIDTH, "word_embed_proj_dim": WIDTH}),
    "bloom": ("BloomForCausalLM", {"vocab_size": WORDS, "hidden_size": WIDTH, "n_layer": DEPTH, "n_head": HEADS}),
    "biogpt": ("BioGptForCausalLM", COMMON),
    "xglm": ("XGLMForCausalLM", {"vocab_size": WORDS, "d_model": WIDTH, "ffn_dim": 2 * WIDTH, "num_layers": DEPTH, "attention_heads": HEADS}),
    "llama": ("LlamaForCausalLM", GROUPED),
    "mistral": ("MistralForCausalLM", GROUPED | {"sliding_window": 8}),
    "ministral3": ("Ministral3ForCausalLM", GROUPED | {"head_dim": 16}),
    "qwen2": ("Qwen2ForCausalLM", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", GROUPED | {"head_dim": 16}),
    "gemma": ("GemmaForCausalLM", GROUPED | {"head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", GROUPED | {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3ForCausalLM", GROUPED | {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "phi": ("PhiForCausalLM", COMMON),
    "phi3": ("Phi3ForCausalLM", GROUPED | {"eos_token_id": 1, "bos_token_id": 1}),
    "falcon": ("FalconForCausalLM", COMMON | {"new_decoder_architecture": False, "multi_query": True}),
    "stablelm": ("StableLmForCausalLM", GROUPED),
    "starcoder2": ("Starcoder2ForCausalLM", GROUPED),
    "olmo2": ("Olmo2ForCausalLM", GROUPED),
    "cohere": ("CohereForCausalLM", GROUPED),
    "granite": ("GraniteForCausalLM", GROUPED),
    "smollm3": ("SmolLM3ForCausalLM", GROUPED),
    "glm4": ("Glm4ForCausalLM", GROUPED | {"head_dim": 16}),
    "nemotron": ("NemotronForCausalLM", GROUPED | {"head_dim": 16}),
    "exaone4": ("Exaone4ForCausalLM", GROUPED | {"sliding_window": 8, "sliding_window_pattern": 2}),
    "persimmon": ("PersimmonForCausalLM", COMMON),
    "helium": ("HeliumForCausalLM", GROUPED | {"head_dim": 16}),
    "lfm2": ("Lfm2ForCausalLM", GROUPED | {"layer_types": ["conv", "full_attention"], "block_ff_dim": 128, "block_multiple_of": 32}),
    "bitnet": ("BitNetForCausalLM", GROUPED),
    "mixtral": ("MixtralForCausalLM", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64},
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        COMMON | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_group": 2, "topk_group": 1,
                  "first_k_dense_replace": 1, "kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
                  "v_head_dim": 16, "num_key_value_heads": HEADS},
    ),
    "gpt_oss": ("GptOssForCausalLM", GROUPED | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "mamba": ("MambaForCausalLM", {"vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "state_size": 8}),
    "mamba2": (
        "Mamba2ForCausalLM",
        {"vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "state_size": 16, "head_dim": 32, "num_heads": 4,
         "n_groups": 1, "chunk_size": 4},
    ),
    "recurrent_gemma": (
        "RecurrentGemmaForCausalLM", GROUPED | {"num_hidden_layers": 3, "lru_width": WIDTH, "attention_window_size": 8},
    ),
    "rwkv": ("RwkvForCausalLM", {"vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "context_length": 32}),
    "imagegpt": ("ImageGPTForCausalImageModeling", {"vocab_size": WORDS, "n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "n_positions": 64}),
}  # fmt: skip

BARTLIKE = {
    "vocab_size": WORDS, "d_model": WIDTH, "encoder_layers": DEPTH, "decoder_layers": DEPTH, "pad_token_id": 1,
    "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "encoder_ffn_dim": 2 * WIDTH,
    "decoder_ffn_dim": 2 * WIDTH, "max_position_embeddings": 64,
}  # fmt: skip
T5LIKE = {"vocab_size": WORDS, "d_model": WIDTH, "d_kv": 16, "d_ff": 2 * WIDTH, "num_layers": DEPTH, "num_heads": HEADS}
TRANSLATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5ForConditionalGeneration", T5LIKE),
    "flan_t5": ("T5ForConditionalGeneration", T5LIKE | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "umt5": ("UMT5ForConditionalGeneration", T5LIKE),
    "bart": ("BartForConditionalGeneration", BARTLIKE),
    "mbart": ("MBartForConditionalGeneration", BARTLIKE),
    "pegasus": ("PegasusForConditionalGeneration", BARTLIKE),
    "marian": ("MarianMTModel", BARTLIKE | {"decoder_start_token_id": 2}),
    "m2m_100": ("M2M100ForConditionalGeneration", BARTLIKE),
    "blenderbot_small": ("BlenderbotSmallForConditionalGeneration", BARTLIKE),
    "prophetnet": (
        "ProphetNetForConditionalGeneration",
        {"vocab_size": WORDS, "hidden_size": WIDTH, "num_encoder_layers": DEPTH, "num_decoder_layers": DEPTH,
         "num_encoder_attention_heads": HEADS, "num_decoder_attention_heads": HEADS, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
         "max_position_embeddings": 64},
    ),
}  # fmt: skip

PATCHES = {
    "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
    "image_size": 32, "patch_size": 8, "num_labels": 5,
}  # fmt: skip
STAGES = {"num_labels": 5, "depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64]}
VISION: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("ViTForImageClassification", PATCHES, 32),
    "deit": ("DeiTForImageClassification", PATCHES, 32),
    "beit": ("BeitForImageClassification", PATCHES, 32),
    "data2vec_vision": ("Data2VecVisionForImageClassification", PATCHES, 32),
    "dinov2": ("Dinov2ForImageClassification", PATCHES, 32),
    "dinov3_vit": ("DINOv3ViTModel", PATCHES, 32),
    "ijepa": ("IJepaForImageClassification", PATCHES, 32),
    "swin": ("SwinForImageClassification", {"num_labels": 5, "image_size": 32, "patch_size": 2, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}, 32),
    "swinv2": ("Swinv2ForImageClassification", {"num_labels": 5, "image_size": 32, "patch_size": 2, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}, 32),
    "convnext": ("ConvNextForImageClassification", STAGES, 32),
    "convnextv2": ("ConvNextV2ForImageClassification", STAGES, 32),
    "resnet": ("ResNetForImageClassification", STAGES | {"embedding_size": 16, "layer_type": "bottleneck"}, 32),
    "regnet": ("RegNetForImageClassification", STAGES | {"embedding_size": 16, "groups_width": 8}, 32),
    "mobilenet_v1": ("MobileNetV1ForImageClassification", {"num_labels": 5, "depth_multiplier": 0.5}, 32),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {"num_labels": 5, "depth_multiplier": 0.5}, 32),
    "mobilevit": ("MobileViTForImageClassification", {"num_labels": 5, "image_size": 64, "hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 16, 24, 32, 40, 40, 80]}, 64),
    "mobilevitv2": ("MobileViTV2ForImageClassification", {"num_labels": 5, "width_multiplier": 0.5}, 64),
    "efficientnet": ("EfficientNetForImageClassification", {"num_labels": 5, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640}, 64),
    "poolformer": ("PoolFormerForImageClassification", STAGES, 64),
    "pvt_v2": ("PvtV2ForImageClassification", {"num_labels": 5, "depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 3, 4]}, 64),
    "levit": ("LevitForImageClassification", {"num_labels": 5, "image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1], "key_dim": [8, 8, 8]}, 64),
    "cvt": ("CvtForImageClassification", {"num_labels": 5, "embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}, 64),
    "focalnet": ("FocalNetForImageClassification", {"num_labels": 5, "image_size": 64, "embed_dim": 16, "depths": [1, 1, 1, 1]}, 64),
    "hiera": ("HieraForImageClassification", {"num_labels": 5, "image_size": [32, 32], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]}, 32),
    "swiftformer": ("SwiftFormerForImageClassification", {"num_labels": 5, "depths": [1, 1, 1, 1], "embed_dims": [16, 32, 48, 64]}, 64),
    "perceiver": ("PerceiverForImageClassificationLearned", {"num_labels": 5, "num_latents": 8, "d_latents": 32, "d_model": 32, "num_blocks": 1, "num_self_attends_per_block": 1, "num_self_attention_heads": 2, "num_cross_attention_heads": 1, "image_size": 16}, 16),
}  # fmt: skip

def _model(name: str, options: dict[str, Any]) -> nn.Module:
    """The class called ``name`` with its own configuration class."""
    kind = getattr(transformers(), name)
    config = kind.config_class(**options)
    config.use_cache = False
    return kind(config)


def _taking(what: str, make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Take(make(), what)


def _tokens(length: int = LENGTH) -> Callable[[int], Args]:
    def make(batch: int) -> Args:
        ids = torch.randint(3, WORDS, (batch, length), generator=generator())
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return make


def _ids(length: int = LENGTH) -> Callable[[int], Args]:
    return lambda batch: {"input_ids": torch.randint(3, WORDS, (batch, length), generator=generator())}


def _pairs(batch: int) -> Args:
    source = generator()
    return {
        "input_ids": torch.randint(3, WORDS, (batch, LENGTH), generator=source),
        "decoder_input_ids": torch.randint(3, WORDS, (batch, 7), generator=source),
    }


def _pixels(*size: int, frames: int = 0) -> Callable[[int], Args]:
    shape = (frames, 3, *size) if frames else (3, *size)
    return lambda batch: {"pixel_values": torch.randn(batch, *shape, generator=generator())}


def _wave(samples: int) -> Callable[[int], Args]:
    return lambda batch: {"input_values": torch.randn(batch, samples, generator=generator())}


def _spectrum(batch: int) -> Args:
    source = generator()
    return {
        "input_features": torch.randn(batch, 16, 40, generator=source),
        "decoder_input_ids": torch.randint(3, WORDS, (batch, 7), generator=source),
    }


def _clip(size: int) -> Callable[[int], Args]:
    def make(batch: int) -> Args:
        source = generator()
        ids = torch.randint(3, WORDS - 1, (batch, LENGTH), generator=source)
        ids[:, -1] = WORDS - 1  # the end of the text
        return {"input_ids": ids, "pixel_values": torch.randn(batch, 3, size, size, generator=source)}

    return make


def _entry(name: str, domain: str, make: Callable[[], nn.Module], inputs: Callable[[int], Args]) -> Entry:
    return Entry(name, "transformers", domain, seeded(make), inputs)


def _listed(table: dict[str, tuple[str, dict[str, Any]]], domain: str, inputs: Callable[[int], Args]) -> list[Entry]:
    return [_entry(n, domain, lambda m=m, o=o: _model(m, o), inputs) for n, (m, o) in table.items()]  # type: ignore[misc]


# ---- what needs more than a table ------------------------------------------------------------------------------------

SPEECH = {
    "vocab_size": 32, "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
    "intermediate_size": 2 * WIDTH, "conv_dim": (32, 32, 32), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3),
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0, "num_feat_extract_layers": 3,
}  # fmt: skip
TEXT_TOWER = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": DEPTH, "num_attention_heads": 2,
    "max_position_embeddings": 16, "eos_token_id": WORDS - 1, "bos_token_id": 0, "projection_dim": 32,
}  # fmt: skip
IMAGE_TOWER = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": DEPTH, "num_attention_heads": 3, "image_size": 32,
    "patch_size": 8, "projection_dim": 32,
}  # fmt: skip


def _backbone() -> Any:
    return transformers().ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip


def _detr(kind: str, **options: Any) -> nn.Module:
    layers = {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 8,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_labels": 7,
    }  # fmt: skip
    module = transformers()
    config = getattr(module, f"{kind}Config")(
        backbone_config=_backbone(), use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, **layers, **options
    )
    return getattr(module, f"{kind}ForObjectDetection")(config)


def _rt_detr() -> nn.Module:
    module = transformers()
    backbone = module.RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = module.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[24, 32, 48], feat_strides=[8, 16, 32], encoder_layers=1,
        encoder_ffn_dim=64, encoder_attention_heads=4, d_model=32, num_queries=10, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=64,
        decoder_layers=2, decoder_attention_heads=4, decoder_n_points=2, num_denoising=0, num_labels=7, anchor_image_size=[64, 64],
    )  # fmt: skip
    return module.RTDetrForObjectDetection(config)


def _maskformer() -> nn.Module:
    module = transformers()
    config = module.MaskFormerConfig(
        backbone_config=_backbone(),
        decoder_config=module.DetrConfig(
            d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=8,
            encoder_attention_heads=4, decoder_attention_heads=4, backbone_config=_backbone(), use_timm_backbone=False, backbone=None,
        ),
        fpn_feature_size=32, mask_feature_size=32, num_labels=7,
    )  # fmt: skip
    return module.MaskFormerForInstanceSegmentation(config)


def _mask2former() -> nn.Module:
    module = transformers()
    config = module.Mask2FormerConfig(
        backbone_config=module.SwinConfig(
            image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=64, dim_feedforward=64, num_queries=8, num_labels=7,
        num_attention_heads=4, encoder_layers=1, decoder_layers=3,
    )  # fmt: skip
    return module.Mask2FormerForUniversalSegmentation(config)


def _upernet() -> nn.Module:
    module = transformers()
    backbone = module.ConvNextConfig(
        hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = module.UperNetConfig(
        backbone_config=backbone, hidden_size=32, pool_scales=[1, 2], auxiliary_in_channels=32, auxiliary_channels=16, num_labels=7,
        use_auxiliary_head=False,
    )  # fmt: skip
    return module.UperNetForSemanticSegmentation(config)


def _depth_anything() -> nn.Module:
    module = transformers()
    backbone = module.Dinov2Config(
        **(PATCHES | {"num_hidden_layers": 4}), out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False
    )
    config = module.DepthAnythingConfig(
        backbone_config=backbone, patch_size=8, reassemble_hidden_size=WIDTH, neck_hidden_sizes=[16, 24, 32, 48],
        fusion_hidden_size=16, head_hidden_size=16,
    )  # fmt: skip
    return module.DepthAnythingForDepthEstimation(config)


def _dpt() -> nn.Module:
    options = PATCHES | {
        "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16, 24, 32, 48], "fusion_hidden_size": 16,
        "image_size": 64, "patch_size": 16,
    }  # fmt: skip
    return transformers().DPTForDepthEstimation(transformers().DPTConfig(**options))


SEGFORMER = {
    "num_labels": 7, "depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 3, 4],
    "decoder_hidden_size": 32,
}  # fmt: skip
VIDEO = PATCHES | {"num_frames": 4, "tubelet_size": 2}
TWO_TOWERS = {"text_config": TEXT_TOWER, "vision_config": IMAGE_TOWER, "projection_dim": 32}
SIGLIP = {
    "text_config": {k: v for k, v in TEXT_TOWER.items() if k != "projection_dim"} | {"hidden_size": 48, "projection_size": 48},
    "vision_config": {k: v for k, v in IMAGE_TOWER.items() if k != "projection_dim"},
}  # fmt: skip
WHISPER = BARTLIKE | {
    "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 16, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 2,
}  # fmt: skip
HEAR = {**BARTLIKE, "input_feat_per_channel": 16, "input_channels": 1, "conv_channels": 32, "max_source_positions": 60, "max_target_positions": 32}

OTHERS = [
    _entry("segformer", "segmentation", lambda: _model("SegformerForSemanticSegmentation", SEGFORMER), _pixels(64, 64)),
    _entry("upernet", "segmentation", _upernet, _pixels(64, 64)),
    _entry("maskformer", "segmentation", _maskformer, _pixels(64, 64)),
    _entry("mask2former", "segmentation", _mask2former, _pixels(64, 64)),
    _entry("mobilevit_deeplab", "segmentation", lambda: _model("MobileViTForSemanticSegmentation", VISION["mobilevit"][1]), _pixels(64, 64)),
    _entry("dpt", "depth", _dpt, _pixels(64, 64)),
    _entry("depth_anything", "depth", _depth_anything, _pixels(32, 32)),
    _entry("glpn", "depth", lambda: _model("GLPNForDepthEstimation", SEGFORMER | {"decoder_hidden_size": 16}), _pixels(64, 64)),
    _entry("detr", "detection", lambda: _detr("Detr"), _pixels(64, 64)),
    _entry("conditional_detr", "detection", lambda: _detr("ConditionalDetr"), _pixels(64, 64)),
    _entry("deformable_detr", "detection", lambda: _detr("DeformableDetr", num_feature_levels=3), _pixels(64, 64)),
    _entry("rt_detr", "detection", _rt_detr, _pixels(64, 64)),
    _entry("yolos", "detection", lambda: _model("YolosForObjectDetection", PATCHES | {"image_size": [32, 32], "num_detection_tokens": 6}), _pixels(32, 32)),
    _entry("swin2sr", "super-resolution", lambda: _model("Swin2SRForImageSuperResolution", {"image_size": 16, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "upscale": 2}), _pixels(16, 16)),
    _entry("vit_mae", "vision", lambda: _model("ViTMAEModel", PATCHES | {"mask_ratio": 0.0}), _pixels(32, 32)),
    _entry("videomae", "video", lambda: _model("VideoMAEForVideoClassification", VIDEO), _pixels(32, 32, frames=4)),
    _entry("timesformer", "video", lambda: _model("TimesformerForVideoClassification", VIDEO), _pixels(32, 32, frames=4)),
    _entry("vivit", "video", lambda: _model("VivitForVideoClassification", VIDEO | {"tubelet_size": [2, 8, 8]}), _pixels(32, 32, frames=4)),
    _entry("whisper", "speech", lambda: _model("WhisperForConditionalGeneration", WHISPER), _spectrum),
    _entry("speech_to_text", "speech", lambda: _model("Speech2TextForConditionalGeneration", HEAR), lambda b: _spectrum(b) | {"input_features": torch.randn(b, 40, 16, generator=generator())}),
    _entry("wav2vec2", "speech", lambda: _model("Wav2Vec2ForCTC", SPEECH), _wave(800)),
    _entry("wav2vec2_large", "speech", lambda: _model("Wav2Vec2ForCTC", SPEECH | {"feat_extract_norm": "layer", "do_stable_layer_norm": True}), _wave(800)),
    _entry("wav2vec2_conformer", "speech", lambda: _model("Wav2Vec2ConformerForCTC", SPEECH | {"position_embeddings_type": "relative"}), _wave(800)),
    _entry("hubert", "speech", lambda: _model("HubertForCTC", SPEECH), _wave(800)),
    _entry("wavlm", "speech", lambda: _model("WavLMForCTC", SPEECH), _wave(800)),
    _entry("unispeech", "speech", lambda: _model("UniSpeechForCTC", SPEECH), _wave(800)),
    _entry("sew", "speech", lambda: _model("SEWForCTC", SPEECH | {"squeeze_factor": 2}), _wave(800)),
    _entry("data2vec_audio", "speech", lambda: _model("Data2VecAudioForCTC", SPEECH | {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}), _wave(800)),
    _entry("audio_spectrogram", "speech", lambda: _model("ASTForAudioClassification", PATCHES | {"max_length": 32, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8}), lambda b: {"input_values": torch.randn(b, 32, 16, generator=generator())}),
    _entry("hifigan", "speech", lambda: _model("SpeechT5HifiGan", {"model_in_dim": 16, "upsample_initial_channel": 32, "upsample_rates": [4, 4], "upsample_kernel_sizes": [8, 8]}), lambda b: {"spectrogram": torch.randn(b, 10, 16, generator=generator())}),
    _entry("encodec", "speech", _taking("audio_values", lambda: _model("EncodecModel", {"num_filters": 8, "hidden_size": 16, "codebook_dim": 16, "codebook_size": 16, "num_residual_layers": 1, "num_lstm_layers": 1, "upsampling_ratios": [4, 2], "target_bandwidths": [1.5], "sampling_rate": 800})), lambda b: (torch.randn(b, 1, 320, generator=generator()),)),
    _entry("clip", "multimodal", lambda: _model("CLIPModel", TWO_TOWERS), _clip(32)),
    _entry("siglip", "multimodal", lambda: _model("SiglipModel", SIGLIP), _clip(32)),
    _entry("clipseg", "multimodal", lambda: _model("CLIPSegModel", TWO_TOWERS), _clip(32)),
    _entry("clip_vision", "multimodal", lambda: _model("CLIPVisionModelWithProjection", IMAGE_TOWER), _pixels(32, 32)),
    _entry("blip", "multimodal", lambda: _model("BlipForImageTextRetrieval", TWO_TOWERS | {"image_text_hidden_size": 32}), _clip(32)),
    _entry("trocr", "multimodal", lambda: _model("TrOCRForCausalLM", {"vocab_size": WORDS, "d_model": WIDTH, "decoder_layers": DEPTH, "decoder_attention_heads": HEADS, "decoder_ffn_dim": 128, "max_position_embeddings": 64}), _tokens()),
    _entry("patchtst", "time series", lambda: _model("PatchTSTForPrediction", {"num_input_channels": 2, "context_length": 32, "patch_length": 4, "patch_stride": 4, "d_model": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "prediction_length": 6}), lambda b: {"past_values": torch.randn(b, 32, 2, generator=generator())}),
    _entry("patchtsmixer", "time series", lambda: _model("PatchTSMixerForPrediction", {"num_input_channels": 2, "context_length": 32, "patch_length": 4, "patch_stride": 4, "d_model": 16, "num_layers": 2, "prediction_length": 6}), lambda b: {"past_values": torch.randn(b, 32, 2, generator=generator())}),
    _entry("decision_transformer", "time series", lambda: _model("DecisionTransformerModel", {"state_dim": 5, "act_dim": 3, "hidden_size": WIDTH, "n_layer": 2, "n_head": 4, "max_ep_len": 32, "n_positions": 64}), lambda b: {"states": torch.randn(b, 6, 5, generator=generator()), "actions": torch.randn(b, 6, 3, generator=generator()), "rewards": torch.randn(b, 6, 1), "returns_to_go": torch.randn(b, 6, 1, generator=generator()), "timesteps": torch.arange(6).repeat(b, 1), "attention_mask": torch.ones(b, 6, dtype=torch.long)}),
]  # fmt: skip

ENTRIES = [
    *_listed({k: v for k, v in ENCODERS.items() if k not in UNMASKED}, "language", _tokens()),
    *_listed({k: ENCODERS[k] for k in UNMASKED}, "language", _ids()),
    *_listed(DECODERS, "language", _ids()),
    *_listed(TRANSLATORS, "language", _pairs),
    *(_entry(n, "vision", lambda m=m, o=o: _model(m, o), _pixels(s, s)) for n, (m, o, s) in VISION.items()),  # type: ignore[misc]
    *OTHERS,
]
