"""What a user does with a run: evaluate, predict, report; and what mistakes look like."""

import json
import subprocess

import numpy as np
import pytest
from PIL import Image

from .conftest import BIN, ROOT, TEST_SAMPLES, Launched, Run
from .lean import Lean


def dtrain(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "dtrain"), *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )


def test_evaluate_reads_every_test_sample_once_on_one_process_and_on_three(undisturbed: Run) -> None:
    found = []
    for command in (
        [str(BIN / "dtrain")],
        [
            *(str(BIN / "accelerate"), "launch", "--config_file", "accelerate_config.yaml"),
            *("--num_processes", "3", "-m", "dtrain"),
        ],
    ):
        subprocess.run([*command, "evaluate", str(undisturbed.folder)], check=True, cwd=ROOT, timeout=120)
        found.append(json.loads((undisturbed.folder / "evaluation.json").read_text()))
    alone, three = found
    assert alone["samples"] == three["samples"] == TEST_SAMPLES
    assert alone["metrics"] == pytest.approx(three["metrics"], rel=1e-5)
    assert alone["trivial"]["all background"]["mask_iou"] == 0
    assert alone["trivial"]["mean depth"]["depth_mse"] == alone["metrics"]["depth_variance"]
    logged = [line for line in undisturbed.lines("metrics.jsonl") if line["kind"] == "evaluate"][-1]
    assert alone["metrics"] == pytest.approx(logged["metrics"], rel=1e-5), "training evaluated the same weights"
    with Image.open(undisturbed.folder / "evaluation.png") as picture:
        assert picture.width > 500


def test_predict_writes_depth_and_mask_of_the_size_of_the_images(undisturbed: Run, run: Run) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    out = run.folder.parent
    Image.fromarray(pixels).save(out / "bg.png")
    Image.fromarray(pixels[::-1]).save(out / "both.png")
    images = ["--bg", str(out / "bg.png"), "--fgbg", str(out / "both.png")]
    result = dtrain("predict", str(undisturbed.folder), *images, "--out", str(out / "predicted"))
    assert result.returncode == 0, result.stderr
    with Image.open(out / "predicted/both_depth.png") as depth, Image.open(out / "predicted/both_mask.png") as mask:
        assert (depth.mode, mask.mode) == ("I;16", "L")
        assert depth.size == mask.size == (70, 45)


def test_a_mistake_goes_to_standard_error_with_status_1(run: Run) -> None:
    result = dtrain("evaluate", str(run.folder))
    assert result.returncode == 1
    assert result.stdout == ""
    assert (
        result.stderr == f"dtrain: {run.folder}: not a run folder (no config.yaml); expected the `run` of a training\n"
    )


def test_report_is_one_html_file(undisturbed: Run) -> None:
    result = dtrain("report", str(undisturbed.folder))
    assert result.returncode == 0, result.stderr
    page = (undisturbed.folder / "report.html").read_text()
    assert result.stdout.strip() == str(undisturbed.folder / "report.html")
    assert "<svg" in page
    assert "data:image/" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages.0.batch", "1"], "stages.0.batch: a global batch of 1 can't be cut for 2 processes"),
        (["--data.manifest", "nowhere"], "nowhere/shards.json: no such file; expected the manifest"),
    ],
)
def test_a_mistake_is_one_message_of_two_processes(
    run: Run, undisturbed: Run, options: list[str], message: str
) -> None:
    check_refused(run, Lean(run.folder, run.shards, undisturbed).launch(*options), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimiser.name", "adam"], "optimiser: unknown key; did you mean 'optimizer'?"),
        (["--stages.0.batch", "1000"], "stages.0.batch: a global batch of 1000 can't be filled from 120 samples"),
        (["--evaluate.samples", "41"], "evaluate.samples: 41 asked for, but the split holds 40"),
        (["--data.test_split", "validation"], "has no split 'validation'; it has: train, test"),
    ],
)
def test_a_mistake_is_one_message_and_no_traceback_of_ours(
    run: Run, undisturbed: Run, options: list[str], message: str
) -> None:
    check_refused(run, Lean(run.folder, run.shards, undisturbed).launch_alone(*options), message)


def check_refused(run: Run, launched: Launched, message: str) -> None:
    assert launched.finish() != 0
    assert launched.output.count(message) == 1, launched.output
    assert "dtrain/" not in launched.output.split("Traceback")[0].replace("-m dtrain", "")
    assert 'File "' + str(ROOT / "dtrain") not in launched.output
    assert not (run.folder / "checkpoints").exists()


def test_a_changed_configuration_is_refused_and_shown(undisturbed: Run) -> None:
    launched = Lean(undisturbed.folder, undisturbed.shards, undisturbed).launch_alone(
        "--optimizer.learning_rate", "0.5"
    )
    assert launched.finish() != 0
    assert "optimizer.learning_rate: 0.001 → 0.5" in launched.output
