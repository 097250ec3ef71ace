"""Which samples a real training sees: the same in the same steps however it is cut, each once an epoch."""

import json
import tarfile

import numpy as np
import pytest
import webdataset

from dtrain.data.reader import LocalFiles, ShardReader
from shard_tools.components import COMPONENTS
from shard_tools.manifest import read_manifest
from shard_tools.storage import LocalStorage

from .conftest import BATCH, EPOCHS, FIRST_EPOCHS, STEPS, TRAIN_SAMPLES, Run
from .lean import Lean

SHORT = ("--stages.1.epochs", "1")


@pytest.mark.parametrize(("processes", "workers", "share"), [(1, 0, "12"), (5, 2, "2 or 3")])
def test_steps_have_the_same_samples_for_any_processes_and_threads(
    run: Run, undisturbed: Run, processes: int, workers: int, share: str
) -> None:
    run = Lean(run.folder, run.shards, undisturbed)
    launched = run.launch("--data.workers", str(workers), *SHORT, processes=processes).succeed()
    assert f"global batch {BATCH} = {processes} process(es) × {share}" in launched.output
    check_samples(run, undisturbed)
    losses = [next(line["loss"] for line in r.lines("metrics.jsonl")) for r in (run, undisturbed)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05), "the mean over the global batch, from the same weights"


def test_every_sample_comes_exactly_once_in_every_epoch(undisturbed: Run) -> None:
    batches = undisturbed.consumed()
    assert len(batches) == STEPS * EPOCHS
    assert {len(keys) for keys in batches.values()} == {BATCH}
    packed = set()
    for path in sorted(undisturbed.shards.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            packed |= {name.split(".")[0] for name in tar.getnames()}
    assert len(packed) == TRAIN_SAMPLES
    for stage, epoch in {place[:2] for place in batches}:
        seen = [keys for place, keys in batches.items() if place[:2] == (stage, epoch)]
        assert set.union(*seen) == packed


def test_accumulation_changes_neither_samples_nor_the_number_of_steps(run: Run, undisturbed: Run) -> None:
    run = Lean(run.folder, run.shards, undisturbed).train("--max_micro_batch", "2", *SHORT, processes=1)
    check_samples(run, undisturbed)
    assert run.events("start")[0]["accumulation"] == 6


def check_samples(short: Run, undisturbed: Run) -> None:
    """That every step had what that step of the longer run had."""
    ours, theirs = short.consumed(), undisturbed.consumed()
    assert len(ours) == STEPS * (FIRST_EPOCHS + 1)
    assert ours == {place: theirs[place] for place in ours}


def test_webdataset_alone_reads_the_same_tuples(undisturbed: Run) -> None:
    manifest = read_manifest(undisturbed.shards)
    for split in ("train", "test"):
        reader = ShardReader(LocalFiles(LocalStorage(undisturbed.shards)), manifest, split, COMPONENTS)
        ours = [
            reader.read(shard, sample) for shard, length in enumerate(reader.shard_lengths) for sample in range(length)
        ]
        urls = [str(undisturbed.shards / shard.file) for shard in manifest.split(split).shards]
        theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
        assert [key for key, _ in ours] == [sample["__key__"] for sample in theirs]
        for (key, parts), sample in zip(ours, theirs, strict=True):
            assert parts == [sample[f"{name}.jpg"] for name in COMPONENTS]
            assert key == "bg{background}_fg_{foreground}_{placement}".format(**json.loads(sample["json"]))


def test_webdataset_decodes_them_to_tuples_of_images(undisturbed: Run) -> None:
    urls = [str(path) for path in sorted(undisturbed.shards.glob("test-*.tar"))]
    sample = next(iter(webdataset.WebDataset(urls, shardshuffle=False).decode("pil")))
    assert {name: np.asarray(sample[f"{name}.jpg"]).shape[:2] for name in COMPONENTS} == dict.fromkeys(
        COMPONENTS, (32, 32)
    )
