"""`dtrain export`: files that other programs run, at any size, and what they say of themselves."""

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

import dtrain
from dtrain import export as export_module
from dtrain.cli import main
from dtrain.config import Config, load_config
from dtrain.networks import make_network

from .conftest import smooth_pixels
from .trained_runs import make_run, save_lively

SHAPES = [(1, 48, 48), (1, 16, 16), (2, 16, 200), (5, 64, 24), (1, 256, 256)]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["dense", "shrink"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a network of each kind."""
    folder = tmp_path_factory.mktemp(request.param)
    config = load_config(
        ROOT / "configs/demo.yaml",
        ["--run", str(folder / "run"), "--model.name", request.param, "--model.width", "0.0625"],
    )
    path = make_run(config)
    save_lively(config, 7)
    return path


@pytest.fixture
def small_run(make_config: Callable[..., Config]) -> Path:
    config = make_config()
    path = make_run(config)
    save_lively(config, 7)
    return path


def images_of(shape: tuple[int, int, int]) -> Tensor:
    batch, height, width = shape
    return torch.rand(batch, 6, height, width, generator=torch.Generator().manual_seed(height))


def eager(run: Path, images: Tensor) -> list[Tensor]:
    """Depth and mask of the run's network itself, at the size of the images."""
    with torch.inference_mode():
        prediction = dtrain.load(run, device="cpu").trained.module(images)
        planes = [
            torch.nn.functional.interpolate(plane, images.shape[-2:], mode="bilinear")
            if plane.shape[-2:] != images.shape[-2:]
            else plane
            for plane in prediction
        ]
        return [planes[0].clamp(0, 1), torch.sigmoid(planes[1])]


def check_metadata(found: dict[str, str], run: Path) -> None:
    network = dtrain.load(run, device="cpu")
    assert found["run"] == "run"
    assert found["checkpoint"] == "step-00000007"
    assert found["size"] == str(network.size)
    assert found["weights_sha256"] == network.weights_sha256()
    assert json.loads(found["model"])["width"] == 0.0625
    assert len(found["config_sha256"]) == 64


@pytest.fixture(scope="module")
def onnx_file(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of a run, in a folder of its own."""
    file = tmp_path_factory.mktemp("onnx") / "network.onnx"
    command = [sys.executable, "-m", "dtrain", "export", str(run), "--format", "onnx", "--out", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=140, check=True)
    first, second = done.stdout.splitlines()
    assert first == f"{file}: onnx, {file.stat().st_size:,} bytes, step-00000007 of {run}"
    assert second.startswith("compared with the network at 1 × ")
    assert done.stderr == ""
    assert list(file.parent.iterdir()) == [file]
    return file


def check_names_no_path(data: bytes) -> None:
    for place in (ROOT, Path(sys.prefix), Path(torch.__file__).parent, Path(tempfile.gettempdir())):
        assert f"{place}/".encode() not in data, f"it names {place}"


def test_onnx(run: Path, onnx_file: Path) -> None:
    check_names_no_path(onnx_file.read_bytes())
    model = onnx.load(onnx_file)
    check_metadata({entry.key: entry.value for entry in model.metadata_props}, run)
    (images,) = model.graph.input
    names = [dimension.dim_param or dimension.dim_value for dimension in images.type.tensor_type.shape.dim]
    assert names == ["batch", 6, "height", "width"]
    assert [output.name for output in model.graph.output] == ["depth", "mask"]

    session = onnxruntime.InferenceSession(onnx_file)
    for shape in SHAPES:
        given = images_of(shape)
        said = session.run(["depth", "mask"], {"images": given.numpy()})
        for plane, expected in zip(said, eager(run, given), strict=True):
            assert plane.dtype == np.float32
            assert plane.std() > 0.01
            assert plane == pytest.approx(expected.numpy(), abs=1e-4)


CHECKS = """
assert result.depth.shape == (256, 256)
expected = network.predict("room.jpg", "room_with_chair.jpg", size=256).depth
assert abs(depth[0, 0] - expected).max() < 1e-4
assert abs(program_depth.numpy() - depth).max() < 1e-4
assert [result.mask.shape for result in results] == [(256, 256)] * 2
"""


@pytest.mark.parametrize("run", ["dense"], indirect=True)
def test_the_pages_do_what_they_say(run: Path, onnx_file: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/my").symlink_to(run)
    (tmp_path / "network.onnx").symlink_to(onnx_file)
    for seed, name in enumerate(["room", "room_with_chair", "room_with_lamp"]):
        Image.fromarray(smooth_pixels(seed, 256, 256)).save(tmp_path / f"{name}.jpg", quality=95)
    pages = (ROOT / "README.md").read_text() + (ROOT / "docs/using-a-network.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", pages, flags=re.DOTALL)
    assert len(blocks) >= 4
    assert main(["export", str(run), "--format", "torch", "--out", str(tmp_path / "network.pt2")]) == 0
    program = "\n".join([*blocks, CHECKS])
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=140)
    assert (tmp_path / "panel.png").exists()


def test_torch(small_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "network.pt2"
    assert main(["export", str(small_run), "--format", "torch", "--out", str(file)]) == 0
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            check_names_no_path(archive.read(name))
    extra = {"dtrain.json": ""}
    module = torch.export.load(file, extra_files=extra).module()
    check_metadata(json.loads(extra["dtrain.json"]), small_run)
    for shape in SHAPES:
        given = images_of(shape)
        for plane, expected in zip(module(given), eager(small_run, given), strict=True):
            assert plane.shape == expected.shape
            assert torch.allclose(plane, expected, atol=1e-5)


def test_safetensors(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    assert main(["export", str(run), "--format", "safetensors", "--out", str(file)]) == 0
    with safe_open(file, "pt") as opened:
        check_metadata(opened.metadata(), run)
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 # it is no dictionary
    trained = dtrain.load(run, device="cpu").trained
    make_network(trained.config.model).load_state_dict(weights)
    expected = trained.module.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_file_that_says_something_else_is_not_written(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export_module, "TOLERANCE", -1.0)
    file = tmp_path / "out" / "network.pt2"
    file.parent.mkdir()
    file.write_text("what was there")
    assert main(["export", str(small_run), "--format", "torch", "--out", str(file)]) == 1
    assert "the exported network's depth differs from the network's by" in capsys.readouterr().err
    assert [path.read_text() for path in file.parent.iterdir()] == ["what was there"]


def test_mistakes(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(run: Path, out: Path, *options: str) -> str:
        assert main(["export", str(run), "--out", str(out), *options]) == 1
        return capsys.readouterr().err.removeprefix("dtrain: ").strip()

    absent = tmp_path / "absent"
    assert said(small_run, absent / "f.onnx").startswith(f"--out {absent / 'f.onnx'}: there is no folder {absent};")
    assert said(absent, tmp_path / "f.onnx").startswith(f"{absent}: not a run folder")
    assert "no such checkpoint" in said(small_run, tmp_path / "f.onnx", "--checkpoint", "step-00000009")
    told = said(small_run, small_run, "--format", "safetensors")
    assert told == f"--out {small_run}: can't be written: Is a directory; choose another --out"
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    missing = "--format onnx: needs the package onnxscript; pip install 'dtrain[export]'"
    assert said(small_run, tmp_path / "f.onnx") == missing
    assert not (tmp_path / "f.onnx").exists()
