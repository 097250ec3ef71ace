"""Archives are read by GNU tar and by tarfile, and the offsets point at the bytes."""

import hashlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_tools.errors import UserError
from shard_tools.tar import TarWriter, member_header

PRINTABLE = st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/")
NAMES = st.builds("{}.{}".format, st.text(PRINTABLE, min_size=1, max_size=60), st.text(PRINTABLE, max_size=39))


def write(members: list[tuple[str, bytes]]) -> tuple[bytes, list[int], int, str]:
    """Each member as a sample of its own; all offsets."""
    file = io.BytesIO()
    writer = TarWriter(file)
    offsets = []
    for name, data in members:
        key, _, extension = name.rpartition(".")
        [(_, offset, size)] = writer.add_sample(key, [(extension, data)])
        assert size == len(data)
        offsets.append(offset)
    size, digest = writer.finish()
    return file.getvalue(), offsets, size, digest


@given(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=8))
def test_tarfile_reads_what_was_written(members: list[tuple[str, bytes]]) -> None:
    archive, offsets, size, digest = write(members)
    assert size == len(archive)
    assert size % 512 == 0
    assert digest == hashlib.sha256(archive).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        read = tar.getmembers()
    assert [member.name for member in read] == [name for name, _ in members]
    assert [member.offset_data for member in read] == offsets
    for member, (_, data), offset in zip(read, members, offsets, strict=True):
        assert archive[offset : offset + member.size] == data
        assert (member.mode, member.uid, member.gid, member.mtime) == (0o644, 0, 0, 0)
        assert (member.uname, member.gname, member.pax_headers) == ("", "", {})
        assert member.isreg()


def test_header_is_what_tarfile_writes() -> None:
    """Byte for byte Python's own USTAR header, so every reader of tarfile's archives reads these."""
    info = tarfile.TarInfo("bg1_fg_2_3.fgbg.jpg")
    info.size = 123_456
    assert member_header(info.name, info.size) == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar on this machine")
def test_gnu_tar_extracts(tmp_path: Path) -> None:
    members = [("a.jpg", b"x" * 3_000_000), (f"{'b' * 96}.jpg", b""), ("c.json", b"{}")]
    archive, *_ = write(members)
    (tmp_path / "a.tar").write_bytes(archive)
    done = subprocess.run(["tar", "xvf", "a.tar"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [name for name, _ in members]
    assert done.stderr == ""
    for name, data in members:
        assert (tmp_path / name).read_bytes() == data


@pytest.mark.parametrize("name", ["", "a b", "ä.jpg", "tab\t", "line\n", "n" * 101])
def test_names_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="1 to 100 ASCII characters without white space"):
        member_header(name, 1)


@pytest.mark.parametrize("key", ["", "a b", "ä", "n" * 97])
def test_keys_that_do_not_fit_are_refused(key: str) -> None:
    with pytest.raises(UserError, match=r"ASCII characters without white space|a name of at most 100 characters"):
        TarWriter(io.BytesIO()).add_sample(key, [("jpg", b"")])


def test_a_sample_is_its_members_one_after_the_other() -> None:
    file = io.BytesIO()
    writer = TarWriter(file)
    first = writer.add_sample("one", [("bg.jpg", b"12345"), ("json", b"{}")])
    second = writer.add_sample("two", [("bg.jpg", b"")])
    writer.finish()
    assert first == [("bg.jpg", 512, 5), ("json", 1536, 2)]
    assert second == [("bg.jpg", 2560, 0)]
    with tarfile.open(fileobj=io.BytesIO(file.getvalue())) as tar:
        assert tar.getnames() == ["one.bg.jpg", "one.json", "two.bg.jpg"]


def test_eight_gibibytes_are_refused() -> None:
    assert len(member_header("a", 8 * 2**30 - 1)) == 512
    with pytest.raises(UserError, match="less than 8 GiB"):
        member_header("a", 8 * 2**30)
