"""Everything that needs a GPU, checked and measured by one command in under 9 minutes: `make bench-gpu`.

Checks: the network gives on the GPU what it gives on the CPU; a run on the GPU through the real launcher is preempted
by SIGTERM, resumes, and ends with the samples that an undisturbed one saw and, deterministic algorithms switched on,
with the same bytes; one moves to the CPU and back; with BatchNorm over the global batch, one and several GPUs learn the
same. Measures: training steps per size and precision, the loader alone, both together, and steps beside a save.
`--device cpu --quick` tries the command itself without a GPU.
"""

import argparse
import json
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from bench.dataset import FOLDER, tree_and_shards
from bench.ours import Ours
from bench.saving import measure as measure_saving
from bench.step import overhead, timed, training_step
from dtrain.data.loader import HostBatch, to_device
from dtrain.model import DepthMaskNet

WRITE_UP_BATCHES = {32: 1024, 64: 256, 128: 64, 256: 16}
MAX_LOADED = 256
"""The largest batch that is loaded here: there are 2,160 tuples."""
LAUNCH_TIMEOUT = 150.0
BATCH = 16
LAUNCHER, CPU_LAUNCHER = "accelerate_config.yaml", "launch/accelerate/cpu.yaml"

Report = dict[str, Any]


def check_parity(device: torch.device) -> Report:
    """Largest relative difference ‖GPU − CPU‖ / ‖CPU‖ of depth and mask logits, float32 without TF32."""
    torch.manual_seed(0)
    module = DepthMaskNet(0.5).eval()
    images = torch.rand(4, 6, 64, 64)
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        expected = module(images)
        found = module.to(device)(images.to(device))
    torch.backends.cudnn.allow_tf32 = tf32
    errors = [float((f.cpu() - e).norm() / e.norm()) for f, e in zip(found, expected, strict=True)]
    return {"relative_error": max(errors), "ok": max(errors) < 1e-4}


def check_sync_batch_norm(shards: Path, gpus: int) -> Report:
    """Largest relative difference of the loss in any step, one GPU against all, BatchNorm over the global batch."""
    if gpus < 2:
        return {"gpus": gpus, "ok": True, "checked": "no: it takes two GPUs or more"}
    folder = _emptied(FOLDER / "gpu-sync")
    options = ["--sync_batch_norm", "true", "--stages.0.epochs", "1"]
    config = _write_config(folder, shards, steps=40, width=0.25)
    for processes in (1, gpus):
        _launch(config, folder / str(processes), processes, *options).wait(LAUNCH_TIMEOUT)
    one, several = (_losses(folder / str(processes)) for processes in (1, gpus))
    error = max(abs(a - b) / abs(a) for a, b in zip(one, several, strict=True))
    return {"gpus": gpus, "steps": len(one), "relative_error": error, "ok": error < 1e-2, "checked": "yes"}


def check_interruptions(shards: Path, processes: int, *, steps: int, width: float) -> dict[str, Report]:
    """A run that is preempted, and one that moves, against an undisturbed one of epochs of so many steps."""
    folder = _emptied(FOLDER / "gpu-runs")
    config = _write_config(folder, shards, steps=steps, width=width)
    untouched = folder / "untouched"
    _launch(config, untouched, processes).wait(LAUNCH_TIMEOUT)
    return {
        "preemption": _preempt(config, folder / "taken", untouched, processes, steps),
        "moves": _move(config, folder / "moved", untouched, processes, steps),
    }


