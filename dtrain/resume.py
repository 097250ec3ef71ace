"""Where a run starts: anew, from its newest whole checkpoint, or not at all. Decided by the main process."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtrain.bucket import Bucket
from dtrain.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    checkpoint_name,
    list_checkpoints,
    load_checkpoint,
    set_aside,
    step_of,
    verify,
)
from dtrain.config import Config, differences
from dtrain.data.order import Position
from dtrain.plan import RunPlan
from dtrain.run_folder import LONGEST_LINE_BYTES, RunFolder
from shard_tools.atomic import atomic_file, sync_directory, write_atomically
from shard_tools.errors import UserError

DATA = "data.manifest"
CONSEQUENCES = {
    "optimizer.name": "which begins with an empty state",
    "init_from": "which changes nothing in a run that has begun",
}
"""Of changes that are not what they seem to be."""
FIXED = ("order", "model.")
"""Keys of the identity, or how they begin, that no run can go on without."""


@dataclass(frozen=True)
class Start:
    """The decision."""

    number: int = 0
    """How often the run was started before."""
    checkpoint: Path | None = None
    position: Position = field(default_factory=Position)
    state: dict[str, Any] = field(default_factory=dict)
    """state.json of the checkpoint."""
    passed_over: tuple[tuple[str, str], ...] = ()
    """Newer checkpoints that are damaged: name and reason."""
    repeated_steps: int = 0
    """Steps that were logged after the checkpoint and have to be done again."""
    repeated_seconds: float = 0.0
    """About how long they took, by the wall clock."""
    changed: tuple[str, ...] = ()
    """What differs from the configuration and data that the checkpoint was written with, and was accepted."""
    from_stage: int | None = None
    """It was told to go back to where this stage begins."""
    finished: bool = False
    """The run is done; there is nothing to train."""


def open_run(
    run: RunFolder,
    config: Config,
    plan: RunPlan,
    digest: str,
    *,
    fresh: bool = False,
    overwrite: bool = False,
    from_stage: int | None = None,
    accept: Collection[str] = (),
    launch: str = "",
    restarted: bool = False,
    bucket: Bucket | None = None,
    on_load: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> Start:
    """Lock the run folder and decide; a new run gets its config.yaml, an old one forgets what its checkpoint has not.

    `digest` is that of the data set; `accept` are keys that may differ from those the run was begun with. `on_load` is
    given the checkpoint that was loaded. With `from_stage` the run goes back to where that stage begins, and may have
    other stages from there on. Where the launcher has `restarted` its processes, it goes on if an earlier one of the
    same `launch` has begun anew or gone back already.
    Raises UserError if the folder is in use, if the run was begun with another configuration or data set, if all of
    its checkpoints are damaged or gone, or if `fresh` would throw a finished run away without `overwrite`.
    """
    run.lock()
    option = "--fresh" if fresh else f"--from-stage {from_stage}"
    order = f"{option} of {launch}"
    obeyed = restarted and run.has_obeyed(order)
    if obeyed:
        print(f"{option}: the launcher has started this again, so the run goes on", file=sys.stderr, flush=True)
    fresh = fresh and not obeyed
    back_to = None if obeyed else from_stage
    finished = run.read_status().get("state") == "done" and back_to is None
    if fresh:
        _forget(run, bucket, finished=finished, overwrite=overwrite)
        run.note_obeyed(order)
    target = _end_before(run, bucket, plan, back_to) if back_to is not None else None
    path, checkpoint, passed_over = _newest(run, bucket, target)
    if target is not None and checkpoint is None:
        reasons = "; ".join(reason for name, reason in passed_over if name == checkpoint_name(target)) or "not whole"
        raise UserError(
            f"{run.checkpoints / checkpoint_name(target)}: --from-stage {from_stage} begins with it, but it is "
            f"damaged: {reasons}; nothing was changed"
        )
    if checkpoint is None and not all(name.startswith(".") for name, _ in passed_over):
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in passed_over)
        raise UserError(f"{run.checkpoints}: every checkpoint is damaged:\n{reasons}\nStart anew with --fresh.")
    if path is None or checkpoint is None:
        run.event_lines.end_torn_line()
        if not fresh:
            _require_no_past(run)
        run.clear(but=[run.events])
        _write_config(run, config)
        return Start(number=run.count_starts(), passed_over=tuple(passed_over))
    state = checkpoint.state
    position = Position(**state["position"])
    changed = _accepted_changes(run, state, config, digest, accept, from_stage)
    if not plan.holds(position) or plan.steps_before(position) != state["global_step"]:
        raise UserError(
            f"{run.path}: stands at stage {position.stage}, epoch {position.epoch}, step {position.step}, which the "
            f"changed configuration does not have as step {state['global_step']} of the run; go on with the old one, "
            "or start anew with --fresh"
        )
    _take_logs(run, path)
    run.event_lines.end_torn_line()
    finished = finished and not changed and all(name.startswith(".") for name, _ in passed_over)
    repeated = max(_last_logged_step(run.metrics, state["metrics_bytes"]) - state["global_step"], 0)
    seconds = _seconds_since(run.events, state.get("time")) if repeated else 0.0
    if back_to is not None:
        _go_back(run, bucket, back_to, state["global_step"])
        run.note_obeyed(order)
    if not finished:
        _write_config(run, config)
        set_aside(run.checkpoints, [name for name, _ in passed_over if name != path.name])
        run.truncate_metrics(state["metrics_bytes"])
        on_load(checkpoint)
    return Start(
        number=run.count_starts(),
        checkpoint=path,
        position=position,
        state=state,
        passed_over=tuple(passed_over),
        repeated_steps=repeated,
        repeated_seconds=seconds,
        changed=tuple(changed),
        from_stage=back_to,
        finished=finished,
    )


def _forget(run: RunFolder, bucket: Bucket | None, *, finished: bool, overwrite: bool) -> None:
    """Begin anew, if that is meant."""
    steps = bucket.steps() if bucket else []
    if not overwrite and (finished or (bucket and steps and not list_checkpoints(run.checkpoints))):
        what = f"{run.path}: holds a finished run"
        if bucket and not finished:
            what = f"{bucket.path(steps[0])}: is a checkpoint that no run here has written"
        raise UserError(
            f"{what}, which --fresh would delete; add --overwrite if that is meant, or choose another folder with --run"
        )
    for step in reversed(steps):  # first what is elsewhere, the oldest first: killed halfway, the same command goes on
        assert bucket is not None
        bucket.remove(step)
    for past in (run.status, run.events):  # that checkpoints are missing from now on is meant
        past.unlink(missing_ok=True)
    run.clear()


def _require_no_past(run: RunFolder) -> None:
    """UserError if a run has had checkpoints: that they are gone is no reason to forget the rest."""
    done = run.read_status().get("state") == "done"
    if done or _has_had_checkpoint(run.events):
        what = f"the run is done, as {run.status} says" if done else f"{run.events} tells of some"
        raise UserError(
            f"{run.checkpoints}: holds no checkpoint, but {what}; put the folder back (is its disk mounted?), or start "
            f"anew with --fresh{' --overwrite' * done}"
        )


def _has_had_checkpoint(events: Path) -> bool:
    """Whether one was written or gone on from since the run last began."""
    found = False
    with suppress(FileNotFoundError), events.open("rb") as lines:
        for line in lines:
            if b'"event": "start"' in line:
                found = False
            elif b'"event": "checkpoint"' in line or b'"event": "resume"' in line:
                found = True
    return found


def _end_before(run: RunFolder, bucket: Bucket | None, plan: RunPlan, stage: int) -> int:
    """The step with which the stage before `stage` ends, of which there is a checkpoint."""
    ends = plan.stage_ends()
    if stage not in range(len(plan.stages)):
        raise UserError(f"--from-stage {stage}: there are {len(plan.stages)} stages, counted from 0")
    if stage == 0:
        raise UserError("--from-stage 0: that is the whole run; --fresh begins it anew")
    step = ends[stage - 1]
    there = _steps_here(run).union(bucket.steps() if bucket else [])
    if step not in there:
        raise UserError(
            f"{run.checkpoints}: has no {checkpoint_name(step)}, with which stage {stage - 1} ends; "
            f"there are: {', '.join(map(checkpoint_name, sorted(there))) or 'none'}"
        )
    return step


def _go_back(run: RunFolder, bucket: Bucket | None, stage: int, step: int) -> None:
    """Forget what came after `step`, with which the stage before `stage` ends.

    First the status says that the run is under way: killed halfway, it must not be taken for one that is done.
    """
    run.write_status("running", f"goes back to where stage {stage} begins", step)
    there = bucket.steps() if bucket else []
    for later in sorted(_steps_here(run).union(there), reverse=True):
        if later > step:
            if bucket and later in there:
                bucket.remove(later)
            shutil.rmtree(run.checkpoints / checkpoint_name(later), ignore_errors=True)
    for panel in run.panels.glob("step-*.png"):
        if panel.stem > checkpoint_name(step):
            panel.unlink(missing_ok=True)
    run.forget_results()
    run.trackers.unlink(missing_ok=True)  # they keep the steps that they have: new runs get the new ones


def _steps_here(run: RunFolder) -> set[int]:
    """Steps of which there is a checkpoint in the run folder, whole or not."""
    return {step_of(path.name) for path in list_checkpoints(run.checkpoints)}


def _newest(
    run: RunFolder, bucket: Bucket | None, target: int | None = None
) -> tuple[Path | None, Checkpoint | None, list[tuple[str, str]]]:
    """The newest checkpoint that is whole and loads, fetched if it is not here, and (name, reason) of others.

    With `target` it is the one of that step or none.
    """
    passed_over = [
        (path.name, "half-written: its process was killed while saving it")
        for path in sorted(run.checkpoints.glob(".step-*.partial"))
    ]
    here = {step_of(path.name): path for path in list_checkpoints(run.checkpoints)}
    there = bucket.steps() if bucket else []
    for step in sorted({*here, *there}, reverse=True) if target is None else [target]:
        attempts: list[Callable[[], Path | None]] = [lambda step=step: here[step]] if step in here else []  # type: ignore[misc]
        if bucket is not None and step in there:
            attempts.append(lambda step=step: _fetch(run, bucket, step))  # type: ignore[misc]
        for attempt in attempts:
            try:
                path = attempt()
                if path is not None:
                    verify(path)
                    return path, load_checkpoint(path), passed_over
            except DamagedCheckpointError as error:
                passed_over.append((checkpoint_name(step), str(error)))
    return None, None, passed_over


def _fetch(run: RunFolder, bucket: Bucket, step: int) -> Path | None:
    """A checkpoint from behind the URL at its place here, with its logs in it; None if it is not whole there.

    Raises DamagedCheckpointError.
    """
    final = run.checkpoints / checkpoint_name(step)
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if not bucket.download(step, partial):
            return None
        verify(partial)
        sync_directory(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync_directory(run.checkpoints)
        return final
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _take_logs(run: RunFolder, checkpoint: Path) -> None:
    """Put the logs that came with a checkpoint from behind the URL at their places, once it is sure to be gone on from.

    Its metrics, for what was logged here may be another past, the events, where those here are gone or shorter, and the
    trackers' runs, where none are known here.
    """
    for log in (run.metrics, run.events, run.trackers):
        copy = checkpoint / log.name
        if copy.exists():
            longer = log == run.events and log.exists() and log.stat().st_size < copy.stat().st_size
            if log == run.metrics or not log.exists() or longer:
                with atomic_file(log) as file, copy.open("rb") as source:
                    shutil.copyfileobj(source, file)
            copy.unlink()


def _write_config(run: RunFolder, config: Config) -> None:
    try:
        write_atomically(run.config, config.to_yaml())
    except OSError as error:
        raise UserError(
            f"{run.config}: can't be written: {error.strerror}; mend that, then run the same command again"
        ) from None


def _accepted_changes(
    run: RunFolder,
    state: dict[str, Any],
    config: Config,
    digest: str,
    accept: Collection[str],
    from_stage: int | None,
) -> list[str]:
    """Lines that say what differs; UserError if any of it is not accepted. Stages from `from_stage` on may."""
    found = differences(state["identity"], config.identity())
    for key in CONSEQUENCES.keys() & found.keys():
        found[key] += f", {CONSEQUENCES[key]}"
    if state["manifest"] != digest:
        found[DATA] = f"{DATA}: {config.data.manifest} lists other samples than the run was begun with"
    refused = {
        key: line
        for key, line in found.items()
        if key.startswith(FIXED) or not (key in accept or (from_stage is not None and _stage_of(key) >= from_stage))
    }
    if refused:
        lines = "\n".join(f"  {line}" for line in refused.values())
        meant = [key for key in refused if not key.startswith(FIXED)]
        or_accept = f", or, if it is meant, add --accept-change {','.join(meant)}" if meant else ""
        raise UserError(
            f"{run.path}: was begun with another configuration (then → now):\n{lines}\n"
            f"Go on with the old one, choose another folder with --run, start anew with --fresh{or_accept}."
        )
    return list(found.values())


def _stage_of(key: str) -> int:
    """The stage that a key of the identity belongs to; -1 if it belongs to none."""
    section, _, rest = key.partition(".")
    return int(rest.partition(".")[0]) if section == "stages" else -1


def _last_logged_step(metrics: Path, begin: int) -> int:
    """The last step in the lines from byte `begin` on."""
    last = 0
    if metrics.is_file():
        with metrics.open("rb") as lines:
            lines.seek(begin)
            for line in lines:
                try:
                    last = max(last, json.loads(line)["global_step"])
                except (ValueError, KeyError):
                    continue
    return last


def _seconds_since(events: Path, begin: float | None) -> float:
    """From `begin` to the last event, by the wall clock; 0 if that is not known."""
    with suppress(FileNotFoundError), events.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - LONGEST_LINE_BYTES, 0))
        for text in reversed(file.read().splitlines()):
            with suppress(ValueError, KeyError, TypeError):
                return max(float(json.loads(text)["time"]) - begin, 0.0) if begin is not None else 0.0
    return 0.0
