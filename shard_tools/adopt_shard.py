"""What one tar holds that is to be adopted: its hash, its keys, and what its images are. Decodes no pixels of JPEGs."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BufferedReader

from shard_tools.check_shard import hash_key
from shard_tools.checks import ORIENTATIONS, Flaw, ImageInfo, JpegHeaders, inspect_image
from shard_tools.component_names import ComponentMember
from shard_tools.components import GRAY_COMPONENTS
from shard_tools.grouping import Grouping
from shard_tools.index import IndexedSample
from shard_tools.manifest import Shard
from shard_tools.pixels import GRAY_EXPECTED
from shard_tools.records import ComponentSeen, summarize_images
from shard_tools.samples import read_members

MAX_KEPT = 20


@dataclass
class Remarks:
    """Things to say of samples: how many there are, and the first MAX_KEPT of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """One more."""
        self.count += 1
        if len(self.first) < MAX_KEPT:
            self.first.append(text)


@dataclass(frozen=True, slots=True)
class SeenTar:
    """What one tar holds.

    `keys` are the hashes of its samples' keys, 8 bytes each. `incomplete` are the samples that lack a component, or
    have it twice. `components` sum up the images of the others, but for those that cannot be read; these, and any
    others with something wrong, are the `flawed` of their component.
    """

    shard: Shard
    keys: bytes
    incomplete: Remarks
    components: dict[str, ComponentSeen]
    flawed: dict[str, Remarks]


def look_at_tar(
    file: BufferedReader, name: str, grouping: Grouping, index: tuple[str, bytes], members: Sequence[ComponentMember]
) -> SeenTar:
    """Read all of a tar, whose file is called `name`; `index` is the name of its index, and what is in that.

    Raises ValueError where names are no text, or a key comes again in this tar.
    """
    _check_keys(grouping)
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    shard = Shard(
        file=name,
        samples=len(grouping.samples),
        bytes=file.tell(),
        sha256=digest,
        index=index[0],
        index_sha256=hashlib.sha256(index[1]).hexdigest(),
    )
    incomplete, flawed = Remarks(), {item.component: Remarks() for item in members}
    looks = {item: _inspector(item) for item in members}
    infos: dict[str, list[ImageInfo]] = {item.component: [] for item in members}
    keys: dict[str, list[str]] = {item.component: [] for item in members}
    for sample in _complete(grouping.samples, members, name, incomplete):
        data = read_members(file, sample, name)
        for item, look in looks.items():
            found = look(data[item.member])
            where = f"{name}: {sample.key}.{item.member}"
            if isinstance(found, Flaw):
                flawed[item.component].add(f"{where}: {found.text}")
                continue
            if found.orientation != 1:
                turned = ORIENTATIONS[found.orientation]
                flawed[item.component].add(f"{where}: {turned} by its EXIF orientation, which training does not honour")
            infos[item.component].append(found)
            keys[item.component].append(sample.key)
    return SeenTar(
        shard=shard,
        keys=b"".join(hash_key(sample.key) for sample in grouping.samples),
        incomplete=incomplete,
        components={part: summarize_images(found, keys[part]) for part, found in infos.items() if found},
        flawed=flawed,
    )


def _check_keys(grouping: Grouping) -> None:
    for sample in grouping.samples:
        for member in sample.members:
            name = f"{sample.key}.{member.extension}"
            if name.encode(errors="ignore").decode() != name:
                raise ValueError(f"the name {name!r} is no UTF-8, which readers of its index need; rename it")
    if grouping.returning:
        raise ValueError(
            f"{len(grouping.returning):,} keys come again after other samples, the first {grouping.returning[0]!r}; a "
            "key is one sample of a tar: write the tar anew, with its files sorted by name, or with other keys"
        )


def _complete(
    samples: Sequence[IndexedSample], members: Sequence[ComponentMember], name: str, incomplete: Remarks
) -> Iterator[IndexedSample]:
    """The samples that have each component once, with these members alone; all others are noted."""
    wanted = [item.member for item in members]
    for sample in samples:
        there = [member.extension for member in sample.members]
        wrong = [member for member in wanted if there.count(member) != 1]
        if wrong:
            counts = ", ".join(f"{there.count(member) or 'no'} {member}" for member in wrong)
            incomplete.add(f"{name}: {sample.key}: {counts}; it has {', '.join(there)}")
        else:
            yield sample._replace(members=tuple(member for member in sample.members if member.extension in wanted))


def _inspector(item: ComponentMember) -> Callable[[bytes], ImageInfo | Flaw]:
    look = JpegHeaders().inspect if item.extension == "jpg" else partial(inspect_image, extension=item.extension)
    if item.component not in GRAY_COMPONENTS:
        return look

    def look_at_gray(data: bytes) -> ImageInfo | Flaw:
        found = look(data)
        if isinstance(found, ImageInfo) and found.mode == "F":
            return Flaw("other format", f"has pixels of floating point, which grey cannot hold; {GRAY_EXPECTED}")
        return found

    return look_at_gray
