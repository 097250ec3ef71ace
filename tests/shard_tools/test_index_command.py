"""`shard-tools index` writes what NVIDIA's wds2idx writes, beside anybody's tars."""

import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from shard_tools.errors import UserError
from shard_tools.index import IndexedSample, Member, format_index, parse_index
from shard_tools.index_command import write_indexes
from shard_tools.tar import TarWriter

DATA = Path(__file__).parent / "data"
GOLDEN = ["shard_tools", "webdataset", "gnu_tar"]


def index(*shards: Path | str, force: bool = False, workers: int = 1) -> str:
    return write_indexes([str(shard) for shard in shards], force=force, workers=workers)


def refusal(*shards: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        index(*shards)
    return str(caught.value)


def write_tar(path: Path, names: list[str], *, format_number: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format_number) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name.encode())
            tar.addfile(info, io.BytesIO(name.encode()))
    return path


@pytest.mark.parametrize("name", GOLDEN)
def test_same_bytes_as_wds2idx(tmp_path: Path, name: str) -> None:
    shutil.copy(DATA / f"{name}.tar", tmp_path)
    assert "indexes: 1 written, 0 already there" in index(tmp_path / f"{name}.tar")
    assert (tmp_path / f"{name}.idx").read_bytes() == (DATA / f"{name}.idx").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.idx", f"{name}.tar"]


@pytest.mark.parametrize("backgrounds", ["sample", "shared"])
def test_same_bytes_as_build_writes(
    make_tree: Callable[..., Path],
    shard_tools: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    backgrounds: str,
) -> None:
    shards = tmp_path / "shards"
    built = shard_tools("build", make_tree(), shards, "--shard-size", 7, "--backgrounds", backgrounds)
    assert built.returncode == 0, built.stderr
    written = {path.name: path.read_bytes() for path in shards.glob("*.idx")}
    assert len(written) > 4
    assert f"indexes: 0 written, {len(written)} already there" in index(shards)
    for name in written:
        (shards / name).unlink()
    index(shards, workers=2)
    assert {path.name: path.read_bytes() for path in shards.glob("*.idx")} == written


def test_the_packer_writes_what_wds2idx_writes() -> None:
    """The tar and the index of `build` come from these two, here over the members of the golden tar."""
    with tarfile.open(DATA / "shard_tools.tar") as golden:
        members = [(member.name, golden.extractfile(member).read()) for member in golden]  # type: ignore[union-attr]
    file = io.BytesIO()
    tar = TarWriter(file)
    samples: dict[str, list[Member]] = {}
    for name, data in members:
        key, _, extension = name.partition(".")
        samples.setdefault(key, []).extend(Member(*place) for place in tar.add_sample(key, [(extension, data)]))
    tar.finish()
    assert file.getvalue() == (DATA / "shard_tools.tar").read_bytes()
    text = format_index([IndexedSample(key, tuple(found)) for key, found in samples.items()])
    assert text == (DATA / "shard_tools.idx").read_text()


def test_offsets_behind_long_names_are_those_of_the_data(tmp_path: Path) -> None:
    """Where wds2idx gives those of the name."""
    key = "k" * 150
    path = write_tar(tmp_path / "a.tar", ["a.jpg", f"{key}.jpg", f"{key}.json"])
    index(path)
    archive = path.read_bytes()
    samples = parse_index((tmp_path / "a.idx").read_text(), "a.idx")
    assert [sample.key for sample in samples] == ["a", key]
    for sample in samples:
        for member in sample.members:
            name = f"{sample.key}.{member.extension}"
            assert archive[member.offset : member.offset + member.size].decode() == name


def test_only_neighbours_with_one_key_are_a_sample(tmp_path: Path) -> None:
    text = index(write_tar(tmp_path / "a.tar", ["x/a.1.jpg", "x/a.json", "y/a.jpg", "x/a.txt", "b.jpg"]))
    samples = parse_index((tmp_path / "a.idx").read_text(), "a.idx")
    assert [(sample.key, [member.extension for member in sample.members]) for sample in samples] == [
        ("x/a", ["1.jpg", "json"]),
        ("y/a", ["jpg"]),
        ("x/a", ["txt"]),
        ("b", ["jpg"]),
    ]
    assert "a.tar: samples in pieces, with others in between: 1 (x/a); write the tar anew" in text


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    text = index(write_tar(tmp_path / "a.tar", ["a.jpg", "README", ".hidden", "x/._a.jpg", "a.json", "b."]))
    assert "not in its index: 2 × file without an extension (README), 2 × hidden file (.hidden)" in text
    samples = parse_index((tmp_path / "a.idx").read_text(), "a.idx")
    assert [(sample.key, len(sample.members)) for sample in samples] == [("a", 2)]


