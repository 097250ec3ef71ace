"""The report of a run: what a reader of report.html sees, from run folders as a training writes them."""

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dtrain.panel_colours import depth_colours
from dtrain.report import goodput_line, write_report
from dtrain.report.album import MAX_FRAMES
from dtrain.report.chart import WIDTH, Mark, Series, line_chart, linear_ticks, log_ticks
from dtrain.report.curve import MAX_POINTS, Curve, Points
from dtrain.report.run_data import read_goodput, read_run
from shard_tools.errors import UserError

from .report_pages import BATCH, EPOCH_STEPS, SVG, T0, RunBuilder, pixels


@pytest.fixture
def run(tmp_path: Path) -> RunBuilder:
    return RunBuilder(tmp_path / "my-run")


@pytest.fixture
def whole_run(run: RunBuilder) -> RunBuilder:
    """Started on two processes, preempted, resumed on one past a broken checkpoint, finished, evaluated."""
    run.process_start = 0
    run.event(0, "start", 0, processes=2, device="cuda", accumulation=1, micro_batch=16)
    run.train(1, 40)
    run.event(3, "first_step", 1, began=2)
    run.event(5, "speed", 10, samples_per_second=64.0, data_wait=0.25)
    run.event(10, "checkpoint", 30, checkpoint="step-00000030", at=9, held_up=0.5, seconds=1)
    run.event(20, "preempted", 40, signal=15)
    run.process_start = 65
    run.event(70, "passed_over", 30, checkpoint="step-00000040", reason="weights cut short")
    run.event(
        70,
        "resume",
        30,
        checkpoint="step-00000030",
        stage=0,
        epoch=1,
        step=0,
        processes=1,
        device="cuda",
        accumulation=2,
        micro_batch=16,
        repeated_steps=10,
        written={"processes": 2, "device": "cuda", "host": "node-a", "torch": "2.8.0", "time": T0 + 9},
        changed=["data.workers: 2 → 4"],
    )
    run.train(31, 60)
    run.event(72, "first_step", 31, began=6)
    run.event(74, "save_failed", 34, reason="no space left on device")
    for step in (35, 36, 37):
        run.event(75, "nonfinite", step, count=step - 34)
    run.event(80, "speed", 60, samples_per_second=32.0, data_wait=0.5)
    run.evaluate(60, depth_mse=0.004, mask_iou=0.5)
    run.event(95, "evaluate", 60, seconds=8)
    run.event(100, "done", 60, seconds=30.0)
    run.status("done")
    run.panel(30)
    run.panel(60)
    (run.path / "evaluation.json").write_text(
        json.dumps(
            {
                "checkpoint": "step-00000060",
                "split": "test",
                "samples": 3840,
                "size": 64,
                "metrics": {"depth_mse": 0.002, "mask_iou": 0.9312, "mask_accuracy": 0.987, "strange": 12.5},
                "trivial": {
                    "mean depth": {"depth_mse": 0.05},
                    "all background": {"mask_iou": 0.0, "mask_accuracy": 0.86},
                },
            }
        )
    )
    return run


def test_the_page_tells_the_whole_story(whole_run: RunBuilder) -> None:
    page = whole_run.page()
    assert "my-run" in page.shown
    assert "done" in page.shown
    assert "0.931" in page.shown
    assert "4.0%" in page.shown, "depth MSE as a share of the variance"
    assert "1,920" in page.shown, "samples seen"
    assert "55 s" in page.shown, "20 s before and 35 s after the time away"
    assert "2 sessions, and 45 s away between them" in page.shown
    assert "2 sessions; preempted once; resumed once; 1 checkpoint passed over; 1 checkpoint written" in page.shown
    assert "width: 0.25" in page.shown


