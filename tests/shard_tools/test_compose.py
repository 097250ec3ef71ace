"""`shard-tools compose` as its users meet it: photographs in, a tree of tuples out, and the messages they read."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from shard_tools import compose as compose_module
from shard_tools.compose import compose, find_images, read_background, read_foreground
from shard_tools.errors import UserError
from shard_tools.recipe import PLACEMENTS, pixel_box
from shard_tools.tree_pair import place, scale_foreground

ShardTools = Callable[..., subprocess.CompletedProcess[str]]
Photos = tuple[Path, Path]


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    """Two smooth backgrounds, and two objects with soft edges and empty margins: a wide one and a tall one."""
    backgrounds, foregrounds = tmp_path / "in" / "bg", tmp_path / "in" / "fg"
    backgrounds.mkdir(parents=True)
    foregrounds.mkdir()
    y, x = np.mgrid[0:90, 0:120]
    for number, blue in ((2, 30), (10, 220)):
        pixels = np.stack([x * 2, y * 2, np.full_like(x, blue)], -1).astype(np.uint8)
        Image.fromarray(pixels).save(backgrounds / f"photo{number}.png")
    for name, size in (("sofa.png", (150, 60)), ("man.png", (40, 130))):
        image = Image.new("RGBA", (size[0] + 30, size[1] + 20))
        ImageDraw.Draw(image).rounded_rectangle((10, 5, 10 + size[0], 5 + size[1]), 12, (200, 40, 60, 255))
        ImageDraw.Draw(image).rectangle((14, 9, 30, 25), (20, 250, 90, 120))
        image.save(foregrounds / name)
    return backgrounds, foregrounds


def gray(path: Path) -> NDArray[np.int16]:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image).astype(np.int16)


def colour(path: Path) -> NDArray[np.int16]:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(np.int16)


def content(folder: Path) -> dict[str, str]:
    """Every file of a tree, hidden ones too, with its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_tree_has_the_layout_and_its_pictures_agree_with_alpha(photos: Photos, tmp_path: Path) -> None:
    out = tmp_path / "out"
    message = compose(out, backgrounds=photos[0], foregrounds=photos[1], size=64, workers=1)
    assert "160 tuples (2 backgrounds × 2 foregrounds × 40 placements) of 64 px" in message
    assert f"shard-tools build {out} {out}-shards" in message

    names = {f"bg/bg{b}.jpg" for b in (1, 2)} | {"dataset.json"}
    for b in (1, 2):
        for f in (1, 2):
            for kind in ("overlay", "depth", "mask"):
                names |= {f"bg{b}/fg_{f}/{kind}/{n}.jpg" for n in range(1, 41)}
    assert set(content(out)) == names

    for b, photo in ((1, "photo2.png"), (2, "photo10.png")):
        background = read_background(photos[0] / photo, 64)
        assert np.abs(colour(out / f"bg/bg{b}.jpg") - background.image).mean() < 6
        for f, name in ((1, "man.png"), (2, "sofa.png")):
            sprites = scale_foreground(read_foreground(photos[1] / name), 64)
            folder = out / f"bg{b}" / f"fg_{f}"
            for p in PLACEMENTS:
                overlay, alpha = place(background.image, sprites, p)
                mask = gray(folder / "mask" / f"{p.number}.jpg")
                assert np.abs(mask - alpha).max() < 24
                assert np.abs(colour(folder / "overlay" / f"{p.number}.jpg") - overlay).mean() < 6
                depth = gray(folder / "depth" / f"{p.number}.jpg")
                assert abs(np.median(depth[alpha > 200]) - 255 * 0.12 / (p.base - 0.40)) < 3
                assert np.median(depth[:20][alpha[:20] == 0]) > 250


