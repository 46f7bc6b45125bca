"""A small Llama, whole: root mean square norms, gated linear layers, no biases, an untied head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from isthmus.errors import InputError

from .gpt import Table

POSITIONS = ("rotary", "learned")

#: Base of the rotary frequencies (Su et al. 2021, section 3.2.2).
BASE = 10000.0


class RotaryAttention(nn.Module):
    """Multi-head attention to what came before, with queries and keys turned by their place, if asked."""

    def __init__(self, dim: int, heads: int, rotary: bool):
        super().__init__()
        self.heads, self.rotary = heads, rotary
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.o = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )  # each n h t k
        if self.rotary:
            q, k = turned(q), turned(k)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(mixed.transpose(1, 2).flatten(2))


def turned(x: Float[Tensor, "n h t k"]) -> Float[Tensor, "n h t k"]:
    """Turn the plane of features (i, i + k/2) by place times the i-th frequency.

    Source: Su et al. 2021, equation 34, with the planes of Llama as `transformers` stores it.
    """
    half = x.shape[-1] // 2
    frequencies = BASE ** (-torch.arange(half, device=x.device) / half)
    angles = torch.outer(torch.arange(x.shape[2], device=x.device), frequencies)  # t k/2
    cos = torch.cat([angles.cos(), angles.cos()], -1).to(x.dtype)
    sin = torch.cat([angles.sin(), angles.sin()], -1).to(x.dtype)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class LlamaBlock(nn.Module):
    """Norm and attention, then norm and a gated pair of linear layers, each added to the stream."""

    def __init__(self, dim: int, heads: int, hidden: int, rotary: bool):
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=1e-6)
        self.attn = RotaryAttention(dim, heads, rotary)
        self.norm2 = nn.RMSNorm(dim, eps=1e-6)
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        x = x + self.attn(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """`tokens` (and `positions`, if learned), `blocks`, `norm`, `head`.

    Args:
        vocabulary: number of tokens, and of logits per place.
        context: longest sequence.
        dim: size of the stream.
        depth: number of blocks.
        heads: attention heads; divides `dim`, an even number of times if rotary.
        hidden: gated units of a block; by default 8/3 of `dim`, rounded up to a multiple of 8.
        positions: "rotary" (queries and keys are turned) or "learned" (a table added to the tokens).

    Raises:
        InputError: sizes that do not divide, an unknown kind of positions.

    Source: Touvron et al. 2023, section 2.2.
    """

    def __init__(
        self,
        vocabulary: int = 128,
        context: int = 128,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        hidden: int | None = None,
        positions: str = "rotary",
    ):
        super().__init__()
        wrong = []
        if positions not in POSITIONS:
            wrong.append(f"positions={positions!r} is none of {', '.join(POSITIONS)}")
        if dim % heads:
            wrong.append(f"heads={heads} does not divide dim={dim}")
        elif positions == "rotary" and dim // heads % 2:
            wrong.append(f"heads of {dim // heads} features have no planes to turn")
        if wrong:
            raise InputError("this Llama cannot be built", where=wrong)
        hidden = -(-8 * dim // 24) * 8 if hidden is None else hidden
        self.tokens = Table(vocabulary, dim)
        self.positions = Table(context, dim) if positions == "learned" else None
        self.blocks = nn.Sequential(
            *(LlamaBlock(dim, heads, hidden, positions == "rotary") for _ in range(depth))
        )
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, vocabulary, bias=False)

    def forward(self, tokens: Int64[Tensor, "n t"]) -> Float[Tensor, "n t vocabulary"]:
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.norm(self.blocks(x)))
