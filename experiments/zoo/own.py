"""Small networks of ours, each for what no zoo has alone: name -> () -> (model, example)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Built = tuple[nn.Module, object]


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# -- recurrent ---------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Embedding, recurrent layers, mean over time, classifier."""

    def __init__(self, kind: type[nn.RNNBase], states: bool = False, **options: object):
        super().__init__()
        self.embed = nn.Embedding(30, 12)
        self.body = kind(12, 10, **options)  # type: ignore[arg-type]
        both = 2 if self.body.bidirectional else 1
        self.states = states
        self.head = nn.Linear(both * (self.body.proj_size or 10), 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x if self.body.batch_first else x.transpose(0, 1)
        y, last = self.body(x)
        if self.states:
            hidden = last[0] if isinstance(last, tuple) else last
            return self.head(hidden[-1])
        return self.head(y.mean(1 if self.body.batch_first else 0))


class Cells(nn.Module):
    """Recurrence written out, with cells."""

    def __init__(self, cell: type[nn.RNNCellBase]):
        super().__init__()
        self.embed = nn.Embedding(30, 12)
        self.cell = cell(12, 10)  # type: ignore[call-arg]
        self.head = nn.Linear(10, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        state = None
        for step in self.embed(tokens).unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def _recurrent(kind: type[nn.RNNBase], states: bool = False, **options: object) -> Callable[[], Built]:
    def build() -> Built:
        tokens = torch.randint(0, 30, (2, 7), generator=torch.Generator().manual_seed(0))
        return Recurrent(kind, states, **{"batch_first": True, **options}), tokens

    return build


# -- a diffusion network -----------------------------------------------------------------------


class ResBlock(nn.Module):
    def __init__(self, into: int, out: int, time: int, groups: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, into), nn.GroupNorm(groups, out)
        self.conv1, self.conv2 = nn.Conv2d(into, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.time = nn.Linear(time, out)
        self.skip = nn.Conv2d(into, out, 1) if into != out else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(t))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    def __init__(self, width: int, context: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k = nn.Linear(width, width, bias=False), nn.Linear(context, width, bias=False)
        self.to_v, self.to_out = nn.Linear(context, width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            f(y).view(y.shape[0], y.shape[1], self.heads, -1).transpose(1, 2)
            for f, y in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Group norm, projection, self-attention, cross-attention, gated feed-forward; as in latent diffusion."""

    def __init__(self, width: int, context: int, heads: int, groups: int, depth: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width)
        self.proj_in, self.proj_out = nn.Linear(width, width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "self": Attention(width, width, heads),
                    "norm2": nn.LayerNorm(width),
                    "cross": Attention(width, context, heads),
                    "norm3": nn.LayerNorm(width),
                    "up": nn.Linear(width, 8 * width),
                    "down": nn.Linear(4 * width, width),
                }
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        batch, width, high, wide = x.shape
        h = self.proj_in(self.norm(x).permute(0, 2, 3, 1).reshape(batch, high * wide, width))
        for block in self.blocks:
            y = block["norm1"](h)
            h = h + block["self"](y, y)
            h = h + block["cross"](block["norm2"](h), context)
            value, gate = block["up"](block["norm3"](h)).chunk(2, dim=-1)
            h = h + block["down"](value * F.gelu(gate))
        return x + self.proj_out(h).reshape(batch, high, wide, width).permute(0, 3, 1, 2)


class UNet(nn.Module):
    """A denoising UNet: time embedding, residual blocks, cross-attention, group norm, skip concatenations.

    Args:
        base: channels of the first level.
        widths: multiples of base per level.
        depths: transformer blocks per level; 0 for no attention.
        context: width of the conditioning tokens.
        head: width of an attention head.
    """

    def __init__(
        self,
        base: int = 16,
        widths: tuple[int, ...] = (1, 2, 4),
        depths: tuple[int, ...] = (0, 1, 1),
        context: int = 20,
        head: int = 8,
        groups: int = 4,
        blocks: int = 2,
    ):
        super().__init__()
        time = 4 * base
        self.base = base
        self.embed = nn.Sequential(nn.Linear(base, time), nn.SiLU(), nn.Linear(time, time))
        self.stem = nn.Conv2d(4, base, 3, padding=1)

        def attention(width: int, depth: int) -> nn.Module | None:
            return Transformer(width, context, width // head, groups, depth) if depth else None

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, width = [base], base
        for level, (multiple, depth) in enumerate(zip(widths, depths, strict=True)):
            for _ in range(blocks):
                parts = [ResBlock(width, base * multiple, time, groups), attention(base * multiple, depth)]
                width = base * multiple
                self.down.append(nn.ModuleList(p for p in parts if p is not None))
                skips.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.ModuleList([nn.Conv2d(width, width, 3, stride=2, padding=1)]))
                skips.append(width)
        self.middle = nn.ModuleList(
            [
                ResBlock(width, width, time, groups),
                Transformer(width, context, width // head, groups, depths[-1]),
                ResBlock(width, width, time, groups),
            ]
        )
        for level in reversed(range(len(widths))):
            for index in range(blocks + 1):
                out = base * widths[level]
                parts = [ResBlock(width + skips.pop(), out, time, groups), attention(out, depths[level])]
                width = out
                if index == blocks and level:
                    parts.append(nn.Conv2d(width, width, 3, padding=1))
                self.up.append(nn.ModuleList(p for p in parts if p is not None))
        self.norm = nn.GroupNorm(groups, width)
        self.out = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        half = self.base // 2
        waves = torch.exp(-math.log(10000) * torch.arange(half, device=x.device) / half).to(x.dtype)
        angles = t[:, None] * waves
        t = self.embed(torch.cat([angles.sin(), angles.cos()], dim=-1))

        def run(parts: nn.ModuleList, h: Tensor) -> Tensor:
            for part in parts:
                if isinstance(part, ResBlock):
                    h = part(h, t)
                elif isinstance(part, Transformer):
                    h = part(h, context)
                else:
                    h = part(F.interpolate(h, scale_factor=2.0) if parts in tuple(self.up) else h)
            return h

        h = self.stem(x)
        skips = [h]
        for parts in self.down:
            h = run(parts, h)
            skips.append(h)
        h = run(self.middle, h)
        for parts in self.up:
            h = run(parts, torch.cat([h, skips.pop()], dim=1))
        return self.out(F.silu(self.norm(h)))


def unet() -> Built:
    return UNet(), (_noise(2, 4, 16, 16), torch.tensor([3.0, 7.0]), _noise(2, 5, 20))


def unet_sdxl() -> Built:
    """As wide and deep as SDXL's UNet (2.5 billion parameters), on the meta device."""
    with torch.device("meta"):
        model = UNet(320, (1, 2, 4), (0, 2, 10), context=2048, head=64, groups=32, blocks=2)
        example = (torch.randn(2, 4, 32, 32), torch.ones(2), torch.randn(2, 77, 2048))
    return model, example


def unet_sdxl_narrow() -> Built:
    """The same with a fifth of the channels: 90 million parameters, drawn where it is verified."""
    with torch.device("meta"):
        model = UNet(64, (1, 2, 4), (0, 2, 10), context=24, head=16, groups=32, blocks=2)
    return model, (torch.randn(2, 4, 8, 8), torch.ones(2), torch.randn(2, 5, 24))


# -- blocks ------------------------------------------------------------------------------------


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 12), nn.GELU(), nn.Linear(12, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 40), nn.GELU(), nn.Linear(40, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


def mixer() -> Built:
    stem = nn.Sequential(nn.Conv2d(3, 24, 4, stride=4), nn.Flatten(2))
    body = nn.Sequential(*(MixerBlock(16, 24) for _ in range(2)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.norm, self.head = stem, body, nn.LayerNorm(24), nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.body(self.stem(x).transpose(1, 2))).mean(1))

    return Net(), _noise(2, 3, 16, 16)


class Gated(nn.Module):
    """Squeeze-and-excitation and a spatial attention gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.theta, self.phi, self.psi = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 1, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        gate = torch.sigmoid(self.psi(F.relu(self.theta(x) + self.phi(F.avg_pool2d(x, 3, 1, 1)))))
        return self.head((x * gate).amax((2, 3)))


class Shuffled(nn.Module):
    """PixelShuffle and PixelUnshuffle around convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, 12, 3, padding=1),
            nn.Conv2d(12, 48, 3, padding=1),
            nn.Conv2d(12, 24, 1),
        )
        self.d = nn.Conv2d(96, 10, 1)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c(F.relu(F.pixel_shuffle(self.b(F.relu(self.a(x))), 2))))
        x = F.relu(self.d(F.pixel_unshuffle(x, 2)))
        return self.head(x.mean((2, 3)))


class ChannelShuffle(nn.Module):
    """Grouped convolutions with the channels shuffled between, by view and by the operation."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 24, 3, padding=1)
        self.b, self.c = nn.Conv2d(24, 24, 1, groups=3), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.d, self.shuffle = nn.Conv2d(24, 48, 1, groups=3), nn.ChannelShuffle(4)
        self.e = nn.Conv2d(48, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = F.relu(self.shuffle(self.d(self.c(x))))
        return self.head(self.e(x).mean((2, 3)))


class Convolutions(nn.Module):
    """Grouped, transposed, depthwise, one- and three-dimensional convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding="same", padding_mode="reflect")
        self.deep, self.wide = nn.Conv2d(16, 32, 3, groups=16), nn.Conv2d(32, 24, 1, groups=4)
        self.up, self.grouped = (
            nn.ConvTranspose2d(24, 16, 2, stride=2),
            nn.ConvTranspose2d(16, 12, 3, groups=2),
        )
        self.line = nn.Conv1d(12, 10, 3)
        self.space = nn.Conv3d(1, 6, (3, 3, 3))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.wide(F.elu(self.deep(F.elu(self.a(x))))))
        x = F.elu(self.grouped(F.elu(self.up(x))))
        x = F.elu(self.line(x.mean(3)))
        x = x.view(x.shape[0], 1, 1, 10, -1).transpose(3, 4).expand(-1, -1, 3, -1, -1)
        return self.head(F.elu(self.space(x)).mean((2, 3, 4)))


