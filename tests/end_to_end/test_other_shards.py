"""Shards of another program, indexed by `shard-tools index`, train as our own do."""

import subprocess
from pathlib import Path

import webdataset

from .conftest import BIN, Run
from .lean import Lean


def test_shards_of_webdatasets_writer_train_with_the_same_losses(run: Run, undisturbed: Run, tmp_path: Path) -> None:
    """The same tuples in the same places under other names of members: the same training, step for step."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    names = {"bg.jpg": "clean.jpg", "fgbg.jpg": "input.jpg", "depth.jpg": "d.jpg", "mask.jpg": "seg.jpg"}
    for tar in sorted(undisturbed.shards.glob("*.tar")):
        with webdataset.TarWriter(str(folder / tar.name)) as writer:
            for sample in webdataset.WebDataset(str(tar), shardshuffle=False):
                members = {names[name]: data for name, data in sample.items() if name in names}
                writer.write({"__key__": sample["__key__"], **members})
    components = ("bg=clean.jpg", "fgbg=input.jpg", "depth=d.jpg", "mask=seg.jpg")
    options = [part for component in components for part in ("--component", component)]
    splits = ["--split", "train=train-*.tar", "--split", "test=test-*.tar"]
    subprocess.run([str(BIN / "shard-tools"), "index", str(folder), *splits, *options], check=True, timeout=120)

    run = Lean(run.folder, folder, undisturbed).train()
    assert run.consumed() == undisturbed.consumed()
    assert run.final() == undisturbed.final()
