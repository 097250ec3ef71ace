"""`dtrain predict` on runs that were never trained: files, folders, shards; what is refused; kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dtrain
from dtrain.cli import main
from dtrain.config import Config
from dtrain.run_folder import RunFolder
from shard_tools.cli import main as shard_tools

from .conftest import Shards, smooth_pixels
from .trained_runs import make_run, read_plane, save_constant, save_lively, save_pair

WIDTH, HEIGHT = 50, 35
ROUNDING = 1e-4
"""Of 16 bits, and of sums in a batch of another size."""


@pytest.fixture
def run(make_config: Callable[..., Config]) -> Path:
    """A run with a checkpoint that says 0.75 and 0.5 everywhere, and a newer one that says 0.25 and 0.75."""
    config = make_config()
    path = make_run(config)
    save_constant(config, 1, depth=0.75, mask=0.5)
    save_constant(config, 2, depth=0.25, mask=0.75)
    return path


@pytest.fixture
def lively(make_config: Callable[..., Config]) -> Path:
    """A run whose network says something of every pixel."""
    config = make_config()
    path = make_run(config)
    save_lively(config, 1)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    files = tmp_path / "room.png", tmp_path / "room with chair.jpg"
    for seed, file in enumerate(files):
        Image.fromarray(smooth_pixels(seed, WIDTH, HEIGHT)).save(file)
    return files


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Six pairs of three sizes, some of them in a folder of their own, with other suffixes on one side."""
    for number, (width, height) in enumerate([(50, 35), (50, 35), (35, 50)] * 2):
        name = f"kitchen/{number}" if number % 2 else f"{number}"
        save_pair(tmp_path, name, number, width, height)
    for file in (tmp_path / "bg").rglob("*.png"):
        file.rename(file.with_suffix(".PNG"))
    return tmp_path / "bg", tmp_path / "fgbg"


NAMES = ["0", "2", "4", "kitchen/1", "kitchen/3", "kitchen/5"]


def predict(run: Path, out: Path, *options: str | Path) -> int:
    return main(["predict", str(run), *map(str, options), "--out", str(out)])


def predict_files(run: Path, pair: tuple[Path, Path], out: Path, *options: str) -> int:
    return predict(run, out, "--bg", pair[0], "--fgbg", pair[1], *options)


def values(path: Path) -> list[int]:
    """The values that occur in a picture."""
    return sorted(set(np.asarray(Image.open(path)).ravel().tolist()))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected_names(names: list[str]) -> set[str]:
    return {f"{name}_{kind}.png" for name in names for kind in ("depth", "mask", "panel")}


def test_three_pictures_of_the_size_of_the_images(
    run: Path, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert predict_files(run, pair, out) == 0

    written = [out / f"room with chair_{kind}.png" for kind in ("depth", "mask", "panel")]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in written]
    assert sorted(out.iterdir()) == written
    depth, mask, panel = (Image.open(path) for path in written)
    assert (depth.mode, depth.size) == ("I;16", (WIDTH, HEIGHT))
    assert (mask.mode, mask.size) == ("L", (WIDTH, HEIGHT))
    assert panel.mode == "RGB"
    assert values(written[0]) == [16384]  # 0.25 of 65535
    assert values(written[1]) == [191]  # 0.75 of 255
    assert json.loads(depth.info["dtrain"])["checkpoint"] == "step-00000002"


