"""The CIFAR-10 images (lossy, from JPEG) as uint8 tensors, decoded once."""

from __future__ import annotations

import importlib
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
FILE = "cifar10_jpeg.npz"
PEERS = ROOT / "build" / "peers"

MEAN, SPREAD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Per channel, of the training images in 0..1."""


class MissingError(SystemExit):
    """Something that only this benchmark needs is not there."""


@dataclass(frozen=True)
class Images:
    """uint8 (n, 3, 32, 32) and int64 (n), on one device."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def to(self, device: str) -> Images:
        return Images(*(t.to(device) for t in (self.train_x, self.train_y, self.test_x, self.test_y)))


def load(file: Path, cache: Path) -> Images:
    """The images of ``file``, decoded into ``cache`` (an .npz) the first time: about 10 s."""
    if not cache.exists():
        _decode(file, cache)
    with np.load(cache) as held:
        return Images(*(torch.from_numpy(held[name]) for name in ("train_x", "train_y", "test_x", "test_y")))


def _decode(file: Path, cache: Path) -> None:
    if not file.exists():
        raise MissingError(
            f"{file.name} is not in {file.parent}: name the folder that holds it with --data. It is CIFAR-10 as "
            "concatenated JPEG bytes (train_jpeg, train_offsets, train_labels, and the same for test)."
        )
    arrays: dict[str, np.ndarray] = {}
    with np.load(file) as held:
        for part in ("train", "test"):
            raw, at = held[f"{part}_jpeg"], held[f"{part}_offsets"]
            pictures = [_picture(raw[a:b].tobytes()) for a, b in zip(at[:-1], at[1:], strict=True)]
            arrays[f"{part}_x"] = np.stack(pictures).transpose(0, 3, 1, 2)
            arrays[f"{part}_y"] = held[f"{part}_labels"].astype(np.int64)
    cache.parent.mkdir(parents=True, exist_ok=True)
    whole = cache.with_name(f"{cache.stem}.{os.getpid()}.npz")  # two runs may decode at once; the last one stays
    np.savez(whole, **arrays)  # type: ignore[arg-type]
    whole.replace(cache)


def _picture(data: bytes) -> np.ndarray:
    use_peers()
    try:
        pillow = importlib.import_module("PIL.Image")
    except ImportError as error:
        raise MissingError("decoding JPEG needs Pillow: make bench-cifar installs it into build/peers") from error
    return np.asarray(pillow.open(io.BytesIO(data)).convert("RGB"))


def use_peers() -> None:
    """Put the packages that only benchmarks need behind the others on the path."""
    if str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))


def standardise(x: Tensor) -> Tensor:
    """uint8 images as float32, zero mean and unit variance per channel."""
    mean = torch.tensor(MEAN, device=x.device).view(1, 3, 1, 1)
    spread = torch.tensor(SPREAD, device=x.device).view(1, 3, 1, 1)
    return (x.float() / 255.0 - mean) / spread


def augment(x: Tensor, generator: torch.Generator, reach: int = 4) -> Tensor:
    """Each image flipped or not and shifted by up to ``reach`` pixels, zeros moving in, without leaving the device."""
    n, _, height, width = x.shape
    device = x.device
    flip = torch.rand(n, 1, 1, 1, device=device, generator=generator) < 0.5
    x = torch.where(flip, x.flip(3), x)
    x = torch.nn.functional.pad(x, (reach,) * 4)
    dy, dx = torch.randint(0, 2 * reach + 1, (2, n, 1), device=device, generator=generator)
    rows = (dy + torch.arange(height, device=device)).view(n, 1, height, 1)
    columns = (dx + torch.arange(width, device=device)).view(n, 1, 1, width)
    sample = torch.arange(n, device=device).view(n, 1, 1, 1)
    channel = torch.arange(x.shape[1], device=device).view(1, -1, 1, 1)
    return x[sample, channel, rows, columns]
