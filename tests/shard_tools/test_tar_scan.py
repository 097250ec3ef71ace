"""The scan finds in any tar what Python's tarfile finds, and refuses what is cut, damaged or no tar."""

import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_tools.errors import UserError
from shard_tools.tar_scan import FILE, TarMember, scan

DATA = Path(__file__).parent / "data"
GOLDEN = sorted(DATA.glob("*.tar"))
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}

NAMES = st.lists(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
        lambda part: part not in (".", "..")
    ),
    min_size=1,
    max_size=4,
).map("/".join)


def members(archive: bytes) -> list[TarMember]:
    return list(scan(io.BytesIO(archive), "x.tar"))


def refusal(archive: bytes) -> str:
    with pytest.raises(UserError) as caught:
        members(archive)
    return str(caught.value)


def write(names: list[str], format_name: str, *, mtime: float = 0, data: bytes = b"data") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=FORMATS[format_name]) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def by_tarfile(archive: bytes) -> list[tuple[str, int, int]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]


@pytest.mark.parametrize("format_name", ["gnu", "pax"])
@given(names=st.lists(NAMES, max_size=5), mtime=st.sampled_from([0, 0.5]), data=st.binary(max_size=1100))
def test_same_members_as_tarfile(format_name: str, names: list[str], mtime: float, data: bytes) -> None:
    archive = write(names, format_name, mtime=mtime, data=data)
    found = members(archive)
    assert [member[:3] for member in found] == by_tarfile(archive)
    assert [member.name for member in found] == names
    assert all(archive[member.offset : member.offset + member.size] == data for member in found)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_archives_of_other_writers(path: Path) -> None:
    archive = path.read_bytes()
    found = [member[:3] for member in members(archive) if member.kind == FILE]
    assert found
    assert found == by_tarfile(archive)


def test_a_long_name_in_two_fields() -> None:
    name = "/".join(["folder" * 8] * 3) + "/" + "n" * 90
    archive = write([name], "ustar")
    assert [member[:3] for member in members(archive)] == [(name, 512, 4)]


def test_names_that_are_no_utf8() -> None:
    archive = write(["gr\udcfcn.jpg"], "gnu")
    assert [member.name for member in members(archive)] == ["gr\udcfcn.jpg"]


def test_a_size_beyond_octal_digits() -> None:
    info = tarfile.TarInfo("big.bin")
    info.size = 9 * 2**30
    for header in (info.tobuf(tarfile.GNU_FORMAT), info.tobuf(tarfile.PAX_FORMAT)):
        assert f"inside the member 'big.bin' that begins at byte {len(header) - 512:,}" in refusal(header + bytes(512))


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.jpg").write_bytes(b"x")
    (tmp_path / "folder/b.jpg").symlink_to("a.jpg")
    (tmp_path / "folder/c.jpg").hardlink_to(tmp_path / "folder/a.jpg")
    os.mkfifo(tmp_path / "folder/d.jpg")
    command = ["tar", "--sort=name", "-cf", "-", "folder"]
    archive = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    assert [(member.name, member.size, member.kind) for member in members(archive)] == [
        ("folder/", 0, "folder"),
        ("folder/a.jpg", 1, FILE),
        ("folder/b.jpg", 0, "symbolic link"),
        ("folder/c.jpg", 0, "hard link"),
        ("folder/d.jpg", 0, "pipe"),
    ]


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.AREGTYPE])
def test_folders_of_old_writers(kind: bytes) -> None:
    """Some give folders a size, though no data follows; the oldest tell them from files by the last slash alone."""
    info = tarfile.TarInfo("folder/")
    info.type = kind
    info.size = 700 if kind == tarfile.DIRTYPE else 0
    found = members(info.tobuf(tarfile.USTAR_FORMAT) + ARCHIVE)
    assert [(member.offset, member.size, member.kind) for member in found] == [
        (512, 0, "folder"),
        (1024, 700, FILE),
        (2560, 700, FILE),
    ]


@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=pax"]])
def test_sparse_files_are_refused(tmp_path: Path, options: list[str]) -> None:
    with (tmp_path / "hole.bin").open("wb") as file:
        file.truncate(10_000_000)
        file.write(b"x")
    command = ["tar", "--sparse", *options, "-cf", "-", "hole.bin"]
    archive = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    assert "is a sparse file, whose bytes do not lie side by side; write the archive without --sparse" in refusal(
        archive
    )


