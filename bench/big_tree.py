"""A tree of 400,000 tuples, 1.2 million files, as hard links to a few thousand real JPEGs: full scale, little disk.

    shard-tools compose bench/data/real128 --backgrounds photos/bg --foregrounds photos/fg --size 128
    python -m bench.big_tree bench/data/real128 bench/data/tree400k

Each background and foreground stands in for many, so the counts are those of the real thing and the pictures repeat.
"""

import argparse
import os
import time
from pathlib import Path

from shard_tools.progress import progress

COMPONENTS = ("overlay", "depth", "mask")


def make_big_tree(source: Path, out: Path, *, backgrounds: int, foregrounds: int) -> int:
    """Link a nested tree of backgrounds × foregrounds pairs at `out`; returns its number of tuples.

    Pair (b, f) is the source's pair (b mod B, f mod F) with all its placements. Finished pairs are kept.
    """
    source_backgrounds = len(list((source / "bg").iterdir()))
    source_foregrounds = sum(path.name.startswith("fg_") for path in (source / "bg1").iterdir())
    placements = len(list((source / "bg1" / "fg_1" / COMPONENTS[0]).iterdir()))
    (out / "bg").mkdir(parents=True, exist_ok=True)
    total = backgrounds * foregrounds * placements
    with progress("linking", total=total, unit="tuples") as shown:
        for b in range(backgrounds):
            from_b = b % source_backgrounds + 1
            link = out / "bg" / f"bg{b + 1}.jpg"
            link.unlink(missing_ok=True)
            link.hardlink_to(source / "bg" / f"bg{from_b}.jpg")
            for f in range(foregrounds):
                _link_pair(
                    f"{source}/bg{from_b}/fg_{f % source_foregrounds + 1}", f"{out}/bg{b + 1}/fg_{f + 1}", placements
                )
                shown.advance(placements)
    return total


def _link_pair(source: str, target: str, placements: int) -> None:
    if os.path.isdir(f"{target}/{COMPONENTS[-1]}"):  # noqa: PTH112 - 10,000 pairs and 1.2 million links
        return
    for component in COMPONENTS:
        partial = f"{target}/{component}.partial"
        os.makedirs(partial, exist_ok=True)  # noqa: PTH103
        there = set(os.listdir(partial))  # noqa: PTH208
        for number in range(1, placements + 1):
            name = f"{number}.jpg"
            if name not in there:
                os.link(f"{source}/{component}/{name}", f"{partial}/{name}")
        os.rename(partial, f"{target}/{component}")  # noqa: PTH104


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a nested tree, as `shard-tools compose` writes it; on the same disk")
    parser.add_argument("out", type=Path)
    parser.add_argument("--backgrounds", type=int, default=100)
    parser.add_argument("--foregrounds", type=int, default=100)
    arguments = parser.parse_args()
    began = time.monotonic()
    tuples = make_big_tree(
        arguments.source, arguments.out, backgrounds=arguments.backgrounds, foregrounds=arguments.foregrounds
    )
    print(f"{arguments.out}: {tuples:,} tuples, {3 * tuples + arguments.backgrounds:,} files")
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