def test_folders_are_not_worth_a_word(tmp_path: Path) -> None:
    shutil.copy(DATA / "gnu_tar.tar", tmp_path)
    text = index(tmp_path).partition("\nnote: ")[0]
    assert text.endswith("not in its index: 1 × hidden file (photos/._a.bg.jpg), 1 × symbolic link (photos/c.json)")


def test_an_index_that_is_there(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", ["a.jpg"])
    index(path)
    right = (tmp_path / "a.idx").read_bytes()
    written = (tmp_path / "a.idx").stat()
    assert "indexes: 0 written, 1 already there; they list 1 samples" in index(path)
    assert (tmp_path / "a.idx").stat() == written
    (tmp_path / "a.idx").write_text("v1.1 1\njpg 512 5\n")
    text = refusal(path)
    assert f"{tmp_path / 'a.idx'}: is there and says something else; replace it with --force" in text
    assert (tmp_path / "a.idx").read_text() == "v1.1 1\njpg 512 5\n"
    assert "indexes: 1 written" in index(path, force=True)
    assert (tmp_path / "a.idx").read_bytes() == right


def test_a_folder_means_its_tars(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, ["a.jpg"])
    (tmp_path / "notes.txt").write_text("")
    text = index(tmp_path, tmp_path / "a.tar")
    assert text.splitlines()[0] == "indexes: 2 written, 0 already there; they list 2 samples"
    assert sorted(path.name for path in tmp_path.glob("*.idx")) == ["a.idx", "b.idx"]


def test_a_bad_tar_does_not_stop_the_others(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d", "e"):
        write_tar(tmp_path / f"{name}.tar", ["a.jpg"])
    (tmp_path / "a.tar").write_bytes(b"no tar")
    write_tar(tmp_path / "b.tar", ["with space.jpg"])
    write_tar(tmp_path / "c.tar", [".hidden"])
    with (tmp_path / "d.tar").open("r+b") as file:
        file.truncate(1024)
    text = refusal(tmp_path)
    assert text.splitlines() == [
        "4 of 5 shards cannot be indexed:",
        f"  {tmp_path}/a.tar: not a tar archive (no header at byte 0)",
        f"  {tmp_path}/b.tar: the name 'with space.jpg' has white space, which an index cannot hold; rename it",
        f"  {tmp_path}/c.tar: holds no samples; expected files named KEY.EXTENSION",
        f"  {tmp_path}/d.tar: ends at byte 1,024 without the two blocks of zeros that end an archive; it was cut off, "
        "or its writer was never closed: copy it again, or write it again",
        "indexes: 1 written, 0 already there; they list 1 samples",
    ]
    assert [path.name for path in tmp_path.glob("*.idx")] == ["e.idx"]


@pytest.mark.parametrize("space", [" ", "\n", "\t", "\x1c", "\x85", "\u2028", "\u00a0"])
def test_no_white_space_gets_into_an_index(tmp_path: Path, space: str) -> None:
    path = write_tar(tmp_path / "a.tar", [f"a{space}b.jpg"], format_number=tarfile.PAX_FORMAT)
    assert "has white space" in refusal(path)


def test_names_of_other_encodings_keep_their_bytes(tmp_path: Path) -> None:
    index(write_tar(tmp_path / "a.tar", ["grün.jpg"]))
    assert "grün.jpg".encode() in (tmp_path / "a.idx").read_bytes()
    data = (tmp_path / "a.tar").read_bytes()
    old, new = "grün".encode(), "grü".encode("latin-1") + b"nn"
    header = bytearray(data[:512].replace(old, new))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + data[512:])
    index(tmp_path, force=True)
    assert new in (tmp_path / "a.idx").read_bytes()


def test_wrong_arguments(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "a.tar")
    assert "holds no *.tar" in refusal(tmp_path)
    assert "runs a command and is refused" in refusal("pipe://cat a.tar")


def test_an_index_that_cannot_be_written(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", ["a.jpg"])
    (tmp_path / "a.idx").mkdir()
    assert f"{tmp_path / 'a.idx'}: Is a directory" in refusal(path)


def test_a_remote_place() -> None:
    fs = fsspec.filesystem("memory")
    for name in ("shard_tools", "webdataset"):
        fs.pipe(f"/index/{name}.tar", (DATA / f"{name}.tar").read_bytes())
    assert "indexes: 1 written" in index("memory://index/webdataset.tar")
    assert "indexes: 1 written, 1 already there" in index("memory://index/")
    for name in ("shard_tools", "webdataset"):
        assert fs.cat(f"/index/{name}.idx") == (DATA / f"{name}.idx").read_bytes()
    assert "holds no *.tar" in refusal("memory://index/none")
    assert "memory://index/none.tar: no such object" in refusal("memory://index/none.tar")
