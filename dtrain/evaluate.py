"""`dtrain evaluate`: a checkpoint on a split, beside predictors that look at nothing."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from accelerate import Accelerator

from dtrain.best import CHOICES
from dtrain.breakdown import Breakdown
from dtrain.config import Config
from dtrain.constant_predictors import TrueLevels, trivial_predictors
from dtrain.data.dataset import open_dataset
from dtrain.devices import make_accelerator, on_main_process
from dtrain.evaluation_files import EvaluationFiles
from dtrain.evaluation_result import EvaluationResult
from dtrain.evaluation_table import backgrounds_table, figures_table, original_table, samples_table
from dtrain.evaluator import Evaluator, Observer
from dtrain.extremes import Extremes
from dtrain.figures import Figures
from dtrain.original_metrics import OriginalMetrics
from dtrain.run_folder import RunFolder
from dtrain.sizes import check_judge_at, check_size
from dtrain.ssim import WINDOW
from dtrain.trained import Trained, load_trained
from dtrain.vote import Vote
from shard_tools.errors import UserError
from shard_tools.progress import progress

MOST_WORST = 64


def evaluate_run(
    path: Path,
    *,
    checkpoint: str | None = None,
    split: str | None = None,
    size: int | None = None,
    judge_at: int | None = None,
    manifest: str | None = None,
    worst: int = 8,
    rank_by: str | None = None,
    by_background: bool = False,
    original_metrics: bool = False,
    json_file: Path | None = None,
    overrides: Sequence[str] = (),
) -> Figures:
    """Evaluate a run, print tables, write RUN/evaluation.json and pictures beside it; works under a launcher too.

    Defaults: the newest whole checkpoint, the run's test split, the size that it was trained on last, the run's
    manifest, and to rank by, the run's checkpoint.best_metric. The network sees images of side `size`; the truth is of
    side `judge_at`, by default the same, and predictions are brought to that. So runs of different sizes can be
    compared. `worst` samples, and as many of the best, are listed and drawn; `by_background` prints what the JSON has
    in any case, `original_metrics` adds what the write-up would have logged, and `json_file` is written instead, with
    pictures by its name. `overrides` are keys of `data` and `evaluate` that differ from the training's, as
    `load_config` takes them. Raises UserError for a run, checkpoint, split, size, number, metric or folder that is not
    there.
    """
    check_size(size)
    check_judge_at(judge_at)
    run = RunFolder(path)
    config = _for_evaluation(run.load_config(_checked_keys(overrides)), manifest)
    files = EvaluationFiles.named(json_file) if json_file else EvaluationFiles(run.evaluation)
    accelerator = make_accelerator(config)
    trained = load_trained(path, checkpoint, accelerator.device)
    fed_at = size or trained.size
    judged_at = judge_at or fed_at
    extremes = Extremes(_checked_metric(rank_by or config.checkpoint.best_metric, judged_at), _checked_count(worst))
    with closing(open_dataset(config.data)) as dataset:
        evaluator = Evaluator(config, dataset, accelerator, split or config.data.test_split, judged_at)
        original = OriginalMetrics(evaluator.samples, config.evaluate.batch) if original_metrics else None
        result = _evaluate(evaluator, trained, fed_at, judged_at, accelerator, extremes, original)

        def write() -> None:
            _print(path, result, by_background=by_background)  # first: what can't be written is not lost
            files.write(result, evaluator.panel(trained.module, fed_at))
            print("\n".join(["", "written:", *(f"  {file}" for file in (files.json, *files.pictures()))]), flush=True)

        on_main_process(accelerator, write)
    accelerator.end_training()
    return result.figures


def _for_evaluation(config: Config, manifest: str | None) -> Config:
    """Training may look at a part of the test split; one that is asked for reads all of it, and tells no tracker.

    It computes in float32, whatever the precision of the training, so that it needs no device that knows it.
    """
    data = config.data
    if manifest is not None and data.loader == "webdataset":
        raise UserError("--manifest: this run read its shards by data.stream, which has none; leave the option out")
    if manifest is not None:
        data = data.model_copy(update={"manifest": manifest})
    evaluate = config.evaluate.model_copy(update={"samples": None})
    log = config.log.model_copy(update={"trackers": ()})
    return config.model_copy(update={"evaluate": evaluate, "data": data, "log": log, "precision": "float32"})


def _checked_keys(overrides: Sequence[str]) -> Sequence[str]:
    for option in overrides:
        if option.startswith("--") and not option.startswith(("--data.", "--evaluate.")):
            raise UserError(f"{option}: expected an option of dtrain evaluate, or a key of data or evaluate")
    return overrides


def _checked_metric(name: str, judged_at: int) -> str:
    if name not in CHOICES:
        raise UserError(f"--rank-by: expected one of {', '.join(CHOICES)}, got {name!r}")
    if name == "depth_ssim" and judged_at < WINDOW:
        raise UserError(
            f"--rank-by depth_ssim: needs images of at least {WINDOW} pixels, not {judged_at}; take another one"
        )
    return name


def _checked_count(worst: int) -> int:
    if not 0 <= worst <= MOST_WORST:
        raise UserError(f"--worst: expected 0 to {MOST_WORST} samples, got {worst}")
    return worst


def _evaluate(
    evaluator: Evaluator,
    trained: Trained,
    size: int,
    judged_at: int,
    accelerator: Accelerator,
    extremes: Extremes,
    original: OriginalMetrics | None,
) -> EvaluationResult:
    """Read the split once, on all processes, and put together what each has seen."""
    vote = Vote()
    levels, breakdown = TrueLevels(), Breakdown()
    observers: list[Observer] = [levels, breakdown, extremes, *([original] if original else [])]
    with _progress(accelerator, evaluator.samples, trained.config.evaluate.batch) as begin:
        evaluation = evaluator.figures(trained.module, size, vote, begin, observers)
    assert evaluation is not None, "nothing stops this evaluation"
    for bad in evaluation.bad:
        print(f"left out: {bad.reason}", file=sys.stderr, flush=True)
    return EvaluationResult(
        checkpoint=trained.checkpoint,
        split=evaluator.split,
        samples=evaluation.samples,
        size=judged_at,
        input_size=size,
        figures=evaluation.figures,
        trivial=trivial_predictors(evaluation.figures, levels.gathered(vote)),
        metric=extremes.metric,
        breakdown=breakdown.gathered(vote),
        extremes=extremes.gathered(vote),
        original=original.logged(vote) if original else {},
    )


@contextmanager
def _progress(accelerator: Accelerator, samples: int, batch: int) -> Iterator[Callable[[int], None]]:
    """What is to be called with the number of each batch before it; the main process shows rate and time left.

    It shows the samples of all processes, which have about as many done as it has.
    """
    if not accelerator.is_main_process:
        yield lambda _: None
        return
    done = 0
    with progress("evaluating", total=samples, unit="samples") as shown:

        def begin(number: int) -> None:
            nonlocal done
            before, done = done, min(number * batch * accelerator.num_processes, samples)
            shown.advance(done - before)

        yield begin
        shown.advance(samples - done)


def _print(path: Path, result: EvaluationResult, *, by_background: bool) -> None:
    extremes = result.extremes
    where = f"{result.samples:,} samples of {result.split}, {result.sides}"
    blocks = [f"{path}, {result.checkpoint}, on {where}:", figures_table(result.figures, result.trivial)]
    if result.original:
        blocks.append(original_table(result.original, result.figures))
    if by_background and result.breakdown.sums is None:
        blocks.append(f"no figures by background: {result.breakdown.reason}")
    elif by_background:
        blocks.append(backgrounds_table(result.parts, result.metric))
    for title, ranked in (("worst samples", extremes.worst), ("best samples", extremes.best)):
        if ranked:
            blocks.append(samples_table(title, ranked, result.metric))
    print("\n\n".join(blocks), flush=True)
