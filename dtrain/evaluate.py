"""`dtrain evaluate`: a checkpoint on a split, beside predictors that look at nothing."""

import json
import sys
from pathlib import Path

from dtrain.config import Config
from dtrain.data.dataset import open_dataset
from dtrain.devices import make_accelerator
from dtrain.evaluator import Evaluator
from dtrain.figures import Figures, trivial_figures
from dtrain.run_folder import RunFolder
from dtrain.sizes import check_size
from dtrain.trained import load_trained
from dtrain.vote import Vote
from shard_tools.atomic import atomic_file, write_atomically
from shard_tools.errors import UserError

_COLUMNS = ("mask_iou", "mask_accuracy", "depth_mse", "depth_rmse", "depth_r2")


def evaluate_run(
    path: Path,
    *,
    checkpoint: str | None = None,
    split: str | None = None,
    size: int | None = None,
    manifest: str | None = None,
) -> Figures:
    """Evaluate a run, print a table, write RUN/evaluation.json and RUN/evaluation.png; works under a launcher too.

    Defaults: the newest whole checkpoint, the run's test split, the size of its last stage, the run's manifest.
    Raises UserError for a run, checkpoint, split or size that is not there.
    """
    check_size(size)
    config = RunFolder(path).load_config()
    accelerator = make_accelerator(config)
    trained = load_trained(path, checkpoint, accelerator.device)
    if manifest is not None and config.data.loader == "webdataset":
        raise UserError("--manifest: this run read its shards by data.stream, which has none; leave the option out")
    if manifest is not None:
        data = config.data.model_copy(update={"manifest": manifest})
        config = config.model_copy(update={"data": data})
    split = split or config.data.test_split
    size = size or config.stages[-1].size
    dataset = open_dataset(config.data)
    evaluator = Evaluator(_whole_split(config), dataset, accelerator, split)
    evaluation = evaluator.figures(trained.module, size, Vote())
    assert evaluation is not None, "nothing stops this evaluation"
    figures = evaluation.figures
    for bad in evaluation.bad:
        print(f"left out: {bad.reason}", file=sys.stderr, flush=True)
    if accelerator.is_main_process:
        run = trained.run
        panel = evaluator.panel(trained.module, size)
        if panel is not None:
            with atomic_file(run.evaluation_picture) as file:
                panel.save(file, "PNG")
        trivial = trivial_figures(figures)
        result = {
            "checkpoint": trained.checkpoint,
            "split": split,
            "samples": evaluation.samples,
            "size": size,
            "metrics": figures,
            "trivial": trivial,
        }
        write_atomically(run.evaluation, json.dumps(result, indent=1) + "\n")
        print(f"{path}, {trained.checkpoint}, on {evaluation.samples:,} samples of {split} at {size}×{size}:\n")
        print(format_table({"this model": figures, **trivial}))
        picture = run.evaluation_picture if panel is not None else "none: its samples can't be decoded"
        print(f"\nfigures: {run.evaluation}\npicture: {picture}", flush=True)
    dataset.close()
    accelerator.end_training()
    return figures


def format_table(rows: dict[str, Figures]) -> str:
    """A plain-text table, one line a predictor; what a predictor does not predict stays empty."""
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{column:>15}" for column in _COLUMNS)]
    for name, figures in rows.items():
        cells = [f"{figures[column]:15.4f}" if column in figures else f"{'–':>15}" for column in _COLUMNS]
        lines.append(f"{name:<{width}}" + "".join(cells))
    return "\n".join(lines)


def _whole_split(config: Config) -> Config:
    """Training may look at a part of the test split; an evaluation that is asked for reads all of it."""
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"samples": None})})
