"""The laws, as functions that anyone can call on their own methods."""

from __future__ import annotations

import torch

#: Relative error allowed in each dtype: what rounding does to a network, with room to spare.
TOLERANCE: dict[torch.dtype, float] = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 3e-2,
    torch.float16: 3e-3,
}
