"""The Python interface: what a network says of pairs, in whatever form they are given."""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dtrain
from dtrain.config import Config
from dtrain.evaluator import evaluating
from dtrain.image_input import ImageInput
from shard_tools.errors import UserError

from .conftest import Shards, open_loader, smooth_pixels
from .trained_runs import make_run, save_constant, save_lively, save_pair

WIDTH, HEIGHT = 50, 35


@pytest.fixture
def network(make_config: Callable[..., Config]) -> dtrain.Network:
    config = make_config()
    run = make_run(config)
    save_lively(config, 1)
    return dtrain.load(run)


def pixels(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return smooth_pixels(seed, width, height)


def shapes_seen(network: dtrain.Network) -> list[tuple[int, ...]]:
    """A list to which each batch adds its shape, from now on."""
    shapes: list[tuple[int, ...]] = []
    network.trained.module.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


def test_importing_it_brings_no_torch() -> None:
    program = "import sys, dtrain; assert 'torch' not in sys.modules; assert 'numpy' not in sys.modules; dtrain.load"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    with pytest.raises(AttributeError, match="module 'dtrain' has no attribute 'lode'"):
        _ = dtrain.lode


def test_paths_pictures_and_arrays_give_the_same(network: dtrain.Network, tmp_path: Path) -> None:
    files = save_pair(tmp_path, "room", 0, WIDTH, HEIGHT)
    bg, fgbg = pixels(0), pixels(1)
    expected = network.predict(bg, fgbg)
    for plane in (expected.depth, expected.mask):
        assert plane.shape == (HEIGHT, WIDTH)
        assert plane.dtype == np.float32
        assert plane.min() >= 0
        assert plane.max() <= 1
        assert plane.std() > 0.05
    forms: list[tuple[ImageInput, ImageInput]] = [
        files,
        (str(files[0]), str(files[1])),
        (Image.fromarray(bg), Image.fromarray(fgbg)),
        (files[0], fgbg),
    ]
    for result in network.predict_many(forms):
        assert result.depth == pytest.approx(expected.depth, abs=1e-4)
        assert result.mask == pytest.approx(expected.mask, abs=1e-4)


def test_it_sees_what_an_evaluation_sees(network: dtrain.Network, shards: Shards) -> None:
    with open_loader(shards, "test", size=48) as loader:
        from dtrain.data.loader import to_device
        from dtrain.data.order import in_packing_order

        (host,) = loader.batches(in_packing_order(loader.reader.shard_lengths, range(10), 10))
    with evaluating(network.trained.module):
        prediction = network.trained.module(to_device(host, torch.device("cpu"), 48).images)
    pairs = zip(host.bg.numpy(), host.fgbg.numpy(), strict=True)
    for row, result in enumerate(network.predict_many(pairs)):
        assert result.depth == pytest.approx(prediction.depth[row, 0].clamp(0, 1).numpy(), abs=1e-6)
        assert result.mask == pytest.approx(prediction.mask[row, 0].numpy(), abs=1e-6)


def test_the_shape_of_an_image_is_kept(network: dtrain.Network) -> None:
    shapes = shapes_seen(network)
    for size in (None, 64, "native", "96x32"):
        result = network.predict(pixels(0), pixels(1), size=size)
        assert result.depth.shape == result.mask.shape == (HEIGHT, WIDTH)
    assert shapes == [(1, 6, 48, 72), (1, 6, 64, 88), (1, 6, 32, 48), (1, 6, 32, 96)]


def test_many_pairs_go_in_batches_in_their_order(network: dtrain.Network) -> None:
    sizes = [(50, 35)] * 5 + [(35, 50)] * 2 + [(48, 48)]
    pairs = [(pixels(seed, *size), pixels(seed + 100, *size)) for seed, size in enumerate(sizes)]
    alone = [network.predict(*pair) for pair in pairs]
    shapes = shapes_seen(network)
    together = list(network.predict_many(pairs))
    assert shapes == [(5, 6, 48, 72), (2, 6, 72, 48), (1, 6, 48, 48)]
    for one, other in zip(alone, together, strict=True):
        assert one.depth == pytest.approx(other.depth, abs=1e-4)
        assert one.mask == pytest.approx(other.mask, abs=1e-4)
    shapes.clear()
    assert len(list(network.predict_many([pairs[0]] * 40, size=8))) == 40
    assert [shape[0] for shape in shapes] == [32, 8]


def test_pairs_are_taken_as_they_are_needed(network: dtrain.Network) -> None:
    taken = 0

    def endless() -> Iterator[tuple[ImageInput, ImageInput]]:
        nonlocal taken
        for taken in itertools.count(1):
            yield pixels(0, 256, 256), pixels(taken % 2, 256, 256)

    results = network.predict_many(endless(), size=256)
    assert np.array_equal(next(results).depth, next(itertools.islice(results, 1, 2)).depth)
    assert taken <= 16, "two batches of 4, or one pair for each of at most 8 threads, and the batch that was predicted"


def test_a_panel_is_of_a_size_to_look_at(network: dtrain.Network) -> None:
    small = network.predict(pixels(0), pixels(1)).panel()
    assert small.width > 4 * 128
    large = network.predict(pixels(0, 1600, 1200), pixels(1, 1600, 1200)).panel()
    assert 4 * 512 < large.width < 5 * 512


def test_a_network_that_shrinks_says_it_at_the_size_of_the_images(make_config: Callable[..., Config]) -> None:
    config = make_config("--model.name", "shrink")
    run = make_run(config)
    save_lively(config, 1)
    network = dtrain.load(run)
    bg, fgbg = pixels(0, 64, 96), pixels(1, 64, 96)
    result = network.predict(bg, fgbg, size="native")
    images = torch.from_numpy(np.concatenate([bg, fgbg], axis=2)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        small = network.trained.module(images)
        assert small.depth.shape == (1, 1, 12, 8)
        enlarged = [torch.nn.functional.interpolate(plane, (96, 64), mode="bilinear")[0, 0] for plane in small]
    assert result.depth == pytest.approx(enlarged[0].clamp(0, 1).numpy(), abs=1e-4)
    assert result.mask == pytest.approx(torch.sigmoid(enlarged[1]).numpy(), abs=1e-4)
    assert result.depth.std() > 0.05


def test_a_checkpoint_can_be_chosen(make_config: Callable[..., Config]) -> None:
    config = make_config()
    run = make_run(config)
    save_constant(config, 1, depth=0.75, mask=0.5)
    save_constant(config, 2, depth=0.25, mask=0.75)
    newest, first = dtrain.load(run), dtrain.load(str(run), "step-00000001")
    assert newest.predict(pixels(0), pixels(1)).depth.tolist()[0][0] == 0.25
    assert first.predict(pixels(0), pixels(1)).depth.tolist()[0][0] == 0.75
    assert newest.weights_sha256() != first.weights_sha256()
    assert newest.weights_sha256() == dtrain.load(run).weights_sha256()


@pytest.mark.parametrize(
    ("bg", "message"),
    [
        (pixels(0).astype(np.float32), r"^room: bg: expected a uint8 array \(H, W, 3\), got float32 \(35, 50, 3\)$"),
        (pixels(0)[..., 0], r"expected a uint8 array \(H, W, 3\), got uint8 \(35, 50\)$"),
        (3, r"^room: bg: expected a path, a Pillow image or a uint8 array \(H, W, 3\), got int$"),
        (pixels(0, 35, 50), r"^bg is 35×50 but .*room\.png is 50×35; expected equal sizes$"),
        (Image.new("F", (WIDTH, HEIGHT)), r"^room: bg: can't be read as an image: it is of floating point; expected 8"),
        ("absent.png", r"^absent\.png: no such file$"),
    ],
)
def test_what_is_no_image_is_refused(network: dtrain.Network, tmp_path: Path, bg: ImageInput, message: str) -> None:
    _, fgbg = save_pair(tmp_path, "room", 0, WIDTH, HEIGHT)
    with pytest.raises(UserError, match=message):
        network.predict(bg, fgbg)


def test_a_network_that_is_broken_says_so(make_config: Callable[..., Config]) -> None:
    config = make_config()
    run = make_run(config)
    save_constant(config, 1, depth=float("nan"), mask=0.5)
    with pytest.raises(UserError, match=r"^pair 1: the network predicts values that are not finite; choose another"):
        dtrain.load(run).predict(pixels(0), pixels(1))


TOO_LARGE = """
import resource, sys
import numpy, dtrain
from shard_tools.errors import UserError
network = dtrain.load(sys.argv[1], device="cpu")
image = numpy.zeros((35, 50, 3), numpy.uint8)
pairs = [(image, image)] * 4
list(network.predict_many(pairs, size=64))
pages = int(open("/proc/self/statm").read().split()[0])
room = int(sys.argv[2]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room,) * 2)
try:
    network.predict(image, image, size=sys.argv[3])
except UserError as error:
    print(error)
print(len(list(network.predict_many(pairs, size=64))))
"""


@pytest.mark.parametrize(("room", "size"), [("64", "16384x16384"), ("256", "2048x2048")])
def test_too_little_memory_is_said_and_the_next_pair_goes_on(
    make_config: Callable[..., Config], room: str, size: str
) -> None:
    config = make_config()
    run = make_run(config)
    save_lively(config, 1)
    done = subprocess.run(
        [sys.executable, "-c", TOO_LARGE, str(run), room, size], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines() == ["pair 1: needs more memory than there is; choose a smaller --size", "4"]
