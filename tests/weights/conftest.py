"""One set of weights with everything awkward in it."""

import pytest
import torch
from torch import Tensor


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(6, 4, generator=generator)
    return {
        "embed.weight": table,
        "head.weight": table,  # tied
        "head.part": table[2:4],  # a view of part of it
        "wide.weight": torch.randn(5, 3, generator=generator).T,  # not contiguous
        "spread.weight": torch.randn(3, 1, generator=generator).expand(3, 4),  # strides of zero
        "norm.num_batches_tracked": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
        "none": torch.empty(0, 3),
        "half": torch.randn(3, generator=generator).half(),
        "brain": torch.randn(3, generator=generator).bfloat16(),
        "double": torch.randn(3, generator=generator, dtype=torch.float64),
        "eight": torch.randn(5, generator=generator).to(torch.float8_e4m3fn),
        "complex": torch.randn(2, generator=generator, dtype=torch.complex64).conj(),
        "grad": torch.nn.Parameter(torch.randn(2, generator=generator)),
        "unicode.ключ": torch.ones(1),
    }
