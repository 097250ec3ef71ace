"""Several runs side by side: what a reader of comparison.html, or of the same as Markdown, sees."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dtrain.panel_colours import depth_colours
from dtrain.report import write_report
from dtrain.report.charts import comparison_charts
from dtrain.report.comparison import comparison_markdown, metric_tables, read_runs, unique_names
from dtrain.report.settings import differences
from shard_tools.errors import UserError

from .report_pages import BATCH, SVG, Page, RunBuilder, pixels

LOSS = "loss: {scale: 1.0, depth: {mse: 1.0}, mask: {bce: 1.0}}\n"
MakeRun = Callable[..., RunBuilder]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes a finished run of 60 steps with the figures given and the configuration given, if any."""

    def make(name: str, *, config: str = LOSS, folder: str = "runs", **figures: float) -> RunBuilder:
        (tmp_path / folder).mkdir(exist_ok=True)
        run = RunBuilder(tmp_path / folder / name)
        (run.path / "config.yaml").write_text(f"run: {run.path}\n{config}")
        run.process_start = 0
        run.event(0, "start", 0)
        run.event(1, "first_step", 1, began=1)
        run.train(1, 60)
        run.event(2, "speed", 60, samples_per_second=64.0, data_wait=0.25)
        run.event(4, "done", 60)
        run.status("done")
        if figures:
            run.evaluate(60, **figures)
        return run

    return make


def compare(*runs: RunBuilder, out: Path) -> Page:
    return Page(write_report([run.path for run in runs], out).read_text())


def test_the_best_figures_are_marked(make_run: MakeRun, tmp_path: Path) -> None:
    a = make_run("a", depth_mse=0.004, mask_iou=0.5, mask_bce=0.25)
    b = make_run("b", depth_mse=0.002, mask_iou=0.5, mask_bce=0.5)
    c = make_run("c", depth_mse=0.003, mask_iou=0.5)
    page = compare(a, b, c, out=tmp_path / "comparison.html")
    assert ["Depth", "a", "b", "c"] in page.rows
    assert page.row("MSE ↓") == ["MSE ↓", "0.00400", "0.00200 (best)", "0.00300"]
    assert page.row("IoU ↑") == ["IoU ↑", "0.5000", "0.5000", "0.5000"], "none is better than the others"
    assert page.row("BCE ↓") == ["BCE ↓", "0.2500 (best)", "0.5000", "–"]


def test_trivial_predictors_stand_after_the_runs(make_run: MakeRun, tmp_path: Path) -> None:
    figures = {"depth_mse": 0.004, "depth_variance": 0.125, "mask_iou": 0.5, "mask_coverage": 0.0625}
    runs = [make_run(name, **figures) for name in "ab"]
    page = compare(*runs, out=tmp_path / "comparison.html")
    assert ["Depth", "a", "b", "mean depth"] in page.rows
    assert page.row("MSE ↓") == ["MSE ↓", "0.00400", "0.00400", "0.12500"]
    page = compare(*runs, make_run("c", **figures | {"depth_variance": 0.25}), out=tmp_path / "comparison.html")
    assert ["Depth", "a", "b", "c", "mean depth (a)", "mean depth (c)"] in page.rows
    assert page.row("MSE ↓")[-2:] == ["0.12500", "0.25000"]


def test_many_runs_are_rows(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(f"run-{n}", config=f"seed: {n}\n", depth_mse=n / 8, mask_iou=0.5) for n in range(1, 8)]
    page = compare(*runs, out=tmp_path / "comparison.html")
    assert ["Run", "MSE ↓"] in page.rows
    start = page.rows.index(["Run", "MSE ↓"])
    assert page.rows[start + 1 : start + 3] == [["run-1", "0.12500 (best)"], ["run-2", "0.25000"]]
    assert page.rows[page.rows.index(["Run", "seed"]) + 7] == ["run-7", "7"]
    keys = {attributes["style"] for attributes in page.attributes("path") if "stroke-width:3" in attributes["style"]}
    assert len(keys) == 7, "each run is drawn in its own way"


def test_only_differing_keys_are_shown(make_run: MakeRun, tmp_path: Path) -> None:
    a = make_run("a", config="seed: 1\noptimizer: {name: adam, learning_rate: 0.002}\ninit_from: null\n")
    b = make_run("b", config="seed: 1\noptimizer: {name: sgd, learning_rate: 0.002, momentum: 0.5}\n")
    page = compare(a, b, out=tmp_path / "comparison.html")
    start = page.rows.index(["Key", "a", "b"])
    assert page.rows[start + 1 : start + 3] == [
        ["optimizer.name", "adam", "sgd"],
        ["optimizer.momentum", "–", "0.5"],
    ]
    shown = [row[0] for row in page.rows]
    assert not {"run", "seed", "optimizer.learning_rate", "init_from"} & set(shown)


def test_runs_of_the_same_configuration_say_so(make_run: MakeRun, tmp_path: Path) -> None:
    page = compare(make_run("a"), make_run("b"), out=tmp_path / "comparison.html")
    assert "None: the runs have the same configuration." in page.shown


