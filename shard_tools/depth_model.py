"""Depth of pictures by a Hugging Face depth-estimation model. Runs no code that comes with a model; writes nothing.

What such models say is either distance (larger is farther) or its inverse up to scale and shift (larger is nearer);
`is_inverse` knows which is which. Grey values are that, stretched to each picture's own range: 0 near, 255 far.
"""

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from shard_tools.errors import UserError

EXAMPLE = "depth-anything/Depth-Anything-V2-Small-hf"

_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
)
"""What makes up a model: nothing else is fetched, and these are what its hash is taken of."""

_DISTANCE = ("depth_pro", "glpn", "tipsv2_dpt", "zoedepth")
_TOLD_BY_TYPE = ("depth_anything", "prompt_depth_anything")


@dataclass(frozen=True)
class DepthModel:
    """A model that is loaded, on `device`. `sha256` is that of its files, `revision` the hub's name of their state."""

    name: str
    revision: str | None
    sha256: str
    inverse: bool
    device: str
    model: Any
    processor: Any

    def describe(self) -> dict[str, object]:
        """What a data set says of the depth that comes from this model."""
        identity = {"name": self.name, "sha256": self.sha256} | ({"revision": self.revision} if self.revision else {})
        output = "the inverse of distance, up to scale and shift" if self.inverse else "distance"
        return {
            "kind": f"estimated: {self.name}",
            "scale": "relative, each image to its own range",
            "model": identity,
            "note": f"not measured: estimated from each overlay; grey is linear in the model's output, {output}",
        }

    def estimate(self, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Depth of `pictures`, RGB uint8 (N, S, S, 3), as grey values, uint8 (N, S, S): see `to_grey`.

        Raises UserError where the model fails on them: out of memory, or what it says is no number.
        """
        import torch

        sizes = [picture.shape[:2] for picture in pictures]
        try:
            inputs = self.processor(images=list(pictures), return_tensors="pt", input_data_format="channels_last")
            with torch.inference_mode():
                outputs = self.model(**inputs.to(self.device))
                results = self.processor.post_process_depth_estimation(outputs, sizes)
        except torch.OutOfMemoryError:
            raise UserError(
                f"{self.name}: out of memory on {self.device}; end other programs, or take a smaller model"
            ) from None
        except ImportError as error:
            raise _needs_package(self.name, error) from None
        depth = torch.stack([result["predicted_depth"] for result in results]).float().cpu().numpy()
        if not np.isfinite(depth).all():
            raise UserError(f"{self.name}: says of a picture what is no number; expected depth; take another model")
        return to_grey(depth, inverse=self.inverse)


def load_depth_model(name: str) -> DepthModel:
    """The model in the folder `name`, or else the one of that name on the Hugging Face hub; on a GPU if there is one.

    Raises UserError without transformers, where there is no such model, and for what is not a whole model for depth
    with weights as safetensors, or of a kind of which near and far are not known.
    """
    try:
        torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")
        folder, revision = (Path(name), None) if Path(name).is_dir() else _fetch(name)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        model, loading = transformers.AutoModelForDepthEstimation.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except ImportError as error:
        raise _needs_package(f"--depth hf:{name}", error) from None
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"--depth hf:{name}: is not a model for depth that can be loaded ({_first_line(error)}); expected "
            f"config.json, preprocessor_config.json and model.safetensors of one like {EXAMPLE}"
        ) from None
    if missing := sorted(loading["missing_keys"]):
        raise UserError(f"--depth hf:{name}: lacks {len(missing)} of its weights, such as {missing[0]}; get it again")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return DepthModel(
        name=name if revision else folder.resolve().name,
        revision=revision,
        sha256=_hash(folder),
        inverse=is_inverse(model.config.to_dict()),
        device=device,
        model=model.eval().to(device),
        processor=processor,
    )


def _fetch(name: str) -> tuple[Path, str]:
    """The folder in which the hub's model `name` lies when it has been downloaded, and its revision."""
    hub: Any = importlib.import_module("huggingface_hub")
    try:
        folder = Path(hub.snapshot_download(name, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--depth hf:{name}: no such folder, and no such model to be had from the Hugging Face hub "
            f"({_first_line(error)}); expected a folder or a name like {EXAMPLE}; without network, give a folder"
        ) from None
    return folder, folder.name


def is_inverse(config: Mapping[str, Any]) -> bool:
    """Does a model of this configuration say inverse distance (larger is nearer), or distance (larger is farther)?

    Depth Anything's configuration tells (`depth_estimation_type`: "relative" is inverse, "metric" distance). DPT is
    inverse, as MiDaS is, but not with `add_projection`: those are DINOv2's, trained on metres. ZoeDepth, GLPN,
    TIPSv2 and Depth Pro (whose image processor inverts) say distance. Raises UserError for others.
    """
    kind = config.get("model_type")
    if kind in _TOLD_BY_TYPE:
        return bool(config.get("depth_estimation_type", "relative") == "relative")
    if kind == "dpt":
        return not config.get("add_projection", False)
    if kind in _DISTANCE:
        return False
    known = ", ".join(sorted((*_TOLD_BY_TYPE, *_DISTANCE, "dpt")))
    raise UserError(
        f"--depth: a model of the kind {kind!r}, of which it is not known whether larger is nearer or farther; "
        f"expected one of {known}"
    )


def to_grey(output: NDArray[np.float32], *, inverse: bool) -> NDArray[np.uint8]:
    """What a model says of pictures, float (N, H, W), as grey values, uint8 (N, H, W).

    In each picture the nearest pixel is 0 and the farthest 255, linear between them; all is 255 where all is equal.
    """
    farness = -output if inverse else output
    nearest = farness.min(axis=(1, 2), keepdims=True)
    span = farness.max(axis=(1, 2), keepdims=True) - nearest
    depth = np.divide(farness - nearest, span, out=np.ones_like(farness), where=span > 0)
    return np.asarray(np.rint(depth * 255), np.uint8)


def _hash(folder: Path) -> str:
    """SHA-256 of the model's files, their names and sizes."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _FILES for path in folder.glob(pattern)}):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _needs_package(what: str, error: ImportError) -> UserError:
    return UserError(f"{what}: needs a package that is not there ({_first_line(error)}); pip install 'dtrain[depth]'")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
