"""`compose --depth hf:MODEL` with tiny models of random weights: depth is what they say, and near is dark."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from shard_tools.compose import compose, read_background, read_foreground
from shard_tools.depth_model import is_inverse, load_depth_model, to_grey
from shard_tools.errors import UserError
from shard_tools.recipe import PLACEMENTS
from shard_tools.tree_pair import place, scale_foreground

transformers: Any = pytest.importorskip("transformers", reason="`make test` brings it for these alone")

SIZE = 32
MakeModel = Callable[..., Path]
Photos = dict[str, Path]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Save a tiny model of the kind of Depth Anything, with its image processor; returns its folder."""

    def make(name: str = "tiny", *, kind: str = "relative", seed: int = 0) -> Path:
        folder = tmp_path / name
        backbone = transformers.Dinov2Config(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14,
            out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True,
        )  # fmt: skip
        config = transformers.DepthAnythingConfig(
            backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, reassemble_factors=[4, 2, 1, 0.5],
            neck_hidden_sizes=[8] * 4, fusion_hidden_size=8, head_hidden_size=8, depth_estimation_type=kind,
            max_depth=1 if kind == "relative" else 20,
        )  # fmt: skip
        model = transformers.DepthAnythingForDepthEstimation(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 4) ** 0.5)
            model.head.conv3.bias.fill_(3.0 if kind == "relative" else 0.0)
        model.save_pretrained(folder)
        processor = {
            "image_processor_type": "DPTImageProcessor", "size": {"height": 28, "width": 28}, "ensure_multiple_of": 14,
            "do_resize": True, "do_rescale": True, "do_normalize": True, "keep_aspect_ratio": False, "resample": 3,
            "image_mean": [0.5] * 3, "image_std": [0.25] * 3,
        }  # fmt: skip
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        return folder

    return make


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    """Two backgrounds and two objects, as arguments of `compose`."""
    backgrounds, foregrounds = tmp_path / "in/bg", tmp_path / "in/fg"
    backgrounds.mkdir(parents=True)
    foregrounds.mkdir()
    y, x = np.mgrid[0:60, 0:60]
    for number, blue in ((1, 30), (2, 220)):
        pixels = np.stack([x * 4, y * 4, np.full_like(x, blue)], -1).astype(np.uint8)
        Image.fromarray(pixels).save(backgrounds / f"photo{number}.png")
    for name, colour in (("red.png", (220, 30, 30, 255)), ("white.png", (250, 250, 250, 255))):
        image = Image.new("RGBA", (50, 40))
        ImageDraw.Draw(image).ellipse((2, 2, 48, 38), colour)
        image.save(foregrounds / name)
    return {"backgrounds": backgrounds, "foregrounds": foregrounds}


def run(out: Path, photos: Photos, depth: str) -> str:
    return compose(out, **photos, size=SIZE, workers=1, depth=depth)


def grey(path: Path) -> NDArray[np.float64]:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image).astype(np.float64)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("kind", "nearer"), [("relative", "larger"), ("metric", "smaller")])
def test_depth_is_what_the_model_says_with_near_dark(
    make_model: MakeModel, photos: Photos, tmp_path: Path, kind: str, nearer: str
) -> None:
    model = make_model(kind=kind)
    run(tmp_path / "out", photos, f"hf:{model}")
    pipeline = transformers.pipeline("depth-estimation", model=str(model), device="cpu")
    background = read_background(photos["backgrounds"] / "photo2.png", SIZE).image
    sprites = scale_foreground(read_foreground(photos["foregrounds"] / "red.png"), SIZE)
    seen = []
    for placement in PLACEMENTS[::7]:
        overlay, _ = place(background, sprites, placement)
        said = pipeline(Image.fromarray(overlay))["predicted_depth"].numpy().astype(np.float64)
        assert said.max() - said.min() > 0.01
        farness = -said if nearer == "larger" else said
        expected = 255 * (farness - farness.min()) / (farness.max() - farness.min())
        depth = grey(tmp_path / f"out/bg2/fg_1/depth/{placement.number}.jpg")
        assert np.abs(depth - expected).mean() < 3
        assert depth.flat[farness.argmin()] < 16
        assert depth.flat[farness.argmax()] > 239
        seen.append(depth)
    assert all(np.abs(a - b).mean() > 5 for i, a in enumerate(seen) for b in seen[:i])


def test_only_depth_differs_from_a_tree_with_the_stand_in(
    make_model: MakeModel, photos: Photos, tmp_path: Path
) -> None:
    run(tmp_path / "model", photos, f"hf:{make_model()}")
    run(tmp_path / "plane", photos, "stand-in")
    model, plane = content(tmp_path / "model"), content(tmp_path / "plane")
    assert model.keys() == plane.keys()
    differing = {name for name in model if model[name] != plane[name]}
    assert differing == {name for name in model if "/depth/" in name} | {"dataset.json"}
    assert len(differing) == 161


