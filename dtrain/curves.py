"""Curves and pictures for all trackers: TensorBoard is told of each point, the others follow the run's files."""

from collections.abc import Mapping

from accelerate import Accelerator
from PIL import Image

from dtrain.config import Config
from dtrain.run_folder import RunFolder
from dtrain.tensorboard import TensorBoard
from dtrain.trackers import PANEL, TRACKERS

LEAVE_SECONDS = 8.0
DONE_SECONDS = 60.0


class Curves:
    """On the main process alone. `Accelerator.end_training` closes them."""

    def __init__(self, run: RunFolder, accelerator: Accelerator, config: Config, global_step: int) -> None:
        """Go on after `global_step`, with the trackers' runs that the run folder knows.

        Raises UserError if a tracker can't be opened for the first time.
        """
        names = config.log.trackers
        self._tensorboard = TensorBoard(run, accelerator, global_step) if "tensorboard" in names else None
        if self._tensorboard:
            accelerator.trackers.append(self._tensorboard)
        if others := [name for name in names if name in TRACKERS]:
            from dtrain.follower import Follower, Followers, Note, Notes

            followers = Followers(
                run,
                leave_seconds=min(LEAVE_SECONDS, config.hang.leave_seconds / 3),
                done_seconds=min(DONE_SECONDS, config.hang.step_seconds / 2),
            )
            accelerator.trackers.insert(0, followers)  # before TensorBoard, which a full disk breaks off
            notes, project = Notes(run.trackers), config.log.project
            for name in others:
                note = Note(project) if TRACKERS[name].is_lost(run.path) else notes.get(name, project)
                tracker = TRACKERS[name](note.id)
                followers.add(Follower(tracker, run, accelerator, config.identity(), notes, note))

    def add(self, group: str, figures: Mapping[str, float], global_step: int) -> None:
        """Add a point to each curve "group/name", of a line that metrics.jsonl has."""
        if self._tensorboard:
            self._tensorboard.add({f"{group}/{name}": value for name, value in figures.items()}, global_step)

    def add_panel(self, panel: Image.Image, global_step: int) -> None:
        """Add a picture that panels/ has."""
        if self._tensorboard:
            self._tensorboard.add_picture(PANEL, panel, global_step)

    def flush(self) -> None:
        """Hand all points to the kernel, and note how far they go. May be called by another thread."""
        if self._tensorboard:
            self._tensorboard.flush()

    def mend(self) -> None:
        """Make anew what a full disk broke."""
        if self._tensorboard:
            self._tensorboard.mend()
