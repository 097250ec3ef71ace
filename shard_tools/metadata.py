"""The object in a sample's KEY.json, as bytes and as a mapping. Knows nothing of shards or files."""

import json
from collections.abc import Mapping
from typing import Any

EXTENSION = "json"


def parse_metadata(data: bytes) -> dict[str, Any]:
    """The object that `data` holds. Raises ValueError if it holds none."""
    try:
        metadata = json.loads(data)
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise ValueError("its json is no JSON object")
    return metadata


def read_metadata(data: bytes | None, *, adopted: bool) -> dict[str, Any]:
    """The object that a sample's json holds; empty where it has none.

    Where another program wrote the sample (`adopted`), it is also empty where there is no object. Else that raises
    ValueError.
    """
    try:
        return parse_metadata(b"{}" if data is None else data)
    except ValueError:
        if adopted:
            return {}
        raise


def source_files(metadata: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The paths that the images of the sample had in the source, in their order; None where they were not kept.

    Raises ValueError if "files" is no list of texts. The paths are as untrusted as the shard.
    """
    files = metadata.get("files")
    if files is None:
        return None
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise ValueError('"files" in its json is no list of paths')
    return tuple(files)


def background_key(metadata: Mapping[str, Any]) -> str:
    """The key of the background that is stored elsewhere. Raises ValueError if the metadata names none."""
    key = metadata.get("bg")
    if not isinstance(key, str):
        raise ValueError('its json names no background ("bg")')
    return key
