"""Checkpoints are whole or passed over, and are read as data."""

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dtrain.checkpoint import (
    Checkpoint,
    checkpoint_name,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    remove_old,
    save_checkpoint,
    step_of,
    verify,
)


def some_checkpoint(number: int = 0) -> Checkpoint:
    generator = torch.Generator().manual_seed(number)
    weights = {
        "layer.weight": torch.randn(5, 3, generator=generator),
        "layer.half": torch.randn(7, generator=generator).bfloat16(),
        "norm.batches": torch.tensor(12345678901 + number),
        "odd": torch.tensor([float("inf"), -0.0, 1e-45]),
        "empty": torch.zeros(0, 4),
    }
    moments = {"0.step": torch.tensor(3.0), "0.exp_avg": torch.randn(5, 3, generator=generator)}
    return Checkpoint(weights, moments, {"global_step": number, "position": {"stage": 0, "text": "ä"}})


def bits(value: Any) -> Any:
    """A value with its tensors as dtype, shape and bytes."""
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8) if value.numel() else torch.zeros(0)
        return (value.dtype, value.shape, bytes(raw.tolist()))
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return [bits(item) for item in value] if isinstance(value, list) else value


def contents(checkpoint: Checkpoint) -> Any:
    return [bits(checkpoint.weights), bits(checkpoint.optimizer), checkpoint.state]


