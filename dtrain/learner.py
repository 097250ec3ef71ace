"""Weights and optimizer on this process: built from the seed or restored, and handed out to be saved."""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from dtrain.average import Average
from dtrain.checkpoint import Checkpoint
from dtrain.config import Config
from dtrain.devices import on_main_process, settle_gradient_buckets
from dtrain.init_from import init_weights
from dtrain.networks import make_network
from dtrain.optimizer import join_state, make_optimizer, split_state
from dtrain.update import Update
from shard_tools.errors import UserError


class Learner:
    """Every method is called by every process."""

    def __init__(self, config: Config, accelerator: Accelerator, checkpoint: Checkpoint | None) -> None:
        """Build everything as the configuration says, which has the last word; `checkpoint` is one of the same network.

        State that is not in the checkpoint, or that of an optimizer of another name, begins empty.
        """
        self._accelerator = accelerator
        set_seed(config.seed)
        module = make_network(config.model)
        if config.sync_batch_norm:
            if accelerator.device.type == "cpu":
                raise UserError("sync_batch_norm: torch's works on GPUs only, and there is none here; leave it false")
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        self.module = module.to(accelerator.device)
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if checkpoint:
            self.module.load_state_dict(checkpoint.weights)
        elif config.init_from is not None:
            place = config.init_from  # DDP hands on what the main process has
            on_main_process(accelerator, lambda: init_weights(self.module, place))
        optimizer = make_optimizer(config.optimizer, self.module)
        self.model, self.optimizer = accelerator.prepare(self.module, optimizer)
        if checkpoint and checkpoint.state["identity"]["optimizer.name"] == config.optimizer.name:
            rest = checkpoint.state["optimizer"]
            self.optimizer.load_state_dict(join_state(checkpoint.optimizer, rest, optimizer))
        if checkpoint and accelerator.scaler is not None and checkpoint.state["scaler"]:
            accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        settle_gradient_buckets(self.model, accelerator.device)
        self.average = None
        if config.optimizer.ema_half_life:
            self.average = Average(self.module, config.optimizer.ema_half_life)
            if checkpoint and checkpoint.average:
                self.average.load(checkpoint.average, checkpoint.state["average"])
        self.update = Update(accelerator, self.module, self.optimizer, config.optimizer.clip_norm)

    @property
    def judged(self) -> nn.Module:
        """The network that evaluations look at: the average of its weights where there is one."""
        return self.average.module if self.average else self.module

    def forget_optimizer_state(self) -> None:
        """As if no step had been made; the weights stay."""
        self.optimizer.state.clear()

    def set_learning_rate(self, learning_rate: float) -> None:
        """For the next update."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def checkpoint(self) -> Checkpoint:
        """What has to be saved, without the position; its tensors change with the next step."""
        scaler = self._accelerator.scaler
        tensors, rest = split_state(self.optimizer.state_dict())
        state = {"optimizer": rest, "scaler": scaler.state_dict() if scaler is not None else None}
        weights: dict[str, Tensor] = self.module.state_dict()
        if self.average is None:
            return Checkpoint(weights, tensors, state)
        state["average"] = self.average.state()
        return Checkpoint(weights, tensors, state, self.average.module.state_dict())
