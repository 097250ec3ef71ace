"""What came of one shard task, as it is kept until the manifest is written. Never writes a shard."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from shard_tools.checks import ImageInfo, Problem
from shard_tools.components import GRAY_COMPONENTS
from shard_tools.manifest import Shard

STATE = ".build"
"""The folder of a build that is not finished."""

DIGEST_NAME = f"{STATE}/digest"
RECORDS = f"{STATE}/records"

_GRAY_MODES = ("1", "L", "I", "I;16", "I;16B", "unknown")


def record_name(shard: str) -> str:
    """Where the record of a shard lies."""
    return f"{RECORDS}/{shard}.json"


class ModeSeen(BaseModel):
    """How many images of a component have one colour mode, and the key of the first."""

    model_config = ConfigDict(frozen=True)

    images: int
    first: str


class ComponentSeen(BaseModel):
    """The images of one component: their colour modes, and (width, height) where all agree, else null."""

    model_config = ConfigDict(frozen=True)

    modes: dict[str, ModeSeen]
    size: tuple[int, int] | None


class ShardRecord(BaseModel):
    """A finished task: the shard, or none where no tuple was fit to be packed.

    `plan` is the digest of the plan that the task is from, `sources` one of the sizes and times of all files that were
    read, `backgrounds` has one of the content of each background by its key.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    plan: str
    tuples: int = Field(gt=0)
    shard: Shard | None
    components: dict[str, ComponentSeen]
    sources: str
    backgrounds: dict[str, str]
    problems: tuple[Problem, ...]


class Changed(NamedTuple):
    """A background that two shards hold in two versions."""

    background: str
    shards: tuple[str, str]


def summarize_images(infos: Sequence[ImageInfo], keys: Sequence[str]) -> ComponentSeen:
    """One component of a shard, from the headers of its images and the keys of their tuples."""
    counts: dict[ImageInfo, int] = {}
    first: dict[ImageInfo, int] = {}
    place = 0
    for info, run in groupby(infos):
        count = sum(1 for _ in run)
        counts[info] = counts.get(info, 0) + count
        first.setdefault(info, place)
        place += count
    modes: dict[str, ModeSeen] = {}
    for info, count in counts.items():
        seen = ModeSeen(images=count, first=keys[first[info]])
        modes[info.mode] = _add(modes[info.mode], seen) if info.mode in modes else seen
    sizes = {(info.width, info.height) for info in counts}
    size = sizes.pop() if len(sizes) == 1 else None
    return ComponentSeen(modes=modes, size=size if size != (0, 0) else None)


def merge_components(shards: Iterable[Mapping[str, ComponentSeen]], names: Iterable[str]) -> dict[str, ComponentSeen]:
    """What the components look like over several shards; those that no shard has are left out."""
    shards = [shard for shard in shards if shard]
    merged = {}
    for name in names:
        seen = [shard[name] for shard in shards if name in shard]
        if not seen:
            continue
        modes: dict[str, ModeSeen] = {}
        for component in seen:
            for mode, count in component.modes.items():
                modes[mode] = _add(modes[mode], count) if mode in modes else count
        sizes = {component.size for component in seen}
        merged[name] = ComponentSeen(modes=dict(sorted(modes.items())), size=sizes.pop() if len(sizes) == 1 else None)
    return merged


def notes_on_images(seen: Mapping[str, ComponentSeen], hint: str = "") -> list[str]:
    """What a user would want to know of images that are not all of one kind; `hint` follows what is said of colour."""
    notes = []
    for name, component in seen.items():
        modes = dict(component.modes)
        gray = name in GRAY_COMPONENTS
        coloured = {mode: found for mode, found in modes.items() if gray and mode not in _GRAY_MODES}
        for mode, found in coloured.items():
            notes.append(
                f"{name}: {found.images:,} of {sum(m.images for m in modes.values()):,} images are {mode} "
                f"(the first: {found.first}); {name} is read as grey{hint}"
            )
        if len(modes) > 1 and not coloured:
            found_modes = ", ".join(f"{found.images:,} {mode}" for mode, found in modes.items())
            notes.append(f"{name}: images of several modes: {found_modes}")
        if component.size is None and "unknown" not in modes:
            notes.append(f"{name}: images of several sizes; readers scale each to the size of training")
    return notes


def find_changed(records: Iterable[ShardRecord]) -> Changed | None:
    """A background whose content differs between two shards, which are then of two states of the source."""
    first: dict[str, tuple[str, str]] = {}
    for record in records:
        for key, digest in record.backgrounds.items():
            seen, shard = first.setdefault(key, (digest, record.name))
            if seen != digest:
                return Changed(key, (shard, record.name))
    return None


def _add(one: ModeSeen, other: ModeSeen) -> ModeSeen:
    return ModeSeen(images=one.images + other.images, first=one.first)
