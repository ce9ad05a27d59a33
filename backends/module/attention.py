"""``nn.MultiheadAttention`` at any number of heads and any head width, apart from the width of what it reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coppice.core.solve import Bools


class NarrowAttention(nn.MultiheadAttention):
    """Multi-head attention whose projections are narrower than its input.

    ``heads`` heads with ``width`` query and key features each, and as many value features as ``out_proj`` reads; the
    scores are divided by the root of ``count``, the features that a head had before it was cut.
    """

    heads: int
    width: int
    count: int

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        first = self.batch_first or query.ndim == 2
        q, k, v = self._projected(*(x if first else x.transpose(0, 1) for x in (query, key, value)))
        mask = F._canonical_mask(attn_mask, "attn_mask", None, "", q.dtype, check_other=False)
        padding = F._canonical_mask(key_padding_mask, "key_padding_mask", None, "", q.dtype, check_other=False)
        if mask is not None and mask.ndim == 3:
            mask = torch.unflatten(mask, 0, (-1, self.heads))
        if padding is not None:
            padding = padding[..., None, None, :]
            mask = padding if mask is None else mask + padding
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.count)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        mixed = (F.dropout(weights, self.dropout, self.training) @ v).transpose(-2, -3).flatten(-2)
        y: Tensor = self.out_proj(mixed)
        if not first:
            y = y.transpose(0, 1)
        if not need_weights:
            return y, None
        return y, weights.mean(-3) if average_attn_weights else weights

    def _projected(self, *inputs: Tensor) -> list[Tensor]:
        rows = self.heads * self.width
        bias: tuple[Tensor | None, ...] = (None, None, None)
        if self.in_proj_weight is not None:
            sizes = [rows, rows, len(self.in_proj_weight) - 2 * rows]
            matrices = torch.split(self.in_proj_weight, sizes)
        else:
            matrices = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            sizes = [len(matrix) for matrix in matrices]
        if self.in_proj_bias is not None:
            bias = torch.split(self.in_proj_bias, sizes)
        return [
            torch.unflatten(F.linear(x, matrix, b), -1, (self.heads, -1)).transpose(-2, -3)
            for x, matrix, b in zip(inputs, matrices, bias, strict=True)
        ]


@dataclass(frozen=True)
class Heads:
    """What is left of the attention at ``path``, whose heads had ``count`` query features (see `NarrowAttention`)."""

    path: str
    heads: int
    width: int
    count: int


def heads_left(
    attention: nn.MultiheadAttention, path: str, kept: Mapping[str, tuple[Bools | None, ...]]
) -> Heads | None:
    """The heads of ``attention`` that stay (``kept``: see `Extraction`); None where nothing of it was cut.

    None too for attention with extra key and value rows (``bias_k``, ``add_zero_attn``).
    """
    prefix = f"{path}." if path else ""
    masks = kept.get(f"{prefix}in_proj_weight", kept.get(f"{prefix}q_proj_weight", (None,)))
    cut = [m for name, axes in kept.items() if name.startswith(prefix) for m in axes if m is not None]
    if not cut or attention.bias_k is not None or attention.add_zero_attn:
        return None
    heads, depth = attention.num_heads, attention.head_dim
    if masks[0] is None:
        return Heads(path, heads, depth, depth)
    grid = masks[0][: heads * depth].reshape(heads, depth)
    return Heads(path, int(grid.any(axis=1).sum()), int(grid.sum(axis=1).max()), depth)


def narrow(attention: nn.MultiheadAttention, left: Heads) -> None:
    """Let ``attention``, whose parameters are cut, compute with the heads that are left."""
    attention.__class__ = NarrowAttention
    for name in ("heads", "width", "count"):
        setattr(attention, name, getattr(left, name))
    attention.embed_dim = attention.out_proj.weight.shape[0]
    attention.num_heads, attention.head_dim = left.heads, left.width
    attention._qkv_same_embed_dim = False  # keeps encoder layers from their fast path, which assumes square projections
