"""Read, check and, if asked to, re-encode the images of a source. Knows nothing of shards."""

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from shard_tools.checks import FIRST_ON_ITS_SIDE, ORIENTATIONS, Flaw, ImageInfo, JpegHeaders, Kind, inspect_image
from shard_tools.components import BACKGROUND
from shard_tools.encode import Encoding, encode
from shard_tools.pixels import GRAY_EXPECTED, NotGrayError, decode_gray, decode_rgb, gray_channels_differ

Check = Literal["none", "header", "decode"]

BACKGROUND_CACHE_BYTES = 32 * 2**20
_READ_BYTES = 2**16
_CLOCK_SLACK_NS = 2 * 10**9
"""How far the clock of a file server may be behind, and how coarse its times may be."""

UNCHECKED = ImageInfo(0, 0, "unknown")
"""What is known of an image that was not looked at."""

Size = tuple[int, int]
"""Width and height in pixels."""

Stamp = tuple[int, int]
"""The state of a file: its size in bytes, and the time of its last change in ns."""

NO_FILE: Stamp = (-1, -1)


class SourceImage(NamedTuple):
    """An image as it goes into a shard: its bytes, what its header says, and the state of the file it came from.

    `native` is the size of the image in that file, upright; (0, 0) where it was not looked at. `digest` identifies the
    content of a background; others have none.
    """

    data: bytes
    info: ImageInfo
    stamp: Stamp
    native: Size
    digest: str = ""


@dataclass(frozen=True, slots=True)
class ImageRules:
    """How to look at images, and whether to encode them anew (`encoding`, None for their bytes as they are)."""

    check: Check = "header"
    encoding: Encoding | None = None


class SourceFolder:
    """Files by their paths, which are relative to a folder, or absolute. Looking paths up from there saves time."""

    def __init__(self, root: Path) -> None:
        self._descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, file: str) -> tuple[bytes, Stamp]:
        """All bytes of a file, and its stamp after they were read. Raises OSError."""
        descriptor = os.open(file, os.O_RDONLY, dir_fd=self._descriptor)
        try:
            data = os.read(descriptor, _READ_BYTES)
            if len(data) == _READ_BYTES:
                data = _read_rest(descriptor, data)
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        return data, (status.st_size, status.st_mtime_ns)

    def stamp(self, file: str) -> Stamp:
        """The stamp of a file, NO_FILE if it cannot be told."""
        try:
            status = os.stat(file, dir_fd=self._descriptor)
        except OSError:
            return NO_FILE
        return status.st_size, status.st_mtime_ns


def _read_rest(descriptor: int, data: bytes) -> bytes:
    parts = [data]
    while parts[-1]:
        parts.append(os.read(descriptor, 2**20))
    return b"".join(parts)


class BadImageError(Exception):
    """Raised by a loader for a file that is not fit to be packed; says why."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.flaw = Flaw(kind, text)


Loader = Callable[[str], SourceImage]
"""Loads a file of one component. Raises BadImageError."""

_Look = Callable[[bytes], tuple[bytes, ImageInfo, Size]]
"""Looks at the bytes of a file: what goes into the shard for them, what its header says, and the size in the file.

