"""Is one shard what the manifest says, and its index what the tar says? Knows nothing of the other shards."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from shard_tools.errors import UserError
from shard_tools.grouping import key_and_extension
from shard_tools.index import IndexedSample, parse_index
from shard_tools.manifest import Component, Shard
from shard_tools.metadata import EXTENSION, background_key, parse_metadata, source_files
from shard_tools.pixels import decode_gray, decode_rgb
from shard_tools.samples import read_members
from shard_tools.storage import Storage
from shard_tools.tar_scan import TarMember, scan

COLOURED = ("bg", "fgbg")
NO_FILE = "no such file, but the manifest lists it; copy it again"
OTHER_HASH = "its SHA-256 is not the one in the manifest: it was changed or damaged; copy it again"

Size = tuple[int, int]
"""Width and height in pixels."""


class Finding(NamedTuple):
    """Something wrong: the file that it is in, the key of the sample where it is one, and what it is."""

    shard: str
    key: str | None
    problem: str

    def __str__(self) -> str:
        return ": ".join(part for part in self if part)


class SharedBackground(NamedTuple):
    """A background that lies in another shard, and the size of the images that use it; None if nothing was decoded."""

    key: str
    size: Size | None


@dataclass(frozen=True, slots=True)
class CheckTask:
    """One shard of a split to look at, each of whose samples should have `components` and a json.

    `holds_backgrounds` says that these are the backgrounds of the split, `uses_backgrounds` that each json names one.
    Of `adopted` shards nothing is known but the components: no json is looked at, and sizes may differ in a sample.
    """

    storage: Storage
    split: str
    shard: Shard
    components: tuple[Component, ...]
    holds_backgrounds: bool
    uses_backgrounds: bool
    adopted: bool
    decode: bool


@dataclass
class CheckedShard:
    """What was found in one shard.

    `keys` are the hashes of its samples' keys, 8 bytes each. `backgrounds` has the size of each background that it
    holds, None if it was not decoded; `uses` the first sample that uses each background of another shard.
    """

    task: CheckTask
    findings: list[Finding] = field(default_factory=list)
    keys: bytes = b""
    backgrounds: dict[str, Size | None] = field(default_factory=dict)
    uses: dict[SharedBackground, str] = field(default_factory=dict)


def hash_key(key: str) -> bytes:
    """8 bytes; two keys that differ have the same ones with a chance of 1 in 2**64."""
    return hashlib.blake2b(key.encode(), digest_size=8).digest()


def check_shard(task: CheckTask) -> CheckedShard:
    """Look at one shard and its index. Whatever is wrong becomes a finding, also that they cannot be read."""
    shard, storage = task.shard, task.storage
    checked = CheckedShard(task)
    samples, problem = read_raw_index(storage, shard)
    if problem:
        checked.findings.append(Finding(shard.index, None, problem))
    checked.keys = b"".join(hash_key(sample.key) for sample in samples)
    try:
        with storage.reading(shard.file) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            problem = _bytes_problem(file.tell(), digest, shard)
            if problem:
                checked.findings.append(Finding(shard.file, None, problem))
            for sample in _samples_in_tar(file, samples, checked):
                _SampleCheck(checked, sample).run(file)
    except FileNotFoundError:
        checked.findings.append(Finding(shard.file, None, NO_FILE))
    except OSError as error:
        checked.findings.append(Finding(shard.file, None, f"cannot be read: {error.strerror}"))
    except UserError as error:
        checked.findings.append(Finding(shard.file, None, str(error)))
    return checked


def read_raw_index(storage: Storage, shard: Shard) -> tuple[list[IndexedSample], str | None]:
    """The samples that an index lists, and what is wrong with it; no samples if it cannot be read at all."""
    try:
        data = storage.read(shard.index)
        samples = parse_index(data.decode(), shard.index)
    except FileNotFoundError:
        return [], NO_FILE
    except OSError as error:
        return [], f"cannot be read: {error.strerror}"
    except (UserError, UnicodeDecodeError) as error:
        return [], str(error).removeprefix(f"{shard.index}: ")
    problem = None
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        problem = OTHER_HASH
    elif len(samples) != shard.samples:
        problem = f"lists {len(samples):,} samples, but the manifest says {shard.samples:,}"
    return samples, problem


def _bytes_problem(size: int, digest: str, shard: Shard) -> str | None:
    if size != shard.bytes:
        return f"{size:,} bytes, but the manifest says {shard.bytes:,}: it was cut off or replaced; copy it again"
    return OTHER_HASH if digest != shard.sha256 else None


def _samples_in_tar(file: BinaryIO, samples: Sequence[IndexedSample], checked: CheckedShard) -> Iterator[IndexedSample]:
    """The samples whose members all lie where the index says; all that tar and index disagree on is noted."""
    name, findings = checked.task.shard.file, checked.findings
    expected = {
        (f"{sample.key}.{member.extension}", member.offset, member.size): number
        for number, sample in enumerate(samples)
        for member in sample.members
    }
    unexpected: list[TarMember] = []
    whole = True
    try:
        unexpected += (
            member
            for member in scan(file, name)
            if expected.pop(member[:3], None) is None and (key_and_extension(member) or not checked.task.adopted)
        )
    except UserError as error:
        findings.append(Finding(name, None, str(error).removeprefix(f"{name}: ")))
        whole = False
    lost = set(expected.values())
    if whole and samples:
        findings += _disagreements(expected, unexpected, samples, name)
    elif lost:
        findings.append(
            Finding(name, samples[min(lost)].key, f"not whole in the tar, nor are {len(lost) - 1:,} others after it")
        )
    for number, sample in enumerate(samples):
        if number not in lost:
            yield sample


def _disagreements(
    missing: dict[tuple[str, int, int], int],
    unexpected: Sequence[TarMember],
    samples: Sequence[IndexedSample],
    name: str,
) -> Iterator[Finding]:
    """In words what the index says and the tar does not, and the other way round."""
    by_name = {member.name: member for member in unexpected}
    by_offset = {member.offset: member for member in unexpected}
    explained = set()
    for (member_name, offset, size), number in missing.items():
        moved, other = by_name.get(member_name), by_offset.get(offset)
        if moved:
            text = f"at byte {moved.offset:,} with {moved.size:,} bytes, but the index says {offset:,} with {size:,}"
        elif other:
            text = f"the tar has {other.name!r} in its place"
        else:
            text = "in the index, but not in the tar"
        explained |= {moved, other}
        yield Finding(name, samples[number].key, f"{member_name}: {text}")
    for member in unexpected:
        if member not in explained:
            yield Finding(name, None, f"{member.name!r} at byte {member.offset:,} is in the tar, but not in the index")


@dataclass
class _SampleCheck:
    """Looks at what is in one sample."""

    checked: CheckedShard
    sample: IndexedSample

    def run(self, file: BinaryIO) -> None:
        """Read and check it; `file` is the tar."""
        task = self.checked.task
        names = [component.member_extension for component in task.components]
        expected = names if task.adopted else [*names, EXTENSION]
        members = [member.extension for member in self.sample.members]
        for name in expected:
            if (count := members.count(name)) != 1:
                self._note(f"{name}: expected once in each sample, found {count} times")
                return
        data = self._read(file, expected if task.decode else expected[len(names) :])
        size = self._decode(data, names) if task.decode else None
        if task.holds_backgrounds:
            self.checked.backgrounds[self.sample.key] = size
        if not task.adopted:
            self._check_metadata(data[EXTENSION], size)

    def _read(self, file: BinaryIO, names: Sequence[str]) -> dict[str, bytes]:
        members = tuple(member for member in self.sample.members if member.extension in names)
        chosen = self.sample._replace(members=members)
        return read_members(file, chosen, self.checked.task.shard.file) if members else {}

    def _check_metadata(self, data: bytes, size: Size | None) -> None:
        try:
            metadata = parse_metadata(data)
            source_files(metadata)
            if self.checked.task.uses_backgrounds:
                use = SharedBackground(background_key(metadata), size)
                self.checked.uses.setdefault(use, self.sample.key)
        except ValueError as error:
            self._note(str(error))

    def _decode(self, data: dict[str, bytes], names: Sequence[str]) -> Size | None:
        """Decode all images; returns the size of the first that can be decoded."""
        first: tuple[str, Size] | None = None
        for component, name in zip(self.checked.task.components, names, strict=True):
            try:
                pixels = (decode_rgb if component.name in COLOURED else decode_gray)(data[name])
            except ValueError as error:
                self._note(f"{name}: cannot be decoded: {error}")
                continue
            size = pixels.shape[1], pixels.shape[0]
            if component.size and size != component.size:
                self._note(f"{name}: {_text(size)} pixels, but the manifest says {_text(component.size)}")
            elif first and size != first[1] and not self.checked.task.adopted:
                self._note(f"{name}: {_text(size)} pixels, but its {first[0]} has {_text(first[1])}")
            first = first or (name, size)
        return first[1] if first else None

    def _note(self, problem: str) -> None:
        self.checked.findings.append(Finding(self.checked.task.shard.file, self.sample.key, problem))


def _text(size: Size) -> str:
    return f"{size[0]}×{size[1]}"
