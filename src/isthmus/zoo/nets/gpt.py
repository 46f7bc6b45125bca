"""A small GPT, whole: tokens and learned positions, pre-norm blocks with biases, an untied head."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from isthmus.errors import InputError

from .mlp import ACTIVATIONS
from .vit import Block


class Table(nn.Embedding):
    """One row per token or place, drawn small (standard deviation 0.02, as GPT-2 draws it)."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)


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
        hidden = int(dim * mlp_ratio)
        self.blocks = nn.Sequential(*(Block(dim, heads, hidden, act, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary)

    def forward(self, tokens: Int64[Tensor, "n t"]) -> Float[Tensor, "n t vocabulary"]:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(places)
        return self.head(self.norm(self.blocks(x)))
