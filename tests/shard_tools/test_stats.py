"""`stats`: its numbers against plain numpy over all decoded pixels, its picture, and what it says of bad shards."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shard_tools.errors import UserError
from shard_tools.stats import SplitSums, count_image
from shard_tools.stats_command import stats

from .tiny_shards import Pixels, Tuple, decode, masked_tuple, png, random_tuple, write_shards

Shard = Mapping[str, Tuple]


def measure(location: Path | str, out: Path, *, split: str | None = None, workers: int = 1) -> dict[str, Any]:
    stats(str(location), split=split, out=out, workers=workers)
    content: dict[str, Any] = json.loads((out / "stats.json").read_text())["splits"]
    return content


def random_shards(count: int, samples: int, *, first: int = 0) -> list[dict[str, dict[str, bytes]]]:
    """Shards of noise of two sizes, with backgrounds that come again inside a shard and in others."""
    return [
        {
            f"s{n}_{k}": random_tuple(first + 100 * n + k, size=(20, 12) if k % 3 else (9, 31), background=k % 3)
            for k in range(samples)
        }
        for n in range(count)
    ]


def plane(*rows: str) -> Pixels:
    """A mask out of rows of '#' (255), '+' (100) and '.' (0)."""
    return np.array([[{"#": 255, "+": 100, ".": 0}[sign] for sign in row] for row in rows], dtype=np.uint8)


# The numbers


@pytest.mark.parametrize("split", ["train", "test"])
def test_numbers_are_those_of_numpy_over_all_pixels(tmp_path: Path, split: str) -> None:
    splits = {"train": random_shards(3, 7), "test": random_shards(1, 5, first=5000)}
    found = measure(write_shards(tmp_path / "shards", splits), tmp_path / "out")[split]
    tuples = [images for shard in splits[split] for images in shard.values()]
    assert found["tuples"] == len(tuples)
    for name, mode in {"bg": "RGB", "fgbg": "RGB", "depth": "L", "mask": "L"}.items():
        files = [images[name] for images in tuples]
        decoded = [decode(data, mode) for data in files]
        pixels = np.concatenate([image.reshape(-1, len(mode)) for image in decoded]) / 255
        np.testing.assert_allclose(found[name]["mean"], pixels.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found[name]["std"], pixels.std(axis=0), rtol=1e-9)
        sizes = [len(data) for data in files]
        assert found[name]["bytes"] == {
            "total": sum(sizes),
            "mean": sum(sizes) / len(sizes),
            "min": min(sizes),
            "max": max(sizes),
        }
        tall = sum(image.shape[:2] == (31, 9) for image in decoded)
        assert found[name]["sizes"] == [
            {"width": 20, "height": 12, "images": len(tuples) - tall},
            {"width": 9, "height": 31, "images": tall},
        ]
    depth = np.concatenate([decode(images["depth"], "L").ravel() for images in tuples])
    assert found["depth"]["histogram"] == [int((depth == level).sum()) for level in range(256)]
    shares = np.array([(decode(images["mask"], "L") > 127).mean() for images in tuples])
    coverage = found["mask"]["coverage"]
    assert coverage["histogram"] == np.histogram(shares, bins=50, range=(0, 1))[0].tolist()
    np.testing.assert_allclose(
        [coverage[k] for k in ("mean", "min", "max")], [shares.mean(), shares.min(), shares.max()]
    )


def test_known_masks(tmp_path: Path) -> None:
    masks = [
        plane("....", "...."),
        plane("+...", "...."),
        plane("##..", "...."),
        plane("####", "####"),
        plane("#+"),
    ]
    shard = {f"k{n}": masked_tuple(mask) for n, mask in enumerate(masks)}
    mask = measure(write_shards(tmp_path / "shards", {"all": [shard]}), tmp_path / "out")["all"]["mask"]
    coverage = mask["coverage"]
    assert coverage["mean"] == pytest.approx((0 + 0 + 0.25 + 1 + 0.5) / 5)
    assert (coverage["min"], coverage["max"]) == (0, 1)
    assert (coverage["empty"], coverage["empty_share"]) == (2, 0.4)
    assert {place: count for place, count in enumerate(coverage["histogram"]) if count} == {0: 2, 12: 1, 25: 1, 49: 1}
    assert mask["soft_share"] == 2 / (4 * 8 + 2)


def test_soft_pixels_are_those_from_8_to_247(tmp_path: Path) -> None:
    mask = np.array([[0, 7, 8, 127, 128, 247, 248, 255]], dtype=np.uint8)
    shards = write_shards(tmp_path / "shards", {"all": [{"k": masked_tuple(mask)}]})
    found = measure(shards, tmp_path / "out")["all"]["mask"]
    assert found["soft_share"] == 4 / 8
    assert found["coverage"]["mean"] == 4 / 8


def test_workers_and_the_order_of_shards_change_nothing(tmp_path: Path) -> None:
    shards = random_shards(5, 4)
    forward = write_shards(tmp_path / "forward", {"train": shards})
    backward = write_shards(tmp_path / "backward", {"train": shards[::-1]})
    expected = measure(forward, tmp_path / "one", workers=1)
    assert measure(forward, tmp_path / "two", workers=2) == expected
    assert measure(backward, tmp_path / "back", workers=2) == expected
    assert (tmp_path / "one/stats.json").read_bytes() == (tmp_path / "two/stats.json").read_bytes()
    assert (tmp_path / "one/stats.png").read_bytes() == (tmp_path / "two/stats.png").read_bytes()


def test_backgrounds_stored_once_count_with_each_tuple(tmp_path: Path) -> None:
    shards = random_shards(2, 6)
    distinct = dict.fromkeys(images["bg"] for shard in shards for images in shard.values())
    names = {data: f"bg{n}" for n, data in enumerate(distinct)}
    referring = [
        {key: {**images, "bg": names[images["bg"]].encode()} for key, images in shard.items()} for shard in shards
    ]
    inside = write_shards(tmp_path / "inside", {"train": shards})
    once = write_shards(
        tmp_path / "once", {"train": referring}, backgrounds={name: data for data, name in names.items()}
    )
    assert 1 < len(names) < 12
    assert measure(once, tmp_path / "b") == measure(inside, tmp_path / "a")


def test_more_backgrounds_than_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = write_shards(tmp_path / "shards", {"train": random_shards(1, 12)})
    expected = measure(shards, tmp_path / "a")
    monkeypatch.setattr("shard_tools.stats_command.MAX_KNOWN_BACKGROUNDS", 1)
    assert measure(shards, tmp_path / "b") == expected


def test_sums_stay_exact_beyond_the_integers_of_a_double() -> None:
    pixels = np.array([[254, 255]], dtype=np.uint8)
    images = {
        "bg": count_image(5, np.stack([pixels] * 3, axis=-1)),
        "fgbg": count_image(5, np.stack([pixels] * 3, axis=-1)),
    }
    sums = SplitSums()
    sums.add({**images, "depth": count_image(5, pixels), "mask": count_image(5, pixels)})
    for part in sums.components.values():
        part.levels *= 10**15
    assert sums.components["depth"].mean == [509 / 510]
    assert sums.components["depth"].std == [0.5 / 255]


def test_one_split_alone(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", {"train": random_shards(2, 3), "test": random_shards(1, 2)})
    assert list(measure(shards, tmp_path / "out", split="test")) == ["test"]


def test_a_split_without_tuples_is_said_to_have_none(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", {"train": random_shards(1, 3), "test": []})
    text = stats(str(shards), split=None, out=tmp_path, workers=1)
    assert "test: no tuples" in text
    assert json.loads((tmp_path / "stats.json").read_text())["splits"]["test"] == {"tuples": 0}


# The table


def test_the_table_gives_constants_to_normalise_with(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", {"train": [{"k": masked_tuple(plane("##..", "...."))}]})
    text = stats(str(shards), split=None, out=tmp_path / "out", workers=1)
    assert "train: 1 tuples" in text
    assert "  fgbg   0.5020 0.5020 0.5020  0.0000 0.0000 0.0000" in text
    assert "mask coverage: mean 25.00%, from 25.00% to 25.00%; empty masks: 0 (0.00%); soft pixels: 0.00%" in text
    assert "image size in pixels: 4×2" in text
    assert f"wrote {tmp_path / 'out/stats.json'} and {tmp_path / 'out/stats.png'}" in text


def test_sizes_are_listed_most_frequent_first_and_20_at_most(tmp_path: Path) -> None:
    widths = [3, 3, *range(1, 26)]
    shard = {f"k{n}": masked_tuple(np.zeros((2, width), dtype=np.uint8)) for n, width in enumerate(widths)}
    shards = write_shards(tmp_path / "shards", {"train": [shard]})
    text = stats(str(shards), split=None, out=tmp_path, workers=1)
    assert "image size in pixels: 3×2 (3), 1×2 (1), 2×2 (1), 4×2 (1)" in text
    assert "20×2 (1) and 5 more" in text
    bg = json.loads((tmp_path / "stats.json").read_text())["splits"]["train"]["bg"]
    assert len(bg["sizes"]) == 20
    assert bg["more_sizes"] == 5


def test_sizes_that_differ_by_component_are_told_apart(tmp_path: Path) -> None:
    images = {**masked_tuple(plane("##..", "....")), "depth": png(plane("."))}
    text = stats(str(write_shards(tmp_path / "s", {"train": [{"k": images}]})), split=None, out=tmp_path, workers=1)
    assert "image size in pixels of bg, fgbg, mask: 4×2" in text
    assert "image size in pixels of depth: 1×1" in text


# The picture


def picture(folder: Path, splits: Mapping[str, Sequence[Shard]]) -> Pixels:
    stats(str(write_shards(folder / "shards", splits)), split=None, out=folder, workers=1)
    return np.asarray(Image.open(folder / "stats.png").convert("RGB"))


def test_picture_shows_the_data(tmp_path: Path) -> None:
    one, other = random_shards(1, 5), random_shards(1, 5, first=900)
    first = picture(tmp_path / "a", {"train": one})
    second = picture(tmp_path / "b", {"train": other})
    both = picture(tmp_path / "c", {"train": one, "test": other})
    blue, orange = (0, 114, 178), (213, 94, 0)
    for drawn in (first, second, both):
        assert drawn.shape == (1050, 1500, 3)
        border = np.concatenate([drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]])
        assert (border == 255).all(), "something is cut off at the edge of the picture"
        for panel in (drawn[110:580, :750], drawn[110:580, 750:], drawn[580:, :750], drawn[580:, 750:]):
            assert has_colour(panel, blue)
            assert has_colour(panel, orange) == (drawn is both)
    assert (first != second).any()


def has_colour(drawn: Pixels, colour: tuple[int, int, int]) -> bool:
    return bool((drawn == colour).all(axis=-1).any())


# What is wrong


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shards\.json: no such file"):
        stats(str(tmp_path), split=None, out=tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_unknown_split(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", {"train": random_shards(1, 1)})
    with pytest.raises(UserError, match="no split 'val'; it has: train"):
        stats(str(shards), split="val", out=tmp_path, workers=1)


def test_no_tuples_at_all(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", {"train": [], "test": []})
    with pytest.raises(UserError, match="no tuples in train, test; nothing to measure"):
        stats(str(shards), split=None, out=tmp_path, workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, workers: int) -> None:
    train = random_shards(3, 3)
    train[1]["s1_2"]["depth"] = train[1]["s1_2"]["depth"][:-30]
    shards = write_shards(tmp_path / "shards", {"train": train})
    with pytest.raises(UserError, match=r"train-1\.tar: sample 's1_2': its depth cannot be decoded"):
        stats(str(shards), split=None, out=tmp_path / "out", workers=workers)
    assert not list((tmp_path / "out").iterdir())


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", {"train": random_shards(2, 2)})
    (shards / "train-1.tar").unlink()
    with pytest.raises(UserError, match=r"train-1\.tar: cannot be read"):
        stats(str(shards), split=None, out=tmp_path / "out", workers=1)


def test_out_that_cannot_be_a_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    train = random_shards(1, 1)
    train[0]["s0_0"]["mask"] = b"no image"
    shards = write_shards(tmp_path / "shards", {"train": train})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/out: cannot be written: Not a directory"):
        stats(str(shards), split=None, out=tmp_path / "file/out", workers=1)
    with pytest.raises(UserError, match="expected a folder on this machine"):
        stats(str(shards), split=None, out=Path("s3://bucket/out"), workers=1)


def test_shards_behind_a_url(tmp_path: Path) -> None:
    import fsspec

    shards = write_shards(tmp_path / "shards", {"train": random_shards(2, 2)})
    memory = fsspec.filesystem("memory")
    for file in shards.iterdir():
        memory.pipe_file(f"/tiny_stats/{file.name}", file.read_bytes())
    assert measure("memory://tiny_stats", tmp_path / "a") == measure(shards, tmp_path / "b")
