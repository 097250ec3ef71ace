"""An exponential moving average of a network's weights, over samples seen. Knows nothing of optimizers or files."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """A copy of a network whose weights and BatchNorm statistics follow those of the original.

    Without bias towards the first weights: the factors of all states so far add up to 1, as in Adam
    (https://arxiv.org/abs/1412.6980, section 3).
    """

    def __init__(self, module: nn.Module, half_life: int) -> None:
        """`half_life`: samples after which the share of a state has halved."""
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self._half_life = half_life
        self._sum = 0.0

    @torch.no_grad()
    def take(self, module: nn.Module, samples: int) -> None:
        """Take in the state after a step with so many samples."""
        decay = 0.5 ** (samples / self._half_life)
        self._sum = decay * self._sum + 1 - decay
        share = (1 - decay) / self._sum
        averages: list[Tensor] = []
        states: list[Tensor] = []
        for average, state in zip(self.module.state_dict().values(), module.state_dict().values(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                states.append(state)
            else:
                average.copy_(state)
        torch._foreach_lerp_(averages, states, share)

    def state(self) -> dict[str, Any]:
        """What `load` needs besides the tensors of `module`; JSON."""
        return {"sum": self._sum}

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go on from what was saved."""
        self.module.load_state_dict(tensors)
        self._sum = state["sum"]
