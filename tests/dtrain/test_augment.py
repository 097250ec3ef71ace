"""Augmentation: what each change does to pixels, that all four components keep together, and what may not change it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch import Tensor

from dtrain.config import AugmentConfig, Config
from dtrain.data.augment import Augmentation, augment, draw
from dtrain.data.loader import Batch
from shard_tools.errors import UserError

from .conftest import smooth_pixels

EVERYTHING = AugmentConfig(brightness=0.4, contrast=0.5, saturation=0.6, hue=0.2, flip=0.5, crop=0.5)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def make_batch(count: int, size: int, *, seed: int = 0) -> Batch:
    """Random pixels in the shapes and memory formats of the loader."""
    generator = torch.Generator().manual_seed(seed)
    images, depth, mask = (torch.rand((count, n, size, size), generator=generator) for n in (6, 1, 1))
    keys = [f"bg{seed}_{row}" for row in range(count)]
    return Batch(keys, images.contiguous(memory_format=torch.channels_last), depth, mask)


def photo_batch(photo: NDArray[np.uint8]) -> Batch:
    """One sample that has the photo (S, S, 3) as bg and as fgbg, and its first channel as depth and as mask."""
    rgb = torch.tensor(photo).permute(2, 0, 1)[None] / 255
    images = torch.cat([rgb, rgb], 1).contiguous(memory_format=torch.channels_last)
    return Batch(["photo"], images, images[:, :1].contiguous(), images[:, :1].contiguous())


def take(batch: Batch, rows: slice, device: str = "cpu") -> Batch:
    return Batch(
        batch.keys[rows],
        batch.images[rows].to(device).contiguous(memory_format=torch.channels_last),
        batch.depth[rows].to(device),
        batch.mask[rows].to(device),
    )


def colour(brightness: float = 1, contrast: float = 1, saturation: float = 1, hue: float = 0) -> Augmentation:
    """The same change of colour for one sample."""
    return Augmentation(colour=torch.tensor([[brightness, contrast, saturation, hue]], dtype=torch.float64))


def window(*rows: tuple[float, float, float], flip: list[bool] | None = None) -> Augmentation:
    """Windows (top, left, side)."""
    flips = None if flip is None else torch.tensor(flip)
    return Augmentation(window=torch.tensor(rows, dtype=torch.float64), flip=flips)


def pixels(*colours: tuple[float, float, float]) -> Batch:
    """A sample of size 2 with four pixels, the last colour repeated, in both images."""
    rgb = torch.tensor([*colours, *[colours[-1]] * (4 - len(colours))]).T.reshape(1, 3, 2, 2)
    plain = torch.zeros((1, 1, 2, 2))
    return Batch(["pixels"], torch.cat([rgb, rgb], 1).contiguous(memory_format=torch.channels_last), plain, plain)


def first_pixel(batch: Batch) -> Tensor:
    return batch.images[0, :3, 0, 0]


def luminance(rgb: Tensor) -> Tensor:
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.images, batch.depth, batch.mask


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((f"augment.{name}", value) for name in ("brightness", "contrast", "saturation", "flip") for value in "-2"),
        *(("augment.brightness", "1.01"), ("augment.hue", "0.51"), ("augment.hue", "-0.1"), ("augment.hue", "much")),
        *(("augment.crop", "0"), ("augment.crop", "1.5"), ("augment.flip", "nan"), ("augment.flips", "0.5")),
    ],
)
def test_an_impossible_value_is_refused_by_its_key(make_config: Callable[..., Config], key: str, value: str) -> None:
    with pytest.raises(UserError) as caught:
        make_config(f"--{key}={value}")
    assert f"  {key}: " in str(caught.value)


def test_it_is_off_by_default_and_then_gives_back_the_batch_itself(make_config: Callable[..., Config]) -> None:
    config = make_config().augment
    assert not config.enabled
    batch = make_batch(3, 16)
    drawn = draw(config, batch.keys, seed=1, stage=0, epoch=0)
    assert drawn == Augmentation(None, None, None)
    assert augment(batch, drawn) is batch


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue", "flip", "crop"])
def test_each_key_alone_switches_its_change_on(make_config: Callable[..., Config], name: str) -> None:
    config = make_config(f"--augment.{name}=0.4").augment
    assert config.enabled
    batch = make_batch(8, 16)
    drawn = draw(config, batch.keys, seed=1, stage=0, epoch=0)
    changed = augment(batch, drawn)
    moved = name in ("flip", "crop")
    assert not torch.equal(changed.images, batch.images)
    assert torch.equal(changed.depth, batch.depth) is not moved
    assert torch.equal(changed.mask, batch.mask) is not moved
    if drawn.colour is not None:
        neutral = torch.tensor([1.0, 1, 1, 0], dtype=torch.float64).expand(8, 4)
        position = ["brightness", "contrast", "saturation", "hue"].index(name)
        assert (drawn.colour != neutral).any(0).tolist() == [column == position for column in range(4)]


def test_the_draws_are_those_that_runs_were_begun_with() -> None:
    """A change here would let a resumed run see other pixels than one that was never stopped."""
    drawn = draw(EVERYTHING, ["bg1_fg2_3", "bg7_fg1_1"], seed=7, stage=1, epoch=2)
    assert drawn.colour is not None
    assert drawn.flip is not None
    assert drawn.window is not None
    assert [[round(value, 9) for value in row] for row in drawn.colour.tolist()] == GOLDEN_COLOURS
    assert drawn.flip.tolist() == GOLDEN_FLIPS
    assert [[round(value, 9) for value in row] for row in drawn.window.tolist()] == GOLDEN_WINDOWS


def test_draws_cover_their_ranges_evenly() -> None:
    keys = [f"sample{number}" for number in range(4000)]
    drawn = draw(EVERYTHING.model_copy(update={"flip": 0.3}), keys, seed=0, stage=0, epoch=0)
    assert drawn.colour is not None
    assert drawn.flip is not None
    assert drawn.window is not None
    top, left, side = drawn.window.unbind(1)
    columns = [
        *((drawn.colour[:, n], 1 - reach, 1 + reach) for n, reach in enumerate((0.4, 0.5, 0.6))),
        *((drawn.colour[:, 3], -0.2, 0.2), (side, 0.5, 1)),
        *((top / (1 - side), 0, 1), (left / (1 - side), 0, 1)),
    ]
    for column, low, high in columns:
        tenths = torch.histc((column - low) / (high - low), bins=10, min=0, max=1)
        assert tenths.sum() == 4000
        assert tenths.min() > 330
        assert tenths.max() < 470
    assert abs(drawn.flip.double().mean() - 0.3) < 0.03
    together = torch.corrcoef(torch.stack([column for column, _, _ in columns] + [drawn.flip.double()]))
    assert (together - torch.eye(8)).abs().max() < 0.06


def test_a_probability_of_one_flips_all() -> None:
    drawn = draw(AugmentConfig(flip=1), [str(number) for number in range(200)], seed=0, stage=0, epoch=0)
    assert drawn.flip is not None
    assert drawn.flip.all()


def test_seeds_stages_epochs_and_keys_draw_differently() -> None:
    def first(key: str = "a", *, seed: int = 0, stage: int = 0, epoch: int = 0) -> tuple[float, ...]:
        drawn = draw(EVERYTHING, ["other", key], seed=seed, stage=stage, epoch=epoch)
        assert drawn.colour is not None
        return tuple(drawn.colour[1].tolist())

    draws = [first(), first("b"), first(seed=1), first(stage=1), first(epoch=1)]
    assert len(set(draws)) == len(draws)
    assert first() == draws[0]


def test_generators_of_torch_and_numpy_play_no_part() -> None:
    keys = ["a", "b", "c"]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = draw(EVERYTHING, keys, seed=0, stage=0, epoch=0)
    augment(make_batch(3, 8), one)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(2)
    other = draw(EVERYTHING, keys, seed=0, stage=0, epoch=0)
    assert repr(one) == repr(other)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("count", "size"), [(33, 8), (17, 40), (5, 136)])
@pytest.mark.parametrize(
    "config",
    [
        EVERYTHING,
        EVERYTHING.model_copy(update={"crop": 1.0}),
        AugmentConfig(crop=0.3),
        AugmentConfig(flip=0.5),
    ],
    ids=["everything", "no crop", "crop", "flip"],
)
def test_a_samples_pixels_are_the_same_in_any_batch(config: AugmentConfig, count: int, size: int, device: str) -> None:
    whole = make_batch(count, size)
    position = {"seed": 3, "stage": 1, "epoch": 4}
    expected = augment(take(whole, slice(None), device), draw(config, whole.keys, **position))
    threads = torch.get_num_threads()
    try:
        for share, used in ((1, 1), (1, 2), (2, 3), (3, 1), (7, 2), (16, 1), (32, 2), (count, 1)):
            torch.set_num_threads(used)
            for start in range(0, count, share):
                rows = slice(start, start + share)
                part = augment(take(whole, rows, device), draw(config, whole.keys[rows], **position))
                for found, wanted in zip(tensors(part), tensors(expected), strict=True):
                    assert torch.equal(found, wanted[rows])
    finally:
        torch.set_num_threads(threads)


def test_shapes_ranges_formats_and_the_batch_it_was_given_stay() -> None:
    batch = make_batch(5, 24)
    copies = [tensor.clone() for tensor in tensors(batch)]
    for config in (EVERYTHING, AugmentConfig(flip=0.5), AugmentConfig(brightness=1, contrast=1)):
        changed = augment(batch, draw(config, batch.keys, seed=0, stage=0, epoch=0))
        assert changed.keys == batch.keys
        assert changed.images.is_contiguous(memory_format=torch.channels_last)
        for found, given in zip(tensors(changed), tensors(batch), strict=True):
            assert found.shape == given.shape
            assert found.dtype == torch.float32
            assert found.min() >= 0
            assert found.max() <= 1
        assert changed.depth.is_contiguous()
        assert changed.mask.is_contiguous()
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors(batch), copies, strict=True))


def test_both_images_and_both_planes_change_alike() -> None:
    photos = [photo_batch(smooth_pixels(seed, 24, 24)) for seed in range(6)]
    keys = [f"photo{seed}" for seed in range(6)]
    images, depth, mask = (torch.cat([tensors(photo)[n] for photo in photos]) for n in range(3))
    batch = Batch(keys, images.contiguous(memory_format=torch.channels_last), depth, mask)
    moved = augment(batch, draw(AugmentConfig(flip=0.5, crop=0.5), keys, seed=0, stage=0, epoch=0))
    for plane in (moved.images[:, :1], moved.images[:, 3:4], moved.mask):
        assert torch.equal(plane, moved.depth)
    coloured = augment(batch, draw(EVERYTHING, keys, seed=0, stage=0, epoch=0))
    assert torch.equal(coloured.images[:, :3], coloured.images[:, 3:])
    assert not torch.allclose(coloured.images, moved.images, atol=0.1)
    assert torch.equal(coloured.depth, moved.depth)  # a change that is switched on leaves the draws of the others


def test_the_background_alone_says_how_contrast_changes() -> None:
    batch = make_batch(1, 8)
    darker = Batch(batch.keys, batch.images.clone(), batch.depth, batch.mask)
    darker.images[:, 3:] *= 0.1
    one, other = (augment(given, colour(contrast=0.5)) for given in (batch, darker))
    assert torch.equal(one.images[:, :3], other.images[:, :3])
    shift = other.images[:, 3:] - 0.5 * darker.images[:, 3:]
    assert shift.std() < 1e-6  # the same for every pixel: half of the mean luminance of bg
    mean = luminance(batch.images[0, :3]).mean()
    assert shift.mean() == pytest.approx(float(mean / 2), abs=1e-5)


def test_a_flip_mirrors_exactly_the_chosen_samples_and_twice_is_none() -> None:
    batch = make_batch(3, 16)
    drawn = Augmentation(flip=torch.tensor([True, False, True]))
    once = augment(batch, drawn)
    for found, given in zip(tensors(once), tensors(batch), strict=True):
        for row, flipped in enumerate([True, False, True]):
            assert torch.equal(found[row], given[row].flip(-1) if flipped else given[row])
    for found, given in zip(tensors(augment(once, drawn)), tensors(batch), strict=True):
        assert torch.equal(found, given)


def test_a_window_of_the_whole_image_changes_nothing() -> None:
    batch = make_batch(2, 24)
    for found, given in zip(tensors(augment(batch, window((0, 0, 1), (0, 0, 1)))), tensors(batch), strict=True):
        assert torch.allclose(found, given, atol=2e-6)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(
    ("top", "left", "side"), [(0, 0, 0.5), (0.5, 0.5, 0.5), (0.13, 0.31, 0.6), (0.02, 0.4, 0.55), (0.3, 0, 0.7)]
)
def test_a_crop_is_pillows_crop_and_resize(top: float, left: float, side: float, flipped: bool) -> None:
    photo = smooth_pixels(5, 48, 48)
    found = augment(photo_batch(photo), window((top, left, side), flip=[flipped]))
    box = (48 * left, 48 * top, 48 * (left + side), 48 * (top + side))
    wanted = Image.fromarray(photo).resize((48, 48), Image.Resampling.BILINEAR, box=box)
    if flipped:
        wanted = wanted.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels_wanted = torch.from_numpy(np.array(wanted)).permute(2, 0, 1) / 255
    assert (found.images[0, :3] - pixels_wanted).abs().max() < 1.5 / 255  # Pillow rounds twice, to whole levels
    assert (found.depth[0] - pixels_wanted[:1]).abs().max() < 1.5 / 255


def test_a_crop_keeps_the_levels_of_depth() -> None:
    batch = make_batch(1, 16)
    batch.depth[:] = 0.3
    assert torch.allclose(augment(batch, window((0.2, 0.1, 0.5))).depth, torch.full((1, 1, 16, 16), 0.3))


@pytest.mark.parametrize("factor", [0.0, 0.4, 0.8, 1.3, 2.0])
@pytest.mark.parametrize("change", ["brightness", "contrast", "saturation"])
def test_colours_change_as_in_pillow(change: str, factor: float) -> None:
    photo = smooth_pixels(9, 48, 48)
    enhancers: dict[str, Callable[[Image.Image], ImageEnhance._Enhance]] = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    wanted = torch.from_numpy(np.array(enhancers[change](Image.fromarray(photo)).enhance(factor))).permute(2, 0, 1)
    found = augment(photo_batch(photo), colour(**{change: factor})).images[0, :3]
    assert (found - wanted / 255).abs().max() < 2.5 / 255  # Pillow rounds mean, gray and result to whole levels


def test_known_pixels() -> None:
    red = pixels((0.6, 0.2, 0.2), (0.1, 0.1, 0.1))
    assert first_pixel(augment(red, colour(brightness=1.5))).tolist() == pytest.approx([0.9, 0.3, 0.3])
    assert first_pixel(augment(red, colour(brightness=2))).tolist() == pytest.approx([1, 0.4, 0.4])
    gray = 0.2 + 0.299 * 0.4
    assert first_pixel(augment(red, colour(saturation=0))).tolist() == pytest.approx([gray] * 3)
    mean = (gray + 3 * 0.1) / 4
    assert first_pixel(augment(red, colour(contrast=0))).tolist() == pytest.approx([mean] * 3, abs=1e-5)
    both = augment(red, colour(brightness=0.5, contrast=0.5))
    assert first_pixel(both).tolist() == pytest.approx([0.15 + mean / 4, *[0.05 + mean / 4] * 2], abs=1e-5)


@pytest.mark.parametrize(("turn", "places"), [(1 / 3, 1), (-1 / 3, -1), (2 / 3, 2)])
def test_a_third_of_a_turn_of_hue_moves_red_to_green_to_blue(turn: float, places: int) -> None:
    muted = torch.tensor([0.5, 0.42, 0.31])
    turned = first_pixel(augment(pixels((0.5, 0.42, 0.31)), colour(hue=turn)))
    moved = torch.roll(muted, places)
    wanted = moved + luminance(muted) - luminance(moved)
    assert turned.tolist() == pytest.approx(wanted.tolist(), abs=1e-6)


def test_half_a_turn_of_hue_gives_the_complement_and_two_halves_the_same() -> None:
    muted = pixels((0.5, 0.42, 0.31))
    turned = augment(muted, colour(hue=0.5))
    bright = luminance(first_pixel(muted))
    assert (first_pixel(turned) - bright).tolist() == pytest.approx((bright - first_pixel(muted)).tolist(), abs=1e-6)
    assert torch.allclose(augment(turned, colour(hue=-0.5)).images, muted.images, atol=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_hue_and_saturation_leave_grays_and_luminance(level: float) -> None:
    for saturation, hue in ((0.0, 0.0), (1.7, 0.0), (1.0, 0.31), (0.4, -0.2)):
        changed = augment(pixels((level, level, level)), colour(saturation=saturation, hue=hue))
        assert torch.allclose(changed.images, torch.tensor(level), atol=1e-6)
    muted = pixels((0.5, 0.42, 0.31))
    changed = augment(muted, colour(saturation=1.4, hue=0.12))
    assert not torch.allclose(changed.images, muted.images, atol=1e-2)
    assert luminance(first_pixel(changed)) == pytest.approx(float(luminance(first_pixel(muted))), abs=1e-6)


def test_values_are_cut_to_the_range_once_at_the_end() -> None:
    """Brighter by half goes beyond the range, and half the contrast comes back into it."""
    changed = augment(pixels((0.8, 0.8, 0.8), (0, 0, 0)), colour(brightness=1.5, contrast=0.5))
    assert first_pixel(changed).tolist() == pytest.approx([0.5 * 1.2 + 0.5 * 0.3] * 3, abs=1e-5)


GOLDEN_COLOURS = [
    [1.098383887, 0.957411612, 0.533827215, 0.174386907],
    [0.742117478, 0.68053386, 0.600714488, -0.001748779],
]
GOLDEN_FLIPS = [True, False]
GOLDEN_WINDOWS = [[0.002864055, 0.079589389, 0.911670429], [0.241211714, 0.055354120, 0.682241728]]