def _preempt(config: Path, taken: Path, untouched: Path, processes: int, steps: int) -> Report:
    """Launch, SIGTERM in the second epoch, launch again; the samples of every step, and the bytes in the end."""
    leaving = _stop(_launch(config, taken, processes), taken, after=steps + steps // 2)
    stopped = json.loads((taken / "status.json").read_text())
    again = time.monotonic()
    _launch(config, taken, processes).wait(LAUNCH_TIMEOUT)
    final = json.loads((taken / "status.json").read_text())
    same = _audit(taken) == _audit(untouched)
    same_bytes = _final(taken) == _final(untouched)
    return {
        "stopped_at_step": stopped["global_step"],
        "seconds_to_leave": leaving,
        "seconds_to_resume_and_finish": time.monotonic() - again,
        "same_samples_in_every_step": same,
        "same_bytes_in_the_end": same_bytes,
        "ok": same and same_bytes and stopped["state"] == "preempted" and final["state"] == "done",
    }


def _move(config: Path, moved: Path, untouched: Path, processes: int, steps: int) -> Report:
    """From the GPU to the CPU and back, a few steps on each.

    The relative difference is that of the losses of the first epoch, of which a part is done on each.
    """
    _stop(_launch(config, moved, processes), moved, after=steps // 3)
    _stop(_launch(config, moved, 1, launcher=CPU_LAUNCHER), moved, after=steps // 3)
    _launch(config, moved, processes).wait(LAUNCH_TIMEOUT)
    events = map(json.loads, (moved / "events.jsonl").read_text().splitlines())
    devices = [event["device"] for event in events if event["event"] in ("start", "resume")]
    pairs = zip(_losses(untouched)[:steps], _losses(moved)[:steps], strict=True)
    same = _audit(moved) == _audit(untouched)
    done = json.loads((moved / "status.json").read_text())["state"] == "done"
    return {
        "devices": " → ".join(devices),
        "same_samples_in_every_step": same,
        "relative_difference_of_losses": max(abs(a - b) / abs(a) for a, b in pairs),
        "ok": same and done and len(devices) == 3,
    }


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _stop(launched: "subprocess.Popen[bytes]", run: Path, *, after: int) -> float:
    """Tell a training to stop once it has logged so many more steps; how long it took to leave, in seconds."""
    deadline = time.monotonic() + LAUNCH_TIMEOUT
    until = _logged_steps(run) + after
    while _logged_steps(run) < until and launched.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    launched.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    launched.wait(LAUNCH_TIMEOUT)
    return time.monotonic() - asked


def _write_config(folder: Path, shards: Path, *, steps: int, width: float) -> Path:
    """A run of 12 epochs of so many steps."""
    path = folder / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "run": str(folder / "run"),
                "data": {"manifest": str(shards)},
                "model": {"width": width},
                "deterministic": True,
                "stages": [{"size": 32, "batch": BATCH, "epochs": 12, "samples": BATCH * steps}],
                "evaluate": {"samples": 32, "every_epochs": 6},
                "log": {"every_steps": 1, "audit": True},
            }
        )
    )
    return path


def _launch(
    config: Path, run: Path, processes: int, *options: str, launcher: str = LAUNCHER
) -> "subprocess.Popen[bytes]":
    launch = ["-m", "accelerate.commands.launch", "--config_file", launcher, "--num_processes", str(processes)]
    train = ["-m", "dtrain", "train", str(config), "--run", str(run), *options]
    with run.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([sys.executable, *launch, *train], stdout=log, stderr=subprocess.STDOUT)


def measure_steps(device: torch.device, batches: dict[int, int], width: float, repeats: int) -> list[Report]:
    """Median seconds of a training step (forward, loss, backward, AdamW) on data that is already there."""
    rows = []
    for size, batch in batches.items():
        for precision in ("float32", "bf16"):
            step = training_step(device, width, size, precision)
            generator = torch.Generator().manual_seed(0)
            bg, fgbg, depth, mask = (
                torch.randint(0, 256, (batch, size, size, channels), dtype=torch.uint8, generator=generator)
                for channels in (3, 3, 1, 1)
            )
            moved = to_device(HostBatch([], bg, fgbg, depth, mask), device, size)
            seconds = timed(lambda step=step, moved=moved: step(moved), device, repeats)  # type: ignore[misc]
            rows.append(
                {
                    "size": size,
                    "batch": batch,
                    "precision": precision,
                    "seconds": seconds,
                    "per_second": batch / seconds,
                }
            )
    return rows


def measure_loader(device: torch.device, shards: Path, batches: dict[int, int], workers: list[int]) -> list[Report]:
    """Tuples per second of the loader alone, up to pinned memory."""
    rows = []
    for size, batch in batches.items():
        for count in workers:
            loader = Ours(shards, size=size, workers=count, device=device)
            began = time.perf_counter()
            loaded = loader.epochs(min(batch, MAX_LOADED))()
            rows.append({"size": size, "workers": count, "per_second": loaded / (time.perf_counter() - began)})
            loader.close()
    return rows


