"""Trackers beside TensorBoard: how Accelerate opens each, goes on with its run, and hands it the points of a step.

What fails is raised as it comes. Knows nothing of threads and repeats nothing: see dtrain.follower.
"""

import copy
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from accelerate import Accelerator
from PIL import Image

from shard_tools.errors import UserError

PANEL = "test/panel"

_MLFLOW_PLACE = "MLFLOW_TRACKING_URI"


def require_installed(names: Collection[str]) -> None:
    """Raise UserError unless the packages of these trackers are installed. Imports none of them."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"log.trackers: {name} is not installed; pip install 'dtrain[{name}]', or leave {name} out")


def open_alone(accelerator: Accelerator, name: str, project: str, arguments: Mapping[str, Any]) -> Any:
    """Let Accelerate open one of its trackers, which is neither opened nor closed together with others."""
    own = copy.copy(accelerator)
    own.log_with, own.trackers = [name], []
    own.init_trackers(project, init_kwargs={name: dict(arguments)})
    return own.trackers[0]


class Tracker(ABC):
    """A run at a tracker. All methods are to be called by one thread, for MLflow knows its run by the thread."""

    name: ClassVar[str]
    """As in `log.trackers`."""
    way_out: ClassVar[str]
    """What may help if it can't be opened."""

    def __init__(self, run_id: str | None) -> None:
        """`run_id` is that of the tracker's run to go on with; None begins one."""
        self.run_id = run_id
        self._tracker: Any = None

    @classmethod
    def is_lost(cls, run: Path) -> bool:
        """Whether the tracker's runs lay in the run folder and are gone from there: it has to begin one."""
        return False

    def open(self, accelerator: Accelerator, project: str, run: Path) -> None:
        """Begin the tracker's run or go on with it; `run` is the run folder. Afterwards `run_id` is known."""
        arguments = self._arguments(project, run)
        self._tracker = open_alone(accelerator, self.name, self._title(project, run), arguments)
        self.run_id = self._id()

    def describe(self, hyperparameters: Mapping[str, Any]) -> None:
        """Hand over what the run was begun with."""
        self._tracker.store_init_configuration(dict(hyperparameters))

    def last_step(self) -> int | None:
        """The last step that the tracker has, -1 if it has none; None if it can't tell."""
        return None

    def send(self, step: int, figures: Mapping[str, float], panel: Path | None) -> None:
        """Hand over all points of a step, and its picture. Steps come in order."""
        if panel is not None:
            self._send_panel(step, panel)
        self._tracker.log(dict(figures), step=step)

    def close(self) -> None:
        """Wait until the tracker has everything."""
        self._tracker.finish()

    def _title(self, project: str, run: Path) -> str:
        """What Accelerate calls the project."""
        return project

    @abstractmethod
    def _arguments(self, project: str, run: Path) -> dict[str, Any]:
        """What Accelerate passes on to the tracker."""

    @abstractmethod
    def _id(self) -> str:
        """The tracker's name for its run that is open."""

    def _send_panel(self, step: int, panel: Path) -> None:
        with Image.open(panel) as picture:
            self._tracker.log_images({PANEL: picture}, step=step)


class WandB(Tracker):
    """Takes steps in ascending order only, each in one call. Uploads from a process of its own, which outlives ours."""

    name = "wandb"
    way_out = "log in with `wandb login` or set WANDB_API_KEY; WANDB_MODE=offline needs neither key nor network"

    def _arguments(self, project: str, run: Path) -> dict[str, Any]:
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "20")  # what is not uploaded by then stays on the disk
        folder = os.environ.get("WANDB_DIR", str(run))
        return {"name": run.name, "id": self.run_id or secrets.token_hex(8), "resume": "allow", "dir": folder}

    def _id(self) -> str:
        return str(self._tracker.tracker.id)

    def last_step(self) -> int | None:
        """What the server has. Offline the files of each attempt lie in a folder of their own; without them, none."""
        run = self._tracker.tracker
        if run.offline:
            own = Path(run.dir).parent
            return None if any(folder != own for folder in own.parent.glob(f"*run-*-{run.id}")) else -1
        return int(run.starting_step) - 1 if run.resumed else -1

    def send(self, step: int, figures: Mapping[str, float], panel: Path | None) -> None:
        if panel is not None:
            with Image.open(panel) as picture:
                self._tracker.log_images({PANEL: [picture]}, step=step, commit=False)
        self._tracker.log(dict(figures), step=step, commit=True)


