"""Architectures of torchvision: classification, segmentation, detection (backbone and head), video, optical flow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model_coverage.entry import Args, Entry, image
from zoo.case import generator, seeded

CLASSIFICATION = {
    "alexnet": 96, "vgg11_bn": 64, "googlenet": 64,
    "regnet_x_400mf": 64, "regnet_y_400mf": 64,
    "squeezenet1_1": 96, "shufflenet_v2_x1_0": 64, "mobilenet_v2": 64, "mobilenet_v3_large": 64,
    "convnext_tiny": 64,
    "vit_b_32": 64, "swin_v2_t": 64,
}  # fmt: skip
SEGMENTATION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
VIDEO: dict[str, tuple[int, int]] = {
    "r3d_18": (8, 32), "r2plus1d_18": (8, 32), "s3d": (13, 209), "mvit_v1_b": (16, 224),
    "swin3d_t": (8, 32),
}  # fmt: skip
DETECTION = {
    "retinanet_resnet50_fpn": 96, "fcos_resnet50_fpn": 96, "ssdlite320_mobilenet_v3_large": 96,
    "fasterrcnn_mobilenet_v3_large_fpn": 96,
}  # fmt: skip


class Dense(nn.Module):
    """The backbone and head of a detector: what runs on the device before boxes are chosen."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.head = detector.rpn.head if hasattr(detector, "rpn") else detector.head

    def forward(self, x: Tensor) -> Any:
        return self.head(list(self.backbone(x).values()))


def _build(name: str) -> nn.Module:
    import torchvision.models as models

    options: dict[str, Any] = {"weights": None}
    if name in SEGMENTATION:
        return models.segmentation.__dict__[name](weights_backbone=None, num_classes=21, aux_loss=False, **options)
    if name in DETECTION:
        return Dense(models.detection.__dict__[name](weights_backbone=None, num_classes=21, **options))
    if name in VIDEO:
        return models.video.__dict__[name](num_classes=40, **options)
    if name == "raft_small":
        return models.optical_flow.raft_small(**options)
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False, "aux_logits": False}
    if name == "vit_b_32":
        options["image_size"] = CLASSIFICATION[name]
    return models.__dict__[name](num_classes=100, **options)


def _pair(batch: int) -> Args:
    source = generator()
    return tuple(torch.rand(batch, 3, 128, 128, generator=source) for _ in range(2))


def _entry(name: str, domain: str, inputs: Any) -> Entry:
    return Entry(name, "torchvision", domain, seeded(lambda: _build(name)), inputs)


ENTRIES = [
    *(_entry(name, "vision", image(size, size)) for name, size in CLASSIFICATION.items()),
    *(_entry(name, "segmentation", image(64, 64)) for name in SEGMENTATION),
    *(_entry(name, "detection", image(size, size)) for name, size in DETECTION.items()),
    *(_entry(name, "video", image(frames, size, size)) for name, (frames, size) in VIDEO.items()),
    _entry("raft_small", "video", _pair),
]
