"""Real classes of transformers in the small configurations of transformers.yaml: random weights, no downloads."""

# mypy: disable-error-code="no-any-return, no-untyped-call, unused-ignore"
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from model_coverage.entry import Args, Entry, Take
from zoo.case import generator, seeded
from zoo.hf import transformers

WORDS, LENGTH = 128, 12
TAKEN = {"EncodecModel": "audio_values"}
"""Classes of whose outputs one is taken: the others are data structures."""


def _model(name: str, options: dict[str, Any]) -> nn.Module:
    kind = getattr(transformers(), name)
    config = kind.config_class(**options)
    config.use_cache = False
    model: nn.Module = kind(config)
    return Take(model, TAKEN[name]) if name in TAKEN else model


def _words(batch: int, length: int = LENGTH) -> Tensor:
    return torch.randint(3, WORDS - 1, (batch, length), generator=generator())


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator())


def _ids(batch: int) -> Args:
    return {"input_ids": _words(batch)}


def _tokens(batch: int) -> Args:
    return {"input_ids": _words(batch), "attention_mask": torch.ones(batch, LENGTH, dtype=torch.long)}


def _pairs(batch: int) -> Args:
    return {"input_ids": _words(batch), "decoder_input_ids": _words(batch, 7)}


def _pixels(batch: int, size: int) -> Args:
    return {"pixel_values": _normal(batch, 3, size, size)}


def _masked(batch: int, size: int, patches: int) -> Args:
    """With the noise that chooses patches, which the model would otherwise draw anew at every call."""
    return {"pixel_values": _normal(batch, 3, size, size), "noise": torch.rand(batch, patches, generator=generator())}


def _frames(batch: int, count: int, size: int) -> Args:
    return {"pixel_values": _normal(batch, count, 3, size, size)}


def _clip(batch: int, size: int) -> Args:
    ids = _words(batch)
    ids[:, -1] = WORDS - 1  # the end of the text
    return {"input_ids": ids, "pixel_values": _normal(batch, 3, size, size)}


def _wave(batch: int) -> Args:
    return {"input_values": _normal(batch, 800)}


def _values(batch: int, *shape: int) -> Args:
    return {"input_values": _normal(batch, *shape)}


def _spectrum(batch: int) -> Args:
    return {"input_features": _normal(batch, 16, 40), "decoder_input_ids": _words(batch, 7)}


def _frames_then_words(batch: int) -> Args:
    return {"input_features": _normal(batch, 40, 16), "decoder_input_ids": _words(batch, 7)}


def _mel(batch: int) -> Args:
    return {"spectrogram": _normal(batch, 10, 16)}


def _sound(batch: int) -> Args:
    return (_normal(batch, 1, 320),)


def _past(batch: int) -> Args:
    return {"past_values": _normal(batch, 32, 2)}


def _trajectory(batch: int) -> Args:
    return {
        "states": _normal(batch, 6, 5),
        "actions": _normal(batch, 6, 3),
        "rewards": torch.zeros(batch, 6, 1),
        "returns_to_go": _normal(batch, 6, 1),
        "timesteps": torch.arange(6).repeat(batch, 1),
        "attention_mask": torch.ones(batch, 6, dtype=torch.long),
    }


INPUTS: dict[str, Callable[..., Args]] = {
    "ids": _ids, "tokens": _tokens, "pairs": _pairs, "pixels": _pixels, "frames": _frames, "masked": _masked,
    "clip": _clip, "wave": _wave, "values": _values, "spectrum": _spectrum,
    "frames_then_words": _frames_then_words, "mel": _mel, "sound": _sound, "past": _past, "trajectory": _trajectory,
}  # fmt: skip


def _entry(name: str, row: dict[str, Any], bases: dict[str, dict[str, Any]]) -> Entry:
    options = bases.get(row.get("base", ""), {}) | row.get("options", {})
    kind, *numbers = row["inputs"].split()
    sizes = tuple(int(number) for number in numbers)
    return Entry(
        name,
        "transformers",
        row["domain"],
        seeded(lambda: _model(row["class"], options)),
        lambda batch: INPUTS[kind](batch, *sizes),
    )


def _read() -> list[Entry]:
    table = yaml.safe_load(Path(__file__).with_name("transformers.yaml").read_text(encoding="utf-8"))
    return [_entry(name, row, table["bases"]) for name, row in table["models"].items()]


ENTRIES = _read()
