"""`shard-tools index --split`: shards.json for tars of any origin, which then train as they are. Never changes a tar.

A sample is known by shard and key. Writers that begin to count anew in each shard are common, and the order of training
is one of places, so the same key in two shards is only said. The same tar under two names is refused: each of its
samples would count twice.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from shard_tools.adopt_shard import SeenTar
from shard_tools.component_names import ComponentMember, check_given, recognise
from shard_tools.errors import UserError
from shard_tools.grouping import group_members
from shard_tools.index import IndexedSample
from shard_tools.index_command import FoundTars, find_tars, listed, run_index, summary
from shard_tools.index_shard import IndexTask, read_if_there
from shard_tools.manifest import MANIFEST_NAME, Component, Counts, Manifest, Split, is_plain_file_name
from shard_tools.records import STATE, merge_components, notes_on_images
from shard_tools.shard_patterns import assign, examples
from shard_tools.storage import Storage
from shard_tools.tar_scan import scan

Splits = Mapping[str, Sequence[SeenTar]]
"""The tars of each split, in their order."""


def adopt(
    shards: Sequence[str], patterns: Mapping[str, Sequence[str]], given: Mapping[str, str], *, force: bool, workers: int
) -> str:
    """Index the tars of all splits, then write shards.json beside them; returns a summary to print.

    `shards` are as for `write_indexes`, all in one folder; `patterns` are of file names, by split; `given` are members
    by component ("input.jpg" of "fgbg"), which are else NAME.SUFFIX. What is there and says the same is left alone;
    what differs is replaced only with `force`. Raises UserError for patterns that do not fit the tars, samples that
    lack a component, and tars that cannot be indexed.
    """
    check_given(given)
    found = find_tars(shards)
    storage = _one_place(found)
    names = _assign(found, patterns)
    chosen = [name for of_split in names.values() for name in of_split]
    arguments = {
        "command": "index",
        "split": {split: list(of_split) for split, of_split in patterns.items()},
        "component": dict(given) or None,
    }
    if not force:
        _refuse_other(storage, arguments)
    members = recognise(_first_sample(storage, chosen[0]), given, storage.path(chosen[0]))
    indexed = run_index([IndexTask(storage, name, force, members) for name in chosen], workers)
    seen = {tar.seen.shard.file: tar.seen for tar in indexed if tar.seen}
    splits = {split: [seen[name] for name in of_split] for split, of_split in names.items()}
    _check_complete(splits, members)
    _check_no_copies(splits)
    components, notes = _components(splits, members)
    manifest = _manifest(splits, components, arguments)
    written = _write(storage, manifest, force=force)
    unused = sorted({name for _, name in found.tars} - set(chosen))
    notes += [f"{len(unused):,} tars are in no split, and left alone: {examples(unused)}"] if unused else []
    lines = summary(indexed, [*notes, *_repeated_keys(splits), *found.notes()])
    return "\n".join([_said(storage, manifest, written=written), *lines])


def _one_place(found: FoundTars) -> Storage:
    places = {storage.absolute(): storage for storage, _ in found.tars}
    if len(places) > 1:
        raise UserError(
            f"tars in {len(places)} folders ({', '.join(place.location for place in places.values())}); "
            f"{MANIFEST_NAME} lies in one folder with all of its tars: move or link them into one"
        )
    return next(iter(places.values()))


def _assign(found: FoundTars, patterns: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    try:
        names = assign([name for _, name in found.tars], patterns)
    except UserError as error:
        raise UserError("; ".join([str(error), *found.notes()])) from None
    odd = [name for of_split in names.values() for name in of_split if not is_plain_file_name(name)]
    if odd:
        raise UserError(
            f"{len(odd):,} tars have names with other characters than letters, digits, '_', '-' and '.' "
            f"({examples(odd)}); rename them"
        )
    return names


def _refuse_other(storage: Storage, arguments: Mapping[str, Any]) -> None:
    """Raise UserError where a shards.json of other arguments, or an unfinished build, is there. Reads no tar."""
    path = storage.path(MANIFEST_NAME)
    if storage.names(STATE):
        raise UserError(f"{storage.location}: holds a build that is not finished; finish it, or take another folder")
    there = _what_is_there(storage)
    if there is None:
        return
    try:
        manifest = Manifest.model_validate_json(there)
    except ValidationError:
        raise UserError(f"{path}: is there and is no manifest; replace it with --force") from None
    if not manifest.adopted:
        raise UserError(f"{path}: is there, written by `shard-tools build`; replace it with --force")
    if manifest.build != arguments:
        before = ", ".join(f"{name}={value}" for name, value in manifest.build.items() if arguments.get(name) != value)
        raise UserError(f"{path}: is there, of other arguments ({before}); replace it with --force")


def _first_sample(storage: Storage, name: str) -> IndexedSample:
    path = storage.path(name)
    try:
        with storage.reading(name) as file:
            samples = group_members(scan(file, path)).samples
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or 'no such object'}") from None
    if not samples:
        raise UserError(f"{path}: holds no samples; expected files named KEY.EXTENSION")
    return samples[0]


def _check_complete(splits: Splits, members: Sequence[ComponentMember]) -> None:
    incomplete = [tar.incomplete for tar in _all(splits)]
    if count := sum(remarks.count for remarks in incomplete):
        total = sum(tar.shard.samples for tar in _all(splits))
        names = ", ".join(item.member for item in members)
        heading = f"{count:,} of {total:,} samples do not have each of {names} once:"
        lines = listed(heading, [text for remarks in incomplete for text in remarks.first], count)
        way_out = (
            "A component has one name in all samples. Write those shards again, leave them out of the patterns, or "
            f"name other files, as in --component depth=d.png. {MANIFEST_NAME} was not written."
        )
        raise UserError("\n".join([*lines, way_out]))


def _check_no_copies(splits: Splits) -> None:
    first: dict[str, str] = {}
    for tar in _all(splits):
        other = first.setdefault(tar.shard.sha256, tar.shard.file)
        if other != tar.shard.file:
            raise UserError(
                f"{tar.shard.file}: the same bytes as {other}; each of its samples would count twice: leave one out of "
                f"the patterns. {MANIFEST_NAME} was not written."
            )


def _components(splits: Splits, members: Sequence[ComponentMember]) -> tuple[tuple[Component, ...], list[str]]:
    """The components as a manifest has them, and notes on their images. Raises UserError where none can be read."""
    tars = _all(splits)
    merged = merge_components([tar.components for tar in tars], [item.component for item in members])
    notes = notes_on_images(merged)
    for item in members:
        flawed = [tar.flawed[item.component] for tar in tars]
        count, first = sum(remarks.count for remarks in flawed), [text for remarks in flawed for text in remarks.first]
        if item.component not in merged:
            heading = f"none of the {count:,} images of {item.component} can be read:"
            raise UserError("\n".join(listed(heading, first, count)))
        if count:
            notes.append(f"{item.component}: {count:,} images have something wrong, the first: {first[0]}")
    components = (
        Component(
            name=item.component,
            extension=item.extension,
            mode=",".join(merged[item.component].modes),
            size=merged[item.component].size,
            member=item.member,
        )
        for item in members
    )
    return tuple(components), notes


def _manifest(splits: Splits, components: tuple[Component, ...], arguments: dict[str, Any]) -> Manifest:
    contents = {
        name: Split(samples=sum(tar.shard.samples for tar in tars), shards=tuple(tar.shard for tar in tars))
        for name, tars in splits.items()
    }
    total = sum(split.samples for split in contents.values())
    counts = Counts(found=total, packed=total, left_out=0)
    return Manifest(adopted=True, components=components, splits=contents, counts=counts, build=arguments)


def _write(storage: Storage, manifest: Manifest, *, force: bool) -> bool:
    path, text = storage.path(MANIFEST_NAME), manifest.text().encode()
    there = _what_is_there(storage)
    if there == text:
        return False
    if there is not None and not force:
        raise UserError(f"{path}: is there, of other tars than those that lie there now; replace it with --force")
    try:
        storage.settle()
        storage.write(MANIFEST_NAME, text)
        storage.settle()
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return True


def _what_is_there(storage: Storage) -> bytes | None:
    try:
        return read_if_there(storage, MANIFEST_NAME)
    except OSError as error:
        raise UserError(f"{storage.path(MANIFEST_NAME)}: cannot be read: {error.strerror}") from None


def _repeated_keys(splits: Splits) -> list[str]:
    """What to say of keys that several shards of a split have."""
    notes = []
    for name, tars in splits.items():
        keys = np.frombuffer(b"".join(tar.keys for tar in tars), np.uint64)
        if repeated := len(keys) - len(np.unique(keys)):
            notes.append(f"{name}: {repeated:,} keys come again in another shard; shard and key tell the samples apart")
    return notes


def _said(storage: Storage, manifest: Manifest, *, written: bool) -> str:
    what = "written" if written else "was there and says the same"
    splits = ", ".join(
        f"{name} {split.samples:,} samples in {len(split.shards):,} shards" for name, split in manifest.splits.items()
    )
    components = ", ".join(f"{item.name} = KEY.{item.member_extension}" for item in manifest.components)
    return f"{storage.path(MANIFEST_NAME)} {what}: {splits}; {components}"


def _all(splits: Splits) -> list[SeenTar]:
    return [tar for tars in splits.values() for tar in tars]