def test_curves_are_overlaid_one_line_a_run(make_run: MakeRun, tmp_path: Path) -> None:
    a, b = make_run("a", mask_iou=0.25), make_run("b", mask_iou=0.75)
    page = compare(a, b, out=tmp_path / "comparison.html")
    dots = list(page.chart("Mask IoU, evaluated").iter(f"{SVG}circle"))
    assert [dot.findtext(f"{SVG}title") for dot in dots] == ["a: 0.25 at 1.92k", "b: 0.75 at 1.92k"]
    assert len({dot.get("style") for dot in dots}) == 2
    assert float(dots[0].get("cy", "")) > float(dots[1].get("cy", ""))
    page.chart("Loss, in training")
    page.chart("Throughput")


def test_weighted_losses_are_only_compared_where_they_are_the_same(make_run: MakeRun, tmp_path: Path) -> None:
    a, b = make_run("a"), make_run("b", config=LOSS.replace("scale: 1.0", "scale: 10.0"))
    page = compare(a, b, out=tmp_path / "comparison.html")
    titles = [chart.get("aria-label", "") for chart in page.charts]
    assert not any(title.startswith("Loss, in training") for title in titles)
    page.chart("Depth MSE, in training")
    assert "10 × (Depth MSE + Mask BCE)" in page.shown


def test_charts_for_other_pages_have_a_legend_of_their_own(make_run: MakeRun) -> None:
    runs = read_runs([make_run(name, mask_iou=0.5).path for name in ("equal", "double")])
    (chart,) = [chart for group in comparison_charts(runs) for chart in group.charts if "IoU" in chart.title]
    assert "equal</text>" in chart.svg
    assert "double</text>" in chart.svg


def test_last_panels_stand_beside_each_other_sample_by_sample(make_run: MakeRun, tmp_path: Path) -> None:
    a, b, other = make_run("a"), make_run("b"), make_run("other")
    a.panel(30, level=0.0)
    a.panel(60, level=0.25, size=32)
    b.panel(60, level=0.75, size=64)
    other.panel(60, scene=1)
    page = compare(a, b, other, out=tmp_path / "comparison.html")
    assert ["Picture", "True", "a", "b"] in page.rows
    shown = page.pictures_by_alt()
    assert [pixels(picture) for picture in shown["depth, a"]] == [{tuple(depth_colours(np.array(0.25)))}] * 2
    assert [pixels(picture) for picture in shown["mask, b"]] == [{(191, 191, 191)}] * 2
    assert "other: its panels are of other samples than those of a; left out" in page.shown


def test_figures_of_different_samples_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    a, b = make_run("a", mask_iou=0.5), make_run("b", mask_iou=0.5)
    b.evaluation(size=128)
    b.status("preempted")
    page = compare(a, b, out=tmp_path / "comparison.html")
    assert (
        "Not all figures are of the same samples, judged at the same size. a: test; b: test, 640 samples, judged at "
        "128 px." in page.shown
    )
    assert "Not finished: b (preempted)." in page.shown


def test_figures_of_networks_of_different_sizes_say_at_what_size_all_are_judged(
    make_run: MakeRun, tmp_path: Path
) -> None:
    stage = "stages:\n- {{size: 32}}\n- {{size: {}}}\n"
    runs = [make_run(name, config=stage.format(size)) for name, size in (("a", 64), ("b", 128), ("c", 64))]
    for run in runs:
        run.evaluation(size=128)
    ground = "Of test, 640 samples, judged at 128 px. Networks were trained last at 64 px: a, c; 128 px: b."
    page = compare(*runs, out=tmp_path / "comparison.html")
    assert ground in page.shown
    assert ground in comparison_markdown(read_runs([run.path for run in runs]))
    assert "Not all figures" not in page.shown


def test_time_and_throughput_are_beside_each_other(make_run: MakeRun, tmp_path: Path) -> None:
    a, b = make_run("a"), make_run("b")
    b.event(3, "speed", 60, samples_per_second=128.0, data_wait=0.75)
    page = compare(a, b, out=tmp_path / "comparison.html")
    heading = ["Run", "State", "Steps", "Samples", "Time running", "Sessions", "Goodput", "Samples/s", "Data wait"]
    start = page.rows.index(heading)
    row = ["done", "60", f"{60 * BATCH:,}", "4.0 s", "1", "75.0%"]
    assert page.rows[start + 1] == ["a", *row, "64", "25.0%"]
    assert page.rows[start + 2][:7] == ["b", *row]


def test_runs_that_have_hardly_begun_can_be_compared(make_run: MakeRun, tmp_path: Path) -> None:
    bare = RunBuilder(tmp_path / "bare")
    page = compare(make_run("a", mask_iou=0.5), bare, out=tmp_path / "comparison.html")
    assert page.row("IoU ↑") == ["IoU ↑", "0.5000", "–"]
    assert "bare (unknown)" in page.shown


