"""`shard-tools preview`: a contact sheet of some tuples. Reads those alone, and of the shards only the ones touched."""

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from shard_tools.components import COMPONENTS
from shard_tools.contact_sheet import Row, draw_sheet, make_row
from shard_tools.decoded import decode_component
from shard_tools.errors import UserError
from shard_tools.index import IndexedSample
from shard_tools.manifest import Manifest, Shard, open_shards
from shard_tools.output import prepare_folder, write_output
from shard_tools.permutation import permutation
from shard_tools.progress import progress
from shard_tools.samples import read_index, read_tuples
from shard_tools.storage import Storage

MAX_SAMPLES = 200


class _Place(NamedTuple):
    """Where a tuple lies."""

    split: str
    shard: Shard
    sample: IndexedSample


def preview(location: str, *, split: str | None, samples: int, seed: int, keys: Sequence[str], out: Path) -> str:
    """Draw tuples of the shards at `location` into the PNG `out`; returns a text that names it.

    Drawn are the tuples called `keys`, in that order; without any, `samples` random ones (all where there are fewer)
    that `seed` chooses, in packing order. They come out of all splits, or of the one called `split`. Raises UserError
    for an unknown split or key, for more than MAX_SAMPLES tuples or less than one, for an image that cannot be decoded,
    and for an `out` that cannot be written or does not end in .png.
    """
    if not 1 <= samples <= MAX_SAMPLES:
        raise UserError(f"--samples {samples}: expected 1 to {MAX_SAMPLES}")
    if len(keys) > MAX_SAMPLES:
        raise UserError(f"--keys: {len(keys)} keys; expected {MAX_SAMPLES} at most")
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UserError(f"--out {out}: expected the name of a file that ends in .png")
    storage, manifest = open_shards(location)
    names = list(manifest.splits) if split is None else [split]
    shards = [(name, shard) for name in names for shard in manifest.split(name).shards]
    if not shards:
        raise UserError(f"{storage.location}: no tuples in {', '.join(names) or 'any split'}; nothing to draw")
    prepare_folder(out.parent)
    places = _find(storage, shards, keys) if keys else _choose(storage, shards, samples, seed)
    rows: dict[_Place, Row] = {}
    with progress("preview", total=len(places), unit="tuples") as shown:
        for place, row in _read_rows(storage, manifest, places):
            rows[place] = row
            shown.advance(1)
    buffer = io.BytesIO()
    draw_sheet([rows[place] for place in places]).save(buffer, format="png")
    write_output(out, buffer.getvalue())
    total = sum(shard.samples for _, shard in shards)
    asked = "" if keys or len(places) == samples else f"; {samples:,} were asked for, there are no more"
    return f"wrote {out}: {len(places):,} of {total:,} tuples{asked}"


def _choose(storage: Storage, shards: Sequence[tuple[str, Shard]], count: int, seed: int) -> list[_Place]:
    """`count` tuples, each as likely as any other; a larger count gives the same ones and more."""
    ends = list(accumulate((shard.samples for _, shard in shards), initial=0))
    positions = sorted(permutation(ends[-1], "preview", seed)[:count].tolist())
    chosen: dict[int, list[int]] = {}
    for position in positions:
        number = bisect_right(ends, position) - 1
        chosen.setdefault(number, []).append(position - ends[number])
    places = []
    for number, inside in chosen.items():
        index = read_index(storage, shards[number][1])
        places += [_Place(*shards[number], index[position]) for position in inside]
    return places


def _find(storage: Storage, shards: Sequence[tuple[str, Shard]], keys: Sequence[str]) -> list[_Place]:
    """The tuples called `keys`, in that order; reads indexes until all are found."""
    found: dict[str, _Place] = {}
    missing = dict.fromkeys(keys)
    example = ""
    for name, shard in shards:
        if not missing:
            break
        for sample in read_index(storage, shard):
            example = example or f"; a key that is there: {sample.key}"
            if sample.key in missing:
                found[sample.key] = _Place(name, shard, sample)
                del missing[sample.key]
    if missing:
        among = " and ".join(dict.fromkeys(name for name, _ in shards))
        raise UserError(f"--keys: no tuple {', '.join(missing)} among those of {among} in {storage.location}{example}")
    return [found[key] for key in dict.fromkeys(keys)]


def _read_rows(storage: Storage, manifest: Manifest, places: Sequence[_Place]) -> Iterator[tuple[_Place, Row]]:
    """Read and decode the tuples, each shard opened once; decoded images are held one tuple at a time."""
    by_shard: dict[Shard, list[_Place]] = {}
    for place in places:
        by_shard.setdefault(place.shard, []).append(place)
    for shard, inside in by_shard.items():
        chosen = [place.sample for place in inside]
        tuples = read_tuples(storage, manifest, inside[0].split, shard, chosen)
        for place, sample in zip(inside, tuples, strict=True):
            path, key = storage.path(shard.file), sample.key
            images = {name: decode_component(sample.images[name], name, path=path, key=key) for name in COMPONENTS}
            yield place, make_row(f"{key} · {shard.file}", images)