Raises BadImageError.
"""


class SourceImages:
    """The images of one source. Keeps the backgrounds that were read last, up to BACKGROUND_CACHE_BYTES."""

    def __init__(self, root: Path, rules: ImageRules) -> None:
        self.folder = SourceFolder(root)
        self._rules = rules
        self._backgrounds: OrderedDict[str, SourceImage] = OrderedDict()
        self._bytes = 0
        self.start_shard()

    def start_shard(self) -> None:
        """Drop the kept backgrounds whose files are not what they were; from now on a change of a file is a new one."""
        self._since = time.time_ns() - _CLOCK_SLACK_NS
        for file, image in list(self._backgrounds.items()):
            if self.folder.stamp(file) != image.stamp:
                del self._backgrounds[file]
                self._bytes -= len(image.data)

    def loader(self, component: str, extension: str) -> Loader:
        """What loads the files of a component, all of which have suffixes that stand for `extension`."""
        look = _how_to_look(self._rules, component, extension)
        read, since = self.folder.read, self._since

        def load(file: str) -> SourceImage:
            try:
                data, stamp = read(file)
                if stamp[0] != len(data) or (stamp[1] >= since and read(file) != (data, stamp)):
                    raise BadImageError("changed", "was changed while it was being read")
            except OSError as error:
                raise BadImageError("unreadable", f"cannot be read: {error.strerror}") from None
            stored, info, native = look(data)
            return SourceImage(stored, info, stamp, native)

        return partial(self._load_background, load) if component == BACKGROUND else load

    def _load_background(self, load: Loader, file: str) -> SourceImage:
        kept = self._backgrounds.get(file)
        if kept is not None:
            self._backgrounds.move_to_end(file)
            return kept
        fresh = load(file)
        fresh = fresh._replace(digest=hashlib.blake2b(fresh.data, digest_size=8).hexdigest())
        self._backgrounds[file] = fresh
        self._bytes += len(fresh.data)
        while self._bytes > BACKGROUND_CACHE_BYTES:
            _, dropped = self._backgrounds.popitem(last=False)
            self._bytes -= len(dropped.data)
        return fresh


def _how_to_look(rules: ImageRules, component: str, extension: str) -> _Look:
    inspect_bytes = JpegHeaders().inspect if extension == "jpg" else partial(inspect_image, extension=extension)
    unfit = _NOT_GRAY if component in _READ_AS_GRAY else {}

    def inspect(data: bytes) -> ImageInfo:
        info = inspect_bytes(data)
        if isinstance(info, Flaw):
            raise BadImageError(*info)
        if info.mode in unfit:
            text = f"has {unfit[info.mode]}, but {component} is read as grey: {GRAY_EXPECTED}"
            raise BadImageError("other format", text)
        return info

    def at_nothing(data: bytes) -> tuple[bytes, ImageInfo, Size]:
        if not data:
            raise BadImageError("empty", "empty file (0 bytes)")
        return data, UNCHECKED, (0, 0)

    def at_header(data: bytes) -> tuple[bytes, ImageInfo, Size]:
        info = inspect(data)
        if info.orientation != 1:
            raise BadImageError("rotated", _ROTATED.format(ORIENTATIONS[info.orientation]))
        return data, info, (info.width, info.height)

    def at_pixels(data: bytes) -> tuple[bytes, ImageInfo, Size]:
        seen = at_header(data)
        with _decoding():
            _DECODERS[component](data)
            _refuse_colour(data, component)
        return seen

    def and_encode(data: bytes) -> tuple[bytes, ImageInfo, Size]:
        assert rules.encoding is not None
        info = inspect(data)
        with _decoding():
            if rules.check == "decode":
                _refuse_colour(data, component)
            encoded = encode(data, info, component, extension, rules.encoding)
        on_its_side = info.orientation >= FIRST_ON_ITS_SIDE
        return (*encoded, (info.height, info.width) if on_its_side else (info.width, info.height))

    if rules.encoding is not None:
        return and_encode
    return {"none": at_nothing, "header": at_header, "decode": at_pixels}[rules.check]


_ROTATED = (
    "is {} by its EXIF orientation, which readers of shards do not honour; "
    "turn the pixels themselves, or pack with --size, which does"
)

_READ_AS_GRAY = ("depth", "mask")

_NOT_GRAY = {
    "F": "pixels of floating point",
    **dict.fromkeys(("LA", "La", "PA", "RGBA", "RGBa"), "an alpha channel"),
}
"""Pillow's modes of pixels that lose what they say when they are read as grey, and what they have."""

_DECODERS: dict[str, Callable[[bytes], object]] = {
    "bg": decode_rgb, "fgbg": decode_rgb, "depth": decode_gray, "mask": decode_gray,
}  # fmt: skip


@contextmanager
def _decoding() -> Iterator[None]:
    try:
        yield
    except NotGrayError as error:
        raise BadImageError("other format", str(error)) from None
    except ValueError as error:
        raise BadImageError("damaged", f"cannot be decoded: {error}") from None


def _refuse_colour(data: bytes, component: str) -> None:
    if component in _READ_AS_GRAY and gray_channels_differ(data):
        raise BadImageError(
            "coloured", f"has coloured pixels, but {component} is read as grey; save it with one channel"
        )
