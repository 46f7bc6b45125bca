"""A small vision transformer, whole: patches, positions, pre-norm blocks, one classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from isthmus.errors import InputError

from .mlp import ACTIVATIONS


class Attention(nn.Module):
    """Multi-head self-attention: one linear layer makes queries, keys and values, one mixes the heads.

    Causal, a token sees itself and those before it.
    """

    def __init__(self, dim: int, heads: int, causal: bool = False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # n t 3 h k
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each n h t k
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Norm and attention, then norm and two linear layers, each added to the stream."""

    def __init__(self, dim: int, heads: int, hidden: int, act: str = "gelu", causal: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, causal)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.act = ACTIVATIONS[act]

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """`patches`, `cls` and `positions`, `blocks`, `norm`, pooling, `classifier`.

    Args:
        image: side of the square image, in pixels.
        patch: side of a patch, in pixels; divides `image`.
        dim: size of a token.
        depth: number of blocks.
        heads: attention heads; divides `dim`.
        mlp_ratio: hidden units of a block's two linear layers, as a multiple of `dim`.
        pool: what the classifier reads: "cls" (a learned extra token) or "mean" (of all tokens).
        in_channels: channels of the image.
        num_classes: number of logits.

    Raises:
        InputError: sizes that do not divide, an unknown pool.

    Source: Dosovitskiy et al. 2021, equations 1 to 4, without dropout.
    """

    def __init__(
        self,
        image: int = 32,
        patch: int = 4,
        dim: int = 192,
        depth: int = 6,
        heads: int = 3,
        mlp_ratio: int | float = 4,
        pool: str = "cls",
        in_channels: int = 3,
        num_classes: int = 10,
    ):
        super().__init__()
        wrong = []
        if image % patch:
            wrong.append(f"patch={patch} does not divide image={image}")
        if dim % heads:
            wrong.append(f"heads={heads} does not divide dim={dim}")
        if pool not in ("cls", "mean"):
            wrong.append(f"pool={pool!r} is neither 'cls' nor 'mean'")
        if wrong:
            raise InputError("this vision transformer cannot be built", where=wrong)
        self.patches = nn.Conv2d(in_channels, dim, patch, stride=patch)
        tokens = (image // patch) ** 2 + (pool == "cls")
        self.cls = nn.Parameter(torch.empty(1, 1, dim)) if pool == "cls" else None
        self.positions = nn.Parameter(torch.empty(1, tokens, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, int(dim * mlp_ratio)) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Redraw what belongs to no layer: the extra token and the positions (standard deviation 0.02)."""
        for own in (self.cls, self.positions):
            if own is not None:
                nn.init.trunc_normal_(own, std=0.02)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        x = self.patches(x).flatten(2).transpose(1, 2)  # n t d
        if self.cls is not None:
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.norm(self.blocks(x + self.positions))
        return self.classifier(x.mean(1) if self.cls is None else x[:, 0])
