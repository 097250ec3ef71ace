"""`dtrain export`: the network of a run as one file for other programs, compared with the network before it is named.

The file says what it is made of: run, checkpoint, size, digests. It holds no path of this machine.
"""

import hashlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dtrain.api import Network, load
from dtrain.sizes import SIZE_DIVISOR
from shard_tools.atomic import write_atomically
from shard_tools.errors import UserError

Format = Literal["onnx", "torch", "safetensors"]

TOLERANCE = 1e-3
"""Largest difference of depth or probability between a file and the network; a mask in 8 bits has steps of 4e-3."""

INPUT, OUTPUTS = "images", ("depth", "mask")
SMALLEST_SIDE = 2 * SIZE_DIVISOR
"""Of the images that an exported network takes: with one cell left after its poolings, torch would fix the size."""

OPSET = 18
"""Of ONNX: what torch translates to natively, and runtimes since 2023 read."""

_METADATA = "dtrain.json"

Planes = tuple[Tensor, Tensor]
Runner = Callable[[Tensor], Planes]


def export(run: Path, form: Format, out: Path, *, checkpoint: str | None = None) -> float | None:
    """Write `out`, print what it is, and return its largest difference from the network; None for bare weights.

    "onnx" and "torch" take `images`, float32 (B, 6, H, W), cat(bg, fgbg) in [0, 1], for any B and any H and W that are
    multiples of 8 from 16 on, and give `depth` in [0, 1] and `mask`, a probability, both float32 (B, 1, H, W): also
    for a network that predicts at a smaller size. "safetensors" holds the weights by their names, bit for bit.

    Raises UserError if the run can't be loaded, packages are missing, the file can't be written, or what was made
    differs from the network by more than `TOLERANCE`; no file is written then.
    """
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it, or choose another --out")
    if form == "onnx":
        _require_onnx()
    network = load(run, checkpoint, "cpu")
    metadata = _metadata(network, run)
    difference: float | None = None
    if form == "safetensors":
        data = _weights(network, metadata)
    else:
        with _quiet():
            program = _program(network)
            data = _onnx(program, metadata) if form == "onnx" else _saved(program, metadata)
            difference = _largest_difference(network, _RUNNERS[form](data))
    try:
        write_atomically(out, data)
    except OSError as error:
        raise UserError(f"--out {out}: can't be written: {error.strerror}; choose another --out") from None
    print(f"{out}: {form}, {len(data):,} bytes, {network.trained.checkpoint} of {run}")
    if difference is None:
        print("compared: the same weights, bit for bit")
    else:
        print(f"compared with the network at {_said(network)}: the largest difference is {difference:.1g}")
    return difference


def _metadata(network: Network, run: Path) -> dict[str, str]:
    trained = network.trained
    return {
        "run": run.resolve().name,
        "checkpoint": trained.checkpoint,
        "size": str(network.size),
        "model": trained.config.model.model_dump_json(),
        "weights_sha256": network.weights_sha256(),
        "config_sha256": hashlib.sha256(trained.run.config.read_bytes()).hexdigest(),
    }


def _program(network: Network) -> ExportedProgram:
    least = SMALLEST_SIDE // SIZE_DIVISOR
    sides = {axis: SIZE_DIVISOR * Dim(name, min=least) for axis, name in ((2, "height"), (3, "width"))}
    example = torch.zeros(2, 6, 4 * SIZE_DIVISOR, 6 * SIZE_DIVISOR)
    module: nn.Module = network.module.requires_grad_(False)
    program = torch.export.export(module, (example,), dynamic_shapes={INPUT: {0: Dim("batch"), **sides}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    return program


def _saved(program: ExportedProgram, metadata: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={_METADATA: json.dumps(metadata)})
    return buffer.getvalue()


def _onnx(program: ExportedProgram, metadata: dict[str, str]) -> bytes:
    import onnx

    made = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        verbose=False,
    )
    assert made is not None
    model = made.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        for dimension, name in zip(value.type.tensor_type.shape.dim, ("batch", "", "height", "width"), strict=True):
            if not dimension.HasField("dim_value"):
                dimension.dim_param = name
    del model.graph.value_info[:]  # follows from the rest, and has other names for the same dimensions
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _weights(network: Network, metadata: dict[str, str]) -> bytes:
    weights = network.trained.module.state_dict()
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()}, metadata)
    found = safetensors.torch.load(data)
    if found.keys() != weights.keys() or not all(torch.equal(found[name], weights[name]) for name in weights):
        raise UserError("the weights that were written are not those that were read; look at this machine's memory")
    return data


def _run_onnx(data: bytes) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Planes:
        depth, mask = (torch.from_numpy(np.asarray(plane)) for plane in session.run(OUTPUTS, {INPUT: images.numpy()}))
        return depth, mask

    return run


def _run_saved(data: bytes) -> Runner:
    module = torch.export.load(io.BytesIO(data)).module()

    def run(images: Tensor) -> Planes:
        depth, mask = module(images)
        return depth, mask

    return run


_RUNNERS: dict[str, Callable[[bytes], Runner]] = {"onnx": _run_onnx, "torch": _run_saved}


def _compared_shapes(network: Network) -> list[tuple[int, int, int]]:
    """(B, H, W): the size of the training, the smallest, and one that is neither square nor of its batch."""
    side = max(network.size, SMALLEST_SIDE)
    return [(1, side, side), (2, SMALLEST_SIDE, SMALLEST_SIDE), (3, side + SIZE_DIVISOR, max(side // 16 * 8, 24))]


def _said(network: Network) -> str:
    return ", ".join(f"{batch} × {width}×{height}" for batch, height, width in _compared_shapes(network))


def _largest_difference(network: Network, run: Runner) -> float:
    """Between what a file and the network say of random images. Raises UserError above `TOLERANCE`."""
    random = torch.Generator().manual_seed(0)
    largest = 0.0
    with torch.inference_mode():
        for batch, height, width in _compared_shapes(network):
            images = torch.rand(batch, 6, height, width, generator=random)
            for name, said, expected in zip(OUTPUTS, run(images), network.module(images), strict=True):
                difference = float((said - expected).abs().max())
                if said.shape != expected.shape or not difference <= TOLERANCE:
                    raise UserError(
                        f"the exported network's {name} differs from the network's by {difference:.1g} at "
                        f"{batch} × {width}×{height}, more than {TOLERANCE:g}; nothing was written: try another "
                        "version of torch, onnxruntime or onnxscript, and please report it"
                    )
                largest = max(largest, difference)
    return largest


def _require_onnx() -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(package) is None:
            raise UserError(f"--format onnx: needs the package {package}; pip install 'dtrain[export]'")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporters say of themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
