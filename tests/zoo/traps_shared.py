"""Traps in shared and free parameters: tied weights, layers used twice, lookups and recurrences."""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, features, tokens
from zoo.trapkit import trap


class TiedEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.fc = nn.Linear(width, width)
        self.head = nn.Linear(width, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.relu(self.fc(self.embed(ids))))


class EmbeddingMean(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width, padding_idx=0)
        self.out = nn.Linear(width, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.embed(ids).mean(1))


class SharedLinear(nn.Module):
    """The same layer twice: its inputs and outputs are the same units."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp = nn.Linear(12, width)
        self.fc = nn.Linear(width, width)
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc(F.relu(self.fc(F.relu(self.inp(x))))))


class ListReuse(nn.Module):
    """Two blocks applied three times each to one residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.out = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for step in range(6):
            x = x + 0.3 * torch.tanh(self.blocks[step % 2](x))
        return self.out(x)


class SharedNorm(nn.Module):
    """One batch norm for two convolutions whose outputs never meet otherwise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_a = nn.Conv2d(3, width, 3, padding=1)
        self.conv_b = nn.Conv2d(3, width, 1)
        self.bn = nn.BatchNorm2d(width)
        self.out_a = nn.Conv2d(width, 4, 1)
        self.out_b = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_a(self.bn(self.conv_a(x))) * self.out_b(F.relu(self.bn(self.conv_b(x))))


class SharedConvTwoNorms(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.bn_a, self.bn_b = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.out_a, self.out_b = nn.Conv2d(width, 4, 1), nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_a(F.relu(self.bn_a(self.conv(x)))) + self.out_b(F.relu(self.bn_b(self.conv(-x))))


class TiedAutoencoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, 12))
        self.bias = nn.Parameter(torch.zeros(width))
        self.out_bias = nn.Parameter(torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(x, self.weight, self.bias)), self.weight.t(), self.out_bias)


class MatmulMlp(nn.Module):
    """Weights stored as (inputs, outputs)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(torch.zeros(12, width))
        self.bias1 = nn.Parameter(torch.zeros(width))
        self.weight2 = nn.Parameter(torch.zeros(width, 4))
        self.bias2 = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias2, F.relu(x @ self.weight1 + self.bias1), self.weight2)


class LearnedQuery(nn.Module):
    """Learned queries attend to tokens; scores sum over the units, so the softmax is over tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(12, width)
        self.query = nn.Parameter(torch.zeros(1, 4, width))
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        scores = self.query @ x.transpose(1, 2) * 0.3
        return self.out(scores.softmax(-1) @ x)


class Bilinear(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(12, width)
        self.out = nn.Bilinear(width, 12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.fc(x)), x)


class Recurrent(nn.Module):
    def __init__(self, width: int, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.rnn = kind(12, width, batch_first=True)
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        return self.out(states[:, -1])


FLAT, SEQUENCE, IDS = features(12), features(6, 12), tokens(20, 6)
FAMILY = "shared"

CASES: list[Case] = [
    trap(
        "tied_embedding",
        FAMILY,
        "expect",
        TiedEmbedding,
        ("embed.*", "fc.*"),
        inputs=IDS,
        frozen=(),
        axes={"embed.weight": 1},
        note="axis 0 of the shared weight is the model's output",
    ),
    trap("embedding_mean", FAMILY, "expect", EmbeddingMean, ("embed.*",), inputs=IDS, axes={"embed.weight": 1}),
    trap("shared_linear", FAMILY, "expect", SharedLinear, ("inp.*", "fc.*"), inputs=FLAT),
    trap("module_list_reuse", FAMILY, "expect", ListReuse, ("inp.*", "blocks.*")),
    trap("shared_norm", FAMILY, "expect", SharedNorm, ("conv_*", "bn.*"), frozen=("out_*",)),
    trap("shared_conv", FAMILY, "expect", SharedConvTwoNorms, ("conv.*", "bn_*"), frozen=("out_*",)),
    trap("tied_autoencoder", FAMILY, "expect", TiedAutoencoder, ("weight", "bias"), inputs=FLAT, frozen=("out_bias",)),
    trap(
        "matmul_mlp",
        FAMILY,
        "expect",
        MatmulMlp,
        ("weight1", "bias1"),
        inputs=FLAT,
        frozen=("weight2", "bias2"),
        axes={"weight1": 1, "weight2": 1},
    ),
    trap("learned_query", FAMILY, "expect", LearnedQuery, ("fc.*", "query"), inputs=SEQUENCE, axes={"query": 2}),
    trap("bilinear", FAMILY, "expect", Bilinear, ("fc.*",), inputs=FLAT),
    trap(
        "lstm", FAMILY, "expect", lambda w: Recurrent(w, nn.LSTM), ("rnn.*",), inputs=SEQUENCE, note="rows of 4 gates"
    ),
    trap("gru", FAMILY, "expect", lambda w: Recurrent(w, nn.GRU), ("rnn.*",), inputs=SEQUENCE),
]
