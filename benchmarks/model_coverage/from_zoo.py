"""The models of tests/zoo, and recurrent, speech and dense-prediction nets written out by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_coverage.entry import Entry, image, noise
from zoo import MODELS
from zoo.case import seeded, tokens

DOMAINS = {
    "recurrent": "recurrent",
    "unet": "segmentation",
    "superres": "super-resolution",
    "bert": "language",
    "llama": "language",
}


class Tagger(nn.Module):
    """Embedding, recurrent layers, a classifier of every position."""

    def __init__(self, cell: type[nn.RNNBase], width: int = 64, both: bool = False, layers: int = 1) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, width)
        self.rnn = cell(width, width, num_layers=layers, bidirectional=both, batch_first=True)
        self.head = nn.Linear(width * (2 if both else 1), 12)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(self.embed(x))[0])
        return y


class Unrolled(nn.Module):
    """A cell in a Python loop, as in text-book character models."""

    def __init__(self, cell: type[nn.RNNCellBase], width: int = 48) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Embedding(60, 32)
        self.cell = cell(32, width)  # type: ignore[call-arg, arg-type]
        self.head = nn.Linear(width, 60)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        state = y.new_zeros(y.shape[0], self.width)
        memory = state
        out = []
        for t in range(x.shape[1]):
            if isinstance(self.cell, nn.LSTMCell):
                state, memory = self.cell(y[:, t], (state, memory))
            else:
                state = self.cell(y[:, t], state)
            out.append(self.head(state))
        return torch.stack(out, 1)


class Crnn(nn.Module):
    """Text recognition: convolutions, then a bidirectional LSTM along the width of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d((2, 1)),
            nn.Conv2d(64, 96, 3, padding=1), nn.BatchNorm2d(96), nn.ReLU(), nn.AdaptiveAvgPool2d((1, None)),
        )  # fmt: skip
        self.rnn = nn.LSTM(96, 64, bidirectional=True, batch_first=True)
        self.head = nn.Linear(128, 37)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(self.features(x).squeeze(2).transpose(1, 2))[0])
        return y


class DsCnn(nn.Module):
    """Keyword spotting on mel spectra: depthwise-separable convolutions."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(width)]
        for _ in range(4):
            layers += [nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)]
        self.features = nn.Sequential(*layers, nn.ReLU())
        self.head = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.features(x).mean((2, 3)))
        return y


class Gated(nn.Module):
    """One WaveNet layer: tanh times sigmoid of a dilated causal convolution, a residual and a skip branch."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.pad, self.dilation = dilation, dilation
        self.filter = nn.Conv1d(width, width, 2, dilation=dilation)
        self.gate = nn.Conv1d(width, width, 2, dilation=dilation)
        self.residual, self.skip = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.pad(x, (self.pad, 0))
        y = torch.tanh(self.filter(y)) * torch.sigmoid(self.gate(y))
        return x + self.residual(y), self.skip(y)


class WaveNet(nn.Module):
    def __init__(self, width: int = 48, layers: int = 6) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, width, 1)
        self.layers = nn.ModuleList(Gated(width, 2**k) for k in range(layers))
        self.mix, self.end = nn.Conv1d(width, width, 1), nn.Conv1d(width, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.start(x), torch.zeros(())
        for layer in self.layers:
            x, skip = layer(x)
            total = total + skip
        y: Tensor = self.end(F.relu(self.mix(F.relu(total))))
        return y


class Temporal(nn.Module):
    """A temporal convolutional network: causal convolutions with weight normalisation."""

    def __init__(self, width: int = 48, layers: int = 4) -> None:
        super().__init__()
        norm = torch.nn.utils.parametrizations.weight_norm
        sizes = [8, *[width] * layers]
        self.convs = nn.ModuleList(
            norm(nn.Conv1d(a, b, 3, dilation=2**k)) for k, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False))
        )
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        for k, conv in enumerate(self.convs):
            y = F.relu(conv(F.pad(x, (2 * 2**k, 0))))
            x = y if x.shape[1] != y.shape[1] else x + y
        z: Tensor = self.head(x.mean(-1))
        return z


