"""Weights and optimizer on this process: built from the seed or restored, and handed out to be saved."""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from dtrain.checkpoint import Checkpoint
from dtrain.config import Config
from dtrain.devices import settle_gradient_buckets
from dtrain.model import DepthMaskNet
from dtrain.optimizer import join_state, make_optimizer, split_state
from dtrain.update import Update
from shard_tools.errors import UserError


class Learner:
    """Every method is called by every process."""

    def __init__(self, config: Config, accelerator: Accelerator, checkpoint: Checkpoint | None) -> None:
        """Build everything as the configuration says; `checkpoint` is one of the same network and optimizer."""
        self._accelerator = accelerator
        set_seed(config.seed)
        module: nn.Module = DepthMaskNet(config.model.width)
        if config.sync_batch_norm:
            if accelerator.device.type == "cpu":
                raise UserError("sync_batch_norm: torch's works on GPUs only, and there is none here; leave it false")
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        self.module = module.to(accelerator.device)
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if checkpoint:
            self.module.load_state_dict(checkpoint.weights)
        optimizer = make_optimizer(config.optimizer, self.module.parameters())
        self.model, self.optimizer = accelerator.prepare(self.module, optimizer)
        if checkpoint:
            rest = checkpoint.state["optimizer"]
            self.optimizer.load_state_dict(join_state(checkpoint.optimizer, rest, self.module.parameters()))
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        settle_gradient_buckets(self.model, accelerator.device)
        self.update = Update(accelerator, self.module, self.optimizer)

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
        return Checkpoint(weights, tensors, state)