def test_names_are_as_long_as_they_must_be() -> None:
    paths = [Path("/a/x/run"), Path("/a/y/run"), Path("/b/y/run"), Path("/b/y/other")]
    assert unique_names(paths) == ["x/run", "a/y/run", "b/y/run", "other"]


def test_folders_of_the_same_name_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("k10", folder=folder, mask_iou=0.5) for folder in ("first", "second")]
    page = compare(*runs, out=tmp_path / "comparison.html")
    assert ["Mask", "first/k10", "second/k10"] in page.rows


def test_a_run_is_not_compared_with_itself(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a")
    with pytest.raises(UserError, match="given twice"):
        write_report([run.path, run.path.parent / "." / "a"], tmp_path / "comparison.html")
    assert not (tmp_path / "comparison.html").exists()


def test_nothing_from_the_runs_becomes_markup(make_run: MakeRun, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>\"'&"
    quoted = json.dumps(evil)
    config = f"seed: {quoted}\n{quoted}: 1\n"
    a = make_run(evil, config=config, **{evil: 1.0, "mask_iou": 0.5})
    b = make_run("b", **{evil: 2.0, "mask_iou": 0.5})
    for run in (a, b):
        run.panel(60)
        run.train(61, 62, **{evil: 1.0})
        run.event(5, evil, 62)
    page = compare(a, b, out=tmp_path / "comparison.html")
    assert all(image["src"].startswith("data:") for image in page.attributes("img"))
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.shown.count(evil) > 6


def test_nothing_is_asked_of_a_network(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(name, mask_iou=0.5) for name in "ab"]
    for run in runs:
        run.panel(60)
    page = compare(*runs, out=tmp_path / "comparison.html")
    assert not page.attributes("script")
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:")
    style = (tmp_path / "comparison.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_of_many_runs_stays_small(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(f"run-{n}", mask_iou=n / 32) for n in range(24)]
    first = runs[0].noise_panel(60)
    for run in runs[1:]:
        (run.path / "panels").mkdir()
        (run.path / "panels/step-00000060.png").hardlink_to(first)
    page = compare(*runs, out=tmp_path / "comparison.html")
    assert len(page.pictures()) == 2 * (1 + 2 * 25)
    assert (tmp_path / "comparison.html").stat().st_size < 5_000_000


def test_markdown_says_the_same(make_run: MakeRun) -> None:
    a = make_run("a_b", depth_mse=0.004, depth_variance=0.125, mask_iou=0.5, mask_coverage=0.0625)
    b = make_run("c|d", config=LOSS.replace("mse: 1.0", "mse: 2.0"), depth_mse=0.002, mask_iou=0.75)
    text = comparison_markdown(read_runs([a.path, b.path]), ["mask_iou", "depth_mse"]).replace(
        "\N{NO-BREAK SPACE}", " "
    )
    lines = text.splitlines()
    assert r"| Key | a\_b | c\|d |" in lines
    assert "| loss.depth.mse | 1 | 2 |" in lines
    assert lines[lines.index("### Depth") + 2 :][:4] == [
        "| Run | MSE ↓ |",
        "| --- | ---: |",
        r"| a\_b | 0.00400 |",
        r"| c\|d | **0.00200** |",
    ]
    assert "| *mean depth* | 0.12500 |" in lines
    assert r"| c\|d | **0.7500** |" in lines
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_every_figure_shown_is_in_the_files(make_run: MakeRun) -> None:
    figures = {"depth_mse": 0.00412, "mask_iou": 0.53125, "strange": 12.5}
    halves = {name: value / 2 for name, value in figures.items()}
    tables = metric_tables(read_runs([make_run("a", **figures).path, make_run("b", **halves).path]))
    assert [(table.title, [[cell.text for cell in row.cells] for row in table.rows]) for table in tables] == [
        ("Depth", [["0.00412"], ["0.00206"]]),
        ("Mask", [["0.5312"], ["0.2656"]]),
        ("Other", [["12.5"], ["6.25"]]),
    ]


def test_differences_take_null_for_missing() -> None:
    assert differences([{"a": None, "b": 1}, {"b": 1}]) == []
    (row,) = differences([{"a": 1}, {"a": 1.5}, {}])
    assert (row.key, row.values) == ("a", ["1", "1.5", "–"])


def test_the_command_compares_runs_and_says_where(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [str(make_run(name, mask_iou=0.5).path) for name in "ab"]
    command = [sys.executable, "-m", "dtrain", "report", *runs]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, "comparison.html\n"), result.stderr
    assert [line.split(": goodput ")[0] for line in result.stderr.splitlines()] == runs
    assert "Comparison of 2 runs" in (tmp_path / "comparison.html").read_text()
    assert not list((tmp_path / "runs").rglob("*.html"))


def test_a_place_that_cannot_be_written_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(name).path for name in "ab"]
    with pytest.raises(UserError, match=r"nowhere/page\.html: No such file or directory; expected a place"):
        write_report(runs, tmp_path / "nowhere" / "page.html")
