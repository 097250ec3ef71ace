"""`dtrain evaluate` on runs that were never trained: every figure against NumPy, pictures, tables, what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from dtrain.breakdown import MAX_BACKGROUNDS, Breakdown, background_of
from dtrain.checkpoint import Checkpoint, save_checkpoint
from dtrain.cli import main
from dtrain.config import Config
from dtrain.data.loader import Batch, to_device
from dtrain.data.order import in_packing_order
from dtrain.evaluate import evaluate_run
from dtrain.evaluator import Seen
from dtrain.extremes import Extremes
from dtrain.metric_names import metric_name
from dtrain.metrics import sample_sums
from dtrain.model import Prediction
from dtrain.networks import make_network
from dtrain.vote import Vote
from shard_tools.errors import UserError

from . import numpy_metrics
from .conftest import Shards, open_loader
from .test_bad_samples import spoil
from .trained_runs import trained_state

SIZE = 24
QUICK = (
    *("--stages.1.size", str(SIZE), "--data.workers", "0"),
    *("--evaluate.batch", "7", "--evaluate.panel_samples", "2"),
)
SHOWN = ("evaluation", "evaluation_worst", "evaluation_best")


def close(figures: dict[str, float]) -> Any:
    """The figures, as far as another batch size through the network tells."""
    return pytest.approx(figures, rel=1e-4, abs=1e-6)


@dataclass(frozen=True)
class Truth:
    """What an evaluation should find: samples by key, and what was predicted for them, as arrays (N, H, W)."""

    keys: list[str]
    predicted: NDArray[np.float64]
    logits: NDArray[np.float64]
    depth: NDArray[np.float64]
    mask: NDArray[np.float64]

    def figures(self, *rows: int) -> dict[str, float]:
        """Of some samples, or of all."""
        chosen = list(rows) or slice(None)
        return numpy_metrics.figures(*(x[chosen] for x in (self.predicted, self.logits, self.depth, self.mask)))


def make_network_of(config: Config, bias: float = 0.0) -> nn.Module:
    """A network as it is made, but for heads that say more; `bias` is added to what it says of depth."""
    torch.manual_seed(0)
    network = make_network(config.model)
    heads = {"depth": 0.5 + bias, "mask": 0.0}
    for name, parameter in network.named_parameters():
        for head, shift in heads.items():
            if name.startswith(head):
                parameter.data = parameter.data + shift if name.endswith("bias") else 6 * parameter.data
    return network.eval()


def make_run(config: Config, *, bias: float = 0.0, position: dict[str, Any] | None = None) -> Path:
    """A run with one checkpoint of `make_network_of`."""
    config.run.mkdir()
    (config.run / "config.yaml").write_text(config.to_yaml())
    state = {"position": position} if position else trained_state(config)
    save_checkpoint(config.run / "checkpoints", 3, Checkpoint(make_network_of(config, bias).state_dict(), {}, state))
    return config.run


@pytest.fixture
def run(make_config: Callable[..., Config]) -> Path:
    return make_run(make_config(*QUICK))


@pytest.fixture
def truth(shards: Shards, make_config: Callable[..., Config]) -> Truth:
    """Of the 30 samples of the split "train", which has three backgrounds, for the network of `run`."""
    return look(shards, make_config())


def look(shards: Shards, config: Config, *, judged_at: int = SIZE, decoded: int = SIZE) -> Truth:
    """What the network says of images of SIZE, made from `decoded` ones, and the truth; both at side `judged_at`."""
    network = make_network_of(config)
    fed, truth = read_all(shards, decoded), read_all(shards, judged_at)
    with torch.inference_mode():
        images = fed.images
        if decoded != SIZE:
            images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
        depth, logits = network(images)
        if depth.shape[-1] != judged_at:
            sides = (judged_at, judged_at)
            depth, logits = (F.interpolate(x, sides, mode="bilinear", antialias=True) for x in (depth, logits))
    planes = (x[:, 0].double().numpy() for x in (depth, logits, truth.depth, truth.mask))
    return Truth(truth.keys, *planes)


def read_all(shards: Shards, size: int) -> Batch:
    """All of the split "train" at a size."""
    lengths = shards.lengths()
    with open_loader(shards, size=size) as loader:
        (host,) = loader.batches(in_packing_order(lengths, range(sum(lengths)), sum(lengths)))
        return to_device(host, torch.device("cpu"), size)


def read(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return found


def test_every_figure_is_that_of_the_formulas(run: Path, truth: Truth) -> None:
    assert evaluate_run(run, split="train") == close(truth.figures())
    found = read(run / "evaluation.json")
    named = ("checkpoint", "split", "samples", "size", "input_size")
    assert [found[name] for name in named] == ["step-00000003", "train", 30, SIZE, SIZE]
    assert found["metrics"] == close(truth.figures())
    assert "original_metrics" not in found


def test_by_background_the_worst_first(run: Path, truth: Truth, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_run(run, split="train", rank_by="depth_rmse", by_background=True, worst=0)
    found = read(run / "evaluation.json")["by_background"]
    rows = {name: [row for row, key in enumerate(truth.keys) if key.startswith(f"{name}_fg")] for name in found}
    assert sorted(found) == ["bg1", "bg2", "bg3"]
    for name, part in found.items():
        assert part["samples"] == len(rows[name]) == 10
        assert part["metrics"] == close(truth.figures(*rows[name]))
    errors = [part["metrics"]["depth_rmse"] for part in found.values()]
    assert errors == sorted(errors, reverse=True)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = printed[printed.index(next(line for line in printed if line[:2] == ["background", "samples"])) + 1 :][:3]
    assert [line[:3] for line in table] == [[n, "10", f"{e:.4f}"] for n, e in zip(found, errors, strict=True)]


@pytest.mark.parametrize(("metric", "sign"), [("mask_f1", 1), ("depth_abs_rel", -1)])
def test_worst_and_best_samples(run: Path, truth: Truth, metric: str, sign: int) -> None:
    evaluate_run(run, split="train", rank_by=metric, worst=4)
    found = read(run / "evaluation.json")
    of_each = [truth.figures(row) for row in range(30)]
    order = sorted(range(30), key=lambda row: (sign * of_each[row][metric], -of_each[row]["depth_rmse"]))
    assert found["ranked_by"] == metric
    assert [sample["key"] for sample in found["worst"]] == [truth.keys[row] for row in order[:4]]
    assert [sample["key"] for sample in found["best"]] == [truth.keys[row] for row in order[:-5:-1]]
    for sample, row in zip(found["worst"], order[:4], strict=True):
        assert sample["metrics"] == close(of_each[row])
    for name in SHOWN:
        with Image.open(run / f"{name}.png") as picture:
            assert picture.height > 2 * 2 * SIZE


def test_trivial_predictors_are_the_best_of_256_levels(run: Path, truth: Truth) -> None:
    evaluate_run(run, split="train", worst=0)
    found = read(run / "evaluation.json")["trivial"]
    constants = [float(np.mean(truth.depth)), *np.arange(256) / 255]
    reached = [constant_in_numpy(truth.depth, constant) for constant in constants]
    for name, value in found["mean depth"].items():
        assert value == pytest.approx(reached[0][name], rel=1e-3, abs=1e-5), name
    odds = np.log(np.arange(1, 255) / np.arange(254, 0, -1))
    masks = [numpy_metrics.mask_figures(np.full_like(truth.mask, value), truth.mask) for value in odds]
    for name, value in found["best constant"].items():
        values = [figures[name] for figures in (reached[1:] if name.startswith("depth") else masks)]
        best = max(values) if metric_name(name).better == "higher" else min(values)
        assert value == pytest.approx(best, rel=1e-3, abs=1e-4), name
    assert {"depth_abs_rel", "depth_rmse", "depth_delta1", "mask_iou", "mask_bce"} <= found["best constant"].keys()
    assert found["all object"]["mask_iou"] == pytest.approx(truth.figures()["mask_coverage"])


def constant_in_numpy(depth: NDArray[np.float64], constant: float) -> dict[str, float]:
    predicted = np.full_like(depth, constant)
    return {**numpy_metrics.pixel_figures(predicted, depth), **numpy_metrics.relative_figures(predicted, depth)}


def test_two_processes_find_what_one_finds(run: Path, tmp_path: Path) -> None:
    options = [str(run), "--split", "train", "--original-metrics", "--worst", "3", "--rank-by", "depth_mae", "--json"]
    assert main(["evaluate", *options, str(tmp_path / "one.json")]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    subprocess.run([*launch, "dtrain", "evaluate", *options, str(tmp_path / "two.json")], check=True, timeout=120)
    one, two = (read(tmp_path / f"{name}.json") for name in ("one", "two"))
    ours, theirs = flat(one), flat(two)
    assert list(ours) == list(theirs)
    for place, value in ours.items():
        assert theirs[place] == (pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value), place
    for name in ("one_worst", "one_best", "one"):
        other = name.replace("one", "two")
        with Image.open(tmp_path / f"{name}.png") as a, Image.open(tmp_path / f"{other}.png") as b:
            assert np.abs(np.asarray(a, int) - np.asarray(b, int)).mean() < 0.5


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested objects and lists by their place."""
    if not isinstance(value, dict | list):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {place: leaf for key, item in items for place, leaf in flat(item, f"{path}/{key}").items()}


