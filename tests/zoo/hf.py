"""BERT and Llama built from transformers configurations (tiny, random weights, nothing is downloaded)."""

# mypy: disable-error-code="no-any-return, no-untyped-call, unused-ignore"
from __future__ import annotations

import sys
from typing import Any

from torch import nn

from zoo.case import Case, seeded, tokens

VOCABULARY = 96


def transformers() -> Any:
    """The transformers package, imported late. A torchvision that torch cannot load is hidden from it first."""
    try:
        import torchvision  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:  # built for another torch: importing it again would fail inside transformers
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    import transformers

    return transformers


def bert_config() -> Any:
    return transformers().BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=32,
        num_labels=3,
    )


def bert() -> nn.Module:
    return transformers().BertModel(bert_config())


def bert_classifier() -> nn.Module:
    return transformers().BertForSequenceClassification(bert_config())


def llama(tied: bool = False) -> nn.Module:
    config = transformers().LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        use_cache=False,
        tie_word_embeddings=tied,
    )
    return transformers().LlamaForCausalLM(config)


BERT_EXPECT = tuple(f"*encoder.layer.*.{part}.*" for part in ("query", "key", "value", "intermediate.dense"))
BERT_STREAM = ("*embeddings.*", "*.attention.output.*", "*encoder.layer.?.output.*")
BERT_AXES = {"*embeddings.*_embeddings.weight": 1}
LLAMA_EXPECT = tuple(f"model.layers.*.{part}_proj.weight" for part in ("q", "k", "v", "gate", "up"))
LLAMA_STREAM = (
    "model.embed_tokens.weight",
    "model.layers.*.o_proj.weight",
    "model.layers.*.down_proj.weight",
    "*norm*",
)
LLAMA_NOTE = (
    "a head goes with its key/value group; q and k channels in rotary pairs; the stream meets only RMS norms, "
    "whose mean keeps its divisor"
)

CASES = [
    Case(
        "bert",
        "bert",
        seeded(bert),
        tokens(VOCABULARY, 12),
        BERT_EXPECT,
        (*BERT_STREAM, "pooler.dense.*"),
        axes=BERT_AXES,
        note="last hidden state and pooler output are both outputs",
    ),
    Case(
        "bert_classifier",
        "bert",
        seeded(bert_classifier),
        tokens(VOCABULARY, 12),
        (*BERT_EXPECT, *BERT_STREAM, "bert.pooler.dense.*"),
        ("classifier.*",),
        axes=BERT_AXES,
    ),
    Case(
        "llama",
        "llama",
        seeded(llama),
        tokens(VOCABULARY, 12),
        (*LLAMA_EXPECT, *LLAMA_STREAM),
        ("lm_head.weight",),
        axes={"model.embed_tokens.weight": 1},
        note=LLAMA_NOTE,
    ),
    Case(
        "llama_tied",
        "llama",
        seeded(lambda: llama(tied=True)),
        tokens(VOCABULARY, 12),
        (*LLAMA_EXPECT, *LLAMA_STREAM),
        axes={"model.embed_tokens.weight": 1},
        note="embed_tokens is also lm_head, so its axis 0 is an output axis; " + LLAMA_NOTE,
    ),
]