def measure_together(
    device: torch.device, shards: Path, batches: dict[int, int], width: float, workers: int, steps: int
) -> list[Report]:
    """A bf16 step with the loader beside it, against the same step on batches that are already there."""
    return [
        overhead(
            str(shards),
            device=device.type,
            size=size,
            batch=min(batch, MAX_LOADED),
            width=width,
            precision="bf16",
            workers=workers,
            steps=steps,
            rounds=3,
        )
        for size, batch in batches.items()
    ]


def print_rows(title: str, rows: list[Report]) -> None:
    print(f"\n### {title}\n")
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        cells = [f"{value:,.4g}" if isinstance(value, float) else str(value) for value in row.values()]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the command (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="small sizes, one repeat: no figures to be quoted")
    parser.add_argument("--json", type=Path, default=FOLDER / "gpu.json", help="write the figures here")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("bench.gpu: torch sees no GPU here; run it on a machine with one, or try it with --device cpu --quick")
        return 1
    began = time.monotonic()
    device = torch.device(arguments.device)
    quick = arguments.quick
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    print(f"{name}, torch {torch.__version__}, Python {platform.python_version()}", flush=True)
    batches = {16: 8, 32: 4} if quick else WRITE_UP_BATCHES
    width, repeats = (0.0625, 1) if quick else (1.0, 10)
    _, shards = tree_and_shards(32 if quick else 256, **({"backgrounds": 4, "foregrounds": 1} if quick else {}))
    processes = max(torch.cuda.device_count(), 1)
    result: Report = {"device": name, "torch": torch.__version__}
    result["parity"] = check_parity(device)
    print_rows("Check: same network on CPU", [result["parity"]])
    result |= check_interruptions(shards, processes, steps=6 if quick else 40, width=min(width, 0.25))
    print_rows("Check: preempted and resumed through the launcher", [result["preemption"]])
    print_rows("Check: from the GPU to the CPU and back", [result["moves"]])
    result["sync_batch_norm"] = check_sync_batch_norm(shards, torch.cuda.device_count())
    print_rows("Check: BatchNorm over the global batch", [result["sync_batch_norm"]])
    with tempfile.TemporaryDirectory() as folder:
        result["saving"] = measure_saving(
            device,
            width=width,
            size=32 if quick else 256,
            batch=4 if quick else 16,
            rounds=1 if quick else 5,
            folder=Path(folder) / "checkpoints",
        )
    print_rows("Steps beside a save, relative to steps without one", [result["saving"]])
    result["steps"] = measure_steps(device, batches, width, repeats)
    print_rows(f"Training step, width {width}", result["steps"])
    result["loader"] = measure_loader(device, shards, batches, [1, 2] if quick else [1, 2, 4, 8])
    print_rows("Loader alone", result["loader"])
    result["together"] = measure_together(device, shards, batches, width, 2 if quick else 8, 2 if quick else 20)
    print_rows(
        "Step on batches that are there, and how much longer with the loader beside it, bf16", result["together"]
    )
    result["seconds"] = time.monotonic() - began
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    passed = all(result[check]["ok"] for check in ("parity", "preemption", "moves", "sync_batch_norm"))
    print(f"\n{'all checks passed' if passed else 'A CHECK FAILED'}; {result['seconds']:.0f} s; {arguments.json}")
    return 0 if passed else 1


def _logged_steps(run: Path) -> int:
    try:
        return len((run / "metrics.jsonl").read_text().splitlines())
    except FileNotFoundError:
        return 0


def _losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def _final(run: Path) -> list[bytes]:
    """Weights and optimizer's state of the newest checkpoint."""
    newest = max((run / "checkpoints").iterdir())
    return [(newest / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")]


def _audit(run: Path) -> dict[tuple[int, int], list[str]]:
    """The keys of every step, from all processes."""
    batches: dict[tuple[int, int], list[str]] = {}
    for path in sorted((run / "audit").glob("rank-*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            keys = batches.setdefault((line["epoch"], line["step"]), [])
            keys += [key for key in line["keys"] if key not in keys]
    return batches


if __name__ == "__main__":
    raise SystemExit(main())
