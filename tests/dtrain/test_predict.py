"""`dtrain predict` on a run that was never trained: files, sizes, values, and what is refused."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dtrain import predict as predict_module
from dtrain.checkpoint import Checkpoint, save_checkpoint
from dtrain.config import Config
from dtrain.model import DepthMaskNet
from dtrain.predict import predict
from dtrain.run_folder import RunFolder
from shard_tools.errors import UserError

from .conftest import smooth_pixels

WIDTH, HEIGHT = 50, 35


def save(run: Path, step: int, depth: float, mask: float) -> None:
    """A checkpoint of a network that says `depth` and `mask` everywhere."""
    torch.manual_seed(0)
    model = DepthMaskNet(width=1 / 16)
    with torch.no_grad():
        for head, value in ((model.depth_head, depth), (model.mask_head, math.log(mask / (1 - mask)))):
            head.weight.zero_()
            assert head.bias is not None
            head.bias.fill_(value)
    save_checkpoint(run / "checkpoints", step, Checkpoint(model.state_dict(), {}, {}))


def values(path: Path) -> list[int]:
    """The values that occur in a picture."""
    return sorted(set(np.asarray(Image.open(path)).ravel().tolist()))


@pytest.fixture
def run(make_config: Callable[..., Config]) -> Path:
    config = make_config()
    config.run.mkdir()
    (config.run / "config.yaml").write_text(config.to_yaml())
    save(config.run, 1, depth=0.75, mask=0.5)
    save(config.run, 2, depth=0.25, mask=0.75)
    return config.run


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    files = tmp_path / "room.png", tmp_path / "room with chair.jpg"
    for seed, file in enumerate(files):
        Image.fromarray(smooth_pixels(seed, WIDTH, HEIGHT)).save(file)
    return files


def test_three_pictures_of_the_size_of_the_images(
    run: Path, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    written = predict(run, bg=pair[0], fgbg=pair[1], out=out)

    assert written == [out / f"room with chair_{kind}.png" for kind in ("depth", "mask", "panel")]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in written]
    assert sorted(out.iterdir()) == written
    depth, mask, panel = (Image.open(path) for path in written)
    assert (depth.mode, depth.size) == ("I;16", (WIDTH, HEIGHT))
    assert (mask.mode, mask.size) == ("L", (WIDTH, HEIGHT))
    assert panel.mode == "RGB"
    assert values(written[0]) == [16384]  # 0.25 of 65535
    assert values(written[1]) == [191]  # 0.75 of 255


def test_depth_outside_of_zero_to_one_is_clipped(run: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    for step, depth, expected in ((3, 1.5, 65535), (4, -0.5, 0)):
        save(run, step, depth=depth, mask=0.5)
        (path, *_) = predict(run, bg=pair[0], fgbg=pair[1], out=tmp_path / "out")
        assert values(path) == [expected]


def test_a_checkpoint_and_a_size_can_be_chosen(run: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    path, *_ = predict(run, bg=pair[0], fgbg=pair[1], out=tmp_path, checkpoint="step-00000001", size=8)
    assert values(path) == [49151]
    with pytest.raises(UserError, match=r"step-9: no such checkpoint; there are: step-00000002, step-00000001"):
        predict(run, bg=pair[0], fgbg=pair[1], out=tmp_path, checkpoint="step-9")
    with pytest.raises(UserError, match="--size 12: expected a multiple of 8"):
        predict(run, bg=pair[0], fgbg=pair[1], out=tmp_path, size=12)


def test_the_best_checkpoint_is_the_one_that_was_evaluated_best(
    run: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def predicted() -> list[int]:
        path, *_ = predict(run, bg=pair[0], fgbg=pair[1], out=tmp_path / "out", checkpoint="best")
        return values(path)

    with pytest.raises(UserError, match=r"no checkpoint .* was evaluated; .*keep_best"):
        predicted()
    folder = RunFolder(run)
    for step, iou in ((1, 0.8), (2, 0.7), (3, 0.9)):
        folder.add_metrics({"kind": "evaluate", "global_step": step, "metrics": {"mask_iou": iou}})
    assert predicted() == [49151], "step 1: of step 3, the best, nothing is left"


def test_what_is_predicted_depends_on_both_images(
    make_config: Callable[..., Config], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    config = make_config()
    config.run.mkdir()
    (config.run / "config.yaml").write_text(config.to_yaml())
    torch.manual_seed(1)
    save_checkpoint(config.run / "checkpoints", 1, Checkpoint(DepthMaskNet(width=1 / 16).state_dict(), {}, {}))
    results = []
    for number, (bg, fgbg) in enumerate([pair, pair[::-1], (pair[0], pair[0])]):
        _, mask, _ = predict(config.run, bg=bg, fgbg=fgbg, out=tmp_path / str(number))
        results.append(np.asarray(Image.open(mask)))
    assert results[0].std() > 0
    assert not (results[0] == results[1]).all()
    assert not (results[0] == results[2]).all()


def test_images_of_other_modes(run: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    gray = tmp_path / "gray.png"
    Image.fromarray(smooth_pixels(3, WIDTH, HEIGHT)).convert("LA").save(gray)
    assert len(predict(run, bg=gray, fgbg=pair[1], out=tmp_path)) == 3


def refusal(run: Path, bg: Path, fgbg: Path, out: Path) -> str:
    before = set(out.rglob("*")) if out.is_dir() else set()
    with pytest.raises(UserError) as caught:
        predict(run, bg=bg, fgbg=fgbg, out=out)
    assert (set(out.rglob("*")) if out.is_dir() else set()) == before
    return str(caught.value)


def test_images_of_different_sizes_are_refused(run: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.fromarray(smooth_pixels(3, HEIGHT, WIDTH)).save(other)
    message = refusal(run, pair[0], other, tmp_path / "out")
    assert message == f"{pair[0]} is 50×35 but {other} is 35×50; expected equal sizes"


def test_what_is_no_image_is_refused(run: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    absent, text, cut = tmp_path / "absent.png", tmp_path / "text.png", tmp_path / "cut.png"
    text.write_text("no image")
    cut.write_bytes(pair[0].read_bytes()[:-200])
    assert refusal(run, absent, pair[1], tmp_path / "out") == f"{absent}: no such file"
    for file in (text, cut, tmp_path):
        assert refusal(run, pair[0], file, tmp_path / "out").startswith(f"{file}: can't be read as an image: ")


def test_an_image_of_too_many_pixels_is_refused(
    run: Path, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_module, "MAX_PIXELS", WIDTH * HEIGHT - 1)
    assert refusal(run, *pair, tmp_path / "out").startswith(f"{pair[0]}: 50×35 pixels are more than 1749")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # where Pillow itself refuses
    assert refusal(run, *pair, tmp_path / "out").startswith(f"{pair[0]}: can't be read as an image: ")


def test_a_folder_that_is_no_run(run: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent", *pair, tmp_path / "out").startswith(f"{tmp_path / 'absent'}: not a run folder")
    for path in (run / "checkpoints").iterdir():
        (path / "model.safetensors").unlink()
    message = refusal(run, *pair, tmp_path / "out")
    assert message.startswith(f"{run / 'checkpoints'}: holds no whole checkpoint: step-00000002: model.safetensors is")
    assert message.endswith("train first")


def test_a_damaged_checkpoint_that_was_asked_for_is_refused(run: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    (run / "checkpoints/step-00000002/state.json").write_text("{ }")
    with pytest.raises(UserError, match=r"step-00000002: damaged: state\.json has 3 bytes"):
        predict(run, bg=pair[0], fgbg=pair[1], out=tmp_path, checkpoint="step-00000002")
    path, *_ = predict(run, bg=pair[0], fgbg=pair[1], out=tmp_path)
    assert values(path) == [49151]


def test_an_out_folder_that_cannot_be_made(run: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert refusal(run, *pair, pair[0] / "out").startswith(f"{pair[0] / 'out'}: can't be written: Not a directory")
