"""What a run says about itself: on the terminal, in the run folder and to the trackers.

The main process writes; the others only take part in the averages. Nothing here changes what is computed.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from accelerate import Accelerator
from PIL import Image

from dtrain.audit_log import AuditLog
from dtrain.config import Config
from dtrain.curves import Curves
from dtrain.data.dataset import Dataset
from dtrain.data.loader import BadSample
from dtrain.data.order import Position, cut, lane_count
from dtrain.devices import is_lost_process
from dtrain.evaluator import Evaluation
from dtrain.metric_names import metric_name
from dtrain.plan import RunPlan, StagePlan
from dtrain.resume import Start
from dtrain.run_folder import RunFolder, State
from dtrain.saver import Saved
from dtrain.uptime import uptime
from dtrain.vote import AgreedError, message_of
from shard_tools.atomic import atomic_file
from shard_tools.errors import UserError
from shard_tools.progress import Progress

SPEED_INTERVAL_SECONDS = 1.0
EXPLANATION_WAIT_SECONDS = 2.0


class Journal:
    """Opened when a run begins or goes on; told of every step, save, evaluation and end."""

    def __init__(
        self,
        run: RunFolder,
        accelerator: Accelerator,
        config: Config,
        plan: RunPlan,
        start: Start,
        dataset: Dataset,
    ) -> None:
        self._dataset = dataset
        self._audit = None
        if config.log.audit:
            self._audit = AuditLog(run.audit, accelerator.process_index, accelerator.num_processes, start.number)
        self._run = run
        self._accelerator = accelerator
        self._config = config
        self._plan = plan
        self._main = accelerator.is_main_process
        self._began = self._speed_since = time.perf_counter()
        self._speed_samples = 0
        self._waited = self._waited_before = 0.0
        self._progress: Progress | None = None
        self._shown: dict[str, str] = {}
        self._first_step_began: float | None = None
        self._first_step_noted = False
        self._resumes_from = start.checkpoint
        global_step = plan.steps_before(start.position)
        self._curves = Curves(run, accelerator, config, global_step) if self._main else None
        if self._main:
            self._progress = Progress(
                run.path.name,
                total=plan.total_samples,
                initial=plan.samples_before(start.position),
                unit="samples",
                total_work=plan.total_pixels,
                initial_work=plan.pixels_before(start.position),
            )
            self._announce(start, global_step)
            run.write_status("running", "", global_step)

    @property
    def events(self) -> Path:
        """Where events are, for messages."""
        return self._run.events

    @property
    def nonfinite(self) -> Path:
        """Where the samples of skipped steps are, for messages."""
        return self._run.nonfinite

    def stage_begins(self, stage: StagePlan) -> None:
        """Say how a stage is cut."""
        if not self._main:
            return
        processes = self._accelerator.num_processes
        shares = sorted({len(part) for part in cut(stage.batch, processes)})
        lanes = lane_count(stage.batch, stage.max_lanes)
        if lanes < min(stage.batch, stage.max_lanes, len(stage.shard_lengths)) / 2:
            better = -(-stage.batch // stage.max_lanes) * stage.max_lanes
            self._say(
                f"note: a batch of {stage.batch} can only be cut into {lanes} lane(s), so each draws from about "
                f"{lanes} shard(s); one of {better} would draw from {stage.max_lanes}"
            )
        micro = f" in {len(stage.micro_rows)} micro-batches" if len(stage.micro_rows) > 1 else ""
        dropped = (
            f"; {stage.dropped} samples of each epoch don't fill a batch and are left out of it"
            if stage.dropped
            else ""
        )
        self._say(
            f"stage {stage.number}: {stage.size}×{stage.size}, global batch {stage.batch} = {processes} process(es) × "
            f"{' or '.join(map(str, shares))}{micro}, {_length(stage)}{dropped}"
        )

    def consumed(self, position: Position, keys: Sequence[str], bad: Sequence[BadSample]) -> None:
        """Note what this process puts into the step from `position` on, before it is exchanged with the others."""
        self._note_bad(position, bad)
        if self._audit:
            self._audit.add(position, keys, {sample.key: sample.used for sample in bad})

    def waited(self, seconds: float) -> None:
        """Be told how long the process that waited longest has waited for data since the start."""
        self._waited = seconds

    def computing(self) -> None:
        """The first batch of a step is there."""
        if self._first_step_began is None:
            self._first_step_began = uptime()

    def step_done(self, stage: StagePlan, position: Position, figures: Mapping[str, float]) -> None:
        """Note a step that ends at `position`; `figures` are over the global batch, the loss first, then its terms."""
        if not self._progress:
            return
        global_step = self._plan.steps_before(position)
        self._speed_samples += stage.batch
        if global_step % self._config.log.every_steps == 0:
            self._log_step(stage, position, global_step, figures)
        self._step_counted(stage, global_step)

    def step_skipped(
        self, stage: StagePlan, position: Position, count: int, figures: Mapping[str, float], keys: Sequence[object]
    ) -> None:
        """Note a step that ends at `position` and changed nothing, because its loss or gradient was not finite.

        `count` is how many there were in the run, this one included; `keys` are those of each process.
        """
        if not self._progress:
            return
        global_step = self._plan.steps_before(position)
        shown = {name: repr(value) for name, value in figures.items()}
        self._run.add_metrics({"kind": "skipped", **self._place(stage, position), **shown})
        self._run.add_event("nonfinite", global_step, count=count, **shown)
        self._run.write_nonfinite(global_step, {**self._place(stage, position), **shown, "keys_by_process": keys})
        self._say(
            f"WARNING: step {global_step} is skipped: its loss ({figures['loss']}) or gradient is not finite; its "
            f"samples are in {self._run.nonfinite}"
        )
        self._step_counted(stage, global_step)

    def _step_counted(self, stage: StagePlan, global_step: int) -> None:
        assert self._progress is not None
        if self._first_step_began is not None and not self._first_step_noted:
            self._first_step_noted = True
            self._run.add_event("first_step", global_step, began=round(self._first_step_began, 3))
        self._progress.advance(stage.batch, work=stage.batch * stage.size**2)
        self._log_speed(global_step)

    def profiled(self, table: str) -> None:
        """Say where the time of a stage's steps goes, if that was measured."""
        if table:
            self._say(f"{table}\n  in {self._run.profile}")

    def left_out(self, position: Position, bad: Sequence[BadSample]) -> None:
        """Note samples that this process left out of an evaluation."""
        self._note_bad(position, bad)

    def saved(self, saved: Saved, held_up: float) -> None:
        """Note what became of a checkpoint, for which steps stood still `held_up` seconds."""
        times = {"at": round(saved.at, 3), "held_up": round(held_up, 4), "seconds": round(saved.seconds, 3)}
        if saved.path is None:
            self.not_saved(saved.global_step, saved.error, **times)
            return
        self._run.add_event("checkpoint", saved.global_step, checkpoint=saved.path.name, **times)
        if saved.error:
            self._say(f"WARNING: {saved.path.name} is written, but old ones are not removed: {saved.error}")
        if self._curves:
            self._curves.mend()

    def not_copied(self, global_step: int, reason: str) -> None:
        """Note that the copy of a checkpoint behind the URL could not be written."""
        self._run.add_event("save_failed", global_step, reason=reason)
        self._say(f"WARNING: the checkpoint of step {global_step} is written here, but its copy is not: {reason}")

    def not_saved(self, global_step: int, reason: str, **times: float) -> None:
        """Note that a checkpoint could not be written; training goes on, and tries again."""
        if self._main:
            self._run.add_event("save_failed", global_step, reason=reason, **times)
            self._say(f"WARNING: no checkpoint of step {global_step}, the one before still counts: {reason}")

    def sync_audit(self) -> None:
        """Make what this process noted of consumed samples durable, before a checkpoint counts on it.

        Raises OSError if there is no room for it.
        """
        if self._audit:
            self._audit.sync()

    def sync(self) -> None:
        """Make metrics and curves durable before a checkpoint counts on them. May be called by another thread.

        Raises OSError if there is no room for the metrics.
        """
        self._run.metrics_lines.sync()
        if self._curves:
            self._curves.flush()

    def evaluated(
        self,
        stage: StagePlan,
        position: Position,
        evaluation: Evaluation,
        panel: Image.Image | None,
        *,
        seconds: float,
    ) -> None:
        """Note an evaluation that took `seconds`. Called by the main process alone."""
        figures = evaluation.figures
        global_step = self._plan.steps_before(position)
        self._run.add_metrics(
            {
                "kind": "evaluate",
                **self._place(stage, position),
                "split": self._config.data.test_split,
                "test_samples": evaluation.samples,
                "metrics": figures,
            }
        )
        self._run.add_event("evaluate", global_step, seconds=round(seconds, 3))
        if panel is not None:
            self._keep_panel(panel, global_step)
        if self._curves:
            self._curves.add("test", figures, global_step)
            if panel is not None:
                self._curves.add_panel(panel, global_step)
        self._say(
            f"evaluated after stage {position.stage}, epoch {position.epoch}: mask IoU {figures['mask_iou']:.4f}, "
            f"depth MSE {figures['depth_mse']:.5f} (variance {figures['depth_variance']:.5f})"
        )

    def preempted(self, reason: str, global_step: int, error: str = "") -> None:
        """The run was told to stop and its last checkpoint is written, or could not be: `error`."""
        if self._main:
            self._run.add_event("preempted", global_step, signal=reason)
            way_on = "WARNING: not all of it is saved" if error else "the same command goes on from there"
            self._say(f"stopped by {reason} after step {global_step}; {way_on}{': ' * bool(error)}{error}")
            self._end("preempted", f"{reason}; {error}" if error else reason, global_step)

    def done(self, global_step: int) -> None:
        """The run reached its end."""
        if self._main:
            self._run.add_event("done", global_step, seconds=time.perf_counter() - self._began)
            self._say(f"done after {global_step} steps: {self._run.path}")
            self._end("done", "", global_step)

    def failed(self, error: Exception, global_step: int) -> bool:
        """The run ends with an error on this process; its newest checkpoint stays good.

        The process that met an error of its own says so in status.json, at once. The others, whose exchange with it
        then breaks off, leave it at that. If the exchange broke off without such a reason, a process or its machine is
        gone: that is no failure of the run, which the same command goes on with. Returns whether all is said.
        """
        if is_lost_process(error):
            if not self._explained_by_another() and self._main:
                lost = f"lost another process in step {global_step + 1}"
                self._say(f"{lost}; the same command goes on from the newest checkpoint")
                self._note_failure(lost, global_step)
                self._end("running", lost, global_step)
            return True
        if not isinstance(error, AgreedError):
            reason = f"process {self._accelerator.process_index}, step {global_step + 1}: {message_of(error)}"
            self._note_failure(reason, global_step)
            if not self._is_explained():
                self._end("failed", reason, global_step)
        elif self._main:
            self._note_failure(str(error), global_step)
            self._end("failed", str(error), global_step)
        return False

    def _note_failure(self, reason: str, global_step: int) -> None:
        with suppress(UserError):
            self._run.add_event("failed", global_step, reason=reason)

    def _explained_by_another(self) -> bool:
        """Wait a moment for the status of a process that ended just before."""
        deadline = time.monotonic() + EXPLANATION_WAIT_SECONDS
        while not self._is_explained():
            if self._accelerator.num_processes == 1 or time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def _is_explained(self) -> bool:
        """Whether a process has said why the run ends; it was `running` when this began."""
        with suppress(UserError):
            return self._run.read_status().get("state") == "failed"
        return False

    def _announce(self, start: Start, global_step: int) -> None:
        stage = self._plan.stages[min(start.position.stage, len(self._plan.stages) - 1)]
        details = {
            "start": start.number,
            "data": self._dataset.digest,
            "processes": self._accelerator.num_processes,
            "device": str(self._accelerator.device),
            "accumulation": len(stage.micro_rows),
            "micro_batch": max(map(len, stage.micro_rows)),
            "total_samples": self._plan.total_samples,
        }
        for name, reason in start.passed_over:
            self._run.add_event("passed_over", global_step, checkpoint=name, reason=reason)
            self._say(f"passed over checkpoint {name}: {reason}")
        if start.checkpoint is None:
            self._run.add_event("start", global_step, **details)
            self._say(f"begins: {self._run.path}, {self._plan.total_steps} steps on {details['processes']} process(es)")
            return
        position = start.position
        self._run.add_event(
            "resume",
            global_step,
            checkpoint=start.checkpoint.name,
            stage=position.stage,
            epoch=position.epoch,
            step=position.step,
            repeated_steps=start.repeated_steps,
            changed=list(start.changed),
            **({"from_stage": start.from_stage} if start.from_stage is not None else {}),
            written=start.state["written"],
            **details,
        )
        for line in start.changed:
            self._say(f"goes on with another configuration (then → now): {line}")
        written = start.state["written"]
        about = f" (about {start.repeated_seconds:.0f} s)" if start.repeated_seconds >= 1 else ""
        self._say(
            f"resumes from {start.checkpoint.name}: stage {position.stage}, epoch {position.epoch}, "
            f"step {position.step} of {stage.steps_of(position.epoch)} "
            f"(global step {global_step} of {self._plan.total_steps}); "
            f"{start.repeated_steps} logged steps are done again{about}; "
            f"written by {written['processes']} process(es), now {details['processes']}, on {written['host']} "
            f"({written['device']}, torch {written['torch']})"
        )

    def _log_step(self, stage: StagePlan, position: Position, global_step: int, figures: Mapping[str, float]) -> None:
        self._run.add_metrics({"kind": "train", **self._place(stage, position), **figures})
        if self._curves:
            self._curves.add("train", figures, global_step)
        losses = {name: value for name, value in figures.items() if name not in ("learning_rate", "gradient_norm")}
        self._show({_in_a_line(metric_name(name).title): f"{value:.4f}" for name, value in losses.items()})

    def _place(self, stage: StagePlan, position: Position) -> dict[str, int]:
        """Where a line of metrics.jsonl belongs."""
        return {
            "stage": position.stage,
            "epoch": position.epoch,
            "step": position.step,
            "global_step": self._plan.steps_before(position),
            "samples": self._plan.samples_before(position),
            "size": stage.size,
        }

    def _keep_panel(self, panel: Image.Image, global_step: int) -> None:
        try:
            self._run.panels.mkdir(exist_ok=True)
            with atomic_file(self._run.panels / f"step-{global_step:08d}.png") as file:
                panel.save(file, "PNG")
        except OSError as error:
            self._say(f"WARNING: {self._run.panels}: no picture of step {global_step}: {error.strerror}")

    def _log_speed(self, global_step: int) -> None:
        """Now and then: samples per second, and the share of the time that the step waited for data."""
        seconds = time.perf_counter() - self._speed_since
        if seconds < SPEED_INTERVAL_SECONDS:
            return
        data_wait = min((self._waited - self._waited_before) / seconds, 1.0)
        self._run.add_event(
            "speed",
            global_step,
            samples_per_second=self._speed_samples / seconds,
            data_wait=data_wait,
            **self._fetched(),
        )
        self._speed_since, self._speed_samples, self._waited_before = time.perf_counter(), 0, self._waited
        self._show({"waits for data": f"{data_wait:.0%}"})

    def _fetched(self) -> dict[str, float]:
        """What came over the network since the start, if anything has to."""
        stats = self._dataset.fetched
        return {"fetched_bytes": stats.bytes_fetched, "fetch_retries": stats.retries} if stats else {}

    def _note_bad(self, position: Position, bad: Sequence[BadSample]) -> None:
        for sample in bad:
            instead = f"{sample.used} is used instead" if sample.used is not None else "it is left out"
            self._run.add_event(
                "bad_sample",
                self._plan.steps_before(position),
                key=sample.key,
                used=sample.used,
                reason=sample.reason,
                process=self._accelerator.process_index,
            )
            print(f"bad sample: {sample.reason}; {instead}", file=sys.stderr, flush=True)

    def _show(self, fields: dict[str, str]) -> None:
        self._shown.update(fields)
        if self._progress:
            self._progress.show(self._shown)

    def _say(self, message: str) -> None:
        if self._progress:
            self._progress.note(message)

    def _end(self, state: State, reason: str, global_step: int) -> None:
        try:
            self._run.write_status(state, reason, global_step)
        except OSError as error:
            self._say(f"WARNING: {self._run.status}: can't be written, it should say {state!r}: {error.strerror}")
        if self._curves:
            self._curves.mend()
        if self._progress:
            self._progress.close()


def _length(stage: StagePlan) -> str:
    if stage.total_steps < stage.epochs * stage.steps:
        return f"{stage.total_steps} steps ({stage.total_steps / stage.steps:.3g} epochs of {stage.steps})"
    return f"{stage.epochs} epoch(s) of {stage.steps} steps"


def _in_a_line(title: str) -> str:
    """A title such as "Depth MSE" as it stands within a line."""
    return title[0].lower() + title[1:]


def stands_still(run: RunFolder, rank: int, message: str, step: int) -> None:
    """Note that process `rank` is about to end itself. Called by its watching thread."""
    if run.config.is_file():
        run.add_event("failed", step, reason=message, process=rank)
        if rank == 0 and run.read_status().get("state") == "running":  # else it was leaving, and has said why
            run.write_status("running", message, step)
