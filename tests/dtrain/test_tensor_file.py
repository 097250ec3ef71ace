"""Files of tensors are those that the safetensors package writes, byte for byte."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save
from torch import Tensor

from dtrain import tensor_file
from dtrain.tensor_file import pieces

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Random bits of any type and shape."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    size = torch.Size(shape).numel() * dtype.itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    if dtype == torch.bool:
        data = bytes(byte & 1 for byte in data)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if size else torch.zeros(shape, dtype=dtype)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(names, tensors(), max_size=6), st.integers(1, 40))
def test_the_bytes_are_those_of_the_package(content: dict[str, Tensor], piece_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_file, "PIECE_BYTES", piece_bytes)
        header, *rest = [bytes(piece) for piece in pieces(content)]
    assert header + b"".join(rest) == save(content)
    assert all(0 < len(piece) <= piece_bytes for piece in rest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3), (2, 3, 5, 7)], ids=str)
def test_every_type_and_shape_comes_back(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    content = {"a": (torch.arange(torch.Size(shape).numel()) % 2).reshape(shape).to(dtype), "b": torch.ones(3)}
    (tmp_path / "file").write_bytes(b"".join(pieces(content)))
    loaded = load_file(tmp_path / "file")
    assert sorted(loaded) == ["a", "b"]
    assert (loaded["a"].dtype, loaded["a"].shape) == (dtype, torch.Size(shape))
    assert torch.equal(loaded["a"], content["a"])


def test_no_tensors_are_a_file_too() -> None:
    assert b"".join(pieces({})) == save({})


def test_what_is_no_number_keeps_its_bits() -> None:
    content = {"x": torch.tensor([0x7FC00001, 0x7F800000, -0x80000000, 1], dtype=torch.int32).view(torch.float32)}
    loaded = load(b"".join(pieces(content)))
    assert torch.equal(loaded["x"].view(torch.int32), content["x"].view(torch.int32))


def test_the_pieces_of_large_tensors_are_no_copies() -> None:
    large = torch.zeros(5 * 2**20)
    _, *rest = pieces({"large": large})
    assert [len(piece) for piece in rest] == [8 * 2**20, 8 * 2**20, 4 * 2**20]
    large += 1
    assert bytes(rest[1][:4]) == torch.ones(1).numpy().tobytes()


def test_a_type_that_has_no_name_there() -> None:
    with pytest.raises(KeyError, match="complex128"):
        list(pieces({"z": torch.zeros(2, dtype=torch.complex128)}))
