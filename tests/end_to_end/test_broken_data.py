"""Data that is damaged after packing stops a training with one message, on every process, without a hang."""

import shutil
from pathlib import Path

import pytest

from shard_tools.index import parse_index

from .conftest import ROOT, Run
from .lean import Lean


@pytest.fixture
def broken(tmp_path: Path, shards: Path, undisturbed: Run) -> Lean:
    """A run on a copy of the shards that a test may damage."""
    copy = tmp_path / "broken"
    shutil.copytree(shards, copy)
    return Lean(tmp_path / "run", copy, undisturbed)


def test_a_damaged_image_names_shard_and_sample(broken: Lean) -> None:
    shard = broken.shards / "train-000003.tar"
    index = shard.with_suffix(".idx")
    sample = parse_index(index.read_text(), index)[5]
    member = next(m for m in sample.members if m.extension == "depth.jpg")
    data = bytearray(shard.read_bytes())
    data[member.offset : member.offset + member.size] = bytes(member.size)
    shard.write_bytes(data)

    launched = broken.launch()
    assert launched.finish() != 0
    message = f"train-000003.tar: sample '{sample.key}': depth can't be decoded"
    assert launched.output.count(message) == 1, launched.output
    assert f'File "{ROOT / "dtrain"}' not in launched.output, "a traceback of ours"
    status = broken.status()
    assert status["state"] == "failed"
    assert message in status["reason"]


def test_a_shard_that_was_cut_at_a_member_is_not_silently_shorter(broken: Lean) -> None:
    shard = broken.shards / "train-000001.tar"
    index = shard.with_suffix(".idx")
    half = parse_index(index.read_text(), index)[8].members[0].offset - 512
    shard.write_bytes(shard.read_bytes()[:half])
    launched = broken.launch_alone()
    assert launched.finish() != 0
    assert "train-000001.tar: " in launched.output
    assert f"{half} bytes, but the manifest says" in launched.output
