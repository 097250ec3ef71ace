"""What is imported when, in a fresh interpreter: every process of a training waits for it at every resume."""

import subprocess
import sys

import pytest

NOT_BEFORE_THE_FIRST_STEP = {
    "torchmetrics": "1.5 s; the first evaluation imports it (dtrain.metrics)",
    "matplotlib": "0.5 s; torchmetrics imports it",
    "transformers": "0.5 s; torchmetrics imports it where it is installed",
    "torch._dynamo": "1 s; DDP and the optimizer import it, which is soon enough: a mistake is said before",
    "tensorboard": "0.1 s; the main process imports it when it opens the curves",
    "webdataset": "only data.loader webdataset needs it",
    "fsspec": "only shards behind a URL need it",
    "aiohttp": "only shards behind a URL need it",
}
WITHOUT_TORCH = {
    "torch": "1.5 s",
    "accelerate": "it imports torch",
    "pydantic": "0.1 s",
}


@pytest.mark.parametrize(
    ("module", "late"),
    [
        ("dtrain.loop", NOT_BEFORE_THE_FIRST_STEP),
        ("dtrain.cli", WITHOUT_TORCH | {"numpy": "0.1 s; --help needs none"}),
        ("dtrain.data.decode_process", WITHOUT_TORCH),
    ],
)
def test_what_is_imported_late_is_not_imported_early(module: str, late: dict[str, str]) -> None:
    program = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    imported = set(done.stdout.splitlines())
    assert module in imported
    early = {name: why for name, why in late.items() if name in imported}
    assert not early, f"`import {module}` now brings these, which cost time at every start: {early}"
