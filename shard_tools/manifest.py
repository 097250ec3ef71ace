"""`shards.json`: all that a trainer is given. Read as data; holds no absolute path and nothing executable."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from shard_tools.errors import UserError
from shard_tools.storage import Storage, open_storage

MANIFEST_NAME = "shards.json"
FORMAT_VERSION: Literal[1] = 1
MAX_MANIFEST_BYTES = 256 * 2**20

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def is_plain_file_name(name: str) -> bool:
    """Whether shards may be called so: letters, digits, "_", "-" and "."."""
    return _FILE_NAME.fullmatch(name) is not None


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Shard(_Record):
    """One tar file and its index; names are relative to the manifest and stay in its folder."""

    file: str
    samples: int = Field(gt=0)
    bytes: int = Field(gt=0)
    sha256: Sha256
    index: str
    index_sha256: Sha256

    @field_validator("file", "index")
    @classmethod
    def _plain_file_name(cls, name: str) -> str:
        if not is_plain_file_name(name):
            raise ValueError(f"{name!r} is not a plain file name (letters, digits, '_', '-', '.')")
        return name


class Split(_Record):
    """The shards of one split in packing order; the order of training is derived from this list.

    Where backgrounds are stored once, `backgrounds` are the shards that hold them: one sample a background, whose key
    the KEY.json of each tuple names as "bg". Else each tuple has its own and there are none.
    """

    samples: int = Field(ge=0)
    shards: tuple[Shard, ...]
    backgrounds: tuple[Shard, ...] = ()

    @model_validator(mode="after")
    def _counts_agree(self) -> "Split":
        total = sum(shard.samples for shard in self.shards)
        if total != self.samples:
            raise ValueError(f"its shards hold {total} samples, but it says samples={self.samples}")
        return self

    @property
    def files(self) -> tuple[Shard, ...]:
        """All its shards, those of tuples first."""
        return self.shards + self.backgrounds

    @model_serializer(mode="wrap")
    def _without_empty_backgrounds(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if not self.backgrounds:
            del content["backgrounds"]
        return content


class Component(_Record):
    """One image of the tuple.

    `mode` is Pillow's name of the colour mode, several in a row with commas where samples differ; `size` is (width,
    height) in pixels where all samples agree, else null. `member` is what stands behind the key in the name of its
    file in a shard, null for the usual NAME.EXTENSION.
    """

    name: str
    extension: str = Field(pattern=r"^[a-z0-9]{1,8}$")
    mode: str
    size: tuple[int, int] | None = None
    member: str | None = Field(None, pattern=r"^[^\s/.][^\s/]*$")

    @field_validator("size", mode="before")
    @classmethod
    def _list_to_tuple(cls, size: Any) -> Any:
        return tuple(size) if isinstance(size, list) else size

    @field_validator("member")
    @classmethod
    def _only_the_unusual(cls, member: str | None, info: ValidationInfo) -> str | None:
        usual = f"{info.data.get('name')}.{info.data.get('extension')}"
        return None if member == usual else member

    @property
    def member_extension(self) -> str:
        """The extension that the index gives its file: what stands behind the key and a dot, such as "bg.jpg"."""
        return self.member or f"{self.name}.{self.extension}"

    @model_serializer(mode="wrap")
    def _without_usual_member(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if self.member is None:
            del content["member"]
        return content


class Counts(_Record):
    """Tuples found in the source, packed into shards, and left out because something was wrong with them."""

    found: int = Field(ge=0)
    packed: int = Field(ge=0)
    left_out: int = Field(ge=0)


class Manifest(_Record):
    """The contract between packing and training.

    Shards that are `adopted` were written by another program: a sample's KEY.json, where there is one, says nothing
    that was agreed on, and keys are unique in a shard only.
    """

    format: Literal["dtrain-shards"] = "dtrain-shards"
    version: Literal[1] = FORMAT_VERSION
    adopted: bool = False
    components: tuple[Component, ...]
    splits: dict[str, Split]
    counts: Counts
    build: dict[str, Any] = Field(description="the arguments that built it")

    @field_validator("components", mode="before")
    @classmethod
    def _components_to_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _files_differ(self) -> "Manifest":
        files = [file for split in self.splits.values() for shard in split.files for file in (shard.file, shard.index)]
        if len(set(files)) != len(files):
            twice = sorted(file for file, count in Counter(files).items() if count > 1)
            raise ValueError(f"{', '.join(twice[:3])}: listed more than once")
        return self

    @model_serializer(mode="wrap")
    def _adopted_where_it_is(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if not self.adopted:
            content.pop("adopted", None)
        return content

    def component(self, name: str) -> Component:
        """The component called `name`; UserError if the tuples have none."""
        for component in self.components:
            if component.name == name:
                return component
        known = ", ".join(component.name for component in self.components)
        raise UserError(f"the shards have no component {name!r}; they have: {known}")

    def split(self, name: str) -> Split:
        """The split called `name`; UserError if there is none."""
        if name not in self.splits:
            raise UserError(f"{MANIFEST_NAME} has no split {name!r}; it has: {', '.join(self.splits)}")
        return self.splits[name]

    def digest(self) -> str:
        """SHA-256 of what decides the samples and their order: components and shards, not where they lie."""
        content = self.model_dump(mode="json", include={"format", "version", "components", "splits"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def text(self) -> str:
        """The content of shards.json; equal manifests give equal text."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def read_manifest(location: str | Path) -> Manifest:
    """The manifest at a path or URL, as `open_shards` finds it."""
    return open_shards(str(location))[1]


def open_shards(location: str) -> tuple[Storage, Manifest]:
    """The place of shards and their manifest, given the path or URL of shards.json or of its folder.

    Raises UserError that names the file and the field when it is missing, too large, not JSON or not valid.
    """
    if Path(location).is_file():
        storage = open_storage(Path(location).parent)
        return storage, _load(storage, Path(location).name)
    storage = open_storage(location.removesuffix(f"/{MANIFEST_NAME}"))
    return storage, _load(storage, MANIFEST_NAME)


def find_manifest(storage: Storage) -> Manifest | None:
    """The manifest in `storage`, None if there is none. Raises UserError when there is one that cannot be read."""
    try:
        storage.size(MANIFEST_NAME)
    except FileNotFoundError:
        return None
    return _load(storage, MANIFEST_NAME)


def _load(storage: Storage, name: str) -> Manifest:
    path = storage.path(name)
    try:
        # Not by its size first: over http, fsspec takes any failure to tell a size for a missing file.
        data = storage.read_range(name, 0, MAX_MANIFEST_BYTES + 1)
        if len(data) > MAX_MANIFEST_BYTES:
            raise UserError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes, so not a {MANIFEST_NAME}")
        return Manifest.model_validate_json(data)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; expected the manifest that `shard-tools build SRC OUT` writes last "
            "(if a build was interrupted, run the same command again), or `shard-tools index` with --split for tars of "
            "another program"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        problems = "\n".join(
            f"  {'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}" for problem in error.errors()[:10]
        )
        raise UserError(f"{path}: not a valid {MANIFEST_NAME}:\n{problems}\nBuild the shards again.") from None
