"""The run: stages of epochs of steps, from wherever it stands. Read `Trainer.train` first."""

import os
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from typing import TypeVar

from accelerate import Accelerator
from torch import Tensor

from dtrain import collector
from dtrain.bucket import Bucket
from dtrain.checkpoint import Checkpoint, DamagedCheckpointError, load_checkpoint
from dtrain.claim import ClaimedRun
from dtrain.config import Config
from dtrain.data.augment import augment, draw
from dtrain.data.dataset import Dataset, open_dataset
from dtrain.data.loader import BadSample, BatchSource, HostBatch, blank_batch, to_device
from dtrain.data.order import Position
from dtrain.data.workers import GaveUpError
from dtrain.devices import (
    ProcessError,
    broadcast_buffers,
    explain,
    is_lost_process,
    longest_wait,
    make_accelerator,
    on_main_process,
)
from dtrain.evaluator import Evaluation, Evaluator
from dtrain.journal import Journal, stands_still
from dtrain.keeper import Keeper
from dtrain.launch_id import launch_id, was_restarted
from dtrain.learner import Learner
from dtrain.losses import Criterion
from dtrain.plan import RunPlan, StagePlan, plan_run
from dtrain.profiler import Profiler
from dtrain.resize import resize, resize_prediction
from dtrain.resume import Start, open_run
from dtrain.stop_request import StopRequest
from dtrain.vote import AgreedError, Agreement, Vote
from dtrain.watchdog import Watchdog
from shard_tools.errors import UserError
from shard_tools.storage import open_storage

Made = TypeVar("Made")


def train(
    config: Config,
    request: StopRequest | None = None,
    *,
    fresh: bool = False,
    overwrite: bool = False,
    from_stage: int | None = None,
    accept: Collection[str] = (),
    profile: bool = False,
) -> None:
    """Begin or go on with the run that `config` names, until it is done or told to stop.

    To be called by every process that the launcher started. Returns after a signal, too: status.json says which.
    `accept` are the keys of the configuration that may differ from what the run was begun with. `from_stage` goes back
    to where that stage begins. `profile` writes where the time of some steps goes.
    Raises UserError for what the user can mend.
    """
    request = request or StopRequest()
    opens = partial(
        open_run,
        fresh=fresh,
        overwrite=overwrite,
        from_stage=from_stage,
        accept=accept,
        launch=launch_id(),
        restarted=was_restarted(),
    )
    run = ClaimedRun(config.run)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    watchdog = Watchdog(rank, world_size, request, config.hang.leave_seconds, partial(stands_still, run, rank))
    try:
        accelerator = make_accelerator(config)
        watchdog.allow(config.hang.first_step_seconds + config.data.patience_seconds)
        vote = Vote(request, longest_wait(config))
        try:
            with run.refusals():
                on_main_process(accelerator, run.claim)
                bucket = Bucket(open_storage(config.checkpoint.url)) if config.checkpoint.url else None
                dataset = _open_together(config, vote)
            with closing(dataset):
                _train(config, accelerator, run, dataset, bucket, vote, request, watchdog, opens, profile)
        finally:
            with suppress(OSError):  # the trackers' files, on a full disk
                accelerator.end_training()
    except Exception as error:
        if is_lost_process(error):
            raise ProcessError(
                f"process {rank}: lost the launcher or another process while starting; run the same command again"
            ) from None
        raise
    finally:
        watchdog.close()


def _train(
    config: Config,
    accelerator: Accelerator,
    run: ClaimedRun,
    dataset: Dataset,
    bucket: Bucket | None,
    vote: Vote,
    request: StopRequest,
    watchdog: Watchdog,
    opens: Callable[..., Start],
    profile: bool,
) -> None:
    loaded: list[Checkpoint] = []
    with run.refusals():
        lengths = dataset.lengths(config.data.train_split)
        plan = plan_run(config, lengths, rank=accelerator.process_index, world_size=accelerator.num_processes)
        evaluator = Evaluator(config, dataset, accelerator, config.data.test_split)
        start = on_main_process(
            accelerator,
            lambda: opens(run, config, plan, dataset.digest, bucket=bucket, on_load=loaded.append),
        )
        if start.finished:
            accelerator.print(f"{run.path} is done: {start.state['global_step']} steps; --fresh starts it anew.")
            return
        journal = _together(vote, lambda: Journal(run, accelerator, config, plan, start, dataset))
    trainer = None
    try:
        learner = _learner(config, accelerator, _loaded(start, loaded))
        keeper = Keeper(
            config,
            accelerator,
            run,
            bucket,
            journal,
            vote,
            dataset.digest,
            start.state.get("global_step"),
            plan.stage_ends().values(),
            lambda step: watchdog.progress(step, "waiting for a save and its copy"),
        )
        profiler = Profiler(
            run.profile if profile and accelerator.is_main_process else None, accelerator.device, config.loss
        )
        trainer = Trainer(
            *(config, accelerator, dataset, plan, learner, keeper, journal, vote, watchdog, evaluator, profiler), start
        )
        collector.work()
        ended, unsaved = trainer.finish(trainer.train())
    except Exception as error:
        if journal.failed(error, trainer.global_step if trainer else plan.steps_before(start.position)):
            raise SystemExit(1) from None
        if isinstance(error, UserError) and not isinstance(error, AgreedError):
            raise ProcessError(f"process {accelerator.process_index}: {error}") from None
        raise
    finally:
        if trainer:
            trainer.close()
    if ended:
        journal.done(trainer.global_step)
    else:
        journal.preempted(request.reason or "a signal to another process", trainer.global_step, unsaved)
    accelerator.wait_for_everyone()