def newest(folder: Path) -> tuple[str | None, int | None, dict[str, str]]:
    """Name and step of the checkpoint that is used, and reasons by name for those passed over."""
    path, checkpoint, passed_over = load_newest(folder)
    if path is None or checkpoint is None:
        assert (path, checkpoint) == (None, None)
        return None, None, dict(passed_over)
    return path.name, checkpoint.state["global_step"], dict(passed_over)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Whole checkpoints of steps 10 and 20."""
    for step in (10, 20):
        save_checkpoint(tmp_path / "checkpoints", step, some_checkpoint(step))
    return tmp_path / "checkpoints"


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 7, some_checkpoint(7))
    assert path == tmp_path / "step-00000007"
    assert contents(load_checkpoint(path)) == contents(some_checkpoint(7))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-00000007"]
    verify(path)


def test_equal_checkpoints_are_equal_bytes(tmp_path: Path) -> None:
    one, other = (save_checkpoint(tmp_path / name, 1, some_checkpoint()) for name in ("a", "b"))
    files = sorted(path.name for path in one.iterdir())
    assert files == ["files.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert [(one / name).read_bytes() for name in files] == [(other / name).read_bytes() for name in files]


def test_names() -> None:
    assert checkpoint_name(120) == "step-00000120"
    assert step_of(checkpoint_name(123456789)) == 123456789
    for name in ("step-12", ".step-00000012.partial", "best", "step-00000012x"):
        with pytest.raises(ValueError, match=name):
            step_of(name)


def test_the_newest_is_that_of_the_highest_step(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 7):
        save_checkpoint(tmp_path, step, some_checkpoint())
    (tmp_path / "notes").mkdir()
    (tmp_path / "step-99999999999").write_text("a file")
    assert [step_of(path.name) for path in list_checkpoints(tmp_path)] == [100_000_000, 99_999_999, 7]
    assert list_checkpoints(tmp_path / "absent") == []


def test_nothing_there(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "absent") == (None, None, [])
    assert load_newest(tmp_path) == (None, None, [])


def test_the_newest_whole_one_is_used(folder: Path) -> None:
    assert newest(folder) == ("step-00000020", 20, {})


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def overwrite(text: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_text(text)

    return damage


DAMAGES = [
    *(
        (name, truncate, rf"{name} has \d+ bytes instead of \d+")
        for name in ("model.safetensors", "optimizer.safetensors")
    ),
    *((name, flip_a_bit, f"{name} has another SHA-256") for name in ("model.safetensors", "optimizer.safetensors")),
    ("state.json", truncate, r"state\.json has \d+ bytes"),
    ("state.json", flip_a_bit, r"state\.json has another SHA-256"),
    *(
        (name, Path.unlink, f"{name} is missing")
        for name in ("model.safetensors", "optimizer.safetensors", "state.json")
    ),
    ("files.json", Path.unlink, r"files\.json is missing"),
    ("files.json", truncate, r"files\.json can't be read"),
    *(
        ("files.json", overwrite(text), r"files\.json can't be read")
        for text in (
            "",
            "\0\0\0",
            '{"model.safetensors": 1, "optimizer.safetensors": 2, "state.json": 3}',
            "[" * 100_000,
        )
    ),
    *(("files.json", overwrite(text), r"files\.json does not list model\.safetensors") for text in ("{}", "[]", "7")),
    (
        "files.json",
        overwrite('{"/dev/zero": {}, "model.safetensors": {}, "optimizer.safetensors": {}, "state.json": {}}'),
        r"files\.json lists '/dev/zero'",
    ),
]


@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGES)
def test_a_damaged_one_is_passed_over_with_its_reason(
    folder: Path, name: str, damage: Callable[[Path], None], reason: str
) -> None:
    damage(folder / "step-00000020" / name)
    used, step, passed_over = newest(folder)
    assert (used, step) == ("step-00000010", 10)
    assert list(passed_over) == ["step-00000020"]
    assert re.match(reason, passed_over["step-00000020"])


def test_an_empty_folder_is_passed_over(folder: Path) -> None:
    (folder / "step-00000030").mkdir()
    used, _, passed_over = newest(folder)
    assert used == "step-00000020"
    assert passed_over == {"step-00000030": "files.json is missing"}


def test_a_half_written_one_is_passed_over(folder: Path) -> None:
    (folder / "step-00000020").rename(folder / ".step-00000020.partial")
    used, _, passed_over = newest(folder)
    assert used == "step-00000010"
    assert list(passed_over) == [".step-00000020.partial"]
    assert "half-written" in passed_over[".step-00000020.partial"]


def test_all_damaged(folder: Path) -> None:
    for path in list_checkpoints(folder):
        truncate(path / "model.safetensors")
    used, step, passed_over = newest(folder)
    assert (used, step) == (None, None)
    assert list(passed_over) == ["step-00000020", "step-00000010"]


def test_one_that_is_whole_is_not_written_again(folder: Path) -> None:
    before = (folder / "step-00000020" / "state.json").stat().st_mtime_ns
    assert save_checkpoint(folder, 20, some_checkpoint(99)) == folder / "step-00000020"
    assert newest(folder) == ("step-00000020", 20, {})
    assert (folder / "step-00000020" / "state.json").stat().st_mtime_ns == before


def test_a_damaged_one_and_a_half_written_one_of_the_same_step_are_replaced(folder: Path) -> None:
    flip_a_bit(folder / "step-00000020" / "optimizer.safetensors")
    shutil.copytree(folder / "step-00000020", folder / ".step-00000020.partial")
    save_checkpoint(folder, 20, some_checkpoint(20))
    assert newest(folder) == ("step-00000020", 20, {})
    assert contents(load_checkpoint(folder / "step-00000020")) == contents(some_checkpoint(20))
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000010", "step-00000020"]


def test_old_ones_and_half_written_ones_are_removed(folder: Path) -> None:
    save_checkpoint(folder, 30, some_checkpoint(30))
    shutil.copytree(folder / "step-00000010", folder / ".step-00000015.partial")
    (folder / "notes").mkdir()
    remove_old(folder, keep_last=2)
    assert sorted(path.name for path in folder.iterdir()) == ["notes", "step-00000020", "step-00000030"]
    remove_old(folder, keep_last=2)
    assert newest(folder) == ("step-00000030", 30, {})


def test_damaged_ones_of_later_steps_do_not_push_out_the_one_just_saved(folder: Path) -> None:
    for step in (30, 40):
        truncate(save_checkpoint(folder, step, some_checkpoint()) / "state.json")
    assert newest(folder)[0] == "step-00000020"
    save_checkpoint(folder, 25, some_checkpoint(25))
    remove_old(folder, keep_last=1)
    assert newest(folder) == ("step-00000025", 25, {})


def test_a_whole_one_of_a_later_step_stays(folder: Path) -> None:
    save_checkpoint(folder, 15, some_checkpoint(15))
    assert newest(folder) == ("step-00000020", 20, {})


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def put(folder: Path, name: str, data: bytes) -> None:
    """Replace a file of a checkpoint so that sizes and hashes agree."""
    (folder / name).write_bytes(data)
    listed = json.loads((folder / "files.json").read_text())
    listed[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "files.json").write_text(json.dumps(listed))


def test_nothing_in_a_checkpoint_is_executed(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    torch.save({"optimizer": Malicious(mark)}, tmp_path / "evil.pt")
    payloads = [(tmp_path / "evil.pt").read_bytes(), pickle.dumps(Malicious(mark), protocol=2)]
    for payload in payloads:
        put(folder / "step-00000020", "optimizer.safetensors", payload)
        verify(folder / "step-00000020")
        used, _, passed_over = newest(folder)
        assert used == "step-00000010"
        assert passed_over["step-00000020"].startswith("optimizer.safetensors does not load (")
        assert not mark.exists()
    pickle.loads(payloads[1])  # the payload does what it is made for
    assert mark.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04", b"(" * 1000])
def test_a_file_that_was_never_of_its_kind_is_passed_over(folder: Path, name: str, data: bytes) -> None:
    put(folder / "step-00000020", name, data)
    used, _, passed_over = newest(folder)
    assert used == "step-00000010"
    assert passed_over["step-00000020"].startswith(f"{name} does not load (")


WRITE_LIMITED = """
import resource, sys, torch
from pathlib import Path
from dtrain.checkpoint import Checkpoint, save_checkpoint
from shard_tools.errors import UserError

folder = Path(sys.argv[1])
weights, moments, state = {"w": torch.zeros(20_000)}, {"m": torch.zeros(40_000)}, {"text": "x" * 300_000}
for limit in 1000, 100_000, 200_000:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        save_checkpoint(folder, 5, Checkpoint(weights, moments, state))
    except UserError as error:
        print(error)
"""


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk; the three limits stop the three files."""
    ended = subprocess.run(
        [sys.executable, "-c", WRITE_LIMITED, tmp_path], capture_output=True, text=True, check=True, timeout=100
    )
    lines = ended.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{tmp_path / 'step-00000005'}: can't be written: File too large") for line in lines)
    assert list(tmp_path.iterdir()) == []