class ChannelAttention(nn.Module):
    """A residual block of RCAN: two convolutions weighed by squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.squeeze = nn.Sequential(nn.Conv2d(width, width // 4, 1), nn.ReLU(), nn.Conv2d(width // 4, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y * torch.sigmoid(self.squeeze(F.adaptive_avg_pool2d(y, 1)))


class Rcan(nn.Module):
    def __init__(self, width: int = 48, blocks: int = 4) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(
            *[ChannelAttention(width) for _ in range(blocks)], nn.Conv2d(width, width, 3, padding=1)
        )
        self.tail = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(width, 3, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        y: Tensor = self.tail(x + self.body(x))
        return y


class Rdn(nn.Module):
    """Residual dense blocks: every layer reads all before it in its block (RDN, RRDB of ESRGAN)."""

    def __init__(self, width: int = 32, grow: int = 16, blocks: int = 2, layers: int = 4) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    *(nn.Conv2d(width + k * grow, grow, 3, padding=1) for k in range(layers)),
                    nn.Conv2d(width + layers * grow, width, 1),
                ]
            )
            for _ in range(blocks)
        )
        self.tail = nn.Conv2d(width, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for block in self.blocks:
            seen = [x]
            for conv in list(block)[:-1]:  # type: ignore[arg-type, call-overload]
                seen.append(F.leaky_relu(conv(torch.cat(seen, 1)), 0.2))
            x = x + 0.2 * block[-1](torch.cat(seen, 1))  # type: ignore[index]
        return F.pixel_shuffle(self.tail(x), 2)


class Srcnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 64, 9, padding=4), nn.Conv2d(64, 32, 1), nn.Conv2d(32, 1, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="bicubic")
        y: Tensor = self.c(F.relu(self.b(F.relu(self.a(x)))))
        return y


def _conv(a: int, b: int, k: int, s: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, k, s, k // 2, bias=False), nn.BatchNorm2d(b), nn.SiLU())


class C2f(nn.Module):
    """YOLOv8's block: split in two, a chain of bottlenecks on one part, everything concatenated."""

    def __init__(self, a: int, b: int, n: int) -> None:
        super().__init__()
        self.first, self.last = _conv(a, b, 1), _conv((2 + n) * b // 2, b, 1)
        self.chain = nn.ModuleList(nn.Sequential(_conv(b // 2, b // 2, 3), _conv(b // 2, b // 2, 3)) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.chain:
            parts.append(parts[-1] + block(parts[-1]))
        y: Tensor = self.last(torch.cat(parts, 1))
        return y


class Yolo(nn.Module):
    """A YOLOv8-like detector: C2f stages, spatial pyramid pooling, a path aggregation neck, heads at three scales."""

    def __init__(self, w: int = 16, classes: int = 20) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, w, 3, 2), _conv(w, 2 * w, 3, 2), C2f(2 * w, 2 * w, 1))
        self.p3 = nn.Sequential(_conv(2 * w, 4 * w, 3, 2), C2f(4 * w, 4 * w, 2))
        self.p4 = nn.Sequential(_conv(4 * w, 8 * w, 3, 2), C2f(8 * w, 8 * w, 2))
        self.p5 = nn.Sequential(_conv(8 * w, 16 * w, 3, 2), C2f(16 * w, 16 * w, 1))
        self.pool_in, self.pool_out = _conv(16 * w, 8 * w, 1), _conv(32 * w, 16 * w, 1)
        self.up4, self.up3 = C2f(24 * w, 8 * w, 1), C2f(12 * w, 4 * w, 1)
        self.down3, self.down4 = _conv(4 * w, 4 * w, 3, 2), _conv(8 * w, 8 * w, 3, 2)
        self.out4, self.out5 = C2f(12 * w, 8 * w, 1), C2f(24 * w, 16 * w, 1)
        self.heads = nn.ModuleList(
            nn.Sequential(_conv(c, 4 * w, 3), nn.Conv2d(4 * w, 64 + classes, 1)) for c in (4 * w, 8 * w, 16 * w)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        p3 = self.p3(self.stem(x))
        p4 = self.p4(p3)
        pools = [self.pool_in(self.p5(p4))]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        p5 = self.pool_out(torch.cat(pools, 1))
        p4 = self.up4(torch.cat([F.interpolate(p5, scale_factor=2.0), p4], 1))
        p3 = self.up3(torch.cat([F.interpolate(p4, scale_factor=2.0), p3], 1))
        p4 = self.out4(torch.cat([self.down3(p3), p4], 1))
        p5 = self.out5(torch.cat([self.down4(p4), p5], 1))
        return [head(p).flatten(2) for head, p in zip(self.heads, (p3, p4, p5), strict=True)]


class ResidualGn(nn.Module):
    """A block of a diffusion U-Net: group norm, SiLU, convolution, and the step added to every channel."""

    def __init__(self, a: int, b: int, step: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, a), nn.Conv2d(a, b, 3, padding=1)
        self.step = nn.Linear(step, b)
        self.norm2, self.conv2 = nn.GroupNorm(8, b), nn.Conv2d(b, b, 3, padding=1)
        self.skip = nn.Conv2d(a, b, 1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.step(step)[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class DiffusionUnet(nn.Module):
    def __init__(self, w: int = 32) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(w, 4 * w), nn.SiLU(), nn.Linear(4 * w, 4 * w))
        self.width = w
        self.first = nn.Conv2d(3, w, 3, padding=1)
        self.down1, self.down2 = ResidualGn(w, w, 4 * w), ResidualGn(w, 2 * w, 4 * w)
        self.shrink = nn.Conv2d(w, w, 3, 2, 1)
        self.middle = ResidualGn(2 * w, 2 * w, 4 * w)
        self.up2, self.up1 = ResidualGn(4 * w, w, 4 * w), ResidualGn(2 * w, w, 4 * w)
        self.last = nn.Conv2d(w, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        frequency = torch.exp(torch.arange(self.width // 2, device=t.device) * (-4.0 / self.width)).to(x.dtype)
        angle = t[:, None] * frequency[None]
        step = self.time(torch.cat([angle.sin(), angle.cos()], -1))
        one = self.down1(self.first(x), step)
        two = self.down2(self.shrink(one), step)
        y = self.up2(torch.cat([self.middle(two, step), two], 1), step)
        z: Tensor = self.last(self.up1(torch.cat([F.interpolate(y, scale_factor=2.0), one], 1), step))
        return z


class PointNet(nn.Module):
    """Points in a cloud: shared layers, a maximum over the points, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Sequential(
            nn.Conv1d(3, 64, 1), nn.BatchNorm1d(64), nn.ReLU(), nn.Conv1d(64, 128, 1), nn.BatchNorm1d(128), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.points(x).amax(-1))
        return y


def _with_step(batch: int) -> tuple[Tensor, ...]:
    source = torch.Generator().manual_seed(5)
    return torch.randn(batch, 3, 16, 16, generator=source), torch.rand(batch, generator=source)


OWN = [
    Entry("lstm_tagger", "hand-written", "recurrent", seeded(lambda: Tagger(nn.LSTM)), tokens(100, 12)),
    Entry("bilstm_tagger", "hand-written", "recurrent", seeded(lambda: Tagger(nn.LSTM, both=True)), tokens(100, 12)),
    Entry("gru_stack", "hand-written", "recurrent", seeded(lambda: Tagger(nn.GRU, layers=2)), tokens(100, 12)),
    Entry("rnn_tagger", "hand-written", "recurrent", seeded(lambda: Tagger(nn.RNN)), tokens(100, 12)),
    Entry("lstm_cell_loop", "hand-written", "recurrent", seeded(lambda: Unrolled(nn.LSTMCell)), tokens(60, 6)),
    Entry("gru_cell_loop", "hand-written", "recurrent", seeded(lambda: Unrolled(nn.GRUCell)), tokens(60, 6)),
    Entry("crnn", "hand-written", "recurrent", seeded(Crnn), image(32, 64, channels=1)),
    Entry("ds_cnn", "hand-written", "speech", seeded(DsCnn), image(49, 10, channels=1)),
    Entry("wavenet", "hand-written", "speech", seeded(WaveNet), noise(1, 64)),
    Entry("tcn", "hand-written", "time series", seeded(Temporal), noise(8, 50)),
    Entry("rcan", "hand-written", "super-resolution", seeded(Rcan), image(16, 16)),
    Entry("rdn", "hand-written", "super-resolution", seeded(Rdn), image(16, 16)),
    Entry("srcnn", "hand-written", "super-resolution", seeded(Srcnn), image(16, 16, channels=1)),
    Entry("yolo", "hand-written", "detection", seeded(Yolo), image(64, 64)),
    Entry("diffusion_unet", "hand-written", "generation", seeded(DiffusionUnet), _with_step),
    Entry("pointnet", "hand-written", "points", seeded(PointNet), noise(3, 40)),
]

ENTRIES = [
    *(
        Entry(case.name, "hand-written", DOMAINS.get(case.family, "vision"), case.build, case.inputs)
        for case in MODELS.values()
        if case.family not in ("bert", "llama")
    ),
    *OWN,
]
