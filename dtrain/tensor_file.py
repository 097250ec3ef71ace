"""Writes tensors as a safetensors file, piece by piece, without holding the interpreter or a second copy of them.

The package's own writer keeps the interpreter to itself while it copies and writes, so that the steps beside a save
would stand still. Format: https://github.com/huggingface/safetensors#format. Reading is left to the package.
"""

import json
import struct
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

PIECE_BYTES = 8 * 2**20

_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""In the order of the package: the widest types first, so that everything is aligned."""
_PLACES = {dtype: place for place, dtype in enumerate(_NAMES)}


def pieces(tensors: Mapping[str, Tensor]) -> Iterator[memoryview | bytes]:
    """The bytes of a file of `tensors`, which lie contiguous on the CPU; after the header, at most `PIECE_BYTES` each.

    Raises KeyError for a dtype that is not in the table above.
    """
    names = sorted(tensors, key=lambda name: (_PLACES[tensors[name].dtype], name))
    header: dict[str, object] = {}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in names:
        if tensors[name].nbytes:
            data = tensors[name].reshape(-1).view(torch.uint8).numpy().data
            for begin in range(0, len(data), PIECE_BYTES):
                yield data[begin : begin + PIECE_BYTES]
