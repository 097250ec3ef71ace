"""`dtrain predict`: depth and mask of many pairs of images as files. Goes on where it was stopped."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtrain import predicted_files
from dtrain.api import Network, load
from dtrain.inference import Result, infer
from dtrain.pairs import Inputs, ListedPair, PairSource, Unreadable
from dtrain.seen_size import parse_size
from shard_tools.errors import UserError
from shard_tools.output import prepare_folder
from shard_tools.progress import Progress

_WRITERS = 4


def predict(
    run: Path,
    source: PairSource,
    out: Path,
    *,
    checkpoint: str | None = None,
    size: int | str | None = None,
    overwrite: bool = False,
) -> None:
    """Write OUT/NAME_depth.png, NAME_mask.png and NAME_panel.png of every pair of `source`, with the network of a run.

    What is there already and was made of the same inputs, by the same checkpoint, at the same `size`, is left as it
    is, unless `overwrite`; a prediction of anything else is made anew. `size` is what `Network.predict` takes.

    Raises UserError for a run that can't be loaded and a folder that can't be written. A pair that can't be predicted
    does not end the work: it is told on standard error, and counted in the UserError that is raised in the end.
    """
    if size is not None:
        parse_size(size)
    for folder in source.folders:
        if out.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"--out {out} lies in {folder}, where results would be taken for images; name another folder"
            )
    prepare_folder(out)
    network = load(run, checkpoint)
    work = _Work(source, out, network, str(network.size if size is None else size))
    if not overwrite:
        work.find_what_is_there()
    work.do()
    work.tell()


@dataclass
class _Work:
    """Predictions that are to be made, and what has become of them."""

    source: PairSource
    out: Path
    network: Network
    size: str
    already: int = 0
    new: int = 0
    failed: int = 0
    last_error: UserError | None = None
    done: bytearray = field(init=False)
    """Of each pair, whether its files are there already."""

    def __post_init__(self) -> None:
        self.done = bytearray(self.source.total)
        self._made_by = {
            "checkpoint": self.network.trained.checkpoint,
            "weights_sha256": self.network.weights_sha256(),
            "size": self.size,
        }

    def find_what_is_there(self) -> None:
        for place, listed in enumerate(self.source.listed()):
            self.done[place] = predicted_files.is_written(self.out, listed.name, self._origin(listed.inputs))
        self.already = sum(self.done)

    def do(self) -> None:
        """Predict what is not there; files are written in threads, a few at a time."""
        self._progress = Progress("predicting", total=self.source.total, unit="pairs", initial=self.already)
        module, device = self.network.module, self.network.device
        writing: deque[Future[None]] = deque()
        try:
            with (
                ThreadPoolExecutor(_WRITERS, "write") as pool,
                closing(infer(module, device, self._pairs(), parse_size(self.size))) as results,
            ):
                for pair, result in results:
                    if isinstance(result, UserError):
                        self._failed(1, result)
                        continue
                    if len(writing) >= 2 * _WRITERS:
                        self._written(writing.popleft())
                    writing.append(pool.submit(self._write, pair, result))
                while writing:
                    self._written(writing.popleft())
        finally:
            self._progress.close()

    def tell(self) -> None:
        """Say what was done, or raise the UserError that says what was not."""
        if self.failed and self.last_error and self.source.total == 1:
            raise self.last_error
        already = f", {self.already:,} were there already" if self.already else ""
        summary = f"{self.out}: {self.new:,} pairs predicted{already}"
        if self.failed:
            raise UserError(
                f"{summary}, {self.failed:,} can't be: see above. Mend them and run the same command again, which does "
                "only what is missing"
            )
        if self.source.total == 1:
            (listed,) = self.source.listed()
            print(*reversed(predicted_files.paths(self.out, listed.name)), sep="\n")
        else:
            print(summary)

    def _pairs(self) -> Iterator[ListedPair]:
        for pair in self.source.read(self.done):
            if isinstance(pair, Unreadable):
                self._failed(pair.count, pair.error)
            else:
                yield pair

    def _write(self, pair: ListedPair, result: Result) -> None:
        predicted_files.write(self.out, pair.listed.name, result, self._origin(pair.listed.inputs))

    def _written(self, future: Future[None]) -> None:
        try:
            future.result()
        except OSError as error:
            raise UserError(
                f"{error.filename or self.out}: can't be written: {error.strerror}; make room, or choose another --out"
            ) from None
        self.new += 1
        self._progress.advance(1)

    def _failed(self, count: int, error: UserError) -> None:
        self.failed += count
        self.last_error = error
        if self.source.total > 1:
            self._progress.note(f"dtrain: {error}")
        self._progress.advance(count)

    def _origin(self, inputs: Inputs) -> dict[str, Any]:
        return {**self._made_by, **inputs}