def test_the_same_model_says_the_same_and_another_one_something_else(
    make_model: MakeModel, photos: Photos, tmp_path: Path
) -> None:
    run(tmp_path / "first", photos, f"hf:{make_model()}")
    run(tmp_path / "second", photos, f"hf:{make_model('elsewhere/tiny')}")
    run(tmp_path / "third", photos, f"hf:{make_model('other/tiny', seed=1)}")
    first, second, third = (content(tmp_path / name) for name in ("first", "second", "third"))
    assert first == second
    assert all(first[name] != third[name] for name in first if "/depth/" in name)


def test_the_data_set_says_where_its_depth_is_from(make_model: MakeModel, photos: Photos, tmp_path: Path) -> None:
    message = run(tmp_path / "out", photos, f"hf:{make_model('tiny-depth')}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert f"\ndepth is estimated by tiny-depth on {device}, not measured; masks are the foregrounds' alpha" in message
    assert "stand-in" not in message
    text = (tmp_path / "out/dataset.json").read_text()
    metadata = json.loads(text)
    depth = metadata["depth"]
    assert depth["kind"] == "estimated: tiny-depth"
    assert depth["range"] == "0..1, stored as grey 0..255; 0 near, 1 far"
    assert depth["scale"] == "relative, each image to its own range"
    assert depth["model"].keys() == {"name", "sha256"}
    assert "grey is linear in the model's output, the inverse of distance" in depth["note"]
    assert all("depth" not in row for row in metadata["recipe"]["rows"])
    assert "stand-in" not in text
    assert str(tmp_path) not in text


def test_another_model_means_another_data_set(make_model: MakeModel, photos: Photos, tmp_path: Path) -> None:
    out, model = tmp_path / "out", make_model()
    run(out, photos, f"hf:{model}")
    assert "nothing to do" in run(out, photos, f"hf:{model}")
    for changed in ("model.safetensors", "config.json", "preprocessor_config.json"):
        other = tmp_path / changed / model.name
        shutil.copytree(model, other)
        if changed == "model.safetensors":
            weights = load_file(other / changed)
            weights["head.conv3.bias"] += 1
            save_file(weights, other / changed, metadata={"format": "pt"})
        else:
            (other / changed).write_text((other / changed).read_text() + "\n")
        with pytest.raises(UserError, match="holds a data set made from other inputs or with other arguments"):
            run(out, photos, f"hf:{other}")
    with pytest.raises(UserError, match="holds a data set made from other inputs or with other arguments"):
        run(out, photos, "stand-in")


def test_killed_run_is_finished_by_the_same_call(make_model: MakeModel, photos: Photos, tmp_path: Path) -> None:
    model = make_model()
    for number in range(12):
        shutil.copy(photos["foregrounds"] / "red.png", photos["foregrounds"] / f"red{number}.png")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole, photos, f"hf:{model}")
    program = (
        "import sys; from pathlib import Path; from shard_tools.compose import compose;"
        "compose(Path(sys.argv[1]), backgrounds=Path(sys.argv[2]), foregrounds=Path(sys.argv[3]), size=32, workers=2,"
        "depth=sys.argv[4])"
    )
    arguments = (killed, photos["backgrounds"], photos["foregrounds"], f"hf:{model}")
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(killed.glob("bg1/fg_*"))) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "dataset.json").exists()
    first = {path: path.stat().st_mtime_ns for path in killed.glob("bg*/fg_*/depth/*.jpg")}
    assert len(first) in range(3 * 40, 28 * 40, 40)

    message = run(killed, photos, f"hf:{model}")
    assert f"{len(first):,} of them from an earlier run" in message
    assert content(killed) == content(whole)
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in first.items())


