"""`shard-tools sample`: rooms whose depth is that of their geometry, objects that differ, and the same bytes again."""

import hashlib
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from shard_tools import recipe
from shard_tools.errors import UserError
from shard_tools.objects import KINDS, draw_object
from shard_tools.render import depth_map
from shard_tools.rooms import CLEAR_METRES, make_room
from shard_tools.sample import render_background, write_sample

EYE_METRES = 1.2
HORIZON = 0.40
FAR_METRES = 10.0


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_same_seed_gives_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    for name, workers, seed in (("a", 1, 5), ("b", 2, 5), ("c", 1, 6)):
        write_sample(tmp_path / name, backgrounds=2, foregrounds=2, size=32, seed=seed, workers=workers)
    first, again, other = (content(tmp_path / name) for name in "abc")
    assert first == again
    assert len(first) == 2 + 2 * 2 * 120 + 1
    assert all(first[name] != other[name] for name in first if "overlay" in name or name.startswith("bg/"))


def test_metadata_says_that_depth_is_exact_and_in_which_unit(tmp_path: Path) -> None:
    message = write_sample(tmp_path / "out", backgrounds=1, foregrounds=1, size=16, seed=3, workers=1)
    assert "40 tuples (1 backgrounds × 1 foregrounds × 40 placements) of 16 px" in message
    assert "shard-tools build" in message
    metadata = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert metadata["depth"]["kind"] == "exact: ray-cast geometry"
    assert metadata["depth"]["far_metres"] == 10
    assert (metadata["seed"], metadata["backgrounds"], metadata["foregrounds"]) == (3, 1, 1)


def test_stored_depth_is_that_of_the_room_with_the_object_on_its_floor(tmp_path: Path) -> None:
    write_sample(tmp_path / "out", backgrounds=1, foregrounds=1, size=64, seed=1, workers=1)
    room = render_background(1, 1, 64).depth * 255
    pair = tmp_path / "out" / "bg1" / "fg_1"
    for placement in recipe.PLACEMENTS:
        with Image.open(pair / "depth" / f"{placement.number}.jpg") as image:
            depth = np.asarray(image).astype(float)
        with Image.open(pair / "mask" / f"{placement.number}.jpg") as image:
            mask = np.asarray(image)
        floor = EYE_METRES / (placement.base - HORIZON) / FAR_METRES * 255
        assert abs(np.median(depth[mask > 250]) - floor) < 2
        assert np.abs(depth - room)[mask == 0].mean() < 3


@pytest.mark.parametrize("number", range(1, 9))
def test_depth_of_the_floor_is_what_a_pinhole_camera_gives(number: int) -> None:
    depth = depth_map(make_room(0, number), 96)
    rows = (np.arange(96) + 0.5) / 96
    floor = EYE_METRES / (rows - HORIZON)
    bare = (rows > HORIZON) & (floor < CLEAR_METRES)
    assert bare.sum() > 15
    assert depth[bare] == pytest.approx(np.repeat(floor[bare][:, None], 96, axis=1), rel=1e-9)
    seen = np.repeat(np.where(rows > HORIZON, floor, np.inf)[:, None], 96, axis=1)
    assert (depth <= seen * (1 + 1e-9)).all()


@pytest.mark.parametrize("number", range(1, 13))
def test_every_depth_ends_on_a_surface_and_passes_through_none(number: int) -> None:
    """Points along each ray, computed anew: free of furniture and inside the room, up to a surface at its end."""
    room, size = make_room(0, number), 48
    depth = depth_map(room, size)
    middle = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(middle - 0.5, HORIZON - middle)
    forward = np.array([math.sin(room.yaw), math.cos(room.yaw)])
    rightward = np.array([math.cos(room.yaw), -math.sin(room.yaw)])

    def slack(share: float) -> NDArray[np.float64]:
        """How far the point at this share of the ray is from the nearest surface; below 0: behind one."""
        z = depth * share
        u = z * (forward[0] + x * rightward[0])
        v = z * (forward[1] + x * rightward[1])
        up = EYE_METRES + z * y
        gaps = [u - room.left, room.right - u, room.back - v, up, room.height - up]
        for box in room.furniture:
            cosine, sine = math.cos(box.angle), math.sin(box.angle)
            across = cosine * (u - box.u) + sine * (v - box.v)
            along = -sine * (u - box.u) + cosine * (v - box.v)
            outside = [np.abs(across) - box.half_width, np.abs(along) - box.half_length]
            gaps.append(np.max([*outside, box.bottom - up, up - box.top], axis=0))
        return np.asarray(np.min(gaps, axis=0))

    assert np.abs(slack(1.0)).max() < 1e-6
    for share in np.linspace(0.05, 0.995, 24):
        assert slack(float(share)).min() > -1e-6


def test_depth_is_never_clipped_and_the_mean_predicts_it_badly() -> None:
    maps = np.stack([depth_map(make_room(0, number), 32) / FAR_METRES for number in range(1, 61)])
    assert maps.min() > 0.15
    assert maps.max() < 1
    assert maps.var() > 0.02
    assert (maps - maps.mean(axis=0)).var() > 0.3 * maps.var()


def test_placed_objects_stand_in_front_of_everything() -> None:
    farthest_object = EYE_METRES / (recipe.PLACEMENTS[19].base - HORIZON)
    for number in range(1, 41):
        depth = depth_map(make_room(2, number), 32)
        rows = (np.arange(32) + 0.5) / 32
        behind_objects = (rows > 0.37) & (rows < recipe.PLACEMENTS[19].base)
        assert depth[behind_objects].min() > farthest_object


def test_objects_all_differ_and_have_clear_edges() -> None:
    pictures = [draw_object(0, number, 32) for number in range(1, 2 * len(KINDS) + 1)]
    assert len({(picture.size, picture.tobytes()) for picture in pictures}) == len(pictures)
    for picture in pictures:
        alpha = np.asarray(picture.getchannel("A"))
        assert picture.getchannel("A").getbbox() == (0, 0, *picture.size)
        assert 0.1 < (alpha > 127).mean() <= 1
        assert np.asarray(picture.convert("RGB"))[alpha > 127].std() > 5


def test_objects_can_be_told_from_the_rooms_behind_them() -> None:
    background = render_background(0, 1, 64).image.astype(int)
    for number in range(1, 7):
        picture = draw_object(0, number, 64).resize((38, 38))
        pixels = np.asarray(picture).astype(int)
        opaque = pixels[:, :, 3] > 200
        changed = np.abs(pixels[:, :, :3] - background[24:62, 13:51]).max(axis=2) > 12
        assert changed[opaque].mean() > 0.85


def test_a_room_takes_well_under_half_a_second() -> None:
    times = []
    for number in (1, 2, 3):
        start = time.process_time()
        render_background(0, number, 128)
        times.append(time.process_time() - start)
    assert min(times) < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backgrounds": 0}, "--backgrounds 0: expected 1 or more"),
        ({"foregrounds": -1}, "--foregrounds -1: expected 1 or more"),
        ({"size": 100}, "--size 100: expected a multiple of 8 from 16 to 4096"),
        ({"workers": 0}, "--workers 0: expected 1 or more"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    good = {"backgrounds": 1, "foregrounds": 1, "size": 16, "seed": 0, "workers": 1}
    with pytest.raises(UserError, match=message):
        write_sample(tmp_path / "out", **{**good, **arguments})
    assert not (tmp_path / "out").exists()