def test_tables_are_grouped_and_fit_100_columns(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_run(run, split="train", by_background=True, original_metrics=True)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if str(run) not in line) <= 100
    headings = [" ".join(line.split()) for line in lines if line and not line.startswith(" ")]
    assert headings[1:4] == [
        "depth this model mean depth best constant",
        "mask this model all background all object best constant",
        "the data",
    ]
    figures = read(run / "evaluation.json")
    row = next(line for line in lines if line.startswith("  MSE (L2-D) "))
    mean = figures["trivial"]["mean depth"]["depth_mse"]
    assert row.split()[2:4] == [f"{figures['metrics']['depth_mse']:.5f}", f"{mean:.5f}"]
    assert next(line for line in lines if line.startswith("  log10  ") and "nan" in line)


def test_the_original_metrics_go_into_the_json(run: Path, truth: Truth) -> None:
    evaluate_run(run, split="train", original_metrics=True, worst=0)
    found = read(run / "evaluation.json")["original_metrics"]
    assert list(found) == ["RMSE", "δ1", "δ2", "δ3", "log10", "SSIM-D"]
    errors = ((truth.predicted - truth.depth) ** 2).sum((1, 2))
    assert found["RMSE"]["first"] == pytest.approx(np.sqrt(errors[:7].sum() / (30 * SIZE**2)), rel=1e-4)
    assert found["RMSE"]["last"] == pytest.approx(truth.figures()["depth_rmse"], rel=1e-4)
    assert found["log10"]["first"] is None


