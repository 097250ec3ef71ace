"""The configurations that come with the project can be run as they are."""

from pathlib import Path

import pytest

from dtrain.config import load_config
from dtrain.data.order import rows_of_rank

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_it_loads_and_runs_on_one_to_eight_gpus(path: Path) -> None:
    config = load_config(path)
    for stage in config.stages:
        for processes in range(1, 9):
            assert rows_of_rank(stage.batch, processes - 1, processes)