def test_results_stand_beside_the_trivial_predictors(whole_run: RunBuilder) -> None:
    page = whole_run.page()
    assert page.row("Depth MSE") == page.rows[page.rows.index(["Depth", "Model", "mean depth"]) + 1]
    assert [cell.split("mean")[0] for cell in page.row("Depth MSE")] == ["Depth MSE ↓", "0.00200", "0.05000"]
    assert ["Mask", "Model", "all background"] in page.rows
    assert page.row("Mask IoU")[1:] == ["0.9312", "0.0000"]
    assert page.row("Mask accuracy")[1:] == ["98.70%", "86.00%"]
    assert ["Other", "Model"] in page.rows
    assert page.row("strange") == ["strange", "12.5"]
    directions = [span["aria-label"] for span in page.attributes("span") if "aria-label" in span]
    assert directions == ["lower is better", "higher is better", "higher is better"]


def test_what_was_resumed_and_when(whole_run: RunBuilder) -> None:
    page = whole_run.page()
    detail = "2 processes × micro-batch 16 on cuda · first step after 2.0 s"
    assert page.row("Started") == ["2025-11-22 08:26:40", "Started", "0", detail]
    assert page.row("Preempted") == ["2025-11-22 08:27:00", "Preempted", "40", "by SIGTERM"]
    assert page.row("Checkpoint passed over")[3] == "step-00000040 · weights cut short"
    time, _, step, detail = page.row("Resumed")
    assert (time, step) == ("2025-11-22 08:27:50", "30")
    assert detail == (
        "from step-00000030 · stage 0, epoch 1, step 0 · "
        "written by 2 processes on cuda, host node-a, torch 2.8.0, 2025-11-22 08:26:49 UTC · 10 steps done again · "
        "accepted changes: data.workers: 2 → 4 · 1 process × 2 accumulated × micro-batch 16 on cuda · "
        "first step after 6.0 s"
    )
    assert page.row("Finished")[3] == "this session took 30 s"


def test_saves_that_failed_and_steps_that_were_skipped_are_events(whole_run: RunBuilder) -> None:
    page = whole_run.page()
    assert page.row("Checkpoint not written")[2:] == ["34", "no space left on device"]
    assert page.row("Step skipped")[2:] == [
        "35",
        "loss or gradient not finite · 3 in the run so far · 3 times in a row",
    ]


def test_where_the_time_went(whole_run: RunBuilder) -> None:
    page = whole_run.page()
    expected = {
        "Useful steps": ("28 s", 28.0),
        "Evaluating": ("8.0 s", 8.0),
        "Saving": ("0.5 s", 0.5),
        "Repeated": ("10 s", 10.5),
        "Starting and leaving": ("8.0 s", 8.0),
        "Away": ("45 s", 45.0),
    }
    assert {name: (page.row(name)[1], float(page.row(name)[2].rstrip("%"))) for name in expected} == expected
    (bar,) = [div for div in page.attributes("div") if div.get("class") == "bar"]
    assert bar["role"] == "img"
    assert bar["aria-label"].startswith("Useful steps 28.0%, Evaluating 8.0%, Saving 0.5%, ")
    widths = [float(span["style"].removeprefix("flex-grow:")) for span in page.attributes("span") if "style" in span]
    assert widths == pytest.approx([share / 100 for _, share in expected.values()])
    assert "Goodput28.0%useful, of 1 min 40 s in all" in "".join(line.strip() for line in page.shown.split("\n"))
    assert "2 sessions, 1 preemption, 10 steps repeated" in page.shown
    assert goodput_line(whole_run.path) == (
        "goodput 28.0% of 1 min 40 s; lost: 45.0% away, 10.5% repeated, 8.0% evaluating, 8.0% starting, 0.5% saving"
    )


def test_a_run_of_an_older_version_has_its_times_but_no_goodput(run: RunBuilder) -> None:
    run.train(1, 3)
    run.event(0, "start", 0)
    run.event(20, "preempted", 3, signal=15)
    run.event(70, "resume", 3, checkpoint="step-00000003")
    run.event(100, "done", 3)
    page = run.page()
    assert "50 s" in page.shown, "20 s before and 30 s after the time away"
    assert "2 sessions, and 50 s away between them" in page.shown
    assert "goodput can't be measured" in page.shown
    assert "Where the time went" not in page.shown
    assert read_goodput(run.path) is None


