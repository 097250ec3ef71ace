"""What a network is made of and what a tuple costs in it, counted from shapes: without weights, data or a device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dtrain.config import Config
from dtrain.networks import make_network
from shard_tools.errors import UserError

_BATCH = 2
"""BatchNorm takes no statistics of a single pixel, to which the smallest images shrink."""
_NAMES = {"cat": "concatenate", "max_pool2d_with_indices": "max pool", "upsample_nearest2d": "upsample"}
_MEGA, _GIGA, _KIB, _MIB = 1e6, 1e9, 2**10, 2**20


@dataclass
class Layer:
    """A block of the network, or an operation between two, as one tuple sees it."""

    name: str
    """As in the weights' names; empty for what has none."""
    operation: str
    shape: tuple[int, ...] = ()
    """(C, H, W) of its output."""
    parameters: int = 0
    field: float = 1
    """Receptive field: side in pixels of the square of the input that decides one pixel of the output, by the longest
    path, and by convolutions and pooling alone. After an upsampling a mean over pixels: their squares differ there."""
    flops: int = 0
    """Of the forward pass; a multiplication and an addition are two."""
    kept: int = 0
    """Bytes of feature maps that it makes and autograd keeps for the backward pass, in float32."""


@dataclass(frozen=True)
class Summary:
    """A network at one image size."""

    layers: tuple[Layer, ...]
    """In the order in which they are computed; the first is the input."""
    training_flops: int
    """Forward and backward pass; without the loss and the optimizer, which are small beside them."""

    @property
    def parameters(self) -> int:
        """What a training changes."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def forward_flops(self) -> int:
        """Of a prediction."""
        return sum(layer.flops for layer in self.layers)

    @property
    def kept(self) -> int:
        """Bytes a tuple that a training step holds at once for the backward pass, in float32."""
        return sum(layer.kept for layer in self.layers)


def summarize(network: nn.Module, size: int) -> Summary:
    """Count what one tuple of size×size pixels costs in `network`, which is on the meta device and in training mode.

    FLOPs are those of convolutions and matrix products, as `torch.utils.flop_counter` counts them. Feature maps are
    what autograd saves, each storage once; parameters and statistics of a batch are none.
    """
    images = torch.empty(_BATCH, 6, size, size, device="meta")
    counter = FlopCounterMode(display=False)
    recorder = _Recorder(network, images, counter)
    saved: dict[StorageWeakRef, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage in recorder.makers and tensor.dim() == images.dim():
            saved[storage] = tensor.untyped_storage().nbytes() // _BATCH
        return tensor

    with counter:
        with recorder, saved_tensors_hooks(keep, lambda tensor: tensor):
            prediction = network(images)
        torch.autograd.backward(list(prediction), [torch.empty_like(output) for output in prediction])
    for storage, size_in_bytes in saved.items():
        recorder.makers[storage].kept += size_in_bytes
    return Summary(tuple(recorder.layers), counter.get_total_flops() // _BATCH)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the forward pass: which layer makes which tensor, and from how much of the input."""

    def __init__(self, network: nn.Module, images: Tensor, counter: FlopCounterMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers = [Layer("", "input", tuple(images.shape[1:]))]
        self.makers = {_storage(images): self.layers[0]}
        self._fields: dict[StorageWeakRef, float] = {_storage(images): 1}
        self._side = images.shape[-1]
        self._counter = counter
        self._block: Layer | None = None
        self._hooks = [
            hook
            for name, block in network.named_children()
            for hook in (
                block.register_forward_pre_hook(lambda block, _, name=name: self._enter(name, block)),
                block.register_forward_hook(lambda *_: self._leave()),
            )
        ]

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = self._counter.get_total_flops()
        results = func(*args, **(kwargs or {}))
        sources = [tensor for tensor in _tensors(args) if _storage(tensor) in self._fields]
        if sources:
            operation = func.overloadpacket.__name__
            layer = self._block or self._new(Layer("", _NAMES.get(operation, operation)))
            layer.flops += (self._counter.get_total_flops() - before) // _BATCH
            distance = self._side / sources[0].shape[-1]
            widest = max(self._fields[_storage(source)] for source in sources)
            layer.field = widest + (_kernel(operation, args) - 1) * distance
            layer.shape = tuple(next(_tensors(results)).shape[1:])
            for result in _tensors(results):
                self.makers[_storage(result)] = layer
                self._fields[_storage(result)] = layer.field
        return results

    def _enter(self, name: str, block: nn.Module) -> None:
        parameters = sum(parameter.numel() for parameter in block.parameters())
        self._block = self._new(Layer(name, _describe(block), parameters=parameters))

    def _leave(self) -> None:
        self._block = None

    def _new(self, layer: Layer) -> Layer:
        self.layers.append(layer)
        return layer


def _storage(tensor: Tensor) -> StorageWeakRef:
    """What tells a tensor's memory from any other's, also after it is freed."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _kernel(operation: str, args: tuple[Any, ...]) -> int:
    """Side of the window that one pixel of the result is made from."""
    match operation:
        case "convolution":
            return int(args[1].shape[-1])
        case "max_pool2d_with_indices":
            return int(args[1][-1])
        case _:
            return 1


def _describe(block: nn.Module) -> str:
    leaves = [module for module in block.modules() if not list(module.children())]
    return ", ".join(
        f"Conv2d {leaf.kernel_size[0]}×{leaf.kernel_size[1]}" if isinstance(leaf, nn.Conv2d) else type(leaf).__name__
        for leaf in leaves
    )


def describe(config: Config, stage: int | None = None) -> str:
    """Tables of the configuration's network: its layers at one stage's size, and what a tuple costs in each stage.

    `stage` counts from 0; the default is the last. UserError if there is none of that number.
    """
    last = len(config.stages) - 1
    chosen = last if stage is None else stage
    if not 0 <= chosen <= last:
        raise UserError(f"--stage {stage}: there is no such stage; expected 0 to {last}")
    with torch.device("meta"):
        network = make_network(config.model)
    sizes = [stage.size for stage in config.stages]
    summaries = {size: summarize(network, size) for size in dict.fromkeys(sizes)}
    size = sizes[chosen]
    return "\n".join(
        [
            f"{config.model.name}, width {config.model.width:g}: {summaries[size].parameters:,} parameters",
            "",
            f"stage {chosen}, {size}×{size} pixels:",
            _layer_table(summaries[size]),
            "",
            "a tuple in each stage:",
            _stage_table([(size, summaries[size]) for size in sizes]),
            "",
            "field   side in pixels of the square of the input that decides one pixel of the output",
            "FLOPs   of convolutions; a multiplication and an addition are two",
            "kept    feature maps for the backward pass, in float32; less in bf16 and fp16",
        ]
    )


def _layer_table(summary: Summary) -> str:
    header = ["layer", "operation", "output", "parameters", "field", "MFLOPs", "kept KiB"]
    rows = [
        [
            layer.name,
            layer.operation,
            " × ".join(map(str, layer.shape)),
            f"{layer.parameters:,}" if layer.parameters else "-",
            f"{layer.field:g}",
            f"{layer.flops / _MEGA:,.2f}" if layer.flops else "-",
            f"{layer.kept / _KIB:,.1f}" if layer.kept else "-",
        ]
        for layer in summary.layers
    ]
    flops, kept = f"{summary.forward_flops / _MEGA:,.2f}", f"{summary.kept / _KIB:,.1f}"
    return _table([header, *rows, ["total", "", "", f"{summary.parameters:,}", "-", flops, kept]], texts=3)


def _stage_table(stages: Sequence[tuple[int, Summary]]) -> str:
    header = ["stage", "pixels", "GFLOPs forward", "GFLOPs forward and backward", "kept MiB"]
    rows = [
        [
            str(number),
            f"{size}×{size}",
            f"{summary.forward_flops / _GIGA:,.3f}",
            f"{summary.training_flops / _GIGA:,.3f}",
            f"{summary.kept / _MIB:,.2f}",
        ]
        for number, (size, summary) in enumerate(stages)
    ]
    return _table([header, *rows], texts=2)


def _table(rows: Sequence[Sequence[str]], *, texts: int) -> str:
    """Columns under one another, two spaces apart; the first `texts` of them flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[*map(str.ljust, row[:texts], widths), *map(str.rjust, row[texts:], widths[texts:])] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in cells)
