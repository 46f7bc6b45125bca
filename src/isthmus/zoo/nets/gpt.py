"""A small GPT, whole: tokens and learned positions, pre-norm blocks with biases, an untied head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from isthmus.errors import InputError

from .mlp import ACTIVATIONS


class Table(nn.Embedding):
    """One row per token or place, drawn small (standard deviation 0.02, as GPT-2 draws it)."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)


class CausalAttention(nn.Module):
    """Multi-head attention to what came before; one linear layer makes queries, keys and values."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # n t 3 h k
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each n h t k
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class GPTBlock(nn.Module):
    """Layer norm and attention, then layer norm and two linear layers, each added to the stream."""

    def __init__(self, dim: int, heads: int, hidden: int, act: str):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = CausalAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.act = ACTIVATIONS[act]

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class GPT(nn.Module):
    """`tokens` and `positions`, `blocks`, `norm`, `head`.

    Args:
        vocabulary: number of tokens, and of logits per place.
        context: longest sequence.
        dim: size of the stream.
        depth: number of blocks.
        heads: attention heads; divides `dim`.
        mlp_ratio: hidden units of a block's two linear layers, as a multiple of `dim`.
        act: between these two, a name in `mlp.ACTIVATIONS`.

    Raises:
        InputError: sizes that do not divide, an unknown activation.

    Source: Radford et al. 2019 (GPT-2), section 2.3, without dropout; we differ in a head of its own with a
        bias, where theirs is the token table, and in torch's own initial linear layers.
    """

    def __init__(
        self,
        vocabulary: int = 128,
        context: int = 128,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: int | float = 4,
        act: str = "gelu",
    ):
        super().__init__()
        wrong = []
        if dim % heads:
            wrong.append(f"heads={heads} does not divide dim={dim}")
        if act not in ACTIVATIONS:
            wrong.append(f"act={act!r} is none of {', '.join(ACTIVATIONS)}")
        if wrong:
            raise InputError("this GPT cannot be built", where=wrong)
        self.tokens = Table(vocabulary, dim)
        self.positions = Table(context, dim)
        self.blocks = nn.Sequential(*(GPTBlock(dim, heads, int(dim * mlp_ratio), act) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary)

    def forward(self, tokens: Int64[Tensor, "n t"]) -> Float[Tensor, "n t vocabulary"]:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(places)
        return self.head(self.norm(self.blocks(x)))
