"""Architectures of timm at their own widths (the smaller variants), random weights, images small enough to be quick."""

from __future__ import annotations

from typing import Any

from torch import nn

from model_coverage.entry import Entry, image
from zoo.case import seeded

CONVOLUTIONAL = {
    "resnet50": 64, "resnetv2_50": 64, "seresnet18": 64, "ecaresnet26t": 64,
    "resnest14d": 64, "skresnet18": 64, "res2net50_26w_4s": 64,
    "regnety_002": 64,
    "efficientnet_b0": 64, "mixnet_s": 64,
    "mobilenetv3_small_100": 64, "mobilenetv4_conv_small": 64, "mobilenetv4_hybrid_medium": 64,
    "mobileone_s0": 64, "lcnet_050": 64,
    "ghostnetv2_100": 64, "repvgg_a0": 64,
    "hrnet_w18_small": 64, "dla34": 64, "ese_vovnet19b_dw": 64, "cspdarknet53": 64,
    "densenet121": 64, "dpn48b": 64, "xception41": 96, "inception_v4": 96,
    "nfnet_f0": 64, "nf_resnet50": 64,
    "convnextv2_atto": 64, "inception_next_atto": 64, "mambaout_femto": 64, "hgnet_tiny": 64,
    "fasternet_t0": 64, "starnet_s1": 64, "repvit_m0_9": 64,
    "poolformer_s12": 64, "edgenext_xx_small": 64, "rdnet_tiny": 64,
}  # fmt: skip
ATTENTION: dict[str, tuple[int, dict[str, Any]]] = {
    "vit_tiny_patch16_224": (64, {"img_size": 64}),
    "vit_relpos_small_patch16_224": (64, {"img_size": 64}),
    "deit_tiny_distilled_patch16_224": (64, {"img_size": 64}),
    "beit_base_patch16_224": (64, {"img_size": 64, "depth": 4}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56}),
    "swin_tiny_patch4_window7_224": (112, {"img_size": 112}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "resmlp_12_224": (64, {"img_size": 64}),
    "gmlp_ti16_224": (64, {"img_size": 64}),
    "maxvit_rmlp_pico_rw_256": (64, {"img_size": 64}),
    "coatnet_pico_rw_224": (64, {"img_size": 64}),
    "efficientformerv2_s0": (224, {}),
    "efficientvit_b0": (64, {}),
    "xcit_nano_12_p16_224": (64, {"img_size": 64}),
    "cait_xxs24_224": (64, {"img_size": 64, "depth": 6}),
    "levit_128s": (224, {}),
    "tnt_s_patch16_224": (64, {"img_size": 64, "depth": 4}),
    "pit_ti_224": (224, {}),
    "twins_svt_small": (64, {"img_size": 64}),
    "volo_d1_224": (64, {"img_size": 64}),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "visformer_tiny": (224, {}),
    "crossvit_tiny_240": (240, {}),
    "convit_tiny": (64, {"img_size": 64}),
    "pvt_v2_b0": (64, {}),
    "focalnet_tiny_srf": (64, {}),
    "gcvit_xxtiny": (224, {}),
    "davit_tiny": (64, {}),
    "mvitv2_tiny": (64, {"img_size": 64}),
    "hiera_tiny_224": (224, {}),
    "fastvit_t8": (64, {}),
    "tiny_vit_5m_224": (224, {}),
    "caformer_s18": (64, {}),
    "sequencer2d_s": (224, {"layers": [1, 1, 2, 1]}),
    "swiftformer_xs": (224, {}),
    "shvit_s1": (64, {}),
    "nextvit_small": (64, {}),
}


def _build(name: str, **options: Any) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=100, **options)
    return model


def _entry(name: str, size: int, options: dict[str, Any]) -> Entry:
    return Entry(name, "timm", "vision", seeded(lambda: _build(name, **options)), image(size, size))


ENTRIES = [
    *(_entry(name, size, {}) for name, size in CONVOLUTIONAL.items()),
    *(_entry(name, size, options) for name, (size, options) in ATTENTION.items()),
]
