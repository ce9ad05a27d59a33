"""Model builders for tests: ``MODELS`` are architectures people use, ``TRAPS`` tiny nets with one pitfall each."""

from __future__ import annotations

from zoo import (
    convnext,
    densenet,
    digits,
    hf,
    mlp,
    mobilenet,
    recurrent,
    resnet,
    shufflenet,
    supernets,
    superres,
    unet,
    vgg,
    vit,
)
from zoo.case import Case, registry
from zoo.traps import TRAPS

MODELS: dict[str, Case] = registry(
    resnet.CASES,
    vgg.CASES,
    mobilenet.CASES,
    densenet.CASES,
    shufflenet.CASES,
    convnext.CASES,
    vit.CASES,
    unet.CASES,
    superres.CASES,
    hf.CASES,
    digits.CASES,
    mlp.CASES,
    recurrent.CASES,
    supernets.CASES,
)

__all__ = ["MODELS", "TRAPS", "Case"]