def test_another_file_leaves_the_first_one_alone(run: Path, tmp_path: Path) -> None:
    evaluate_run(run, worst=1)
    before = {path: path.read_bytes() for path in run.glob("evaluation*")}
    assert {path.stem for path in before} == set(SHOWN)
    evaluate_run(run, split="train", json_file=tmp_path / "train.json", worst=1)
    assert {path: path.read_bytes() for path in run.glob("evaluation*")} == before
    assert {path.name for path in tmp_path.glob("train*")} == {
        *("train.json", "train.png"),
        *("train_worst.png", "train_best.png"),
    }


def test_pictures_of_an_earlier_evaluation_do_not_stay(run: Path) -> None:
    evaluate_run(run, worst=1)
    evaluate_run(run, worst=0)
    assert [path.name for path in run.glob("evaluation_*.png")] == []
    found = read(run / "evaluation.json")
    assert (found["worst"], found["best"]) == ([], [])


def test_a_prediction_that_is_no_number_is_null(make_config: Callable[..., Config]) -> None:
    run = make_run(make_config(*QUICK), bias=float("nan"))
    evaluate_run(run, worst=1)
    found = read(run / "evaluation.json")
    assert found["metrics"]["depth_mse"] is None
    assert found["metrics"]["mask_bce"] > 0


def test_a_network_that_shrinks_is_judged_at_the_size_of_the_truth(
    make_config: Callable[..., Config], shards: Shards
) -> None:
    config = make_config("--model.name", "shrink", *QUICK)
    run = make_run(config)
    evaluate_run(run, split="train", worst=1)
    assert read(run / "evaluation.json")["metrics"] == close(look(shards, config).figures())