def test_depth_outside_of_zero_to_one_is_clipped(
    make_config: Callable[..., Config], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    config = make_config()
    run = make_run(config)
    for step, depth, expected in ((1, 1.5, 65535), (2, -0.5, 0)):
        save_constant(config, step, depth=depth, mask=0.5)
        assert predict_files(run, pair, tmp_path / "out") == 0
        assert values(tmp_path / "out/room with chair_depth.png") == [expected]


def test_a_checkpoint_and_a_size_can_be_chosen(
    run: Path, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert predict_files(run, pair, out, "--checkpoint", "step-00000001", "--size", "8") == 0
    assert values(out / "room with chair_depth.png") == [49151]
    for options, message in (
        (["--checkpoint", "step-9"], "step-9: no such checkpoint; there are: step-00000002, step-00000001"),
        (["--size", "12"], "--size 12: expected a multiple of 8"),
    ):
        assert predict_files(run, pair, out, *options) == 1
        assert message in capsys.readouterr().err


def test_the_best_checkpoint_is_the_one_that_was_evaluated_best(
    run: Path, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict_files(run, pair, tmp_path / "out", "--checkpoint", "best") == 1
    assert "was evaluated; choose another one, and train with checkpoint.keep_best" in capsys.readouterr().err
    folder = RunFolder(run)
    for step, iou in ((1, 0.8), (2, 0.7), (3, 0.9)):
        folder.add_metrics({"kind": "evaluate", "global_step": step, "size": 32, "metrics": {"mask_iou": iou}})
    assert predict_files(run, pair, tmp_path / "out", "--checkpoint", "best") == 0
    depth = values(tmp_path / "out/room with chair_depth.png")
    assert depth == [49151], "step 1: of step 3, the best, nothing is left"


def test_what_is_predicted_depends_on_both_images(lively: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    masks = []
    for number, files in enumerate([pair, pair[::-1], (pair[0], pair[0])]):
        assert predict_files(lively, files, tmp_path / str(number)) == 0
        masks.append(read_plane(tmp_path / str(number) / f"{files[1].stem}_mask.png"))
    assert masks[0].std() > 0.05
    assert not np.allclose(masks[0], masks[1], atol=0.05)
    assert not np.allclose(masks[0], masks[2], atol=0.05)


def test_folders_are_matched_by_name(
    lively: Path, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (folders[1] / "notes.txt").write_text("no image")
    assert predict_files(lively, folders, out) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}: 6 pairs predicted\n"
    assert f"dtrain: {folders[1]}: not looked at, as no images by name or links to folders: 1 files\n" in captured.err
    assert "predicting: 6/6 pairs (100%)" in captured.err

    assert contents(out).keys() == expected_names(NAMES)
    network = dtrain.load(lively)
    for name in NAMES:
        result = network.predict(folders[0] / f"{name}.PNG", folders[1] / f"{name}.png")
        assert read_plane(out / f"{name}_depth.png") == pytest.approx(result.depth, abs=ROUNDING)
        assert read_plane(out / f"{name}_mask.png") == pytest.approx(result.mask, abs=0.6 / 255)


def test_one_background_for_many(lively: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        bg, _ = save_pair(tmp_path, str(number), number, WIDTH, HEIGHT)
    out = tmp_path / "out"
    assert predict(lively, out, "--bg", bg, "--fgbg", tmp_path / "fgbg") == 0
    assert capsys.readouterr().out == f"{out}: 3 pairs predicted\n"
    assert contents(out).keys() == expected_names(["0", "1", "2"])
    result = dtrain.load(lively).predict(bg, tmp_path / "fgbg/0.png")
    assert read_plane(out / "0_depth.png") == pytest.approx(result.depth, abs=ROUNDING)


def test_images_without_a_partner(
    run: Path, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bg, fgbg = folders
    (bg / "0.PNG").unlink()
    (fgbg / "kitchen/1.png").unlink()
    (fgbg / "kitchen/3.png").unlink()
    out = tmp_path / "out"
    told = (
        f"1 of 4 images in {fgbg} have no partner in {bg} (0); "
        f"2 of 5 images in {bg} have no partner in {fgbg} (kitchen/1, kitchen/3)"
    )
    assert predict_files(run, folders, out) == 1
    assert capsys.readouterr().err == f"dtrain: {told}; give them equal names, or leave them out: --skip-unmatched\n"
    assert not out.exists()
    assert predict_files(run, folders, out, "--skip-unmatched") == 0
    captured = capsys.readouterr()
    assert all(f"dtrain: left out: {line}\n" in captured.err for line in told.split("; "))
    assert captured.out == f"{out}: 3 pairs predicted\n"
    assert contents(out).keys() == expected_names(["2", "4", "kitchen/5"])


def test_one_broken_image_among_many(
    run: Path, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut, other_size = folders[1] / "2.png", folders[1] / "kitchen/3.png"
    whole = cut.read_bytes(), other_size.read_bytes()
    cut.write_bytes(whole[0][:-200])
    Image.open(other_size).resize((20, 20)).save(other_size)
    out = tmp_path / "out"
    assert predict_files(run, folders, out) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"dtrain: {cut}: can't be read as an image: " in captured.err
    bg = folders[0] / "kitchen/3.PNG"
    assert f"dtrain: {bg} is 50×35 but {other_size} is 20×20; expected equal sizes\n" in captured.err
    assert captured.err.endswith(
        f"dtrain: {out}: 4 pairs predicted, 2 can't be: see above. Mend them and run the same command again, which "
        "does only what is missing\n"
    )
    assert contents(out).keys() == expected_names(["0", "4", "kitchen/1", "kitchen/5"])

    cut.write_bytes(whole[0])
    other_size.write_bytes(whole[1])
    assert predict_files(run, folders, out) == 0
    assert capsys.readouterr().out == f"{out}: 2 pairs predicted, 4 were there already\n"
    assert contents(out).keys() == expected_names(NAMES)


def test_only_what_was_made_of_the_same_counts_as_there(
    lively: Path, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def predicted(*options: str) -> str:
        assert predict_files(lively, folders, out, *options) == 0
        return capsys.readouterr().out.removeprefix(f"{out}: ").strip()

    assert predicted() == "6 pairs predicted"
    first = contents(out)
    assert predicted() == "0 pairs predicted, 6 were there already"
    (out / "2_mask.png").unlink()
    (out / "4_depth.png").write_bytes(b"damaged")
    shutil.copy(folders[1] / "0.png", folders[1] / "kitchen/1.png")
    assert predicted() == "3 pairs predicted, 3 were there already"
    second = contents(out)
    assert {name for name in first if first[name] != second[name]} == expected_names(["kitchen/1"])
    assert predicted("--size", "32") == "6 pairs predicted"
    assert predicted("--size", "32", "--overwrite") == "6 pairs predicted"


COUNTED_BEFORE_THE_KILL = 4


def test_killed_halfway_and_started_again(lively: Path, tmp_path: Path) -> None:
    count = 40
    for number in range(count):
        save_pair(tmp_path, f"{number:02d}", number, 128, 128)
    out = tmp_path / "out"
    images = ["--bg", str(tmp_path / "bg"), "--fgbg", str(tmp_path / "fgbg")]
    command = [sys.executable, "-m", "dtrain", "predict", str(lively), *images, "--size", "128", "--out"]

    process = subprocess.Popen([*command, str(out)], start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*_depth.png"))) < COUNTED_BEFORE_THE_KILL and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL, "it was not done before"
    survived = {path: path.stat().st_mtime_ns for path in out.glob("*_depth.png")}
    for path in out.glob("*.png"):
        Image.open(path).load()

    again = subprocess.run([*command, str(out)], capture_output=True, text=True, timeout=120, check=True)
    there = len(survived)
    assert COUNTED_BEFORE_THE_KILL <= there < count
    assert again.stdout == f"{out}: {count - there} pairs predicted, {there} were there already\n"
    assert {path: path.stat().st_mtime_ns for path in survived} == survived
    assert contents(out).keys() == expected_names([f"{number:02d}" for number in range(count)])
    network = dtrain.load(lively)
    for name in ("00", "20", "39"):
        result = network.predict(tmp_path / f"bg/{name}.png", tmp_path / f"fgbg/{name}.png", size=128)
        assert read_plane(out / f"{name}_depth.png") == pytest.approx(result.depth, abs=ROUNDING)


def test_images_of_other_kinds(lively: Path, tmp_path: Path) -> None:
    bg, fgbg = tmp_path / "bg", tmp_path / "fgbg"
    save_pair(tmp_path, "plain", 0, WIDTH, HEIGHT)
    gray = [Image.fromarray(smooth_pixels(seed, WIDTH, HEIGHT)).convert("L") for seed in (0, 1)]
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90° clockwise
    for folder, image in zip((bg, fgbg), gray, strict=True):
        pixels = np.asarray(Image.open(folder / "plain.png"))
        Image.fromarray(np.rot90(pixels)).save(folder / "turned.png", exif=turned)
        Image.fromarray(pixels).convert("RGBA").save(folder / "alpha.webp", lossless=True)
        image.save(folder / "gray8.png")
        Image.fromarray(np.asarray(image).astype(np.uint16) * 256 + 77).save(folder / "gray16.tif")
        Image.fromarray(pixels).convert("CMYK").save(folder / "cmyk.jpg", quality=95)
        Image.fromarray(pixels).save(folder / "ycc.jpg", quality=95)
    out = tmp_path / "out"
    assert predict(lively, out, "--bg", bg, "--fgbg", fgbg) == 0

    def depth(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return read_plane(out / f"{name}_depth.png")

    for name, plain in (
        ("turned", "plain"),
        ("alpha", "plain"),
        ("gray16", "gray8"),
    ):
        assert depth(name).shape == depth(plain).shape == (HEIGHT, WIDTH)
        assert depth(name) == pytest.approx(depth(plain), abs=ROUNDING), name
    for name in ("cmyk", "ycc"):
        pair = [Image.open(folder / f"{name}.jpg").convert("RGB") for folder in (bg, fgbg)]
        assert depth(name) == pytest.approx(dtrain.load(lively).predict(*pair).depth, abs=ROUNDING), name
    assert not np.allclose(depth("gray8"), depth("plain"), atol=0.05)


def test_shards(lively: Path, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert predict(lively, out, "--shards", shards.folder, "--limit", "7") == 0
    assert capsys.readouterr().out == f"{out}: 7 pairs predicted\n"
    names = [path.name.removesuffix("_depth.png") for path in out.glob("*_depth.png")]
    assert len(names) == 7
    network = dtrain.load(lively)
    for name in names:
        bg, fgbg, _, _ = shards.source_files(name)
        result = network.predict(bg, fgbg)
        assert read_plane(out / f"{name}_depth.png") == pytest.approx(result.depth, abs=0.02)
        without_truth, panel = result.panel(), Image.open(out / f"{name}_panel.png")
        assert panel.width > without_truth.width, "it shows the truth, too"

    assert predict(lively, out, "--shards", shards.folder) == 0
    assert capsys.readouterr().out == f"{out}: 3 pairs predicted, 7 were there already\n"
    assert predict(lively, out, "--shards", shards.folder / "shards.json", "--split", "train") == 0
    assert capsys.readouterr().out == f"{out}: 30 pairs predicted\n"
    assert len(contents(out)) == 3 * 40


def test_a_shard_that_is_cut_off(
    run: Path, own_shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = own_shards.manifest.split("test").shards
    path = own_shards.folder / first.file
    path.write_bytes(path.read_bytes()[: first.bytes // 2])
    out = tmp_path / "out"
    assert predict(run, out, "--shards", own_shards.folder) == 1
    captured = capsys.readouterr()
    assert f"dtrain: {path}: ends inside sample " in captured.err
    done = len(list(out.glob("*_depth.png")))
    assert second.samples < done < second.samples + first.samples
    assert f"{out}: {done} pairs predicted, {10 - done} can't be" in captured.err


def test_keys_of_other_programs_stay_in_the_folder(
    run: Path, own_shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "adopted"
    place.mkdir()
    for number, prefix in enumerate(["rooms/a", "rooms/a", "../../b"]):
        with tarfile.open(place / f"t-{number}.tar", "w") as tar:
            for name, file in zip(
                ("bg", "fgbg", "depth", "mask"), own_shards.source_files(f"bg1_fg_1_{number + 1}"), strict=True
            ):
                tar.add(file, f"{prefix}.{name}.jpg")
        (place / "shards.json").unlink(missing_ok=True)
        assert shard_tools(["index", str(place), "--split", "test=t-*.tar"]) == 0
        capsys.readouterr()
        out = tmp_path / f"out{number}"
        status = predict(run, out, "--shards", place)
        if number < 2:
            assert status == 0
            assert contents(out).keys() == expected_names([f"t-{tar}/rooms/a" for tar in range(number + 1)])
    assert status == 1
    assert "t-2.tar: sample '../../b': can't be the name of a file" in capsys.readouterr().err
    assert not list(tmp_path.glob("b_*"))


def refusal(run: Path, out: Path, capsys: pytest.CaptureFixture[str], *options: str | Path) -> str:
    """What is said of a command that does nothing."""
    before = contents(out) if out.is_dir() else {}
    capsys.readouterr()
    assert predict(run, out, *options) == 1
    assert (contents(out) if out.is_dir() else {}) == before
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1].removeprefix("dtrain: ")


def test_pairs_that_are_none(
    run: Path, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent, text, cut, other = (tmp_path / f"{name}.png" for name in ("absent", "text", "cut", "other"))
    text.write_text("no image")
    cut.write_bytes(pair[0].read_bytes()[:-200])
    Image.fromarray(smooth_pixels(3, HEIGHT, WIDTH)).save(other)
    out = tmp_path / "out"

    def said(bg: Path, fgbg: Path) -> str:
        return refusal(run, out, capsys, "--bg", bg, "--fgbg", fgbg)

    assert said(absent, pair[1]) == f"{absent}: no such file"
    assert said(pair[0], absent) == f"{absent}: no such file"
    assert said(text, pair[1]).startswith(f"{text}: can't be read as an image: ")
    assert said(cut, pair[1]).startswith(f"{cut}: can't be read as an image: ")
    assert said(pair[0], other) == f"{pair[0]} is 50×35 but {other} is 35×50; expected equal sizes"


def test_folders_that_make_no_pairs(
    run: Path, pair: tuple[Path, Path], folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bg, fgbg = folders
    empty, out = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()

    def said(bg: Path, fgbg: Path, out: Path = out) -> str:
        return refusal(run, out, capsys, "--bg", bg, "--fgbg", fgbg)

    assert said(bg, pair[1]).startswith(f"--bg {bg} is a folder, but --fgbg {pair[1]} is none; give two files, two")
    assert said(pair[0], empty) == f"{empty}: holds no image; expected files such as 1.jpg"
    inside = fgbg / "predicted"
    assert said(bg, fgbg, inside).startswith(f"--out {inside} lies in {fgbg}, where results would be taken for images;")
    shutil.copy(fgbg / "0.png", fgbg / "0.jpeg")
    assert " have one name; rename one of them" in said(bg, fgbg)


def test_options_that_do_not_go_together(
    run: Path, pair: tuple[Path, Path], shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, place = tmp_path / "out", ("--shards", shards.folder)
    assert refusal(run, out, capsys, *place, "--bg", pair[0]).startswith(
        "--shards: has pairs of its own; leave out --bg"
    )
    assert refusal(run, out, capsys, "--bg", pair[0]).startswith("expected --bg and --fgbg, two files or folders, or")
    files = ("--bg", pair[0], "--fgbg", pair[1])
    assert refusal(run, out, capsys, *files, "--limit", "3").startswith("--split and --limit: choose among shards;")
    assert refusal(run, out, capsys, *place, "--limit", "0") == "--limit 0: expected at least 1"
    assert refusal(run, out, capsys, *place, "--split", "tset").endswith("has no split 'tset'; it has: train, test")
    assert refusal(run, out, capsys, "--shards", tmp_path).startswith(f"{tmp_path / 'shards.json'}: no such file")


def test_a_folder_that_is_no_run(
    run: Path, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = ("--bg", pair[0], "--fgbg", pair[1]), tmp_path / "out"
    assert refusal(tmp_path / "absent", out, capsys, *images).startswith(f"{tmp_path / 'absent'}: not a run folder")
    for path in (run / "checkpoints").iterdir():
        (path / "model.safetensors").unlink()
    message = refusal(run, out, capsys, *images)
    assert message.startswith(f"{run / 'checkpoints'}: holds no whole checkpoint: step-00000002: model.safetensors is")
    assert message.endswith("train first")


def test_a_damaged_checkpoint_that_was_asked_for_is_refused(
    run: Path, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints/step-00000002/state.json").write_text("{ }")
    images, out = ("--bg", pair[0], "--fgbg", pair[1]), tmp_path / "out"
    said = refusal(run, out, capsys, *images, "--checkpoint", "step-00000002")
    assert "step-00000002: damaged: state.json has 3 bytes" in said
    assert predict(run, out, *images) == 0
    assert values(out / "room with chair_depth.png") == [49151]


def test_an_out_folder_that_cannot_be_written(
    run: Path, pair: tuple[Path, Path], tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ("--bg", pair[0], "--fgbg", pair[1])
    assert refusal(run, pair[0] / "out", capsys, *images).startswith(
        f"--out {pair[0] / 'out'}: cannot be written: Not a"
    )
    (small_disk / "ballast").write_bytes(bytes(2**20 - 2**14))
    said = refusal(run, small_disk, capsys, *images)
    assert said == f"{small_disk}: can't be written: No space left on device; make room, or choose another --out"
