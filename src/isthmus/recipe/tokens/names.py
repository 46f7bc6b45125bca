"""Names of tensors with one row per token."""

from __future__ import annotations

import re

# Names of tensors with one row per token; positions and segments have rows of their own.
_TOKENS = re.compile(
    r"(embed_tokens|(^|\.)wte|word_embeddings|tok_embeddings|embed_in|embed_out|lm_head|(^|\.)shared|"
    r"cls\.predictions|vocab_projector|(^|\.)embeddings?\.weight|(^|\.)output\.weight|decoder\.(weight|bias)$|"
    r"(^|\.)lm_head\.bias)"
)
_NOT_TOKENS = re.compile(r"(position|token_type|wpe)")

#: Heads that may be stored under the name of the embedding alone.
HEADS = re.compile(
    r"(^|\.)(lm_head|embed_out|cls\.predictions\.decoder|vocab_projector|decoder|output)\.weight$"
)
EMBEDDINGS = re.compile(
    r"(embed_tokens|(^|\.)wte|word_embeddings|tok_embeddings|embed_in|(^|\.)shared)\.weight$"
)


def is_tokens(name: str, rows: int, size: int | None) -> bool:
    """Whether a tensor has one row per token.

    Args:
        name: of the tensor.
        rows: its first dimension.
        size: rows of the model's vocabulary, where its configuration says.
    """
    if _NOT_TOKENS.search(name) or not _TOKENS.search(name):
        return False
    return size is None or rows == size
