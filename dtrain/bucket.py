"""Checkpoints behind a URL: copies of local ones, whole as soon as their list of files is there. Decides nothing.

URL/step-00001234/ holds the files of the checkpoint, and copies of metrics.jsonl, events.jsonl and trackers.json as
they were then, so that a run goes on from there on a machine that has never seen its folder.
"""

import json
import os
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

from dtrain.checkpoint import FILES, CancelledError, Keep, checkpoint_name, is_checkpoint, step_of
from shard_tools.atomic import PARTIAL_SUFFIX
from shard_tools.storage import Storage


class Bucket:
    """The place. Raises UserError or OSError where it can't be reached."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def path(self, global_step: int) -> str:
        """Where a checkpoint lies, for messages."""
        return self._storage.path(checkpoint_name(global_step))

    def steps(self) -> list[int]:
        """The steps of which there may be a checkpoint, the newest first."""
        return sorted((step_of(name) for name in self._storage.folders() if is_checkpoint(name)), reverse=True)

    def whole(self, steps: Iterable[int]) -> list[int]:
        """Those of these steps whose checkpoint's list of files is there."""
        return [step for step in steps if self._is_listed(checkpoint_name(step))]

    def upload(self, checkpoint: Path, log: Collection[Path], cancelled: Callable[[], bool]) -> None:
        """Copy a whole local checkpoint, with the files `log`, its list of files last; not if that is there already.

        A copy with another list, behind which the run went back, is replaced.
        Raises CancelledError once `cancelled` says so, which is asked before each file.
        """
        names = (checkpoint / FILES).read_bytes()
        if self._is_listed(checkpoint.name):
            if self._storage.read(f"{checkpoint.name}/{FILES}") == names:
                return
            self._storage.remove(f"{checkpoint.name}/{FILES}")
        for path in (*log, *(checkpoint / name for name in json.loads(names)), checkpoint / FILES):
            if cancelled():
                raise CancelledError
            if path in log:
                self._upload_so_far(f"{checkpoint.name}/{path.name}", path)
            else:
                self._storage.upload(f"{checkpoint.name}/{path.name}", path)

    def download(self, global_step: int, folder: Path) -> bool:
        """Fetch all objects of a checkpoint durably to `folder`; False if its list of files is missing."""
        name = checkpoint_name(global_step)
        if not self._is_listed(name):
            return False
        for file in sorted(each for each in self._storage.names(name) if not each.endswith(PARTIAL_SUFFIX)):
            with self._storage.reading(f"{name}/{file}") as source, (folder / file).open("wb") as target:
                while data := source.read(2**20):
                    target.write(data)
                target.flush()
                os.fsync(target.fileno())
        return True

    def remove_old(
        self, newest: int, keep_last: int, keep: Keep, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Remove all but step `newest`, the whole ones before it to make `keep_last`, and those of them to `keep`.

        Later ones are damaged: the run went back behind them. Or another copy has begun since: then `cancelled`, which
        is asked before each is removed, says so, and CancelledError is raised.
        """
        there = self.steps()
        whole = self.whole(step for step in there if step <= newest)
        for step in set(there).difference(whole[:keep_last], set(whole).intersection(keep(whole))):
            if cancelled():
                raise CancelledError
            self.remove(step)

    def remove(self, global_step: int) -> None:
        """Remove a checkpoint; the list of files goes first, so that the rest never counts."""
        self._storage.remove(f"{checkpoint_name(global_step)}/{FILES}")
        self._storage.remove_folder(checkpoint_name(global_step))

    def _upload_so_far(self, name: str, path: Path) -> None:
        """Copy a file that grows, up to where it ends now."""
        with suppress(FileNotFoundError), path.open("rb") as source:
            left = os.fstat(source.fileno()).st_size
            with self._storage.writing(name) as target:
                while left and (data := source.read(min(left, 2**20))):
                    target.write(data)
                    left -= len(data)

    def _is_listed(self, name: str) -> bool:
        return FILES in self._storage.names(name)
