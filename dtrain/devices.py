"""Devices and processes through Accelerate, and agreement between processes on what only one of them looked up."""

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list
from torch import nn

from dtrain.attempt import METHOD
from dtrain.config import Config
from dtrain.sizes import SIZE_DIVISOR
from dtrain.trackers import require_installed
from shard_tools.errors import UserError

Value = TypeVar("Value")

SLACK_SECONDS = 60.0

_MIXED_PRECISION = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}


def make_accelerator(config: Config) -> Accelerator:
    """CUDA where there is any, else CPU with gloo; one process for each that the launcher started.

    Raises UserError when there are more processes than GPUs on this machine, a precision that it hasn't, or a tracker
    that is not installed.
    """
    require_installed(config.log.trackers)
    cuda = torch.cuda.is_available()
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if cuda and local_processes > torch.cuda.device_count():
        raise UserError(
            f"{local_processes} processes were launched on a machine with {torch.cuda.device_count()} GPU(s); "
            f"launch with --num_processes {torch.cuda.device_count()}"
        )
    if config.precision == "fp16" and not cuda:
        raise UserError("precision: fp16 needs a GPU, and there is none here; use bf16 or float32")
    if config.precision == "bf16" and cuda and not torch.cuda.is_bf16_supported():
        raise UserError(f"precision: {torch.cuda.get_device_name()} has no bf16; use fp16 or float32")
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    return Accelerator(
        cpu=not cuda,
        mixed_precision=_MIXED_PRECISION[config.precision],
        log_with=list(config.log.trackers) or None,
        project_dir=str(config.run),
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            InitProcessGroupKwargs(init_method=METHOD, timeout=longest_wait(config)),
        ],
    )


def longest_wait(config: Config) -> timedelta:
    """How long processes wait for each other: the watchdog ends what stands still before, with a better message."""
    return timedelta(seconds=config.hang.first_step_seconds + config.data.patience_seconds + SLACK_SECONDS)


def explain(error: OSError) -> str:
    """A message for a file that can't be read or written."""
    return f"{error.filename or 'a file'}: {error.strerror}; mend that, then run the same command again"


def on_main_process(accelerator: Accelerator, function: Callable[[], Value]) -> Value:
    """Call `function` on the main process alone and return its (picklable) value on every process.

    A UserError it raises is raised on every process, and so is an OSError, as one.
    """
    outcome: list[Value | str | None] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = function()
        except UserError as error:
            outcome[1] = str(error)
        except OSError as error:
            outcome[1] = explain(error)
    value, message = broadcast_object_list(outcome)
    if message is not None:
        raise UserError(message)
    return value  # type: ignore[no-any-return]


def settle_gradient_buckets(model: nn.Module, device: torch.device) -> None:
    """Let DDP arrange its gradient buckets before the first real step, so that a resumed run sums in the same order.

    DDP rearranges them once, after the first backward pass since it was built. From three processes on, the place of
    a gradient in its bucket decides the order in which the processes' shares are added, and so the last bits: a run
    that is resumed would differ in its first step. One pass over zeros, which changes no state, comes before all.
    """
    if not dist.is_initialized():
        return
    model.eval()
    prediction = model(torch.zeros(1, 6, SIZE_DIVISOR, SIZE_DIVISOR, device=device))
    (prediction.depth.sum() + prediction.mask_logits.sum()).backward()
    model.zero_grad()
    model.train()


def is_lost_process(error: Exception) -> bool:
    """Whether an exchange broke off because another process is gone, which is no fault of this one.

    NCCL raises errors of torch.distributed; gloo's have no type of their own, but name the file they come from.
    """
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def broadcast_buffers(module: nn.Module) -> None:
    """Give every process the main process's BatchNorm statistics, the ones that a checkpoint holds."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


class ProcessError(UserError):
    """A mistake that this process alone has met, such as a damaged shard that only it reads."""


def report_user_error(error: UserError, program: str) -> None:
    """Print the message once: a `ProcessError` by its process, any other, which all have met, by the main process.

    The launcher ends all processes when the first one ends; the others wait a moment so that the message gets out.
    """
    if int(os.environ.get("RANK", "0")) == 0 or isinstance(error, ProcessError):
        print(f"{program}: {error}", file=sys.stderr, flush=True)
    else:
        time.sleep(2)