def _open_together(config: Config, vote: Vote) -> Dataset:
    """The data set; AgreedError on all processes if one of them can't open it, or sees another one than the others."""

    def opened() -> Dataset:
        dataset = open_dataset(config.data)
        dataset.start()
        return dataset

    dataset = _together(vote, opened)
    if not vote.same_for_all(dataset.digest):
        raise AgreedError(
            f"data.manifest: {config.data.manifest} does not list the same samples on all machines; copy the shards "
            "again, or give all of them one URL"
        )
    return dataset


def _together(vote: Vote, make: Callable[[], Made]) -> Made:
    """What each process makes for itself; AgreedError on all processes if one of them can't."""
    made: list[Made] = []
    try:
        made.append(make())
    except UserError as error:
        vote.fail(error)
    except OSError as error:
        vote.fail(UserError(explain(error)))
    vote.now()
    return made[0]


def _learner(config: Config, accelerator: Accelerator, checkpoint: Checkpoint | None) -> Learner:
    """AgreedError on all processes if the configuration can't be followed."""
    try:
        return Learner(config, accelerator, checkpoint)
    except UserError as error:
        raise AgreedError(str(error)) from None


def _loaded(start: Start, loaded: list[Checkpoint]) -> Checkpoint | None:
    """The checkpoint to start from: the one that the main process has read already, or read now by the others."""
    if start.checkpoint is None:
        return None
    try:
        return loaded.pop() if loaded else load_checkpoint(start.checkpoint)
    except DamagedCheckpointError as error:
        raise ProcessError(f"{start.checkpoint}: {error}; the run folder has to be the same on all machines") from None


