"""The run: stages of epochs of steps, from wherever it stands. Read `Trainer.train` first."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from dtrain.checkpoint import Checkpoint, load_checkpoint, remove_old, save_checkpoint
from dtrain.config import Config
from dtrain.data.augment import augment, draw
from dtrain.data.dataset import Dataset, open_dataset
from dtrain.data.loader import BadSample, BatchSource, HostBatch, blank_batch, to_device
from dtrain.data.workers import GaveUpError
from dtrain.devices import ProcessError, broadcast_buffers, make_accelerator, on_main_process, settle_gradient_buckets
from dtrain.evaluator import Evaluator
from dtrain.journal import Journal
from dtrain.losses import depth_mask_loss
from dtrain.model import DepthMaskNet
from dtrain.optimizer import make_optimizer
from dtrain.plan import RunPlan, StagePlan, learning_rate_factor, plan_run
from dtrain.preempt import AgreedError, Agreement, StopRequest, Vote
from dtrain.resume import Start, open_run
from dtrain.run_folder import RunFolder
from shard_tools.errors import UserError

STOP_TOGETHER_SECONDS = 5.0


def train(config: Config, *, fresh: bool = False, overwrite: bool = False) -> None:
    """Begin or go on with the run that `config` names, until it is done or told to stop.

    To be called by every process that the launcher started. Returns after a signal, too: status.json says which.
    Raises UserError for what the user can mend.
    """
    request = StopRequest()
    accelerator = make_accelerator(config)
    vote = Vote(request)
    try:
        with closing(_open_together(config, vote)) as dataset:
            _train(config, accelerator, dataset, vote, request, fresh=fresh, overwrite=overwrite)
    finally:
        accelerator.end_training()


def _train(
    config: Config,
    accelerator: Accelerator,
    dataset: Dataset,
    vote: Vote,
    request: StopRequest,
    *,
    fresh: bool,
    overwrite: bool,
) -> None:
    lengths = dataset.lengths(config.data.train_split)
    plan = plan_run(config, lengths, rank=accelerator.process_index, world_size=accelerator.num_processes)
    evaluator = Evaluator(config, dataset, accelerator, config.data.test_split)
    run = RunFolder(config.run)
    digest = dataset.digest
    start = on_main_process(accelerator, lambda: open_run(run, config, digest, fresh=fresh, overwrite=overwrite))
    if start.finished:
        accelerator.print(f"{run.path} is done: {start.state['global_step']} steps; --fresh starts it anew.")
        return
    journal = Journal(run, accelerator, config, plan, start, dataset)
    trainer = Trainer(config, accelerator, dataset, plan, run, journal, vote, evaluator, start)
    try:
        stopped = not trainer.train()
    except GaveUpError:
        journal.gave_up_waiting(trainer.global_step)
        raise SystemExit(1) from None
    except Exception as error:
        if journal.failed(error, trainer.global_step):
            raise SystemExit(1) from None
        if isinstance(error, UserError) and not isinstance(error, AgreedError):
            raise ProcessError(f"process {accelerator.process_index}: {error}") from None
        raise
    finally:
        trainer.close()
    vote.settle()
    if stopped:
        journal.preempted(request.reason or "a signal to another process", trainer.global_step)
    else:
        journal.done(trainer.global_step)
    accelerator.wait_for_everyone()


def _open_together(config: Config, vote: Vote) -> Dataset:
    """The data set; AgreedError on all processes if one of them can't open it, or sees another one than the others."""
    dataset = None
    try:
        dataset = open_dataset(config.data)
        dataset.start()
    except UserError as error:
        vote.fail(error)
    vote.now()
    assert dataset is not None, "or the vote has said why not"
    if not vote.same_for_all(dataset.digest):
        raise AgreedError(
            f"data.manifest: {config.data.manifest} does not list the same samples on all machines; copy the shards "
            "again, or give all of them one URL"
        )
    return dataset