# Damage


ARCHIVE = write(["a.jpg", "b.jpg"], "ustar", data=b"x" * 700)
"""Headers at 0 and 1,536; data at 512 and 2,048; zeros from 3,072."""


def test_the_archive_is_as_the_tests_below_think() -> None:
    assert members(ARCHIVE) == [("a.jpg", 512, 700, FILE), ("b.jpg", 2048, 700, FILE)]
    assert members(ARCHIVE[: 3072 + 1024]) == members(ARCHIVE)


@pytest.mark.parametrize("length", range(1536, 3072 + 1024, 128))
def test_a_cut_anywhere_is_an_error(length: int) -> None:
    text = refusal(ARCHIVE[:length])
    assert text.startswith(f"x.tar: ends at byte {length:,}")
    assert "cut off" in text


def test_a_cut_inside_a_member_names_it() -> None:
    assert "ends at byte 600, inside the member 'a.jpg' that begins at byte 0" in refusal(ARCHIVE[:600])


@pytest.mark.parametrize("position", [1536, 1536 + 124, 1536 + 148, 1536 + 400])
def test_a_damaged_header_is_an_error(position: int) -> None:
    damaged = bytearray(ARCHIVE)
    damaged[position] ^= 1
    assert "x.tar: damaged at byte 1,536: expected the header of a member" in refusal(bytes(damaged))


def test_a_lone_block_of_zeros_is_no_end() -> None:
    assert "ends at byte 3,584 without the two blocks" in refusal(ARCHIVE[: 3072 + 512])
    text = refusal(ARCHIVE[:1536] + bytes(512) + ARCHIVE[1536:])
    assert "ends as an archive at byte 1,536, but more follows" in text


def test_archives_that_were_joined_are_refused() -> None:
    assert "ends as an archive at byte 3,072, but more follows" in refusal(ARCHIVE + ARCHIVE)


def test_an_unknown_kind_of_member() -> None:
    header = bytearray(ARCHIVE[:512])
    header[156:157] = b"@"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert "damaged at byte 0: a member of the unknown kind b'@'" in refusal(bytes(header) + ARCHIVE[512:])


def extended(data: bytes, kind: bytes = b"x", size: int | None = None) -> bytes:
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, len(data) if size is None else size
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512) + ARCHIVE


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"nonsense", "no list of 'length key=value'"),
        (b"99 path=x\n", "no list of 'length key=value'"),
        (b"0 path=x\n", "no list of 'length key=value'"),
        (b"9 path=x\x01\n", "no list of 'length key=value'"),
        (b"11 size=-1\n", "is no number"),
    ],
)
def test_a_damaged_extended_header(data: bytes, problem: str) -> None:
    assert problem in refusal(extended(data))


def test_an_extended_header_for_all_members() -> None:
    found = members(extended(b"12 path=abc\n", b"g"))
    assert [member.name for member in found] == ["abc", "abc"]
    found = members(extended(b"12 path=abc\n", b"x"))
    assert [member.name for member in found] == ["abc", "b.jpg"]


def test_a_huge_extended_header_is_not_read() -> None:
    assert "an extended header of 1,073,741,824 bytes" in refusal(extended(b"", size=2**30))


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff" + b"x" * 1000, b"x" * 512])
def test_no_tar_at_all(content: bytes) -> None:
    assert refusal(content) == "x.tar: not a tar archive (no header at byte 0)"


@pytest.mark.parametrize(
    ("compress", "name"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")]
)
def test_compressed_archives(compress: object, name: str) -> None:
    assert callable(compress)
    assert f"x.tar: compressed with {name}; expected a plain tar" in refusal(compress(ARCHIVE))


@given(st.binary(max_size=3000))
def test_garbage_is_never_a_traceback(garbage: bytes) -> None:
    with pytest.raises(UserError):
        members(garbage + b"\1")


@given(st.integers(0, len(ARCHIVE) - 1), st.binary(min_size=1, max_size=40))
def test_damage_is_never_a_traceback(position: int, damage: bytes) -> None:
    archive = extended(b"12 path=abc\n")
    try:
        members(archive[:position] + damage + archive[position + len(damage) :])
    except UserError as error:
        assert "x.tar: " in str(error)


def test_an_empty_archive_has_no_members() -> None:
    assert members(write([], "ustar")) == []
