"""`preview`: which tuples are drawn, what the sheet shows of them, and what is said of bad arguments and shards."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shard_tools.contact_sheet import draw_sheet, make_row
from shard_tools.errors import UserError
from shard_tools.preview import MAX_SAMPLES, preview

from .tiny_shards import Pixels, Tuple, decode, masked_tuple, png, random_tuple, write_shards

COLUMNS = 5
SIZE = (20, 12)
FACTOR = 8  # 160 // 20
CELL = (160, 96)
FIRST_TOP, ROW_HEIGHT = 46, 96 + 24
LEFTS = [20 + column * 166 for column in range(COLUMNS)]


def sheet(location: Path | str, out: Path, **arguments: object) -> Pixels:
    defaults = {"split": None, "samples": 8, "seed": 0, "keys": ()}
    preview(str(location), out=out, **{**defaults, **arguments})  # type: ignore[arg-type]
    return np.asarray(Image.open(out))


def cells(drawn: Pixels, row: int) -> list[Pixels]:
    """The five images of a row of the first block, at one pixel for each of their own."""
    top = FIRST_TOP + row * ROW_HEIGHT
    return [drawn[top : top + CELL[1] : FACTOR, left : left + CELL[0] : FACTOR] for left in LEFTS]


def tuples(count: int, *, first: int = 0) -> dict[str, dict[str, bytes]]:
    return {f"t{first + n}": random_tuple(first + n, size=SIZE) for n in range(count)}


def shown(drawn: Pixels, known: Mapping[str, Tuple], rows: int) -> list[str]:
    """Keys of the tuples whose fgbg is drawn, from top to bottom."""
    by_pixels = {decode(images["fgbg"], "RGB").tobytes(): key for key, images in known.items()}
    return [by_pixels[cells(drawn, row)[1].tobytes()] for row in range(rows)]


@pytest.fixture
def known() -> dict[str, dict[str, bytes]]:
    return tuples(30)


@pytest.fixture
def shards(tmp_path: Path, known: dict[str, dict[str, bytes]]) -> Path:
    """Ten tuples in each of two shards that train and one that tests."""
    parts = [dict(list(known.items())[n : n + 10]) for n in (0, 10, 20)]
    return write_shards(tmp_path / "shards", {"train": parts[:2], "test": parts[2:]})


# What is drawn


def test_each_image_is_drawn_pixel_by_pixel(shards: Path, known: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    drawn = sheet(shards, tmp_path / "a.png", keys=["t11", "t25"])
    assert drawn.shape == (2 * 20 + 26 + 2 * ROW_HEIGHT, 2 * 20 + 5 * 160 + 4 * 6, 3)
    for row, key in enumerate(["t11", "t25"]):
        bg, fgbg, depth, mask, over = cells(drawn, row)
        images = known[key]
        assert (bg == decode(images["bg"], "RGB")).all()
        assert (fgbg == decode(images["fgbg"], "RGB")).all()
        assert (depth == decode(images["depth"], "L")[..., None]).all()
        assert (mask == decode(images["mask"], "L")[..., None]).all()
        assert over.shape == fgbg.shape


def test_the_mask_is_tinted_and_outlined_over_fgbg_and_nothing_else_is(tmp_path: Path) -> None:
    mask = np.zeros(SIZE[::-1], dtype=np.uint8)
    mask[3:9, 5:15] = 255
    shards = write_shards(tmp_path / "shards", {"all": [{"k": masked_tuple(mask)}]})
    drawn = sheet(shards, tmp_path / "a.png")
    over = drawn[FIRST_TOP : FIRST_TOP + CELL[1], LEFTS[4] : LEFTS[4] + CELL[0]].astype(int)
    inside = np.zeros(over.shape[:2], dtype=bool)
    inside[3 * FACTOR : 9 * FACTOR, 5 * FACTOR : 15 * FACTOR] = True
    line = (over == (255, 0, 144)).all(axis=-1)
    untouched = (over == 128).all(axis=-1)
    assert (over[inside] == (166, 90, 133)).all()
    assert not (line & inside).any()
    assert line.sum() == 2 * (6 + 10) * FACTOR
    assert (line | untouched)[~inside].all()


def test_captions_name_key_and_shard(shards: Path, tmp_path: Path) -> None:
    """The same tuple under another name, or in another shard, differs in the caption alone."""
    images = {"k": random_tuple(1, size=SIZE)}
    one = sheet(write_shards(tmp_path / "1", {"train": [images]}), tmp_path / "1.png")
    split = sheet(write_shards(tmp_path / "2", {"test": [images]}), tmp_path / "2.png")
    key = sheet(write_shards(tmp_path / "3", {"train": [{"q": images["k"]}]}), tmp_path / "3.png")
    caption = slice(FIRST_TOP + CELL[1] + 1, FIRST_TOP + ROW_HEIGHT)
    for other in (split, key):
        rows = np.flatnonzero((one != other).any(axis=(1, 2)))
        assert caption.start <= rows.min() <= rows.max() < caption.stop


def test_long_keys_are_shortened_to_the_width_of_the_sheet(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", {"train": [{"W" * 80: random_tuple(1, size=(1, 1))}]})
    drawn = sheet(shards, tmp_path / "a.png")
    assert (drawn[:, -19:] == 255).all()


@pytest.mark.parametrize(
    ("size", "cell"), [((10, 5), (160, 80)), ((81, 40), (81, 40)), ((160, 20), (160, 20)), ((400, 640), (100, 160))]
)
def test_images_keep_their_shape(size: tuple[int, int], cell: tuple[int, int]) -> None:
    grey = np.full(size[::-1], 90, dtype=np.uint8)
    colour = np.stack([grey] * 3, axis=-1)
    row = make_row("k", {"bg": colour, "fgbg": colour, "depth": grey, "mask": grey})
    assert [image.size for image in row.cells] == [cell] * COLUMNS
    assert draw_sheet([row]).size == (2 * 20 + 5 * cell[0] + 4 * 6, 2 * 20 + 26 + cell[1] + 24)


def test_a_mask_of_another_size_is_drawn_over_fgbg_all_the_same(tmp_path: Path) -> None:
    images = {**masked_tuple(np.zeros(SIZE[::-1], dtype=np.uint8)), "mask": png(np.full((3, 4), 255, dtype=np.uint8))}
    drawn = sheet(write_shards(tmp_path / "shards", {"all": [{"k": images}]}), tmp_path / "a.png")
    top = FIRST_TOP
    assert (drawn[top : top + CELL[1], LEFTS[4] : LEFTS[4] + CELL[0]] == (166, 90, 133)).all()


def test_more_than_eight_stand_in_two_blocks(shards: Path, tmp_path: Path) -> None:
    eight = sheet(shards, tmp_path / "8.png", samples=8)
    nine = sheet(shards, tmp_path / "9.png", samples=9)
    assert eight.shape[:2] == (66 + 8 * ROW_HEIGHT, 864)
    assert nine.shape[:2] == (66 + 5 * ROW_HEIGHT, 2 * 864)
    below = FIRST_TOP + 4 * ROW_HEIGHT
    assert (nine[below : below + 90, LEFTS[0] + 5 : LEFTS[0] + 160] != 255).any()
    assert (nine[below:, 864:] == 255).all()


# Which tuples


def test_random_tuples_follow_the_seed(shards: Path, known: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    def keys(samples: int, seed: int) -> list[str]:
        return shown(sheet(shards, tmp_path / "a.png", samples=samples, seed=seed), known, samples)

    eight = keys(8, 0)
    assert eight == keys(8, 0)
    assert len(set(eight)) == 8
    assert eight == sorted(eight, key=list(known).index), "not in packing order"
    assert set(keys(3, 0)) < set(eight)
    drawn = {key for seed in range(40) for key in keys(4, seed)}
    assert drawn == set(known), "some tuple is never drawn"


def test_only_shards_that_are_touched_are_read(
    shards: Path, known: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    key = shown(sheet(shards, tmp_path / "a.png", samples=1, seed=3), known, 1)[0]
    place = int(key[1:]) // 10
    others = {"train-0", "train-1", "test-0"} - {["train-0", "train-1", "test-0"][place]}
    for name in others:
        (shards / f"{name}.tar").unlink()
        (shards / f"{name}.idx").unlink()
    assert shown(sheet(shards, tmp_path / "b.png", samples=1, seed=3), known, 1) == [key]


def test_one_split_alone(shards: Path, known: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    keys = shown(sheet(shards, tmp_path / "a.png", split="test", samples=8), known, 8)
    assert {int(key[1:]) // 10 for key in keys} == {2}


def test_keys_are_drawn_in_the_order_given(shards: Path, known: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    keys = ["t25", "t3", "t14", "t4"]
    assert shown(sheet(shards, tmp_path / "a.png", keys=[*keys, "t3"]), known, 4) == keys


def test_fewer_than_asked_for_are_all_drawn_and_it_is_said(
    shards: Path, known: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    out = tmp_path / "a.png"
    text = preview(str(shards), split="test", samples=50, seed=0, keys=(), out=out)
    assert text == f"wrote {out}: 10 of 10 tuples; 50 were asked for, there are no more"
    assert Image.open(out).size == (2 * 864, 66 + 5 * ROW_HEIGHT)


def test_backgrounds_stored_once(tmp_path: Path) -> None:
    known = tuples(3)
    backgrounds = {f"b{n}": images["bg"] for n, images in enumerate(known.values())}
    referring = {key: {**images, "bg": f"b{n}".encode()} for n, (key, images) in enumerate(known.items())}
    inside = sheet(write_shards(tmp_path / "1" / "s", {"train": [known]}), tmp_path / "1.png")
    once = sheet(
        write_shards(tmp_path / "2" / "s", {"train": [referring]}, backgrounds=backgrounds), tmp_path / "2.png"
    )
    assert (inside == once).all()


def test_shards_behind_a_url(shards: Path, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in shards.iterdir():
        memory.pipe_file(f"/tiny_preview/{file.name}", file.read_bytes())
    assert (sheet("memory://tiny_preview", tmp_path / "a.png") == sheet(shards, tmp_path / "b.png")).all()


# What is wrong


@pytest.mark.parametrize("samples", [0, -1, MAX_SAMPLES + 1])
def test_a_number_that_cannot_be_drawn(shards: Path, tmp_path: Path, samples: int) -> None:
    with pytest.raises(UserError, match=f"--samples {samples}: expected 1 to {MAX_SAMPLES}"):
        sheet(shards, tmp_path / "a.png", samples=samples)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shards\.json: no such file"):
        sheet(tmp_path, tmp_path / "a.png")


def test_unknown_split(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split 'val'; it has: train, test"):
        sheet(shards, tmp_path / "a.png", split="val")


def test_no_tuples(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", {"train": []})
    for keys in ([], ["t1"]):
        with pytest.raises(UserError, match="no tuples in train; nothing to draw"):
            sheet(shards, tmp_path / "a.png", keys=keys)


def test_unknown_key(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--keys: no tuple nobody, t3 among those of test in .*; .* there: t20"):
        sheet(shards, tmp_path / "a.png", keys=["t22", "nobody", "t3"], split="test")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("component", ["bg", "fgbg", "depth", "mask"])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, component: str) -> None:
    images = {**random_tuple(1), component: b"no image"}
    shards = write_shards(tmp_path / "shards", {"train": [{"k1": random_tuple(0), "k2": images}]})
    with pytest.raises(UserError, match=rf"train-0\.tar: sample 'k2': its {component} cannot be decoded"):
        sheet(shards, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_a_tuple_that_lacks_an_image(tmp_path: Path) -> None:
    images = {name: data for name, data in random_tuple(1).items() if name != "depth"}
    shards = write_shards(tmp_path / "shards", {"train": [{"k": images}]})
    with pytest.raises(UserError, match=r"train-0\.tar: sample 'k' has no depth"):
        sheet(shards, tmp_path / "a.png")


def test_a_shard_that_is_missing_or_cut(shards: Path, tmp_path: Path) -> None:
    tar = shards / "test-0.tar"
    with tar.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match=r"test-0\.tar: ends inside sample 't29'"):
        sheet(shards, tmp_path / "a.png", keys=["t29"])
    tar.unlink()
    with pytest.raises(UserError, match=r"test-0\.tar: cannot be read"):
        sheet(shards, tmp_path / "a.png", keys=["t29"])


@pytest.mark.parametrize("name", ["a.jpg", "a", "folder.png"])
def test_out_that_is_no_png(shards: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"expected the name of a file that ends in \.png"):
        sheet(shards, tmp_path / name)


def test_out_that_cannot_be_written(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written: File exists"):
        sheet(shards, tmp_path / "file/a.png")


def test_folder_of_out_is_made_and_an_older_sheet_replaced(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep/er/a.png"
    sheet(shards, out, samples=1)
    assert sheet(shards, out, samples=2).shape[0] == 66 + 2 * ROW_HEIGHT
    assert [path.name for path in out.parent.iterdir()] == ["a.png"]
