"""`shard-tools verify`: is a finished data set whole? Looks at all of its shards together, and changes nothing."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shard_tools.atomic import write_atomically
from shard_tools.check_shard import (
    CheckedShard,
    CheckTask,
    Finding,
    SharedBackground,
    Size,
    check_shard,
    hash_key,
    read_raw_index,
)
from shard_tools.components import BACKGROUND
from shard_tools.errors import UserError
from shard_tools.manifest import MANIFEST_NAME, Manifest, Shard, Split, open_shards
from shard_tools.progress import progress
from shard_tools.storage import Storage
from shard_tools.verify_report import Report
from shard_tools.workers import run_tasks

SHARD_SUFFIXES = (".tar", ".idx", ".partial")


def verify(location: str, *, decode: bool, workers: int, json_file: Path | None) -> str:
    """Check all that a manifest promises, given its path or URL or that of its folder; returns a summary to print.

    With `decode` every image is decoded. `json_file` gets the whole report, whatever comes of it. Raises UserError that
    lists the findings when something is wrong.
    """
    storage, manifest = open_shards(location)
    if json_file is not None:
        _check_writable(json_file)
    gathered = _check_shards(storage, manifest, decode=decode, workers=workers)
    report = Report(
        location=storage.location,
        manifest=manifest,
        decoded=decode,
        findings=[*_wrong_counts(manifest), *gathered.findings(storage)],
        warnings=_strays(storage, manifest),
    )
    if json_file is not None:
        _write(json_file, report.as_json())
    if report.findings:
        raise UserError(report.failure(json_file))
    return report.success()


def _check_shards(storage: Storage, manifest: Manifest, *, decode: bool, workers: int) -> "_Gathered":
    tasks = list(_tasks(storage, manifest, decode=decode))
    gathered = _Gathered(manifest)
    seen_bytes = 0
    began = time.monotonic()
    with progress("verifying", total=sum(task.shard.samples for task in tasks), unit="samples") as shown:
        for checked in run_tasks(check_shard, tasks, workers):
            gathered.add(checked)
            seen_bytes += checked.task.shard.bytes
            shown.show({"MB/s": f"{seen_bytes / 1e6 / max(time.monotonic() - began, 1e-9):.0f}"})
            shown.advance(checked.task.shard.samples)
    return gathered


def _tasks(storage: Storage, manifest: Manifest, *, decode: bool) -> Iterator[CheckTask]:
    backgrounds = tuple(component for component in manifest.components if component.name == BACKGROUND)
    others = tuple(component for component in manifest.components if component.name != BACKGROUND)
    for name, split in manifest.splits.items():
        shared = bool(split.backgrounds)
        for shard in split.shards:
            components = others if shared else manifest.components
            yield CheckTask(storage, name, shard, components, False, shared, manifest.adopted, decode)
        for shard in split.backgrounds:
            yield CheckTask(storage, name, shard, backgrounds, True, False, manifest.adopted, decode)


@dataclass
class _Gathered:
    """What was found in all shards: eight bytes a sample, and one entry for each shared background."""

    manifest: Manifest
    in_shards: dict[str, list[Finding]] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    backgrounds: dict[str, dict[str, Size | None]] = field(default_factory=dict)
    uses: dict[str, dict[SharedBackground, tuple[str, str]]] = field(default_factory=dict)

    def add(self, checked: CheckedShard) -> None:
        """Keep what is needed of one shard; they come in any order."""
        split, file = checked.task.split, checked.task.shard.file
        self.in_shards[file] = checked.findings
        self.keys[file] = checked.keys
        self.backgrounds.setdefault(split, {}).update(checked.backgrounds)
        uses = self.uses.setdefault(split, {})
        for use, key in checked.uses.items():
            uses[use] = min(uses.get(use, (file, key)), (file, key))

    def findings(self, storage: Storage) -> Iterator[Finding]:
        """All that is wrong, shard by shard in the order of the manifest, then what shards disagree on."""
        for split in self.manifest.splits.values():
            for shard in split.files:
                yield from self.in_shards[shard.file]
        tuples = [shard for split in self.manifest.splits.values() for shard in split.shards]
        for together in [[shard] for shard in tuples] if self.manifest.adopted else [tuples]:
            yield from repeated_keys(storage, together, self.keys)
        for name, split in self.manifest.splits.items():
            yield from repeated_keys(storage, split.backgrounds, self.keys)
            yield from self._wrong_uses(name, split)

    def _wrong_uses(self, name: str, split: Split) -> Iterator[Finding]:
        """Backgrounds that are used but not there, or there in another size."""
        there = self.backgrounds.get(name, {})
        complete = len(there) == sum(shard.samples for shard in split.backgrounds)
        for use, (file, key) in sorted(self.uses.get(name, {}).items(), key=lambda item: item[1]):
            size = there.get(use.key)
            if use.key not in there:
                if complete:
                    yield Finding(file, key, f"its background {use.key!r} is in none of the shards of backgrounds")
            elif size and use.size and size != use.size:
                sizes = f"{size[0]}×{size[1]} pixels, the images on it have {use.size[0]}×{use.size[1]}"
                yield Finding(file, key, f"its background {use.key!r} has {sizes}")


def _wrong_counts(manifest: Manifest) -> Iterator[Finding]:
    total = sum(split.samples for split in manifest.splits.values())
    if total != manifest.counts.packed:
        text = f"says {manifest.counts.packed:,} tuples were packed, but its splits have {total:,}"
        yield Finding(MANIFEST_NAME, None, text)


def repeated_keys(storage: Storage, shards: Sequence[Shard], keys: dict[str, bytes]) -> Iterator[Finding]:
    """Keys that come twice in `shards`; the names are read only where the hashes of two keys are equal.

    `keys` has the hashes of the keys of each shard by its file, 8 bytes each.
    """
    hashes = np.sort(np.frombuffer(b"".join(keys[shard.file] for shard in shards), np.uint64))
    repeated = hashes[1:][hashes[1:] == hashes[:-1]]
    if not repeated.size:
        return
    wanted = {value.tobytes() for value in repeated}
    first: dict[str, Shard] = {}
    for shard in shards:
        if not np.isin(np.frombuffer(keys[shard.file], np.uint64), repeated).any():
            continue
        for sample in read_raw_index(storage, shard)[0]:
            if hash_key(sample.key) not in wanted:
                continue
            if other := first.get(sample.key):
                where = "comes twice in this shard" if other is shard else f"is also in {other.file}"
                yield Finding(shard.file, sample.key, f"{where}; keys must be unique")
            first.setdefault(sample.key, shard)


def _strays(storage: Storage, manifest: Manifest) -> list[str]:
    """Files in the folder that look like shards, and of which the manifest knows nothing."""
    try:
        names = storage.names()
    except (UserError, OSError) as error:
        return [f"the files in {storage.location} cannot be listed: {error}"]
    listed = {name for split in manifest.splits.values() for shard in split.files for name in (shard.file, shard.index)}
    strays = sorted(name for name in names - listed if name.endswith(SHARD_SUFFIXES))
    return [f"{name}: not in {MANIFEST_NAME}; no reader will use it" for name in strays]


def _check_writable(path: Path) -> None:
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK) or path.is_dir():
        raise UserError(f"--json {path}: expected the name of a file in a folder that you may write to")


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written: {error.strerror}") from None