def test_torn_and_broken_lines_leave_the_goodput_of_the_others(whole_run: RunBuilder) -> None:
    before = read_goodput(whole_run.path)
    with (whole_run.path / "events.jsonl").open("a") as file:
        file.write('{"time": 1\n[]\n{"event": "speed", "upti')
    assert before is not None
    assert read_goodput(whole_run.path) == before
    assert "28.0%" in whole_run.page().shown


def test_a_resume_after_a_kill_says_that_no_notice_came(run: RunBuilder) -> None:
    run.train(1, 3)
    run.event(0, "start", 0)
    run.event(9, "passed_over", 1, checkpoint="step-00000002", reason="torn")
    run.event(9, "resume", 1, checkpoint="step-00000001")
    assert "after an end without notice" in run.page().row("Resumed")[3]


def test_nothing_is_asked_of_a_network_or_a_script(whole_run: RunBuilder) -> None:
    page = whole_run.page()
    assert not page.attributes("script")
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
                assert value.startswith("data:"), f"<{tag} {name}={value[:60]}>"
            assert not name.startswith("on"), f"<{tag} {name}>"
            assert "url(" not in value
    style = (whole_run.path / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    policy = next(meta["content"] for meta in page.attributes("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")


def test_the_latest_panel_is_inside_with_words_for_those_who_do_not_see_it(whole_run: RunBuilder) -> None:
    page = whole_run.page()
    latest = page.pictures()[0]
    with Image.open(whole_run.path / "panels" / "step-00000060.png") as original:
        assert latest.tobytes() == original.tobytes()
    assert "Step 60 · 1,920 samples" in page.attributes("img")[0]["alt"]
    assert "Step 60 · 1,920 samples" in page.shown
    assert all(image["alt"] for image in page.attributes("img"))


def test_a_strip_shows_what_was_predicted_when(run: RunBuilder) -> None:
    """Stages have different sizes of images, and so have their panels."""
    run.train(1, 30, size=32)
    run.train(31, 60, stage=1, epoch=0)
    levels = {30: 0.125, 45: 0.5, 60: 0.875}
    for step, level in levels.items():
        run.panel(step, size=32 if step == 30 else 64, level=level)
    page = run.page()
    assert ["Picture", "True", "Step 30, 32 px", "Step 45, 64 px", "Step 60, 64 px"] in page.rows
    shown = page.pictures_by_alt()
    for label, level in zip(("Step 30, 32 px", "Step 45, 64 px", "Step 60, 64 px"), levels.values(), strict=True):
        assert [pixels(picture) for picture in shown[f"depth, {label}"]] == [
            {tuple(depth_colours(np.array(level)))}
        ] * 2
        assert [pixels(picture) for picture in shown[f"mask, {label}"]] == [{(round(255 * level),) * 3}] * 2
    assert [pixels(picture) for picture in shown["true depth"]] == [{tuple(depth_colours(np.array(0.25)))}] * 2


def test_a_film_plays_the_strip_for_those_who_like_motion(run: RunBuilder) -> None:
    run.train(1, 60)
    levels = (0.125, 0.5, 0.875)
    for step, level in zip((20, 40, 60), levels, strict=True):
        run.panel(step, level=level)
    page = run.page()
    (film,) = page.pictures_by_alt()["The same as a film"]
    frames = np.split(np.asarray(film), 3)
    for frame, level in zip(frames, levels, strict=True):
        predicted = frame[64, (2 * film.width + film.width) // 5 - film.width // 10]
        assert tuple(predicted) == tuple(depth_colours(np.array(level)))
    style = (run.path / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    quiet, moving = style.split("@media (prefers-reduced-motion: no-preference)")
    assert "animation:" not in quiet
    assert "animation:" in moving
    assert any(box.get("type") == "checkbox" for box in page.attributes("input")), "it can be paused"


def test_panels_of_other_samples_stay_out_of_the_strip(run: RunBuilder) -> None:
    run.train(1, 60)
    run.panel(20, scene=1)
    run.panel(40)
    run.panel(60)
    page = run.page()
    assert ["Picture", "True", "Step 40, 64 px", "Step 60, 64 px"] in page.rows
    assert "1 panel of other samples than those of the last one; left out of the strip" in page.shown


def test_a_picture_that_is_no_panel_is_shown_whole_only(run: RunBuilder) -> None:
    run.train(1, 60)
    for step in (30, 60):
        run.panel(step)
        Image.new("RGB", (848, 1024), "white").save(run.path / f"panels/step-{step:08d}.png")
    page = run.page()
    assert [image["height"] for image in page.attributes("img")] == ["1024"]
    assert "panels/step-00000030.png: not a panel as this version draws them" in page.shown


def test_many_large_panels_are_thinned_and_capped(run: RunBuilder) -> None:
    run.train(1, 20)
    run.evaluation(
        worst=[{"key": "a", "metrics": {"mask_iou": 0.1}}], best=[{"key": "b", "metrics": {"mask_iou": 1.0}}]
    )
    first = run.noise_panel(1)
    for place in ("evaluation_worst.png", "evaluation_best.png", *(f"panels/step-{n:08d}.png" for n in range(2, 21))):
        (run.path / place).hardlink_to(first)
    page = run.page()
    (labels,) = [row for row in page.rows if row[:2] == ["Picture", "True"]]
    assert len(labels) == 2 + MAX_FRAMES
    assert (labels[2], labels[-1]) == ("Step 1, 64 px", "Step 20, 64 px")
    assert len(page.pictures()) == 1 + 2 * (1 + 2 * (1 + MAX_FRAMES)) + 1 + 2, "latest, strip, film, best and worst"
    assert (run.path / "report.html").stat().st_size < 5_000_000


def test_an_unreadable_panel_is_left_out_and_named(run: RunBuilder) -> None:
    run.train(1, 3)
    run.panel(1)
    run.panel(2)
    broken = run.path / "panels" / "step-00000002.png"
    broken.write_bytes(broken.read_bytes()[:100])
    page = run.page()
    assert "panels/step-00000002.png: not a readable picture" in page.shown
    assert not page.attributes("img"), "one panel is no series, and the latest is broken"


def test_charts_show_every_curve_and_mark(whole_run: RunBuilder) -> None:
    page = whole_run.page()
    headings = ["Training loss", "Parts of the loss", "Mask IoU", "Depth MSE", "Learning rate", "Throughput", "Waiting"]
    assert len(page.charts) == len(headings)
    for heading in headings:
        chart = page.chart(heading)
        kinds = [group.get("data-mark") for group in chart.iter(f"{SVG}g")]
        assert kinds == ["epoch", "epoch", "resume"]
        assert "epoch 1" in [text.text for text in chart.iter(f"{SVG}text")]
    resume = next(group for group in page.chart("Training loss").iter(f"{SVG}g") if group.get("data-mark") == "resume")
    assert resume.findtext(f"{SVG}title") == "resumed at step 30, 2025-11-22 08:27:50 UTC"
    epoch = list(page.chart("Training loss").iter(f"{SVG}g"))[1]
    place = [path.get("d", "").split(" ")[0] for group in (epoch, resume) for path in group.iter(f"{SVG}path")]
    assert place[0] == place[1], "resumed where epoch 1 begins"


def test_stages_are_marked_by_the_size_of_their_images(run: RunBuilder) -> None:
    run.train(1, 30, size=32)
    run.train(31, 60, stage=1, epoch=0)
    chart = run.page().chart("Training loss")
    assert [group.get("data-mark") for group in chart.iter(f"{SVG}g")] == ["stage", "stage"]
    assert {"32 px", "64 px"} <= {text.text for text in chart.iter(f"{SVG}text")}


def test_each_stage_has_its_losses_alone(run: RunBuilder) -> None:
    run.train(1, 30, size=32)
    run.train(31, 60, stage=1, epoch=0)
    page = run.page()
    for title, steps in (("Stage 0, 32 px", range(1, 31)), ("Stage 1, 64 px", range(1, 31))):
        dots = [dot.findtext(f"{SVG}title") or "" for dot in page.chart(title).iter(f"{SVG}circle")]
        places = [float(text.split(" at ")[1]) for text in dots if text.startswith("Loss:")]
        assert places == [float(step * BATCH) for step in steps]
    run.train(30, 30, size=32)
    assert "stage by stage" not in run.page().shown, "the run went back into the first stage, its only one now"


def test_losses_have_curves_whatever_they_are(run: RunBuilder) -> None:
    run.train(1, 5, depth_ssim_loss=0.5, mask_dice_loss=0.25, depth_strange=0.125, gradient_norm=2.0)
    page = run.page()
    legend = {text.text for text in page.chart("Parts of the loss").iter(f"{SVG}text")}
    assert {"Depth MSE", "Mask BCE", "Depth 1 − SSIM", "Mask 1 − Dice", "depth_strange"} <= legend
    assert not {"Gradient norm", "Learning rate", "gradient_norm", "learning_rate"} & legend
    dots = [dot.findtext(f"{SVG}title") for dot in page.chart("Gradient norm").iter(f"{SVG}circle")]
    assert len(dots) == 5
    assert all("2 at" in (dot or "") for dot in dots)


def test_what_was_evaluated_has_curves_in_groups(run: RunBuilder) -> None:
    run.train(1, 60)
    figures = {"depth_abs_rel": 0.25, "depth_delta1": 0.5, "depth_ssim": 0.75, "mask_f1": 0.875}
    run.evaluate(30, **figures)
    run.evaluate(60, **figures)
    page = run.page()
    for metric, title in (
        ("depth_abs_rel", "Depth AbsRel"),
        ("depth_delta1", "Depth δ1"),
        ("depth_ssim", "Depth SSIM"),
    ):
        dots = [dot.findtext(f"{SVG}title") for dot in page.chart(f"{title}, evaluated").iter(f"{SVG}circle")]
        assert dots == [f"test: {figures[metric]:g} at {place}" for place in (960, "1.92k")]
    assert (
        page.shown.index("Depth, evaluated") < page.shown.index("Mask, evaluated") < page.shown.index("Mask F1, eval")
    )


def test_it_says_what_was_run(run: RunBuilder) -> None:
    (run.path / "config.yaml").write_text(
        "model: {name: shrink, width: 0.25}\nloss: {scale: 10.0, depth: {mse: 1.0, ssim: 0.5}, mask: {bce: 1.0}}\n"
        "optimizer: {name: adamw, learning_rate: 0.002}\nschedule: {name: cosine, warmup_samples: 640}\n"
        "stages:\n- {size: 32, batch: 16, epochs: 2, samples: 2880, learning_rate: null}\n"
        "- {size: 64, batch: 8, steps: 500, learning_rate: 0.0005, loss_size: 128}\n- {size: 128, batch: 4}\n"
    )
    run.train(1, 30, size=32)
    run.train(31, 60, stage=1, epoch=0)
    run.event(0, "start", 0)
    for step, speed in ((10, 100.0), (20, 300.0), (40, 50.0)):
        run.event(step, "speed", step, samples_per_second=speed, data_wait=speed / 1000)
    run.evaluate(30, mask_iou=0.25)
    run.evaluate(60, mask_iou=0.75)
    page = run.page()
    for text in (
        "shrink, width 0.25",
        "10 × (Depth MSE + 0.5 × Depth SSIM loss + Mask BCE)",
        "warm-up over 640 samples",
    ):
        assert text in page.shown
    headings = ["Stage", "Image size", "Loss at", "Batch", "Epochs", "Steps", "Out of", "Learning rate"]
    headings += ["Samples/s", "Data wait", "IoU"]
    start = page.rows.index(headings)
    assert page.rows[start + 1 : start + 4] == [
        ["0", "32 px", "–", "16", "2", "–", "2,880", "–", "200", "20.0%", "0.2500"],
        ["1", "64 px", "128 px", "8", "–", "500", "–", "0.0005", "50", "5.0%", "0.7500"],
        ["2", "128 px", "–", "4", "–", "–", "–", "–", "–", "–", "–"],
    ]


@pytest.mark.parametrize("text", ["a: [", "- 1", "a: &a [*a]", "a: !!python/object:os.system {}", "\x00"])
def test_a_configuration_that_cannot_be_read_is_shown_as_it_is(run: RunBuilder, text: str) -> None:
    (run.path / "config.yaml").write_text(text)
    page = run.page()
    assert "config.yaml: not readable as a configuration" in page.shown
    assert text.strip("\x00") in page.shown


def test_backgrounds_stand_worst_first_and_the_best_ones_are_folded(run: RunBuilder) -> None:
    figures = {f"room-{n:02d}": {"mask_iou": (7 * n % 30) / 32, "depth_mse": n / 1000} for n in range(30)}
    run.evaluation(by_background={name: {"samples": 40, "metrics": metrics} for name, metrics in figures.items()})
    page = run.page()
    rows = [row for row in page.rows if row[0].startswith("room-")]
    expected = sorted(figures, key=lambda name: figures[name]["mask_iou"])
    assert rows == [
        [name, "40", "", f"{figures[name]['mask_iou']:.4f}", f"{figures[name]['depth_mse']:.5f}"] for name in expected
    ]
    assert "20 more backgrounds" in page.shown
    widths = [
        float(span["style"][6:-1]) for span in page.attributes("span") if span.get("style", "").startswith("width:")
    ]
    assert widths == sorted(widths)
    assert (widths[0], widths[-1]) == (0.0, 100.0)


def test_parts_are_ranked_as_the_evaluation_was(run: RunBuilder) -> None:
    parts = {"a": {"mask_iou": 0.1, "depth_rmse": 0.1}, "b": {"mask_iou": 0.9, "depth_rmse": 0.9}}
    run.evaluation(
        ranked_by="depth_rmse", by_background={name: {"samples": 4, "metrics": part} for name, part in parts.items()}
    )
    rows = [row for row in run.page().rows if row[0] in parts]
    assert rows == [["b", "4", "", "0.9000", "0.9000"], ["a", "4", "", "0.1000", "0.1000"]]


def test_figures_of_the_data_stand_apart(run: RunBuilder) -> None:
    run.evaluation(metrics={"depth_mse": 0.5, "depth_variance": 0.125, "mask_coverage": 0.0625})
    rows = run.page().rows
    start = rows.index(["The data", "Value"])
    assert [row[1] for row in rows[start + 1 : start + 3]] == ["0.12500", "6.25%"]
    assert not any(row[0] == "Mask" for row in rows)


def test_best_and_worst_samples_are_shown_and_named(run: RunBuilder) -> None:
    worst = [{"key": f"bad{n}", "metrics": {"mask_iou": n / 8, "depth_abs_rel": 0.5}} for n in range(3)]
    run.evaluation(worst=worst, best=[{"key": "good", "metrics": {"mask_iou": 1.0, "depth_abs_rel": 0.25}}])
    run.panel(1)
    (run.path / "panels/step-00000001.png").rename(run.path / "evaluation_worst.png")
    page = run.page()
    assert page.row("bad1") == ["bad1", "0.1250", "0.5000"]
    assert page.row("good") == ["good", "1.0000", "0.2500"]
    assert page.shown.index("Worst samples") < page.shown.index("bad0") < page.shown.index("Best samples")
    assert [image["alt"] for image in page.attributes("img")] == ["Contact sheet of the worst samples"]


def test_an_evaluation_of_unexpected_shape_is_shown_as_far_as_it_goes(run: RunBuilder) -> None:
    run.evaluation(
        trivial=[1],
        by_background={"a": 3, "b": {"metrics": []}, "c": {"metrics": {"mask_iou": math.nan}, "samples": "many"}},
        worst={"key": "x"},
        best=[7, {"key": None, "metrics": {"mask_iou": 0.5, "strange": "text"}}],
    )
    page = run.page()
    assert ["Mask", "Model"] in page.rows
    assert page.row("c")[2:] == ["nan"]
    assert page.row("None")[1:] == ["0.5000"]


def test_nothing_from_the_run_becomes_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    run = RunBuilder(tmp_path / "<img src=x onerror=alert(1)>")
    (run.path / "config.yaml").write_text(f"name: {evil}</pre>\n")
    run.train(1, 3, **{evil: 1.0})
    run.log(
        "metrics.jsonl",
        {"kind": "evaluate", "global_step": 3, "samples": 96, "split": evil, "metrics": {"mask_iou": 0.5, evil: 1}},
    )
    run.event(0, "start", 0, processes=evil, device=evil)
    run.event(1, "resume", 1, checkpoint=evil)
    run.event(2, evil, 2, reason=evil)
    run.status(evil, evil)
    page = run.page()
    assert not page.attributes("script")
    assert not page.attributes("img")
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.shown.count(evil) > 8, "shown as text"


def test_a_run_just_begun_gives_a_page(run: RunBuilder) -> None:
    page = run.page()
    assert "unknown" in page.shown
    assert "0 steps" in page.shown
    assert not page.charts
    assert not page.rows


def test_a_torn_last_line_is_ignored_and_other_damage_counted(whole_run: RunBuilder) -> None:
    with (whole_run.path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "stage": 0, "ep')
    assert "unreadable" not in whole_run.page().shown

    with (whole_run.path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train"\n[1]\n{"kind": "train", "samples": "many"}\n')
    with (whole_run.path / "events.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n")
    (whole_run.path / "evaluation.json").write_text("{")
    page = whole_run.page()
    assert "metrics.jsonl: 3 unreadable lines left out" in page.shown
    assert "events.jsonl: 1 unreadable line left out" in page.shown
    assert "evaluation.json: not readable" in page.shown
    assert page.row("Mask IoU")[1] == "0.5000", "falls back to the last evaluation while training"


def test_steps_done_again_replace_what_they_were(run: RunBuilder) -> None:
    run.train(1, 50, loss=9.0)
    run.train(21, 30, loss=1.0)
    data = read_run(run.path)
    assert (data.global_step, data.samples) == (30, 30 * BATCH)
    assert data.training["loss"].x == tuple(float(step * BATCH) for step in range(1, 31))
    assert data.training["loss"].y == (9.0,) * 20 + (1.0,) * 10
    assert [boundary.epoch for boundary in data.boundaries] == [0]


def test_between_logged_steps_an_evaluation_says_how_far_the_run_came(run: RunBuilder) -> None:
    for step in range(5, 31, 5):
        run.train(step, step)
    run.evaluate(33, mask_iou=0.5)
    run.panel(33)
    page = run.page()
    assert "1,056" in page.shown
    assert "step 33" in page.shown
    assert "Step 33 · 1,056 samples" in page.shown


def test_epochs_begin_where_they_do_though_not_every_step_is_logged(run: RunBuilder) -> None:
    for step in range(7, 61, 7):
        run.train(step, step)
    starts = [boundary.samples for boundary in read_run(run.path).boundaries]
    assert starts == [0, EPOCH_STEPS * BATCH]


def test_a_diverged_loss_is_said_and_left_open_in_the_curve(run: RunBuilder) -> None:
    run.train(1, 10)
    run.train(11, 12, loss=math.nan)
    run.train(13, 20)
    page = run.page()
    assert "loss was not a finite number in 2 training steps" in page.shown
    lines = [
        path for path in page.chart("Training loss").iter(f"{SVG}path") if "stroke-width:1.6" in path.get("style", "")
    ]
    assert len(lines) == 2


def test_a_skipped_step_is_a_step_without_figures(run: RunBuilder) -> None:
    run.train(1, 3)
    run.train(4, 4, kind="skipped", loss="nan", depth_mse="nan", mask_bce="inf")
    data = read_run(run.path)
    assert (data.global_step, data.samples) == (4, 4 * BATCH)
    assert data.training["loss"].x == (1.0 * BATCH, 2.0 * BATCH, 3.0 * BATCH)
    assert not data.notes


def test_long_logs_are_thinned_without_losing_spikes(run: RunBuilder) -> None:
    with (run.path / "metrics.jsonl").open("w") as file:
        for step in range(1, 8_001):
            loss = 50.0 if step == 5_432 else 1.0
            line = {"kind": "train", "global_step": step, "samples": step * BATCH, "loss": loss}
            file.write(json.dumps(line) + "\n")
    curve = read_run(run.path).training["loss"]
    assert MAX_POINTS // 3 <= len(curve.x) <= MAX_POINTS
    assert max(curve.high) == 50.0
    assert max(curve.y) < 5.0
    assert write_report([run.path]).stat().st_size < 60_000


def test_what_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        write_report([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"config\.yaml nor metrics\.jsonl"):
        write_report([tmp_path])
    assert not list(tmp_path.iterdir())


def test_the_report_replaces_the_last_one_and_leaves_nothing_beside_it(whole_run: RunBuilder) -> None:
    before = {path.name for path in whole_run.path.iterdir()}
    first = write_report([whole_run.path]).read_bytes()
    assert write_report([whole_run.path]).read_bytes() == first
    assert {path.name for path in whole_run.path.iterdir()} == before | {"report.html"}


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "y",
    [(), (0.0,), (3.0, 3.0), (-2.0, -2.0), (math.nan, math.inf), (1e-9, 1e9), (0.0, 1e-300), (-5.0, 0.0, 5.0)],
)
def test_any_values_make_a_well_formed_chart(y: tuple[float, ...], log: bool) -> None:
    points = Points(tuple(float(x) for x in range(len(y))), y, y, y)
    marks = [Mark(0.0, "stage", "a < b & c")]
    text = line_chart([Series("<b>", points)] * 9, title='"&<', x_label="<", y_label="&", marks=marks, log=log)
    chart = ET.fromstring(text)
    assert chart.get("aria-label") == '"&<'
    assert "nan" not in text
    assert "inf" not in text


def test_a_chart_puts_values_where_they_belong() -> None:
    y = (0.0, 10.0, 5.0)
    chart = ET.fromstring(
        line_chart([Series("s", Points((0.0, 50.0, 100.0), y, y, y))], title="t", x_label="x", y_label="y")
    )
    dots = [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in chart.iter(f"{SVG}circle")]
    assert dots[2][0] - dots[0][0] > 0.8 * WIDTH, "the chart fills its width"
    assert dots[1][0] == pytest.approx((dots[0][0] + dots[2][0]) / 2)
    assert dots[2][1] == pytest.approx((dots[0][1] + dots[1][1]) / 2)
    labels = {text.text: text for text in chart.iter(f"{SVG}text")}
    assert float(labels["10"].get("y", "")) == pytest.approx(dots[1][1] + 4)
    assert float(labels["100"].get("x", "")) == pytest.approx(dots[2][0])


def test_ticks_are_round_and_enclose_the_values() -> None:
    assert linear_ticks(0.0, 0.93, 5) == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert linear_ticks(-3.0, 17.0, 5) == (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
    assert log_ticks(0.003, 0.4) == (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    assert log_ticks(1e-6, 1.0) == tuple(10.0**power for power in range(-6, 1))


def test_a_thinned_curve_keeps_its_mean_and_spreads_points_evenly_over_x() -> None:
    curve = Curve(max_points=50)
    values = np.random.default_rng(0).random(5000)
    for index, value in enumerate(values):
        curve.add(float(index if index < 4000 else 4000 + 16 * (index - 4000)), value)
    points = curve.points()
    assert len(points.x) <= 50
    assert list(points.x) == sorted(set(points.x))
    gaps = np.diff(points.x)
    assert gaps[1:-1].max() < 2 * gaps[1:-1].min()
    assert np.mean(points.y) == pytest.approx(values.mean(), abs=0.05)
    assert points.at(-1.0) == points.y[0]
    assert points.at((points.x[3] + points.x[4]) / 2) == pytest.approx((points.y[3] + points.y[4]) / 2)