def test_a_model_of_the_hub_is_named_with_its_revision(make_model: MakeModel, tmp_path: Path) -> None:
    revision = "5426e4f0f3572d16037a39e2dd4b9d5ae7a5f1a4"
    repository = tmp_path / "hub/models--someone--Tiny-Depth"
    shutil.copytree(make_model(), repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(revision)
    program = (
        "import json, sys; from shard_tools.errors import UserError\n"
        "from shard_tools.depth_model import load_depth_model\n"
        "try: print(json.dumps(load_depth_model(sys.argv[1]).describe()))\n"
        "except UserError as error: print(error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}

    def load(name: str) -> str:
        command = [sys.executable, "-c", program, name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
        assert done.stderr == ""
        return done.stdout

    depth = json.loads(load("someone/Tiny-Depth"))
    assert depth["kind"] == "estimated: someone/Tiny-Depth"
    assert depth["model"] == {
        "name": "someone/Tiny-Depth",
        "sha256": load_depth_model(str(tmp_path / "tiny")).sha256,
        "revision": revision,
    }
    for name in ("someone/else", "no name at all"):
        message = load(name)
        assert message.startswith(
            f"--depth hf:{name}: no such folder, and no such model to be had from the Hugging Face hub ("
        )
        assert "; expected a folder or a name like depth-anything/Depth-Anything-V2-Small-hf; without net" in message


@pytest.mark.parametrize("depth", ["", "hf:", "hf", "HF:tiny", "standin", "tiny", "hg:tiny"])
def test_an_unknown_form_is_refused(photos: Photos, tmp_path: Path, depth: str) -> None:
    with pytest.raises(UserError, match=rf"^--depth {depth}: expected stand-in, or hf:MODEL with a folder or a name"):
        run(tmp_path / "out", photos, depth)
    assert not (tmp_path / "out").exists()


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def language_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def truncated(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 5000)


def no_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def headless(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    body = {name: value for name, value in weights.items() if not name.startswith("head.")}
    save_file(body, folder / "model.safetensors", metadata={"format": "pt"})


def other_shapes(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["head.conv3.bias"] = torch.zeros(7)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_code(folder: Path) -> None:
    (folder / "mine.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    mine = {"AutoConfig": "mine.C", "AutoModelForDepthEstimation": "mine.M", "AutoImageProcessor": "mine.P"}
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": mine}))


NO_MODEL = (
    r"is not a model for depth that can be loaded \(.*\); expected config\.json, .* and model\.safetensors of one"
)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty, NO_MODEL),
        (language_model, NO_MODEL),
        (pickled, NO_MODEL),
        (truncated, NO_MODEL),
        (no_processor, NO_MODEL),
        (other_shapes, NO_MODEL),
        (with_code, NO_MODEL),
        (headless, r"lacks 6 of its weights, such as head\.conv1\.bias; get it again"),
    ],
)
def test_what_is_no_whole_model_is_refused(
    make_model: MakeModel, photos: Photos, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    model = make_model()
    spoil(model)
    with pytest.raises(UserError, match=f"^--depth hf:{model}: {message}"):
        run(tmp_path / "out", photos, f"hf:{model}")
    assert not (tmp_path / "out").exists()
    assert not (model / "ran").exists()


def test_a_model_that_says_what_is_no_number_is_refused(make_model: MakeModel, photos: Photos, tmp_path: Path) -> None:
    model = make_model()
    weights = load_file(model / "model.safetensors")
    weights["head.conv3.bias"].fill_(torch.nan)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"^tiny: says of a picture what is no number; expected depth; take another"):
        run(tmp_path / "out", photos, f"hf:{model}")
    assert not (tmp_path / "out/dataset.json").exists()
    assert not list((tmp_path / "out").glob("bg*/fg_*"))


def test_without_transformers_it_says_what_to_install(
    make_model: MakeModel, photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        UserError, match=r"needs a package that is not there \(.*transformers.*\); pip install 'dtrain\[d"
    ):
        run(tmp_path / "out", photos, f"hf:{model}")
    assert "stand-in" in run(tmp_path / "out", photos, "stand-in")


@pytest.mark.parametrize(
    ("name", "options", "inverse"),
    [
        ("DepthAnythingConfig", {}, True),
        ("DepthAnythingConfig", {"depth_estimation_type": "metric"}, False),
        ("PromptDepthAnythingConfig", {"depth_estimation_type": "metric"}, False),
        ("DPTConfig", {}, True),
        ("DPTConfig", {"add_projection": True}, False),
        ("GLPNConfig", {}, False),
        ("ZoeDepthConfig", {}, False),
        ("DepthProConfig", {}, False),
    ],
)
def test_what_larger_means(name: str, options: dict[str, Any], inverse: bool) -> None:
    assert is_inverse(getattr(transformers, name)(**options).to_dict()) is inverse


def test_models_of_which_near_and_far_are_not_known_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"kind 'chmv2', of which it is not known whether larger .* expected one of dep"
    ):
        is_inverse({"model_type": "chmv2"})


def test_grey_values_span_the_range_of_each_picture() -> None:
    said = np.array([[[0, 1], [2, 4]], [[10, 10], [10, 10.5]], [[3, 3], [3, 3]]], np.float32)
    assert to_grey(said, inverse=False).tolist() == [[[0, 64], [128, 255]], [[0, 0], [0, 255]], [[255] * 2] * 2]
    assert to_grey(said, inverse=True).tolist() == [[[255, 191], [128, 0]], [[255, 255], [255, 0]], [[255] * 2] * 2]
