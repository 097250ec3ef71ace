"""A run folder that is claimed before anything else is looked at, so that its status can say why no training began."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dtrain.devices import is_lost_process
from dtrain.run_folder import RunFolder
from dtrain.vote import message_of
from shard_tools.errors import UserError


class ClaimedRun(RunFolder):
    """The folder of a training. Only the process that has locked it writes of refusals."""

    def claim(self) -> None:
        """Lock a run that was begun before; one that was not is locked when it begins."""
        if self.status.exists():
            self.lock()

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """What ends this block is the reason in status.json why the run does not go on: nobody need try it again.

        A run that is done stays done, and one that was never begun gets no status.
        """
        try:
            yield
        except Exception as error:
            if self.locked and not is_lost_process(error):
                with suppress(UserError, OSError):
                    self._refuse(error)
            raise

    def _refuse(self, error: Exception) -> None:
        before = self.read_status()
        if before and before.get("state") != "done":
            self.write_status("failed", message_of(error), before.get("global_step", 0))