class Shared(nn.Module):
    """A module called twice, a raw parameter, a tied head, einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.block = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.norm = nn.LayerNorm(16)
        self.q = nn.Parameter(_noise(16, 4, 6))
        self.k = nn.Parameter(_noise(16, 4, 6))
        self.v = nn.Parameter(_noise(4, 16, 5))
        self.o = nn.Parameter(_noise(4, 5, 16))
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) * self.scale
        for _ in range(2):
            h = self.norm(x)
            q, k = (torch.einsum("btd,dhe->bthe", h, w) for w in (self.q, self.k))
            weights = torch.einsum("bthe,bshe->bhts", q, k).softmax(-1)
            x = x + torch.einsum("bhts,hdc,bsd,hce->bte", weights, self.v, h, self.o)
            x = x + self.block(self.norm(x))
        return x @ self.embed.weight.T


class Unfolded(nn.Module):
    """unfold, fold, grid_sample, roll, scatter, top-k, sort."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 9, 20)
        self.back, self.where = nn.Linear(20, 8 * 4), nn.Conv2d(8, 2, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        columns = F.unfold(x, 3, padding=1, stride=2)
        y = F.relu(self.back(F.relu(self.mix(columns.transpose(1, 2))))).transpose(1, 2)
        y = F.fold(y, (16, 16), 2, stride=2)
        y = F.grid_sample(y, self.where(x).permute(0, 2, 3, 1).tanh(), align_corners=False)
        y = y.roll(1, 2).flatten(2)
        return self.head(y.topk(4, dim=2).values.mean(2) + y.sort(dim=2).values[:, :, -1])


class Heads(nn.Module):
    """nn.MultiheadAttention, rows written into a table, a learned class token, an ALiBi slope per head."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(_noise(1, 1, 16))
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True)
        self.slopes = nn.Parameter(torch.rand(4))
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoderLayer(16, 2, 24, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.attend(x, x, x, need_weights=False)[0]
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, 4, 4).permute(2, 0, 3, 1, 4)
        distance = (torch.arange(t)[:, None] - torch.arange(t)).abs()
        scores = q @ k.transpose(-2, -1) - self.slopes[:, None, None] * distance
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, 16))
        y = self.decoder(x, self.encoder(x))
        return self.head(y[:, 0])


class Splits(nn.Module):
    """Half of the channels pass by, the other half is worked on; halves are joined and shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.glu = nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv in (self.a, self.b):
            left, right = x.chunk(2, dim=1)
            x = torch.cat([left, F.relu(conv(right))], dim=1)
            x = F.channel_shuffle(x, 2) if conv is self.a else x.flip(1)
        return self.head(F.glu(self.glu(x), dim=1).mean((2, 3)))


def _images(kind: Callable[[], nn.Module]) -> Callable[[], Built]:
    return lambda: (kind(), _noise(2, 3, 16, 16))


BUILDERS: dict[str, Callable[[], Built]] = {
    "lstm": _recurrent(nn.LSTM),
    "lstm-2": _recurrent(nn.LSTM, num_layers=2),
    "lstm-bi": _recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "lstm-proj": _recurrent(nn.LSTM, num_layers=2, proj_size=6),
    "lstm-bi-proj": _recurrent(nn.LSTM, num_layers=2, proj_size=6, bidirectional=True, bias=False),
    "lstm-time-first": _recurrent(nn.LSTM, batch_first=False),
    "lstm-state": _recurrent(nn.LSTM, states=True, num_layers=2),
    "gru": _recurrent(nn.GRU),
    "gru-bi": _recurrent(nn.GRU, num_layers=2, bidirectional=True),
    "gru-state": _recurrent(nn.GRU, states=True, num_layers=2, bias=False),
    "rnn-tanh": _recurrent(nn.RNN, num_layers=2),
    "rnn-relu": _recurrent(nn.RNN, nonlinearity="relu", bidirectional=True),
    "lstm-cell": lambda: (Cells(nn.LSTMCell), torch.randint(0, 30, (2, 4))),
    "gru-cell": lambda: (Cells(nn.GRUCell), torch.randint(0, 30, (2, 4))),
    "unet": unet,
    "unet-sdxl": unet_sdxl,
    "mixer": mixer,
    "gates": _images(Gated),
    "pixel-shuffle": _images(Shuffled),
    "channel-shuffle": _images(ChannelShuffle),
    "convolutions": _images(Convolutions),
    "shared": lambda: (Shared(), torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(0))),
    "unfold": _images(Unfolded),
    "heads": lambda: (Heads(), _noise(2, 6, 16)),
    "splits": _images(Splits),
}