class Trainer:
    """Weights, optimizer and position of a run on one process. Every method is called by every process."""

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        dataset: Dataset,
        plan: RunPlan,
        run: RunFolder,
        journal: Journal,
        vote: Vote,
        evaluator: Evaluator,
        start: Start,
    ) -> None:
        """Build everything at `start`: initialised from the seed, or restored from a checkpoint."""
        self._config = config
        self._accelerator = accelerator
        self._dataset = dataset
        self._plan = plan
        self._run = run
        self._journal = journal
        self._vote = vote
        self._evaluator = evaluator
        self._loader: BatchSource | None = None
        self.position = start.position
        self._bad_before: int = start.state.get("bad_samples", 0)
        self._bad_here = 0
        self._bad_samples = self._bad_before
        self._waited = 0.0
        self._in_step = False

        set_seed(config.seed)
        self._module = DepthMaskNet(config.model.width).to(accelerator.device)
        self._module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        checkpoint = load_checkpoint(start.checkpoint) if start.checkpoint else None
        if checkpoint:
            self._module.load_state_dict(checkpoint.weights)
        optimizer = make_optimizer(config.optimizer, self._module.parameters())
        self._model, self._optimizer = accelerator.prepare(self._module, optimizer)
        if checkpoint:
            self._optimizer.load_state_dict(checkpoint.optimizer["optimizer"])
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(checkpoint.optimizer["scaler"])
        settle_gradient_buckets(self._model, accelerator.device)

    @property
    def global_step(self) -> int:
        """Steps of the whole run that are done."""
        return self._plan.steps_before(self.position)

    def train(self) -> bool:
        """Run to the end; False if a signal ended it before, with a checkpoint of the very step it stands at."""
        while self.position.stage < len(self._plan.stages):
            stage = self._plan.stages[self.position.stage]
            self._journal.stage_begins(stage)
            self._loader = self._dataset.loader(
                self._config.data.train_split, size=stage.size, device=self._accelerator.device
            )
            while self.position.epoch < stage.epochs:
                if not self._train_epoch(stage):
                    self._save()
                    return False
                self._save()
                if self._evaluation_is_due(stage) and not self._evaluate(stage):
                    return False
                self.position = self.position.next_epoch()
            self._loader.close()
            self.position = self.position.next_stage()
        return True

    def close(self) -> None:
        """Let go of threads and files."""
        if self._loader is not None:
            self._loader.close()

    def _train_epoch(self, stage: StagePlan) -> bool:
        """Steps to the end of the epoch; False if all processes agreed to stop after one of them."""
        with closing(self._batches(stage)) as batches:
            while self.position.step < stage.steps:
                try:
                    self._step(stage, batches)
                except GaveUpError:
                    if self._vote.all_say_so(STOP_TOGETHER_SECONDS):
                        return False
                    raise
                self.position = self.position.next_step()
                if self._agree(self._vote.agreed).stop:
                    return False
                if self.global_step % self._config.checkpoint.every_steps == 0 and self.position.step < stage.steps:
                    self._save()
        return True

    def _step(self, stage: StagePlan, batches: Iterator[HostBatch]) -> None:
        """One global batch: forward and backward on every micro-batch, one update."""
        samples = self._plan.samples_before(self.position)
        factor = learning_rate_factor(self._config.schedule, samples, self._plan.total_samples)
        learning_rate = stage.learning_rate * factor
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate

        losses: list[Tensor] = []
        keys: list[str] = []
        bad: list[BadSample] = []
        for rows in stage.micro_rows:
            host_batch = self._next(batches, stage, len(rows))
            keys += host_batch.keys
            bad += host_batch.bad
            self._in_step = True
            last = rows is stage.micro_rows[-1]
            if last and not self._vote.failed:
                self._journal.consumed(self.position, keys, bad)
            with nullcontext() if last else self._accelerator.no_sync(self._model):
                weight = 0.0 if self._vote.failed else stage.weight(len(rows), self._accelerator.num_processes)
                weighted = weight * self._losses(host_batch, stage)
                self._accelerator.backward(weighted[0])
            losses.append(weighted.detach())
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._in_step = False
        means = torch.stack(losses).sum(0)
        self._journal.step_done(stage, self.position.next_step(), learning_rate=learning_rate, means=means)

    def _next(self, batches: Iterator[HostBatch], stage: StagePlan, rows: int) -> HostBatch:
        """The next micro-batch, or, after a failure of this process, a blank one that counts for nothing."""
        if not self._vote.failed:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except GaveUpError:
                raise
            except Exception as error:
                self._vote.fail(error, self.global_step + 1)
            else:
                self._waited += time.perf_counter() - asked
                self._bad_here += len(batch.bad)
                return batch
        return blank_batch(rows, stage.size)

    def _agree(self, ask: Callable[..., Agreement]) -> Agreement:
        """What all processes know, by `ask`; raises AgreedError on all when one has failed, or too much is bad."""
        agreement = ask(self._bad_here, round(self._waited * 1e6))
        if not agreement.counts:
            return agreement
        bad, waited = zip(*agreement.counts, strict=True)
        self._bad_samples = self._bad_before + sum(bad)
        self._journal.waited(max(waited) / 1e6)
        if self._bad_samples > self._config.data.max_bad_samples:
            raise AgreedError(
                f"{self._bad_samples} samples could not be decoded, more than data.max_bad_samples "
                f"({self._config.data.max_bad_samples}); they are in {self._run.events}: build the shards again from "
                "whole files, or allow more"
            )
        return agreement

    def _losses(self, host_batch: HostBatch, stage: StagePlan) -> Tensor:
        """Means over a micro-batch, in the order of `Losses`, shape (3,)."""
        batch = to_device(host_batch, self._accelerator.device, stage.size)
        if self._config.augment.enabled:
            drawn = draw(
                self._config.augment, batch.keys, seed=stage.seed, stage=stage.number, epoch=self.position.epoch
            )
            batch = augment(batch, drawn)
        return torch.stack(
            depth_mask_loss(self._model(batch.images), batch.depth, batch.mask, scale=self._config.loss.scale)
        )

    def _batches(self, stage: StagePlan) -> Generator[HostBatch]:
        """This process's micro-batches from the current position to the end of the epoch."""
        assert self._loader is not None
        order = stage.order(self.position.epoch)
        return self._loader.batches(order.reading(self.position.step, stage.micro_rows), self._gives_up)

    def _gives_up(self) -> bool:
        """Whether to stop rather than wait for data: told to, and nothing of this step has been computed here."""
        return self._vote.wants_to_stop and not self._in_step

    def _evaluation_is_due(self, stage: StagePlan) -> bool:
        done = self.position.epoch + 1
        return done == stage.epochs or done % self._config.evaluate.every_epochs == 0

    def _evaluate(self, stage: StagePlan) -> bool:
        """Figures and panel at the end of an epoch; False if a signal came in between."""
        broadcast_buffers(self._module)
        evaluation = self._evaluator.figures(self._module, stage.size, self._vote)
        if evaluation is None:
            return False
        self._journal.left_out(self.position, evaluation.bad)
        if self._accelerator.is_main_process:
            panel = self._evaluator.panel(self._module, stage.size)
            self._journal.evaluated(stage, self.position, evaluation, panel)
        return True

    def _save(self) -> None:
        """Write a checkpoint of the current position, if no process has failed; the others do not wait for it."""
        self._journal.sync_audit()
        self._agree(self._vote.now)
        if not self._accelerator.is_main_process:
            return
        scaler = self._accelerator.scaler
        checkpoint = Checkpoint(
            weights={name: tensor.cpu().contiguous() for name, tensor in self._module.state_dict().items()},
            optimizer={
                "optimizer": self._optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
            },
            state={
                "position": asdict(self.position),
                "global_step": self.global_step,
                "samples": self._plan.samples_before(self.position),
                "identity": self._config.identity(),
                "manifest": self._dataset.digest,
                "bad_samples": self._bad_samples,
                "metrics_bytes": self._journal.sync(),
                "processes": self._accelerator.num_processes,
                "torch": torch.__version__,
            },
        )
        path = save_checkpoint(self._run.checkpoints, self.global_step, checkpoint)
        remove_old(self._run.checkpoints, self._config.checkpoint.keep_last)
        self._journal.saved(path, self.global_step)
