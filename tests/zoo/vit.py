"""Vision transformers with three attentions: fused qkv, scaled_dot_product_attention, nn.MultiheadAttention."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, image, seeded


class FusedAttention(nn.Module):
    """One linear makes q, k and v; the softmax is written out."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attention = (q @ k.transpose(-2, -1)) * self.scale
        attention = attention.softmax(dim=-1)
        x = (attention @ v).transpose(1, 2).reshape(batch, length, dim)
        return self.proj(x)


class SplitAttention(nn.Module):
    """Separate q, k and v linears; the fused kernel picks its scale from the head size."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        return x.view(batch, length, self.heads, dim // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        x = F.scaled_dot_product_attention(q, k, v)
        x = x.transpose(1, 2).flatten(2)
        return self.proj(x)


class TorchAttention(nn.Module):
    """PyTorch's own multi-head module, batch first, with its packed input projection."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.mha(x, x, x, need_weights=False)
        return out


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.drop = nn.Dropout(0.1)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(self.act(self.fc1(x))))


class Block(nn.Module):
    def __init__(self, dim: int, hidden: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(
        self,
        attention: Callable[[int, int], nn.Module],
        side: int = 32,
        patch: int = 8,
        dim: int = 64,
        depth: int = 3,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, dim))
        self.blocks = nn.ModuleList(Block(dim, 4 * dim, attention(dim, heads)) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


MLP = ("blocks.*.mlp.fc1.*",)
STREAM = (
    "patch_embed.*",
    "cls_token",
    "pos_embed",
    "blocks.*.norm*",
    "blocks.*.mlp.fc2.*",
    "norm.*",
)
HEAD = ("head.*",)
AXES = {"cls_token": 2, "pos_embed": 2}

CASES = [
    Case(
        "vit",
        "vit",
        seeded(lambda: ViT(FusedAttention)),
        image(),
        (*MLP, "blocks.*.attn.qkv.*", *STREAM, "blocks.*.proj.*"),
        HEAD,
        axes=AXES,
        note="qkv rows go by whole heads (q, k and v together), or by head channel in all heads",
    ),
    Case(
        "vit_sdpa",
        "vit",
        seeded(lambda: ViT(SplitAttention)),
        image(),
        (*MLP, "blocks.*.attn.q.*", "blocks.*.attn.k.*", "blocks.*.attn.v.*", *STREAM, "blocks.*.proj.*"),
        HEAD,
        axes=AXES,
        note="removing q and k channels inside a head changes the default scale unless it is pinned",
    ),
    Case(
        "vit_mha",
        "vit",
        seeded(lambda: ViT(TorchAttention)),
        image(),
        (*MLP, "blocks.*.mha.in_proj_*", *STREAM, "blocks.*.out_proj.*"),
        HEAD,
        axes=AXES,
        note="heads are prunable, though nn.MultiheadAttention itself cannot say so",
    ),
]
