"""Where a run starts: anew, from its newest whole checkpoint, or not at all. Decided by the main process."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtrain.checkpoint import load_newest
from dtrain.config import Config, describe_differences
from dtrain.data.order import Position
from dtrain.run_folder import RunFolder
from shard_tools.atomic import write_atomically
from shard_tools.errors import UserError


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
    finished: bool = False
    """The run is done; there is nothing to train."""


def open_run(run: RunFolder, config: Config, digest: str, *, fresh: bool, overwrite: bool) -> Start:
    """Lock the run folder and decide; a new run gets its config.yaml, an old one forgets what its checkpoint has not.

    `digest` is that of the data set.
    Raises UserError if the folder is in use, if the run was begun with another configuration or data set, if all of
    its checkpoints are damaged, or if `fresh` would throw a finished run away without `overwrite`.
    """
    run.lock()
    run.end_torn_event()
    finished = run.read_status().get("state") == "done"
    if fresh:
        if finished and not overwrite:
            raise UserError(
                f"{run.path}: holds a finished run, which --fresh would delete; "
                "add --overwrite if that is meant, or choose another folder with --run"
            )
        run.clear()
    path, checkpoint, passed_over = load_newest(run.checkpoints)
    if checkpoint is None and passed_over and not all(name.startswith(".") for name, _ in passed_over):
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in passed_over)
        raise UserError(f"{run.checkpoints}: every checkpoint is damaged:\n{reasons}\nStart anew with --fresh.")
    if path is None or checkpoint is None:
        run.clear()
        _write_config(run, config)
        return Start(passed_over=tuple(passed_over))
    state = checkpoint.state
    _require_same_run(run, state, config, digest)
    _write_config(run, config)
    repeated = max(_last_logged_step(run.metrics) - state["global_step"], 0)
    finished = finished and not passed_over
    if not finished:
        run.truncate_metrics(state["metrics_bytes"])
    return Start(run.count_starts(), path, Position(**state["position"]), state, tuple(passed_over), repeated, finished)


def _write_config(run: RunFolder, config: Config) -> None:
    write_atomically(run.config, config.to_yaml())


def _require_same_run(run: RunFolder, state: dict[str, Any], config: Config, digest: str) -> None:
    differences = describe_differences(state["identity"], config.identity())
    if state["manifest"] != digest:
        differences.append(f"data.manifest: {config.data.manifest} lists other samples than the run was begun with")
    if differences:
        lines = "\n".join(f"  {line}" for line in differences)
        raise UserError(
            f"{run.path}: was begun with another configuration (then → now):\n{lines}\n"
            "Go on with the old one, choose another folder with --run, or start anew with --fresh."
        )


def _last_logged_step(metrics: Path) -> int:
    last = 0
    if metrics.is_file():
        with metrics.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    last = max(last, json.loads(line)["global_step"])
                except (ValueError, KeyError):
                    continue
    return last