class MLflow(Tracker):
    """In RUN/mlflow, unless MLFLOW_TRACKING_URI names a server or another store. Pictures are artifacts.

    Keeps each point as often as it is sent, so what it has is not sent again.
    """

    name = "mlflow"
    way_out = "MLFLOW_TRACKING_URI says where it is: a server, or sqlite:////PATH/mlflow.db"

    def __init__(self, run_id: str | None) -> None:
        super().__init__(run_id)
        self._has: dict[str, int] | None = None
        self._own: Path | None = None

    @classmethod
    def is_lost(cls, run: Path) -> bool:
        return _MLFLOW_PLACE not in os.environ and not (run / "mlflow" / "mlflow.db").is_file()

    def _arguments(self, project: str, run: Path) -> dict[str, Any]:
        # it would wait for minutes; here is who tries again
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        arguments = {"run_name": run.name, "run_id": self.run_id}
        if _MLFLOW_PLACE not in os.environ:
            self._own = (run / "mlflow").resolve()
            self._own.mkdir(exist_ok=True)
            os.environ[_MLFLOW_PLACE] = f"sqlite:///{self._own / 'mlflow.db'}"
        if self._own:
            arguments["logging_dir"] = (self._own / "artifacts").as_uri()
        return arguments

    def _id(self) -> str:
        return str(self._tracker.tracker.info.run_id)

    def send(self, step: int, figures: Mapping[str, float], panel: Path | None) -> None:
        has = self._last_steps() if self._has is None else self._has
        self._has = None  # asked again, if this fails halfway
        missing = {name: value for name, value in figures.items() if step > has.get(name, -1)}
        if missing:
            super().send(step, missing, panel)
        self._has = has

    def _send_panel(self, step: int, panel: Path) -> None:
        """MLflow has noted where a run's pictures go: once the run folder was moved, they would go to the old place."""
        if self._own is None or self._tracker.tracker.info.artifact_uri.startswith(self._own.as_uri()):
            self._tracker.log_artifact(str(panel), "panels")

    def _last_steps(self) -> dict[str, int]:
        """The last step of each curve."""
        from mlflow import MlflowClient

        client = MlflowClient()
        curves = client.get_run(self.run_id).data.metrics
        return {name: max(point.step for point in client.get_metric_history(self.run_id, name)) for name in curves}


class Aim(Tracker):
    """In the run folder. A point that is sent again takes the place of the one before."""

    name = "aim"
    way_out = "its files are in the run folder, .aim"

    @classmethod
    def is_lost(cls, run: Path) -> bool:
        return not (run / ".aim").is_dir()

    def _title(self, project: str, run: Path) -> str:
        return run.name

    def _arguments(self, project: str, run: Path) -> dict[str, Any]:
        quiet = {"system_tracking_interval": None, "capture_terminal_logs": False}
        return {"experiment": project, "run_hash": self.run_id, **quiet}

    def _id(self) -> str:
        return str(self._tracker.tracker.hash)


class ClearML(Tracker):
    """A point that is sent again takes the place of the one before."""

    name = "clearml"
    way_out = "run `clearml-init` or set CLEARML_API_HOST and its keys; CLEARML_OFFLINE_MODE=1 needs no server"

    def _arguments(self, project: str, run: Path) -> dict[str, Any]:
        from clearml.config import config_obj

        # It would fork beside our threads, which may hang for ever.
        config_obj.set_overrides({"sdk": {"development": {"report_use_subprocess": False}}})
        goes_on = {"reuse_last_task_id": self.run_id, "continue_last_task": 0}  # 0: steps are counted as they are
        return {
            "task_name": run.name,
            "auto_connect_arg_parser": False,
            "auto_connect_frameworks": False,
            "auto_connect_streams": False,
            "auto_resource_monitoring": False,
            **(goes_on if self.run_id else {"reuse_last_task_id": False}),
        }

    def _id(self) -> str:
        return str(self._tracker.tracker.id)

    def send(self, step: int, figures: Mapping[str, float], panel: Path | None) -> None:
        super().send(step, {_underscored(name): value for name, value in figures.items()}, panel)

    def _send_panel(self, step: int, panel: Path) -> None:
        with Image.open(panel) as picture:
            self._tracker.log_images({_underscored(PANEL): picture}, step=step)


def _underscored(name: str) -> str:
    """What Accelerate splits into ClearML's title and series: "train_loss"."""
    return name.replace("/", "_", 1)


TRACKERS: dict[str, type[Tracker]] = {kind.name: kind for kind in (WandB, MLflow, Aim, ClearML)}
