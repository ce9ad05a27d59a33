"""Recurrent networks: stacked, bidirectional, projected, cells in a loop, and a state handed from one to another."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.case import Args, Case, features, generator, seeded, tokens

VOCABULARY = 24
HIDDEN = 12


class Classifier(nn.Module):
    """The layer's last step, read by a linear head."""

    def __init__(self, kind: Callable[..., nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(10, HIDDEN, **options)
        width = options.get("proj_size") or HIDDEN
        self.head = nn.Linear(width * (2 if options.get("bidirectional") else 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        states = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))[0]
        return self.head(states[:, -1] if self.rnn.batch_first else states[-1])


class Ends(nn.Module):
    """The last states of both directions of the top layer, side by side, behind a linear layer and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.inp = nn.Linear(8, 16)
        self.rnn = nn.LSTM(16, HIDDEN, num_layers=2, bidirectional=True, dropout=0.2, batch_first=True)
        self.head = nn.Linear(2 * HIDDEN, 5)

    def forward(self, x: Tensor) -> Tensor:
        _, (last, _) = self.rnn(torch.relu(self.inp(self.embed(x))))
        return self.head(torch.cat([last[-2], last[-1]], 1))


class Language(nn.Module):
    """Embedding, LSTM, a word's score at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 10)
        self.rnn = nn.LSTM(10, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0])


class Translator(nn.Module):
    """A decoder that starts from the encoder's last state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 10)
        self.encoder = nn.GRU(10, HIDDEN, num_layers=2, batch_first=True)
        self.decoder = nn.GRU(10, HIDDEN, num_layers=2, batch_first=True)
        self.head = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        _, state = self.encoder(self.embed(source))
        return self.head(self.decoder(self.embed(target), state)[0])


class Cells(nn.Module):
    """A cell in a loop, its state starting at zero; every step's state is summed."""

    def __init__(self, kind: type[nn.RNNCellBase], **options: Any) -> None:
        super().__init__()
        self.cell = kind(10, HIDDEN, **options)
        self.head = nn.Linear(HIDDEN, 5)

    def forward(self, x: Tensor) -> Tensor:
        state, hidden = None, []
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
            hidden.append(state[0] if isinstance(state, tuple) else state)
        return self.head(torch.stack(hidden).sum(0))


class LearnedStart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(2, 1, HIDDEN))
        self.rnn = nn.GRU(10, HIDDEN, num_layers=2, batch_first=True)
        self.head = nn.Linear(HIDDEN, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x, self.start.expand(-1, x.shape[0], -1).contiguous())[0])


def pair(batch: int) -> Args:
    source = generator()
    return tuple(torch.randint(0, VOCABULARY, (batch, length), generator=source) for length in (6, 4))


SEQUENCE, IDS = features(6, 10), tokens(VOCABULARY, 6)
FAMILY = "recurrent"
EMBED = {"embed.weight": 1}


def classifier(name: str, kind: Callable[..., nn.RNNBase], frozen: tuple[str, ...] = (), **options: Any) -> Case:
    expect = ("rnn.weight_hr*",) if "proj_size" in options else ("rnn.*",)
    build = seeded(lambda: Classifier(kind, **options))
    return Case(name, FAMILY, build, SEQUENCE, expect, ("head.*", *frozen))


CASES = [
    classifier("lstm_stacked", nn.LSTM, num_layers=3, dropout=0.1, batch_first=True),
    classifier("lstm_bidirectional", nn.LSTM, bidirectional=True, batch_first=True),
    classifier("lstm_without_bias", nn.LSTM, bias=False, num_layers=2),
    classifier(
        "lstm_projected", nn.LSTM, ("rnn.weight_?h*", "rnn.bias*"), proj_size=6, num_layers=2, bidirectional=True
    ),
    classifier("gru_stacked", nn.GRU, num_layers=2, bidirectional=True),
    classifier("rnn_tanh", nn.RNN, num_layers=2, batch_first=True),
    classifier("rnn_relu", nn.RNN, nonlinearity="relu", bidirectional=True),
    Case("lstm_ends", FAMILY, seeded(Ends), IDS, ("embed.*", "inp.*", "rnn.*"), ("head.*",), axes=EMBED),
    Case("lstm_language", FAMILY, seeded(Language), IDS, ("embed.*", "rnn.*"), ("head.*",), axes=EMBED),
    Case(
        "gru_translator",
        FAMILY,
        seeded(Translator),
        pair,
        ("embed.*", "encoder.*", "decoder.*"),
        ("head.*",),
        axes=EMBED,
    ),
    Case("lstm_cells", FAMILY, seeded(lambda: Cells(nn.LSTMCell)), SEQUENCE, ("cell.*",), ("head.*",)),
    Case("gru_cells", FAMILY, seeded(lambda: Cells(nn.GRUCell)), SEQUENCE, ("cell.*",), ("head.*",)),
    Case("rnn_cells", FAMILY, seeded(lambda: Cells(nn.RNNCell, bias=False)), SEQUENCE, ("cell.*",), ("head.*",)),
    Case(
        "gru_learned_start", FAMILY, seeded(LearnedStart), SEQUENCE, ("rnn.*", "start"), ("head.*",), axes={"start": 2}
    ),
]