def test_size_row_and_mirror_image_of_what_is_seen(photos: Photos) -> None:
    background = read_background(photos[0] / "photo2.png", 128).image
    sprites = scale_foreground(read_foreground(photos[1] / "sofa.png"), 128)
    for p in PLACEMENTS:
        overlay, mask = place(background, sprites, p)
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        assert columns[-1] - columns[0] + 1 == round(p.size * 128)
        assert rows[-1] + 1 == round(p.base * 128)
        assert mask.max() == 255
        corner = overlay[rows[0] :, columns[0] :] if not p.mirrored else overlay[rows[0] :, columns[-1] :: -1]
        assert corner[rows.size // 4, columns.size // 10, 1] > 100  # the green patch, at the left of the original

    for original, mirrored in zip(PLACEMENTS[:20], PLACEMENTS[20:], strict=True):
        sprite = sprites[original.row]
        box = pixel_box(original, sprite.shape[1], sprite.shape[0], 128)
        inside = np.s_[box.top : box.bottom, box.left : box.right]
        assert np.array_equal(place(background, sprites, mirrored)[1][inside], sprite[:, ::-1, 3])


def test_metadata_calls_depth_a_stand_in_and_names_no_folder(photos: Photos, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compose(out, backgrounds=photos[0], foregrounds=photos[1], size=16, workers=1)
    text = (out / "dataset.json").read_text()
    metadata = json.loads(text)
    assert metadata["depth"]["kind"] == "stand-in: ground plane"
    assert [entry["file"] for entry in metadata["backgrounds"]] == ["photo2.png", "photo10.png"]
    assert [row["size"] for row in metadata["recipe"]["rows"]] == [0.6, 0.5333, 0.4667, 0.4]
    assert str(tmp_path) not in text


def test_finished_tree_is_left_alone_and_another_one_is_refused(photos: Photos, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compose(out, backgrounds=photos[0], foregrounds=photos[1], size=16, workers=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert "nothing to do" in compose(out, backgrounds=photos[0], foregrounds=photos[1], size=16, workers=2)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(UserError, match=r"out: holds a data set made from other inputs .* choose another OUT"):
        compose(out, backgrounds=photos[0], foregrounds=photos[1], size=24, workers=1)
    Image.new("RGB", (20, 20)).save(photos[0] / "photo2.png")
    with pytest.raises(UserError, match="made from other inputs"):
        compose(out, backgrounds=photos[0], foregrounds=photos[1], size=16, workers=1)


def test_killed_run_is_finished_by_the_same_command(photos: Photos, tmp_path: Path, shard_tools: ShardTools) -> None:
    man = (photos[1] / "man.png").read_bytes()
    for number in range(20):
        (photos[1] / f"man{number}.png").write_bytes(man)
    arguments = ("--backgrounds", str(photos[0]), "--foregrounds", str(photos[1]), "--size", "64")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    compose(whole, backgrounds=photos[0], foregrounds=photos[1], size=64, workers=1)

    command = [sys.executable, "-m", "shard_tools", "compose", str(killed), *arguments, "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(killed.glob("bg1/fg_*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "dataset.json").exists()
    first = {path: path.stat().st_mtime_ns for path in killed.glob("bg*/fg_*/overlay/*.jpg")}
    assert first
    for pair in killed.glob("bg*/fg_*"):
        assert len(list(pair.glob("*/*.jpg"))) == 120
    lost = next(iter(killed.glob("bg1/fg_*/mask/7.jpg")))
    os.truncate(lost, 0)

    second = shard_tools("compose", killed, *arguments, "--workers", "1")
    assert second.returncode == 0, second.stderr
    assert "from an earlier run" in second.stdout
    assert content(killed) == content(whole)
    kept = [path for path, time_ns in first.items() if path.stat().st_mtime_ns == time_ns]
    assert len(kept) == len(first) - 40


def test_number_of_workers_changes_nothing(photos: Photos, tmp_path: Path) -> None:
    for workers in (1, 2):
        compose(tmp_path / str(workers), backgrounds=photos[0], foregrounds=photos[1], size=16, workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "2")


def test_camera_orientation_is_applied_and_the_middle_square_is_kept(tmp_path: Path) -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, :50] = (255, 0, 0)
    pixels[:, 100:] = (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to look at it
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    seen = read_background(tmp_path / "turned.png", 32).image
    assert seen[8, 16].tolist() == [0, 0, 0]
    assert seen[24, 16].tolist() == [0, 0, 255]
    assert not (seen[:, :, 0] > 128).any()


def test_files_that_are_no_pictures_are_named_in_the_summary(photos: Photos, tmp_path: Path) -> None:
    (photos[0] / "notes.txt").write_text("mine")
    (photos[0] / ".DS_Store").write_bytes(b"\0")
    message = compose(tmp_path / "out", backgrounds=photos[0], foregrounds=photos[1], size=16, workers=1)
    assert "left out, being no pictures: notes.txt" in message


def test_pictures_are_taken_in_natural_order(tmp_path: Path) -> None:
    for name in ("b10.png", "b9.png", "a.png", "B1.PNG", "10.png", "9.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name, format="PNG")
    names = [source.path.name for source in find_images(tmp_path, "backgrounds")[0]]
    assert names == ["9.png", "10.png", "a.png", "B1.PNG", "b9.png", "b10.png"]


def no_folder(backgrounds: Path, foregrounds: Path) -> None:
    for path in backgrounds.iterdir():
        path.unlink()
    backgrounds.rmdir()


def empty_folder(backgrounds: Path, foregrounds: Path) -> None:
    for path in foregrounds.iterdir():
        path.unlink()


def no_alpha(backgrounds: Path, foregrounds: Path) -> None:
    Image.new("RGB", (20, 20)).save(foregrounds / "man.png")


def wholly_transparent(backgrounds: Path, foregrounds: Path) -> None:
    Image.new("RGBA", (20, 20)).save(foregrounds / "man.png")


def not_a_picture(backgrounds: Path, foregrounds: Path) -> None:
    (backgrounds / "photo2.png").write_text("<html>")


def cut_short(backgrounds: Path, foregrounds: Path) -> None:
    Image.effect_noise((80, 80), 90).save(backgrounds / "photo2.png")
    os.truncate(backgrounds / "photo2.png", 900)


def too_deep(backgrounds: Path, foregrounds: Path) -> None:
    Image.new("I;16", (20, 20)).save(backgrounds / "photo2.png")


def partly_transparent(backgrounds: Path, foregrounds: Path) -> None:
    Image.new("RGBA", (20, 20), (1, 2, 3, 200)).save(backgrounds / "photo2.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_folder, r"--backgrounds .*bg: there is no such folder; expected a folder of pictures"),
        (empty_folder, r"--foregrounds .*fg: no pictures in it; expected at least one \(PNG with alpha\)"),
        (no_alpha, r"man\.png: has no alpha channel .*expected a PNG with a transparent background; cut"),
        (wholly_transparent, r"man\.png: is wholly transparent; expected an object"),
        (not_a_picture, r"photo2\.png: not a picture that can be read; replace the file or leave it out"),
        (cut_short, r"photo2\.png: cannot be decoded"),
        (too_deep, r"photo2\.png: has more than 8 bits a channel .* save it with 8 bits"),
        (partly_transparent, r"photo2\.png: a background with transparent parts; .* flatten it"),
    ],
)
def test_input_that_cannot_be_used_is_named_and_nothing_is_left_behind(
    photos: Photos, tmp_path: Path, spoil: Callable[[Path, Path], None], message: str
) -> None:
    spoil(*photos)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        compose(out, backgrounds=photos[0], foregrounds=photos[1], size=16, workers=1)
    assert not out.exists()


def test_all_bad_pictures_are_listed_at_once(photos: Photos, tmp_path: Path) -> None:
    no_alpha(*photos)
    not_a_picture(*photos)
    with pytest.raises(UserError, match=r"(?s)man\.png.*photo2\.png|photo2\.png.*man\.png"):
        compose(tmp_path / "out", backgrounds=photos[0], foregrounds=photos[1], size=16, workers=1)


def test_picture_bombs_are_refused_before_they_are_decoded(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose_module, "MAX_PIXELS", 10_000)
    with pytest.raises(UserError, match=r"photo2\.png: more than 0 million pixels; .* scale it down"):
        compose(tmp_path / "out", backgrounds=photos[0], foregrounds=photos[1], size=16, workers=1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"photo2\.png: more than"):
        read_background(photos[0] / "photo2.png", 16)


@pytest.mark.parametrize("size", [0, -8, 8, 15, 17, 20, 130, 5000])
def test_sizes_that_the_network_cannot_take_are_refused(photos: Photos, tmp_path: Path, size: int) -> None:
    with pytest.raises(UserError, match=rf"--size {size}: expected a multiple of 8 from 16 to 4096; take"):
        compose(tmp_path / "out", backgrounds=photos[0], foregrounds=photos[1], size=size, workers=1)


def test_out_has_to_be_a_folder_of_its_own(photos: Photos, tmp_path: Path) -> None:
    def refused(out: Path, message: str) -> None:
        with pytest.raises(UserError, match=message):
            compose(out, backgrounds=photos[0], foregrounds=photos[1], size=16, workers=1)

    file = tmp_path / "file"
    file.write_text("mine")
    refused(file, "file: expected a folder .* it is a file; choose another OUT")
    refused(file / "out", r"file.*: cannot write there \(Not a directory\)")
    refused(photos[0], "holds the inputs")
    refused(photos[0].parent, "holds the inputs")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "diary.txt").write_text("mine")
    refused(mine, "mine: expected an empty or a new folder; it holds other files; choose another OUT")
    assert [path.name for path in mine.iterdir()] == ["diary.txt"]


def test_command_prints_one_line_and_fails(photos: Photos, tmp_path: Path, shard_tools: ShardTools) -> None:
    arguments = ("--backgrounds", photos[0], "--foregrounds", tmp_path / "none")
    done = shard_tools("compose", tmp_path / "out", *arguments, "--size", "64")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"shard-tools: --foregrounds {tmp_path / 'none'}: there is no such folder")
    assert "Traceback" not in done.stderr
