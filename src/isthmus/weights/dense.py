"""What a tensor must be to be written as bytes, and those bytes."""

from __future__ import annotations

import torch
from torch import Tensor

# Safetensors' names of what torch can hold, in the order of the format's own enumeration: narrow to wide.
DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}


def objection(tensor: Tensor) -> str | None:
    """Why a tensor has no bytes of its own that a file could keep, if so."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        return "is sparse or quantized: make it dense first"
    if tensor.is_meta:
        return "is on the meta device: it has no values"
    if tensor.dtype not in DTYPES:
        return f"is of {tensor.dtype}, which safetensors does not have"
    return None


def raw(tensor: Tensor) -> memoryview:
    """A dense tensor's bytes, row major."""
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return dense.reshape(-1).view(torch.uint8).numpy().data
