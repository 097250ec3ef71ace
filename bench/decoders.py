"""JPEG decoders on the same images in memory: simplejpeg, PyTurboJPEG and Pillow, with one thread and with two.

The measurement by which simplejpeg was chosen. RGB is fgbg, gray is depth; decoded at full size and at the DCT scales
1/2, 1/4 and 1/8, each into memory that is there where a library can, in turns, median of the rounds. PyTurboJPEG is
left out where it or the system's libturbojpeg is not installed.

    .venv-bench/bin/python -m bench.decoders --json decoders.json
"""

import argparse
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from bench.dataset import PHOTOS, Workload, encoded_samples
from bench.turns import Epoch, say, take_turns

IMAGES = 600
SCALES = (1, 2, 4, 8)
MODES = {"RGB": "fgbg", "L": "depth"}

Pixels = NDArray[np.uint8]
Decode = Callable[[bytes, str, int, Pixels], Any]
"""Decodes an image in a colour mode, at one over a scale, into an array of that shape if it can."""


def with_simplejpeg(data: bytes, mode: str, scale: int, out: Pixels) -> None:
    """Takes the smallest size in pixels instead of a scale."""
    height, width, _ = out.shape
    simplejpeg.decode_jpeg(data, "RGB" if mode == "RGB" else "GRAY", min_height=height, min_width=width, buffer=out)


def with_pillow(data: bytes, mode: str, scale: int, out: Pixels) -> None:
    """Pillow's draft is libjpeg's DCT scale; it has no way around a copy."""
    height, width, _ = out.shape
    image = Image.open(io.BytesIO(data))
    image.draft(mode, (width, height))
    out[...] = np.asarray(image.convert(mode)).reshape(out.shape)


def decoders() -> dict[str, Decode]:
    """Those that are installed."""
    found: dict[str, Decode] = {"simplejpeg": with_simplejpeg, "Pillow": with_pillow}
    try:
        import turbojpeg

        library = turbojpeg.TurboJPEG()
    except (ImportError, RuntimeError) as error:
        say(f"PyTurboJPEG is left out: {error}")
        return found
    formats = {"RGB": turbojpeg.TJPF_RGB, "L": turbojpeg.TJPF_GRAY}

    def with_pyturbojpeg(data: bytes, mode: str, scale: int, out: Pixels) -> None:
        library.decode(data, pixel_format=formats[mode], scaling_factor=(1, scale), dst=out)

    return {"simplejpeg": with_simplejpeg, "PyTurboJPEG": with_pyturbojpeg, "Pillow": with_pillow}


def contenders(images: dict[str, list[bytes]], pool: ThreadPoolExecutor) -> Iterator[tuple[str, Epoch]]:
    """Each decoder in each mode, scale and number of threads."""
    installed = decoders()
    for mode, encoded in images.items():
        with Image.open(io.BytesIO(encoded[0])) as image:
            width, height = image.size
        for scale in SCALES:
            shape = (-(-height // scale), -(-width // scale), len(mode))
            for name, decode in installed.items():
                label = f"{name}, {'RGB' if mode == 'RGB' else 'gray'}, 1/{scale}"
                yield f"{label}, 1 thread", _loop(decode, mode, scale, shape, [encoded], None)
                yield f"{label}, 2 threads", _loop(decode, mode, scale, shape, [encoded[::2], encoded[1::2]], pool)


def _loop(
    decode: Decode,
    mode: str,
    scale: int,
    shape: tuple[int, int, int],
    parts: list[list[bytes]],
    pool: ThreadPoolExecutor | None,
) -> Epoch:
    def decode_part(part: list[bytes]) -> int:
        out = np.empty(shape, dtype=np.uint8)
        for data in part:
            decode(data, mode, scale, out)
        return len(part)

    return lambda: sum((pool.map if pool else map)(decode_part, parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=PHOTOS, metavar="DIR", help="with bg/*.jpg and fg/*.png")
    parser.add_argument("--rounds", type=int, default=5, help="after one that does not count (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few rendered images, one round")
    parser.add_argument("--json", type=Path, help="write the rates here")
    arguments = parser.parse_args()
    workload = Workload(arguments.photos, quick=arguments.quick)
    samples = list(encoded_samples(workload.shards))[:IMAGES]
    images = {mode: [sample[component] for sample in samples] for mode, component in MODES.items()}
    with ThreadPoolExecutor(2) as pool:
        rounds = 1 if arguments.quick else arguments.rounds
        rates = take_turns(dict(contenders(images, pool)), rounds, unit="images")
    print(f"{'images/s':32}{'1 thread':>10}{'2 threads':>11}{'ratio':>8}")
    for label in dict.fromkeys(name.rpartition(",")[0] for name in rates):
        one, two = rates[f"{label}, 1 thread"].median, rates[f"{label}, 2 threads"].median
        print(f"{label:32}{one:10,.0f}{two:11,.0f}{two / one:8.2f}")
    if arguments.json:
        figures = {name: rate.median for name, rate in rates.items()}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
