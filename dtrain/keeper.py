"""Has checkpoints written when they are due, on the main process; the others only agree. Knows nothing of training."""

import platform
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch
from accelerate import Accelerator

from dtrain.best import best_steps, of_last_size
from dtrain.bucket import Bucket
from dtrain.checkpoint import Checkpoint, Keep, checkpoint_name
from dtrain.config import Config
from dtrain.interval import SaveTimer
from dtrain.journal import Journal
from dtrain.run_folder import RunFolder
from dtrain.saver import HASTE_SECONDS, Saver
from dtrain.uptime import uptime
from dtrain.vote import Vote
from shard_tools.errors import UserError

LAST_PATIENCE_SECONDS = 240.0
"""So long the end of a run waits for room on the disk, or for the bucket to answer."""
LAST_COPY_SECONDS = 1800.0
"""So long it waits for a copy that is under way."""
LAST_RETRY_SECONDS = 10.0
LEAVE_COPY_SHARE = 0.3
"""Of hang.leave_seconds: so long a run that was told to stop waits for the copy of its last checkpoint."""


class Keeper:
    """Every method is called by every process, unless it says otherwise."""

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        run: RunFolder,
        bucket: Bucket | None,
        journal: Journal,
        vote: Vote,
        digest: str,
        newest: int | None,
        stage_ends: Collection[int],
        progress: Callable[[int], None],
    ) -> None:
        """`digest` is that of the data set; `newest` the step of the checkpoint that the run goes on from.

        Those of the steps `stage_ends` are never removed: from each of them the run can be begun again. `progress` is
        called with a step where this waits for long.
        """
        self._config = config.checkpoint
        self._accelerator = accelerator
        self._run = run
        self._journal = journal
        self._vote = vote
        self._identity = {"identity": config.identity(), "manifest": digest}
        between = 3600 * self._config.hours_between_preemptions
        self._timer = SaveTimer(self._config.interval, between, time.monotonic())
        self._saver = Saver(
            run.checkpoints,
            keep_last=self._config.keep_last,
            bucket=bucket,
            log=(run.metrics, run.events, run.trackers),
            sync=journal.sync,
        )
        self._held_up: dict[int, float] = {}
        self._error = self._copy_error = ""
        self._newest = newest
        self._stage_ends = frozenset(stage_ends)
        self._progress = progress
        self._best = run.evaluations(self._config.best_metric) if self._config.keep_best else {}
        self._leave_copy_seconds = LEAVE_COPY_SHARE * config.hang.leave_seconds
        if newest is not None and accelerator.is_main_process:  # its copy may have been cut off by a kill
            self._saver.copy(run.checkpoints / checkpoint_name(newest), self._kept())

    def due(self, global_step: int) -> bool:
        """Whether a checkpoint is due after this step; never on another process than the main one."""
        if not self._accelerator.is_main_process:
            return False
        self._look()
        due = self._timer.due(global_step, time.monotonic())
        if due and self._saver.busy:
            self._timer.missed()
        return due and not self._saver.busy

    def evaluated(self, global_step: int, size: int, figures: Mapping[str, float]) -> None:
        """Be told of an evaluation at an image size, by which a checkpoint may be one of the best."""
        if self._config.keep_best and self._config.best_metric in figures:
            self._best[global_step] = (size, figures[self._config.best_metric])

    def save(self, global_step: int, checkpoint: Checkpoint, *, urgent: bool = False) -> None:
        """Begin to write one; steps may go on. The one before is waited for, or given up for an urgent one.

        All processes first make durable what they wrote down of consumed samples. Raises AgreedError if one has failed.
        """
        at = uptime()
        error = self._sync_audit()
        self._vote.cast(int(not error))
        if not all(synced for (synced,) in self._vote.read().counts):
            self._fail(global_step, error or "another process can't write down which samples it consumed")
            return
        if not self._accelerator.is_main_process:
            return
        state = {
            **checkpoint.state,
            **self._identity,
            "global_step": global_step,
            "metrics_bytes": self._run.metrics_lines.end(),
            "time": time.time(),
            "written": {
                "processes": self._accelerator.num_processes,
                "device": str(self._accelerator.device),
                "torch": torch.__version__,
                "host": platform.node(),
            },
        }
        self._timer.began(time.monotonic())
        self._saver.save(global_step, replace(checkpoint, state=state), at=at, keep=self._kept(), urgent=urgent)
        self._newest = global_step
        self._held_up[global_step] = uptime() - at
        self._look()
        self._copy_error = ""  # its copy is still to come

    def complete(self, global_step: int, checkpoint: Checkpoint) -> str:
        """Wait until one of this very step is written, which is begun if it was not, and a while for its copy.

        Returns what went wrong, or "". Only the main process knows.
        """
        return self._complete(global_step, checkpoint, self._leave_copy_seconds)

    def insist(self, global_step: int, checkpoint: Checkpoint) -> tuple[str, bool]:
        """Like `complete`, for the end of the run: waits for room on the disk, and until all is copied.

        Returns what went wrong, and whether it gave up because a process was told to stop.
        """
        began = time.monotonic()
        while True:
            error = self._complete(global_step, checkpoint, LAST_RETRY_SECONDS)
            failed = bool(self._error or self._copy_error)
            over = time.monotonic() - began > (LAST_PATIENCE_SECONDS if failed else LAST_COPY_SECONDS)
            self._vote.cast(int(not error), int(over))
            agreement = self._vote.read()
            good, gives_up = agreement.counts[0]
            if good or gives_up or agreement.stop:
                return error, not good and agreement.stop
            retry = time.monotonic() + (LAST_RETRY_SECONDS if failed else 0.0)
            self._progress(global_step)
            while time.monotonic() < retry and not self._vote.wants_to_stop:
                time.sleep(0.1)
            self._progress(global_step)

    def close(self) -> None:
        """Let what is being written come to its end."""
        self._saver.close()
        with suppress(UserError):
            self._look()

    def _complete(self, global_step: int, checkpoint: Checkpoint, copy_seconds: float) -> str:
        began = uptime()
        good = self._newest == global_step and not self._error and not self._copy_error
        if not self._agree(good and self._saver.wait(HASTE_SECONDS)):
            self.save(global_step, checkpoint, urgent=True)
        self._saver.wait()
        self._progress(global_step)
        copied = self._saver.wait_for_copies(copy_seconds)
        self._held_up[global_step] = self._held_up.get(global_step, 0.0) + uptime() - began
        self._look()
        if self._accelerator.is_main_process and not self._error:
            try:
                self._journal.sync()
            except OSError as error:  # lines that came after the checkpoint
                self._error = str(error)
        unfinished = "" if copied else f"the copy of step {global_step} in {self._config.url} is not finished"
        return self._error or self._copy_error or unfinished

    def _kept(self) -> Keep:
        """The rule, as things are now: the ends of stages, and of those that are there the best."""
        figures, metric, count = of_last_size(self._best), self._config.best_metric, self._config.keep_best

        def keep(steps: Collection[int]) -> Collection[int]:
            evaluated = {step: figures[step] for step in steps if step in figures}
            return self._stage_ends.union(best_steps(evaluated, metric, count))

        return keep

    def _agree(self, value: bool) -> bool:
        """What the main process says."""
        self._vote.cast(int(value))
        return bool(self._vote.read().counts[0][0])

    def _sync_audit(self) -> str:
        try:
            self._journal.sync_audit()
        except OSError as error:
            return str(error)
        return ""

    def _look(self) -> None:
        """See what became of what was being written and copied."""
        for saved in self._saver.ended():
            if saved.path is None:
                self._error = saved.error
                self._timer.failed(time.monotonic())
            else:
                self._error = ""
                self._timer.took(saved.busy_seconds + self._held_up.get(saved.global_step, 0.0), saved.seconds)
            self._tell(partial(self._journal.saved, saved, self._held_up.pop(saved.global_step, 0.0)))
        for step, error in self._saver.copied():
            if step == self._newest:
                self._copy_error = error
            if error:
                self._tell(partial(self._journal.not_copied, step, error))

    def _tell(self, tell: Callable[[], None]) -> None:
        """Tell the journal; if it can't write, all processes stop at their next vote."""
        try:
            tell()
        except UserError as error:
            self._vote.fail(error)

    def _fail(self, global_step: int, error: str) -> None:
        if not self._accelerator.is_main_process:
            return
        self._error = error
        self._timer.failed(time.monotonic())
        self._tell(partial(self._journal.not_saved, global_step, error))