class Trainer:
    """Position of a run on one process, and the way from there to its end. Every method is called by every process."""

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        dataset: Dataset,
        plan: RunPlan,
        learner: Learner,
        keeper: Keeper,
        journal: Journal,
        vote: Vote,
        watchdog: Watchdog,
        evaluator: Evaluator,
        profiler: Profiler,
        start: Start,
    ) -> None:
        """`learner` stands where `start` says."""
        self._config = config
        self._accelerator = accelerator
        self._dataset = dataset
        self._plan = plan
        self._learner = learner
        self._keeper = keeper
        self._journal = journal
        self._vote = vote
        self._watchdog = watchdog
        self._evaluator = evaluator
        self._profiler = profiler
        self._criterion = Criterion(config.loss)
        self._loader: BatchSource | None = None
        self.position = start.position
        self._bad_before: int = start.state.get("bad_samples", 0)
        self._bad_here = 0
        self._bad_samples = self._bad_before
        self._nonfinite: int = start.state.get("nonfinite_steps", 0)
        self._waited = 0.0
        self._absent = False
        self._started_at = self.global_step

    @property
    def global_step(self) -> int:
        """Steps of the whole run that are done."""
        return self._plan.steps_before(self.position)

    def train(self) -> bool:
        """Run to the end; False if all agreed to stop before, because of a signal."""
        if self._vote.now().stop:
            return False
        while self.position.stage < len(self._plan.stages):
            stage = self._plan.stages[self.position.stage]
            self._journal.stage_begins(stage)
            self._profiler.stage_begins(stage)
            self._watchdog.allow(self._longest(self._config.hang.first_step_seconds))
            if stage.resets_optimizer and self.position == Position(stage.number, 0, 0):
                self._learner.forget_optimizer_state()
            self._loader = self._dataset.loader(
                self._config.data.train_split, size=stage.decoded_size, device=self._accelerator.device
            )
            while self.position.epoch < stage.epochs:
                if not self._train_epoch(stage):
                    return False
                if self.global_step > self._started_at:
                    self._save()
                if self._evaluation_is_due(stage) and not self._evaluate(stage):
                    return False
                self.position = self.position.next_epoch()
            self._loader.close()
            self._journal.profiled(self._profiler.write())
            self.position = self.position.next_stage()
        return True

    def finish(self, ended: bool) -> tuple[bool, str]:
        """See to it that the very step where the run stands is saved; whether it has ended, else what is not saved.

        A run that has `ended` waits a while for room on the disk and for copies; a signal then ends it before. Raises
        AgreedError if waiting does not help.
        """
        if self.global_step == 0:
            return ended, ""
        checkpoint = self._checkpoint()
        if not ended:
            return False, self._keeper.complete(self.global_step, checkpoint)
        error, stopped = self._keeper.insist(self.global_step, checkpoint)
        if stopped:
            return False, error
        if error:
            self._vote.fail(UserError(error))
        self._vote.now()
        return True, ""

    def close(self) -> None:
        """Let go of threads and files."""
        self._keeper.close()
        if self._loader is not None:
            self._loader.close()

    def _train_epoch(self, stage: StagePlan) -> bool:
        """Steps to the end of the epoch; False if all processes agreed to stop after one of them."""
        with closing(self._batches(stage)) as batches:
            while self.position.step < stage.steps_of(self.position.epoch):
                with self._profiler.step():
                    agreement = self._step(stage, batches)
                if self._profiler.complete:
                    self._journal.profiled(self._profiler.write())
                if not agreement.absent:
                    self._count(agreement)
                if agreement.stop:
                    return False
                if agreement.save and self.position.step < stage.steps_of(self.position.epoch):
                    self._save()
        return True

    def _step(self, stage: StagePlan, batches: Iterator[HostBatch]) -> Agreement:
        """One global batch: forward and backward on every micro-batch, one update; what all agreed on beside it.

        Where a process has nothing for it, or the loss is not finite, the weights stay as they are.
        """
        number = self.global_step + 1
        self._watchdog.progress(number, "waiting for data")
        learning_rate = self._plan.learning_rate(self._config.schedule, self.position)
        self._learner.set_learning_rate(learning_rate)
        self._learner.update.begin()

        losses: list[Tensor] = []
        keys: list[str] = []
        bad: list[BadSample] = []
        for rows in stage.micro_rows:
            host_batch = self._next(batches)
            if host_batch:
                keys += host_batch.keys
                bad += host_batch.bad
            last = rows is stage.micro_rows[-1]
            if last:
                self._watchdog.progress(number, "computing")
                self._cast(number, keys, bad)
            with nullcontext() if last else self._accelerator.no_sync(self._learner.model):
                weight = stage.weight(len(rows), self._accelerator.num_processes) if host_batch else 0.0
                weighted = weight * self._losses(host_batch or blank_batch(len(rows), stage.decoded_size), stage)
                with self._profiler.phase("backward"):
                    self._accelerator.backward(weighted[0])
            losses.append(weighted.detach())
        try:
            with self._profiler.phase("agreement"):
                agreement = self._vote.read()
        except AgreedError:
            self._learner.update.drop()
            raise
        if agreement.absent:
            self._learner.update.drop()
            return agreement
        with self._profiler.phase("update"):
            applied = self._learner.update.apply(losses)
            if applied.changed and self._learner.average:
                self._learner.average.take(self._learner.module, stage.batch)
        self.position = self.position.next_step()
        self._watchdog.allow(self._longest(self._config.hang.step_seconds))
        figures = dict(zip(self._criterion.names, applied.losses, strict=True)) | {"learning_rate": learning_rate}
        if applied.gradient_norm is not None:
            figures["gradient_norm"] = applied.gradient_norm
        if applied.finite:
            self._note(lambda: self._journal.step_done(stage, self.position, figures))
        else:
            self._skipped(stage, figures, keys)
        return agreement

    def _next(self, batches: Iterator[HostBatch]) -> HostBatch | None:
        """The next micro-batch; None after a failure of this process, or when it was told to stop while it waited."""
        if self._vote.failed or self._absent:
            return None
        asked = time.perf_counter()
        try:
            with self._profiler.phase("waiting for data"):
                batch = next(batches)
        except GaveUpError:
            self._absent = True
            return None
        except Exception as error:
            self._vote.fail(error)
            return None
        self._waited += time.perf_counter() - asked
        self._bad_here += len(batch.bad)
        self._journal.computing()
        return batch

    def _cast(self, number: int, keys: list[str], bad: list[BadSample]) -> None:
        """Tell the others how this process stands, with all its data for step `number` there, or not."""
        if not self._vote.failed and not self._absent:
            self._note(lambda: self._journal.consumed(self.position, keys, bad))
        self._vote.cast(self._bad_here, round(self._waited * 1e6), absent=self._absent, save=self._keeper.due(number))

    def _note(self, tell: Callable[[], None]) -> None:
        """Tell the journal; if it can't write, all processes stop at their next vote."""
        try:
            tell()
        except UserError as error:
            self._vote.fail(error)

    def _count(self, agreement: Agreement) -> None:
        """Take in what all processes counted in a step that was done; AgreedError on all when too much is bad."""
        bad, waited = zip(*agreement.counts, strict=True)
        self._bad_samples = self._bad_before + sum(bad)
        self._journal.waited(max(waited) / 1e6)
        if self._bad_samples > self._config.data.max_bad_samples:
            raise AgreedError(
                f"{self._bad_samples} samples could not be decoded, more than data.max_bad_samples "
                f"({self._config.data.max_bad_samples}); they are in {self._journal.events}: build the shards again "
                "from whole files, or allow more"
            )

    def _skipped(self, stage: StagePlan, figures: dict[str, float], keys: list[str]) -> None:
        """Note a step that changed nothing; AgreedError on all when there were too many."""
        self._nonfinite += 1
        all_keys = self._vote.gather(keys)
        self._note(lambda: self._journal.step_skipped(stage, self.position, self._nonfinite, figures, all_keys))
        if self._nonfinite > self._config.max_nonfinite_steps:
            raise AgreedError(
                f"{self._nonfinite} steps had a loss or gradient that is not finite, more than max_nonfinite_steps "
                f"({self._config.max_nonfinite_steps}), the last one step {self.global_step}; their samples are in "
                f"{self._journal.nonfinite}. The newest checkpoint is from before; a lower learning rate may help: "
                "--optimizer.learning_rate X --accept-change optimizer.learning_rate"
            )

    def _losses(self, host_batch: HostBatch, stage: StagePlan) -> Tensor:
        """Means over a micro-batch, in the order of the criterion's names.

        They are taken at the size of the prediction, to which truth is brought, or at the stage's `loss_size`.
        """
        with self._profiler.phase("to the device"):
            batch = to_device(host_batch, self._accelerator.device, stage.decoded_size)
            if self._config.augment.enabled:
                drawn = draw(
                    self._config.augment, batch.keys, seed=stage.seed, stage=stage.number, epoch=self.position.epoch
                )
                batch = augment(batch, drawn)
        with self._profiler.phase("network"):
            prediction = self._learner.model(resize(batch.images, (stage.size, stage.size)))
        with self._profiler.phase("losses"):
            if stage.loss_size is not None:
                prediction = resize_prediction(prediction, (stage.loss_size, stage.loss_size))
            truth = {
                "depth": resize(batch.depth, prediction.size),
                "mask": resize(batch.mask, prediction.size),
                "image": resize(batch.images[:, 3:], prediction.size),
            }
            self._profiler.each_loss(prediction, **truth)
            return self._criterion(prediction, **truth)

    def _batches(self, stage: StagePlan) -> Generator[HostBatch]:
        """This process's micro-batches from the current position to the end of the epoch."""
        assert self._loader is not None
        order = stage.order(self.position.epoch)
        reading = order.reading(self.position.step, stage.micro_rows)
        return self._loader.batches(reading, lambda: self._vote.wants_to_stop)

    def _evaluation_is_due(self, stage: StagePlan) -> bool:
        done = self.position.epoch + 1
        return done == stage.epochs or done % self._config.evaluate.every_epochs == 0

    def _evaluate(self, stage: StagePlan) -> bool:
        """Figures and panel at the end of an epoch; False if a signal came in between."""
        began = time.perf_counter()
        module = self._learner.judged
        broadcast_buffers(module)
        evaluation = self._evaluator.figures(
            module,
            stage.size,
            self._vote,
            lambda number: self._watchdog.progress(self.global_step, f"evaluating batch {number}"),
        )
        if evaluation is None:
            return False
        self._note(lambda: self._journal.left_out(self.position, evaluation.bad))
        self._keeper.evaluated(self.global_step, stage.size, evaluation.figures)
        if self._accelerator.is_main_process:
            self._note(lambda: self._evaluated(stage, evaluation, began))
        return True

    def _evaluated(self, stage: StagePlan, evaluation: Evaluation, began: float) -> None:
        """On the main process: draw the panel, and note the evaluation."""
        panel = self._evaluator.panel(self._learner.judged, stage.size)
        seconds = time.perf_counter() - began
        self._journal.evaluated(stage, self.position, evaluation, panel, seconds=seconds)

    def _save(self) -> None:
        """Begin to write a checkpoint of the current position."""
        self._watchdog.progress(self.global_step, "saving")
        self._keeper.save(self.global_step, self._checkpoint())

    def _checkpoint(self) -> Checkpoint:
        checkpoint = self._learner.checkpoint()
        state = {
            **checkpoint.state,
            "position": asdict(self.position),
            "samples": self._plan.samples_before(self.position),
            "bad_samples": self._bad_samples,
            "nonfinite_steps": self._nonfinite,
        }
        return replace(checkpoint, state=state)

    def _longest(self, seconds: float) -> float:
        """How long to stand still at most: waiting for data may take its own time."""
        return seconds + self._config.data.patience_seconds
