"""Read, check and, if asked to, re-encode the images of a source. Knows nothing of shards."""

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from shard_tools.checks import ORIENTATIONS, Flaw, ImageInfo, JpegHeaders, inspect_image
from shard_tools.encode import Encoding, encode
from shard_tools.pixels import decode_gray, decode_rgb, gray_channels_differ

Check = Literal["none", "header", "decode"]

BACKGROUND = "bg"
BACKGROUND_CACHE_BYTES = 32 * 2**20
_READ_BYTES = 2**16
_CLOCK_SLACK_NS = 2 * 10**9
"""How far the clock of a file server may be behind, and how coarse its times may be."""

UNCHECKED = ImageInfo(0, 0, "unknown")
"""What is known of an image that was not looked at."""

Stamp = tuple[int, int]
"""The state of a file: its size in bytes, and the time of its last change in ns."""


class SourceImage(NamedTuple):
    """An image as it goes into a shard: its bytes, what its header says, and the state of the file it came from.

    `digest` identifies the content of a background; others have none.
    """

    data: bytes
    info: ImageInfo
    stamp: Stamp
    digest: str = ""


@dataclass(frozen=True, slots=True)
class ImageRules:
    """How to look at images, and whether to encode them anew (`encoding`, None for their bytes as they are)."""

    check: Check = "header"
    encoding: Encoding | None = None


Loader = Callable[[str], SourceImage | Flaw]
"""Loads a file of one component: the image, or what is wrong with it."""

_Look = Callable[[bytes], tuple[bytes, ImageInfo] | Flaw]
"""Looks at the bytes of a file: what goes into the shard for them and what its header says, or what is wrong."""


class SourceImages:
    """The images of one source. Keeps the backgrounds that were read last, up to BACKGROUND_CACHE_BYTES."""

    def __init__(self, root: str, rules: ImageRules) -> None:
        self._root = root
        self._rules = rules
        self._backgrounds: OrderedDict[str, SourceImage] = OrderedDict()
        self._bytes = 0
        self.start_shard()

    def start_shard(self) -> None:
        """Drop the kept backgrounds whose files are not what they were; from now on a change of a file is a new one."""
        self._since = time.time_ns() - _CLOCK_SLACK_NS
        for file, image in list(self._backgrounds.items()):
            if stamp_of(path_of(self._root, file)) != image.stamp:
                del self._backgrounds[file]
                self._bytes -= len(image.data)

    def loader(self, component: str, extension: str) -> Loader:
        """What loads the files of a component, all of which have suffixes that stand for `extension`."""
        look = _how_to_look(self._rules, component, extension)
        root, since = self._root, self._since

        def load(file: str) -> SourceImage | Flaw:
            try:
                data, stamp = read_file(path_of(root, file), since)
            except OSError as error:
                return Flaw("unreadable", f"cannot be read: {error.strerror}")
            if stamp is None:
                return Flaw("changed", "was changed while it was being read")
            seen = look(data)
            return seen if isinstance(seen, Flaw) else SourceImage(seen[0], seen[1], stamp)

        return partial(self._load_background, load) if component == BACKGROUND else load

    def _load_background(self, load: Loader, file: str) -> SourceImage | Flaw:
        kept = self._backgrounds.get(file)
        if kept is not None:
            self._backgrounds.move_to_end(file)
            return kept
        fresh = load(file)
        if isinstance(fresh, Flaw):
            return fresh
        fresh = fresh._replace(digest=hashlib.blake2b(fresh.data, digest_size=8).hexdigest())
        self._backgrounds[file] = fresh
        self._bytes += len(fresh.data)
        while self._bytes > BACKGROUND_CACHE_BYTES:
            _, dropped = self._backgrounds.popitem(last=False)
            self._bytes -= len(dropped.data)
        return fresh


def path_of(root: str, file: str) -> str:
    """Where a file of a source lies; `file` is relative to `root`, or absolute."""
    return file if file[0] == "/" else f"{root}/{file}"


def read_file(path: str, since: int) -> tuple[bytes, Stamp | None]:
    """All bytes of a file and its stamp, None if it is being changed. Raises OSError.

    A file whose last change is later than `since` (ns since the epoch) is read a second time, to see whether it is
    still being written.
    """
    data, stamp = _read_once(path)
    if stamp[0] != len(data) or (stamp[1] >= since and _read_once(path) != (data, stamp)):
        return data, None
    return data, stamp


def _read_once(path: str) -> tuple[bytes, Stamp]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = os.read(descriptor, _READ_BYTES)
        if len(data) == _READ_BYTES:
            data = _read_rest(descriptor, data)
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return data, (status.st_size, status.st_mtime_ns)


def _read_rest(descriptor: int, data: bytes) -> bytes:
    parts = [data]
    while parts[-1]:
        parts.append(os.read(descriptor, 2**20))
    return b"".join(parts)


def stamp_of(path: str) -> Stamp | None:
    """Size in bytes and time of last change in ns of a file; None if it cannot be told."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of a million files costs seconds
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _how_to_look(rules: ImageRules, component: str, extension: str) -> _Look:
    inspect = JpegHeaders().inspect if extension == "jpg" else partial(inspect_image, extension=extension)

    def at_nothing(data: bytes) -> tuple[bytes, ImageInfo] | Flaw:
        return (data, UNCHECKED) if data else Flaw("empty", "empty file (0 bytes)")

    def at_header(data: bytes) -> tuple[bytes, ImageInfo] | Flaw:
        info = inspect(data)
        if isinstance(info, Flaw):
            return info
        if info.orientation != 1:
            return Flaw("rotated", _ROTATED.format(ORIENTATIONS[info.orientation]))
        return data, info

    def at_pixels(data: bytes) -> tuple[bytes, ImageInfo] | Flaw:
        seen = at_header(data)
        return seen if isinstance(seen, Flaw) else _decode(data, component) or seen

    def and_encode(data: bytes) -> tuple[bytes, ImageInfo] | Flaw:
        assert rules.encoding is not None
        info = inspect(data)
        if isinstance(info, Flaw):
            return info
        try:
            return encode(data, info, component, extension, rules.encoding)
        except ValueError as error:
            return Flaw("damaged", f"cannot be decoded: {error}")

    if rules.encoding is not None:
        return and_encode
    return {"none": at_nothing, "header": at_header, "decode": at_pixels}[rules.check]


_ROTATED = (
    "is {} by its EXIF orientation, which readers of shards do not honour; "
    "turn the pixels themselves, or pack with --size, which does"
)

_DECODERS: dict[str, Callable[[bytes], object]] = {
    "bg": decode_rgb, "fgbg": decode_rgb, "depth": decode_gray, "mask": decode_gray,
}  # fmt: skip


def _decode(data: bytes, component: str) -> Flaw | None:
    try:
        _DECODERS[component](data)
        if component in ("depth", "mask") and gray_channels_differ(data):
            return Flaw("coloured", f"has coloured pixels, but {component} is read as grey; save it with one channel")
    except ValueError as error:
        return Flaw("damaged", f"cannot be decoded: {error}")
    return None