@pytest.mark.parametrize("judged_at", [48, 16])
def test_a_network_is_judged_at_another_size_than_it_sees(
    run: Path, shards: Shards, make_config: Callable[..., Config], judged_at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = look(shards, make_config(), judged_at=judged_at).figures()
    assert main(["evaluate", str(run), "--split", "train", "--judge-at", str(judged_at), "--worst", "1"]) == 0
    found = read(run / "evaluation.json")
    assert (found["size"], found["input_size"]) == (judged_at, SIZE)
    assert found["metrics"] == close(expected)
    sides = f"judged at {judged_at}×{judged_at}; the network sees {SIZE}×{SIZE}"
    assert sides in capsys.readouterr().out
    for name in SHOWN:
        assert (run / f"{name}.png").exists()


def test_a_network_with_a_larger_loss_size_is_fed_as_in_training(
    make_config: Callable[..., Config], shards: Shards
) -> None:
    config = make_config(*QUICK, "--stages.1.loss_size", "48")
    run = make_run(config)
    evaluate_run(run, split="train", worst=0)
    assert read(run / "evaluation.json")["metrics"] == close(look(shards, config, decoded=48).figures())
    evaluate_run(run, split="train", judge_at=48, worst=0)
    expected = look(shards, config, decoded=48, judged_at=48).figures()
    assert read(run / "evaluation.json")["metrics"] == close(expected)


def test_a_bad_sample_is_left_out_of_both_sizes(
    own_shards: Shards, make_config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(own_shards.folder, 0, 1, split="test")
    run = make_run(make_config(*QUICK, "--data.manifest", str(own_shards.folder), "--data.on_bad_sample", "replace"))
    evaluate_run(run, judge_at=48, worst=0)
    assert read(run / "evaluation.json")["samples"] == 9
    assert capsys.readouterr().err.count("left out: ") == 1


def test_a_bad_sample_that_ends_it_can_be_left_out_by_the_option_that_it_names(
    own_shards: Shards, make_config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(own_shards.folder, 0, 1, split="test")
    run = make_run(make_config(*QUICK, "--data.manifest", str(own_shards.folder)))
    assert main(["evaluate", str(run)]) == 1
    assert "--data.on_bad_sample replace" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--data.on_bad_sample", "replace"]) == 0
    assert read(run / "evaluation.json")["samples"] == 9
    assert main(["evaluate", str(run), "--seed", "3"]) == 1
    assert "--seed: expected an option of dtrain evaluate, or a key of data or evaluate" in capsys.readouterr().err


def test_a_run_in_fp16_is_evaluated_where_there_is_no_gpu(make_config: Callable[..., Config]) -> None:
    assert 0 <= evaluate_run(make_run(make_config(*QUICK, "--precision", "fp16")))["mask_iou"] <= 1


@pytest.mark.parametrize(("stage", "epoch", "size"), [(0, 1, 16), (1, 0, 16), (1, 1, 32), (2, 0, 32)])
def test_it_is_fed_the_size_that_it_was_trained_on_last(
    stage: int, epoch: int, size: int, make_config: Callable[..., Config]
) -> None:
    config = make_config(*QUICK, "--stages.0.size", "16", "--stages.1.size", "32")
    run = make_run(config, position={"stage": stage, "epoch": epoch, "step": 0})
    evaluate_run(run, worst=0)
    assert read(run / "evaluation.json")["input_size"] == size


def test_figures_are_shown_also_where_they_can_not_be_written(
    run: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_disk / "ballast").write_bytes(bytes(2**20 - 2**13))
    assert main(["evaluate", str(run), "--json", str(small_disk / "figures.json")]) == 1
    captured = capsys.readouterr()
    assert "IoU" in captured.out
    assert "No space left on device" in captured.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--judge-at", "7"], "--judge-at 7: expected a side of 8 pixels or more"),
        (["--rank-by", "depth_ssim", "--judge-at", "10"], "needs images of at least 11 pixels, not 10"),
        (["--worst", "65"], "--worst: expected 0 to 64 samples, got 65"),
        (["--worst", "-1"], "--worst: expected 0 to 64 samples, got -1"),
        (["--rank-by", "iou"], "--rank-by: expected one of depth_mse, "),
        (["--rank-by", "depth_ssim", "--size", "8"], "--rank-by depth_ssim: needs images of at least 11 pixels, not 8"),
        (["--json", "nowhere/x.json"], "--json: nowhere: no such folder; make it first"),
        (["--json", "x.png"], "--json: expected a file name that ends in .json, got x.png"),
        (["--split", "validation"], "has no split 'validation'"),
        (["--checkpoint", "step-00000004"], "no such checkpoint; there are: step-00000003"),
    ],
)
def test_mistakes(run: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(run.glob("evaluation*"))


def test_small_images_have_no_ssim_and_are_evaluated_all_the_same(run: Path) -> None:
    assert "depth_ssim" not in evaluate_run(run, size=8)


@pytest.mark.parametrize(
    ("key", "background"),
    [
        ("bg12_fg_3_40", "bg12"),
        ("bg7_fg_3_flip_0_2", "bg7"),
        ("bg7_fg_3_0_2", "bg7"),
        ("set_2/bg7_fg_1_3", "set_2/bg7"),
        ("000123", None),
        ("bg7_fg_", None),
    ],
)
def test_backgrounds_in_keys(key: str, background: str | None) -> None:
    assert background_of(key) == background


def test_keys_without_a_background_have_no_breakdown() -> None:
    breakdown = Breakdown()
    breakdown.add(seen({"bg1_fg_1_1": 0.5, "room-17": 0.25}))
    breakdown.add(seen({"bg1_fg_1_2": 0.5}))
    together = breakdown.gathered(Vote())
    assert together.sums is None
    assert "'room-17'" in together.reason


def test_too_many_backgrounds_have_no_breakdown() -> None:
    breakdown = Breakdown()
    breakdown.add(seen({f"bg{number}_fg_1_1": 0.5 for number in range(MAX_BACKGROUNDS)}))
    assert len(breakdown.parts("depth_rmse", higher_is_better=False)) == MAX_BACKGROUNDS
    breakdown.add(seen({"bg7_fg_1_2": 0.5, "another_fg_1_1": 0.5}))
    assert breakdown.sums is None
    assert breakdown.reason == "there are more than 1,000"


@settings(max_examples=40, deadline=None)
@given(
    errors=st.lists(st.one_of(st.integers(0, 6), st.just(float("nan"))), max_size=20),
    count=st.integers(0, 6),
    batch=st.integers(1, 7),
)
def test_extremes_are_those_of_the_sorted_whole(errors: list[float], count: int, batch: int) -> None:
    found = Extremes("depth_mae", count)
    samples = {f"bg1_fg_1_{number:02}": error for number, error in enumerate(errors)}
    for number, part in enumerate(cut(samples, batch)):
        found.add(seen(part, number * batch))
    found = found.gathered(Vote())
    rank = {key: -1.0 if np.isnan(error) else 1 / (1 + error) for key, error in samples.items()}
    worst_first = sorted(samples, key=lambda key: (rank[key], key))
    best_first = sorted(samples, key=lambda key: (-rank[key], key))
    assert [ranked.key for ranked in found.worst] == worst_first[:count]
    assert [ranked.key for ranked in found.best] == best_first[:count]
    for ranked in found.worst:
        assert ranked.figures["depth_mae"] == pytest.approx(samples[ranked.key], nan_ok=True)
    if found.worst:
        assert found.draw(found.worst).height > len(found.worst)


def test_samples_of_the_same_key_are_different_ones() -> None:
    alone = Extremes("depth_mae", 3)
    alone.add(seen({"000000": 0.5}, 1))
    both = Extremes("depth_mae", 3)
    for position, error in enumerate((0.25, 0.5, 0.125)):
        both.add(seen({"000000": error}, position))
    both = both.gathered(Vote())
    assert [ranked.figures["depth_mae"] for ranked in both.worst] == [0.5, 0.25, 0.125]
    assert [ranked.figures["depth_mae"] for ranked in both.best] == [0.125, 0.25, 0.5]
    drawn, others = (both.draw([ranked]).tobytes() for ranked in both.worst[1::-1])
    assert others == alone.draw(alone.worst).tobytes() != drawn


def test_a_background_whose_figure_is_no_number_is_the_worst() -> None:
    errors = {"bg1_fg_1_1": 0.25, "bg2_fg_1_1": float("nan"), "bg3_fg_1_1": 0.5, "bg4_fg_1_1": 0.125}
    breakdown = Breakdown()
    breakdown.add(seen(errors))
    parts = breakdown.parts("depth_rmse", higher_is_better=False)
    assert list(parts) == ["bg2", "bg3", "bg1", "bg4"]


def cut(samples: dict[str, float], batch: int) -> Iterator[dict[str, float]]:
    items = list(samples.items())
    for start in range(0, len(items), batch):
        yield dict(items[start : start + batch])


def seen(samples: dict[str, float], first: int = 0) -> Seen:
    """A batch of one grey pixel each, whose depth is 0 and predicted with these errors, from that position on."""
    depth = torch.zeros(len(samples), 1, 1, 1)
    prediction = Prediction(torch.tensor(list(samples.values()), dtype=torch.float32).view_as(depth), depth)
    batch = Batch(list(samples), torch.zeros(len(samples), 6, 1, 1), depth, depth)
    return Seen(batch, prediction, sample_sums(prediction, depth, depth), first)


def test_a_run_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        evaluate_run(tmp_path)
