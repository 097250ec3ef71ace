"""The report: what a reader of report.html sees, from run folders as a training writes them."""

import base64
import html.parser
import io
import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dtrain.report import goodput_line, write_report
from dtrain.report.chart import WIDTH, Mark, Series, line_chart, linear_ticks, log_ticks
from dtrain.report.curve import MAX_POINTS, Curve, Points
from dtrain.report.pictures import MAX_FRAMES
from dtrain.report.run_data import read_goodput, read_run
from shard_tools.errors import UserError

BATCH = 32
EPOCH_STEPS = 30
T0 = 1763800000.0  # 2025-11-22 08:26:40 UTC
SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "link", "img", "br"}


class Page(html.parser.HTMLParser):
    """What is in a page: its elements with attributes, the text that is shown, cells by row, charts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.shown = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, "elements left open"
        self.charts = [ET.fromstring(part[: part.index("</svg>") + 6]) for part in _split_svg(text)]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"unexpected </{tag}>"

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        data = data.replace("\N{NO-BREAK SPACE}", " ")
        self.shown += data
        if "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def row(self, start: str) -> list[str]:
        """Return the one row that has a cell beginning with `start`."""
        (found,) = [row for row in self.rows if any(cell.startswith(start) for cell in row)]
        return found

    def pictures(self) -> list[Image.Image]:
        prefixes = ("data:image/png;base64,", "data:image/jpeg;base64,")
        pictures: list[Image.Image] = []
        for image in self.attributes("img"):
            assert image["src"].startswith(prefixes)
            picture = Image.open(io.BytesIO(base64.b64decode(image["src"].split(",", 1)[1], validate=True)))
            picture.load()
            assert picture.size == (int(image["width"]), int(image["height"]))
            pictures.append(picture)
        return pictures

    def chart(self, title: str) -> ET.Element:
        (found,) = [chart for chart in self.charts if chart.get("aria-label", "").startswith(title)]
        return found


def _split_svg(text: str) -> list[str]:
    return ["<svg" + part for part in text.split("<svg")[1:]]


class RunBuilder:
    """Writes a run folder line by line, as a training does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process_start: float | None = None
        path.mkdir()
        (path / "config.yaml").write_text("seed: 0\nmodel:\n  width: 0.25\n")

    def log(self, name: str, line: Mapping[str, object]) -> None:
        with (self.path / name).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def train(self, first: int, last: int, **changes: object) -> None:
        """Log the steps first to last, both included."""
        for step in range(first, last + 1):
            epoch = (step - 1) // EPOCH_STEPS
            depth_mse, mask_bce = 0.05 / step, 0.5 / step
            line = {
                "kind": "train",
                "stage": 0,
                "epoch": epoch,
                "step": step - epoch * EPOCH_STEPS,
                "global_step": step,
                "samples": step * BATCH,
                "size": 64,
                "learning_rate": 0.002,
                "loss": depth_mse + mask_bce,
                "depth_mse": depth_mse,
                "mask_bce": mask_bce,
            }
            self.log("metrics.jsonl", line | changes)

    def evaluate(self, step: int, **metrics: float) -> None:
        line = {"kind": "evaluate", "stage": 0, "epoch": 0, "global_step": step, "samples": step * BATCH}
        self.log("metrics.jsonl", {**line, "split": "test", "metrics": metrics})

    def event(self, after: float, event: str, global_step: int, **details: object) -> None:
        """Log an event, `after` seconds from the start, with the uptime of the process once that is known."""
        uptime = {} if self.process_start is None else {"uptime": after - self.process_start}
        self.log("events.jsonl", {"time": T0 + after, **uptime, "event": event, "global_step": global_step, **details})

    def status(self, state: str, reason: str = "") -> None:
        (self.path / "status.json").write_text(json.dumps({"state": state, "reason": reason, "global_step": 60}))

    def panel(self, step: int, size: tuple[int, int] = (60, 40)) -> None:
        folder = self.path / "panels"
        folder.mkdir(exist_ok=True)
        noise = np.random.default_rng(step).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"step-{step:08d}.png")

    def page(self) -> Page:
        return Page(write_report(self.path).read_text())


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
    assert page.row("Metric") == ["Metric", "Model", "mean depth", "all background"]
    assert page.row("Depth MSE")[1:] == ["0.00200", "0.05000", "–"]
    assert page.row("Mask IoU")[1:] == ["0.9312", "–", "0.0000"]
    assert page.row("Mask accuracy")[1:] == ["98.70%", "–", "86.00%"]
    assert page.row("strange") == ["strange", "12.5", "–", "–"]
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


def test_pictures_are_inside_with_words_for_those_who_do_not_see_them(whole_run: RunBuilder) -> None:
    page = whole_run.page()
    latest, first, last = page.pictures()
    for picture, step in ((latest, 60), (first, 30), (last, 60)):
        with Image.open(whole_run.path / "panels" / f"step-{step:08d}.png") as original:
            assert picture.tobytes() == original.tobytes()
    assert all(f"step {step}" in image["alt"] for image, step in zip(page.attributes("img"), (60, 30, 60), strict=True))
    assert "Step 30 · 960 samples" in page.shown


def test_many_large_panels_are_thinned_and_capped(run: RunBuilder) -> None:
    run.train(1, 20)
    run.panel(1, size=(1000, 800))
    for step in range(2, 11):
        (run.path / f"panels/step-{step:08d}.png").hardlink_to(run.path / "panels/step-00000001.png")
    page = run.page()
    steps = [int(image["alt"].split("step ")[1].split(":")[0]) for image in page.attributes("img")]
    assert len(steps) == 1 + MAX_FRAMES
    assert steps[0] == steps[-1] == 10
    assert steps[1] == 1
    assert sorted(set(steps[1:])) == steps[1:]
    page.pictures()
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
    assert write_report(run.path).stat().st_size < 60_000


def test_what_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.yaml nor metrics\.jsonl"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_report_replaces_the_last_one_and_leaves_nothing_beside_it(whole_run: RunBuilder) -> None:
    before = {path.name for path in whole_run.path.iterdir()}
    first = write_report(whole_run.path).read_bytes()
    assert write_report(whole_run.path).read_bytes() == first
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
