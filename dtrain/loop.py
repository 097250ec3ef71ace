"""The run: stages of epochs of steps, from wherever it stands. Read `Trainer.train` first."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from dtrain.checkpoint import Checkpoint, load_checkpoint, remove_old, save_checkpoint
from dtrain.config import Config
from dtrain.data.loader import HostBatch, Loader, make_loader, to_device
from dtrain.data.order import EpochOrder
from dtrain.devices import ProcessError, broadcast_buffers, make_accelerator, on_main_process, settle_gradient_buckets
from dtrain.evaluator import Evaluator
from dtrain.journal import Journal
from dtrain.losses import depth_mask_loss
from dtrain.model import DepthMaskNet
from dtrain.optimizer import make_optimizer
from dtrain.plan import RunPlan, StagePlan, learning_rate_factor, plan_run
from dtrain.preempt import StopRequest, StopVote
from dtrain.resume import Start, open_run
from dtrain.run_folder import RunFolder
from shard_tools.errors import UserError
from shard_tools.manifest import Manifest, manifest_folder, read_manifest


def train(config: Config, *, fresh: bool = False, overwrite: bool = False) -> None:
    """Begin or go on with the run that `config` names, until it is done or told to stop.

    To be called by every process that the launcher started. Returns after a signal, too: status.json says which.
    Raises UserError for what the user can mend.
    """
    request = StopRequest()
    manifest = read_manifest(config.data.manifest)
    accelerator = make_accelerator(config)
    try:
        plan = plan_run(config, manifest, rank=accelerator.process_index, world_size=accelerator.num_processes)
        folder = manifest_folder(config.data.manifest)
        evaluator = Evaluator(config, folder, manifest, accelerator, config.data.test_split)
        run = RunFolder(config.run)
        start = on_main_process(accelerator, lambda: open_run(run, config, manifest, fresh=fresh, overwrite=overwrite))
        if start.finished:
            accelerator.print(f"{run.path} is done: {start.state['global_step']} steps; --fresh starts it anew.")
            return
        journal = Journal(run, accelerator, config, plan, start)
        vote = StopVote(request)
        trainer = Trainer(config, accelerator, manifest, plan, run, journal, vote, evaluator, start)
        try:
            stopped = not trainer.train()
        except Exception as error:
            if journal.failed(error, trainer.global_step):
                raise SystemExit(1) from None
            if isinstance(error, UserError):
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
    finally:
        accelerator.end_training()


class Trainer:
    """Weights, optimizer and position of a run on one process. Every method is called by every process."""

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        manifest: Manifest,
        plan: RunPlan,
        run: RunFolder,
        journal: Journal,
        vote: StopVote,
        evaluator: Evaluator,
        start: Start,
    ) -> None:
        """Build everything at `start`: initialised from the seed, or restored from a checkpoint."""
        self._config = config
        self._accelerator = accelerator
        self._manifest = manifest
        self._folder = manifest_folder(config.data.manifest)
        self._plan = plan
        self._run = run
        self._journal = journal
        self._vote = vote
        self._evaluator = evaluator
        self._loader: Loader | None = None
        self.position = start.position

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
            self._loader = make_loader(
                self._config.data,
                self._folder,
                self._manifest,
                self._config.data.train_split,
                size=stage.size,
                device=self._accelerator.device,
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
        batches = self._batches(stage)
        while self.position.step < stage.steps:
            self._step(stage, batches)
            self.position = self.position.next_step()
            if self._vote.agreed():
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
        waited = 0.0
        for rows in stage.micro_rows:
            asked = time.perf_counter()
            host_batch = next(batches)
            waited += time.perf_counter() - asked
            keys += host_batch.keys
            last = rows is stage.micro_rows[-1]
            with nullcontext() if last else self._accelerator.no_sync(self._model):
                weighted = stage.weight(len(rows), self._accelerator.num_processes) * self._losses(host_batch, stage)
                self._accelerator.backward(weighted[0])
            losses.append(weighted.detach())
        self._optimizer.step()
        self._optimizer.zero_grad()
        means = torch.stack(losses).sum(0)
        self._journal.step_done(
            stage, self.position.next_step(), learning_rate=learning_rate, means=means, keys=keys, waited=waited
        )

    def _losses(self, host_batch: HostBatch, stage: StagePlan) -> Tensor:
        """Means over a micro-batch, in the order of `Losses`, shape (3,)."""
        batch = to_device(host_batch, self._accelerator.device, stage.size)
        return torch.stack(
            depth_mask_loss(self._model(batch.images), batch.depth, batch.mask, scale=self._config.loss.scale)
        )

    def _batches(self, stage: StagePlan) -> Iterator[HostBatch]:
        """This process's micro-batches from the current position to the end of the epoch."""
        assert self._loader is not None
        order = EpochOrder(
            stage.shard_lengths,
            seed=self._config.seed,
            stage=stage.number,
            epoch=self.position.epoch,
            global_batch=stage.batch,
        )
        steps = range(self.position.step, order.steps)
        return self._loader.batches(order.batch(step, rows) for step in steps for rows in stage.micro_rows)

    def _evaluation_is_due(self, stage: StagePlan) -> bool:
        done = self.position.epoch + 1
        return done == stage.epochs or done % self._config.evaluate.every_epochs == 0

    def _evaluate(self, stage: StagePlan) -> bool:
        """Figures and panel at the end of an epoch; False if a signal came in between."""
        broadcast_buffers(self._module)
        figures = self._evaluator.figures(self._module, stage.size, self._vote.agreed)
        if figures is None:
            return False
        if self._accelerator.is_main_process:
            panel = self._evaluator.panel(self._module, stage.size)
            self._journal.evaluated(stage, self.position, figures, panel)
        return True

    def _save(self) -> None:
        """Write a checkpoint of the current position; the other processes do not wait for it."""
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
                "manifest": self._manifest.digest(),
                "metrics_bytes": self._journal.sync(),
                "processes": self._accelerator.num_processes,
                "torch": torch.__version__,
            },
        )
        path = save_checkpoint(self._run.checkpoints, self.global_step, checkpoint)
        remove_old(self._run.checkpoints, self._config.checkpoint.keep_last)
        self._journal.saved(path, self.global_step)
