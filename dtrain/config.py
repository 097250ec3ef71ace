"""What a run is: a YAML file, every key of which the command line can override; checked before anything starts."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, LiteralString, get_args

import yaml
from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dtrain.best import CHOICES
from dtrain.data.order import ORDER_VERSION
from dtrain.interval import Interval, parse_interval
from dtrain.loss_names import DEPTH_LOSSES, MASK_LOSSES, SMALLEST_SIDE
from dtrain.sizes import SIZE_DIVISOR
from shard_tools.errors import UserError

_MISSING_KEY: LiteralString = "missing_key"
_NO_ROOM: LiteralString = "no_room"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("can't be true or false, as which YAML reads yes, no, on and off; put a text in quotes")
        return value


class StreamConfig(_Section):
    """Shards that can't be indexed, for `loader: webdataset`."""

    train: str = Field(description="URLs as webdataset takes them, with braces: shards/train-{000000..000099}.tar.gz")
    test: str = Field(description="the same for the test split")
    train_samples: int = Field(ge=1, description="how many samples are called an epoch")
    test_samples: int = Field(ge=1, description="how many the test shards hold")
    shuffle: int = Field(1000, ge=0, description="samples in each process's shuffle buffer")
    bg: str = "bg.jpg"
    fgbg: str = "fgbg.jpg"
    depth: str = "depth.jpg"
    mask: str = "mask.jpg"

    @field_validator("train", "test")
    @classmethod
    def _runs_no_command(cls, value: str) -> str:
        if "pipe:" in value:
            raise ValueError("pipe: runs a command and is refused; expected paths or http(s):// URLs")
        return value


class DataConfig(_Section):
    """Where samples come from. Nothing but the manifest's content and `decode` changes what is computed."""

    manifest: str = Field("", description="path or URL of shards.json, or of the folder that holds it")
    train_split: str = "train"
    test_split: str = "test"
    workers: int = Field(2, ge=0, le=256, description="that decode beside each process's loop; 0 decodes in it")
    worker_kind: Literal["process", "thread"] = Field("process", description="webdataset always has threads")
    background_cache_mb: int = Field(64, ge=0, description="decoded backgrounds kept by each worker process")
    decode: Literal["fast", "exact"] = Field("fast", description="exact: Pillow's pixels and resize, slower")
    max_lanes: int = Field(64, ge=1, description="shards that a batch draws from at most; part of the order")
    on_bad_sample: Literal["raise", "replace"] = "raise"
    max_bad_samples: int = Field(100, ge=0, description="in the whole run; one more stops it")
    cache_dir: Path | None = Field(None, description="for shards behind a URL (default: ~/.cache/dtrain)")
    cache_size: ByteSize | None = Field(None, gt=0, description="such as 200GB (default: half of what is free there)")
    connections: int = Field(4, ge=1, le=64, description="downloads at a time of each process")
    patience_seconds: float = Field(300.0, gt=0, description="without a byte from the server before giving up")
    loader: Literal["shards", "webdataset"] = Field("shards", description="webdataset: its pipeline, no fixed order")
    stream: StreamConfig | None = Field(None, description="for loader: webdataset")

    @field_validator("manifest", mode="before")
    @classmethod
    def _is_a_place(cls, value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if not isinstance(value, str):
            raise ValueError("expected a path or a URL; put a number or a date in quotes")
        return value

    @model_validator(mode="after")
    def _names_its_shards(self) -> "DataConfig":
        if self.loader == "shards" and not self.manifest:
            raise PydanticCustomError(_MISSING_KEY, "manifest")
        if self.loader == "webdataset" and self.stream is None:
            raise PydanticCustomError(_MISSING_KEY, "stream")
        return self


class AugmentConfig(_Section):
    """Random changes of training samples, drawn anew for each in every epoch; all off by default."""

    brightness: float = Field(0.0, ge=0, le=1, description="x: times a factor in [1 - x, 1 + x]; so are the next two")
    contrast: float = Field(0.0, ge=0, le=1, description="about the mean luminance of the background")
    saturation: float = Field(0.0, ge=0, le=1)
    hue: float = Field(0.0, ge=0, le=0.5, description="x: a turn of the colour circle in [-x, x]")
    flip: float = Field(0.0, ge=0, le=1, description="probability of mirroring left to right")
    crop: float = Field(1.0, gt=0, le=1, description="smallest share of the side that is kept; 1 keeps all")

    @property
    def enabled(self) -> bool:
        """Whether anything is ever changed."""
        return self != AugmentConfig()


class ModelConfig(_Section):
    """The network; `model: shrink` is short for its name."""

    name: Literal["dense", "shrink"] = Field("dense", description="shrink: no decoder, predicts at 1/8 of the size")
    width: float = Field(1.0, ge=1 / 32, le=8, description="scales all inner channel counts")


class LossConfig(_Section):
    """scale · (sum of weight · term over both tasks)."""

    scale: float = Field(1.0, gt=0, description="the write-up's K")
    depth: dict[str, float] = Field({"mse": 1.0}, description="weights of the terms for depth, by name")
    mask: dict[str, float] = Field({"bce": 1.0}, description="the same for the mask")

    @field_validator("depth", "mask", mode="before")
    @classmethod
    def _weights_are_numbers(cls, value: Any) -> Any:
        for name, weight in value.items() if isinstance(value, dict) else ():
            if isinstance(weight, bool):
                raise ValueError(f"expected a weight such as 1.0 for {name}; leave a term out to switch it off")
        return value

    @field_validator("depth", "mask")
    @classmethod
    def _names_terms(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        known = {"depth": DEPTH_LOSSES, "mask": MASK_LOSSES}[str(info.field_name)]
        for name, weight in value.items():
            if name not in known:
                raise ValueError(f"{name} is no such loss; expected some of {', '.join(known)}")
            if not weight > 0:
                raise ValueError(f"expected a weight above 0 for {name}; leave a term out to switch it off")
        if not value:
            raise ValueError("expected at least one term, such as {mse: 1}")
        return value


class OptimizerConfig(_Section):
    """How a gradient changes the weights."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0, description="of convolutions' weights; norms and biases have none")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd; beta1 of adam and adamw")
    clip_norm: float | None = Field(None, gt=0, description="longest gradient (L2 norm); a longer one is scaled down")
    ema_half_life: int | None = Field(
        None, ge=1, description="average the weights over about so many samples; evaluations use the average"
    )


class ScheduleConfig(_Section):
    """A factor on the learning rate as a function of the samples seen, whatever the number of processes."""

    name: Literal["constant", "cosine", "one_cycle", "step"] = "cosine"
    span: Literal["run", "stage"] = Field("run", description="what it stretches over; stage: anew in each stage")
    warmup_samples: int = Field(0, ge=0, description="linear rise from 0 over the first samples; none with one_cycle")
    peak: float = Field(0.3, gt=0, lt=1, description="of one_cycle: where in the span the learning rate is highest")
    step_samples: int | None = Field(None, ge=1, description="of step: after each so many samples …")
    step_factor: float = Field(0.1, gt=0, lt=1, description="… times this")

    @model_validator(mode="after")
    def _fits_its_name(self) -> "ScheduleConfig":
        if self.name == "step" and self.step_samples is None:
            raise PydanticCustomError(_MISSING_KEY, "step_samples")
        if self.name == "one_cycle" and self.warmup_samples:
            raise ValueError("one_cycle rises by itself; leave warmup_samples out, and set peak")
        return self


class StageConfig(_Section):
    """A part of the run at one image size. It takes `epochs` (1 by default), `steps` or `seen_samples`."""

    size: int = Field(ge=SIZE_DIVISOR, multiple_of=SIZE_DIVISOR, description="side of the images in pixels")
    batch: int = Field(ge=1, description="the global batch, whatever the number of processes")
    epochs: int | None = Field(None, ge=1, description="1, if none of these three is given")
    steps: int | None = Field(None, ge=1, description="instead of epochs: global batches")
    seen_samples: int | None = Field(None, ge=1, description="the same in samples, rounded up to whole batches")
    samples: int | None = Field(None, ge=1, description="train on the first N in packing order (default: all)")
    learning_rate: float | None = Field(None, gt=0, description="instead of the optimizer's")
    loss_size: int | None = Field(
        None, ge=SIZE_DIVISOR, multiple_of=SIZE_DIVISOR, description="predictions are interpolated to it for the loss"
    )
    optimizer_state: Literal["keep", "reset"] = Field("keep", description="what becomes of the last stage's")
    seed_offset: int = Field(0, ge=0, description="added to the seed for the order of this stage's samples")

    @model_validator(mode="before")
    @classmethod
    def _has_one_length(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = [name for name in ("epochs", "steps", "seen_samples") if values.get(name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; expected one of them")
        return values if given else {**values, "epochs": 1}


class CheckpointConfig(_Section):
    """When checkpoints are written besides the end of every epoch and a signal, and which are kept."""

    every: str = Field("auto", description="'500 steps', '10 minutes', or auto: as often as pays")
    hours_between_preemptions: float = Field(1.0, gt=0, description="the mean; for auto")
    keep_last: int = Field(3, ge=1)
    keep_best: int = Field(0, ge=0, description="so many more, the best ones by best_metric")
    best_metric: str = Field("mask_iou", description="a figure of the evaluation at the end of an epoch")
    url: str | None = Field(None, description="a copy of each, such as s3://bucket/runs/one; read where the run is new")

    @field_validator("every", mode="before")
    @classmethod
    def _is_an_interval(cls, value: Any) -> Any:
        return str(parse_interval(str(value)))

    @field_validator("best_metric")
    @classmethod
    def _has_a_better_end(cls, value: str) -> str:
        if value not in CHOICES:
            raise ValueError(f"expected one of {', '.join(CHOICES)}")
        return value

    @property
    def interval(self) -> Interval:
        """`every`, read."""
        return parse_interval(self.every)


class EvaluateConfig(_Section):
    """The evaluation at the end of an epoch."""

    every_epochs: int = Field(1, ge=1, description="and always at the end of a stage")
    samples: int | None = Field(None, ge=1, description="the first N of the test split (default: all)")
    batch: int = Field(64, ge=1, description="samples at a time on each process; changes speed only")
    panel_samples: int = Field(6, ge=1, le=64, description="rows of the picture panel")


class LogConfig(_Section):
    """What is written down on the way."""

    every_steps: int = Field(10, ge=1)
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "aim", "clearml"], ...] = ("tensorboard",)
    project: str = Field("dtrain", min_length=1, description="what wandb, mlflow, aim and clearml file the run under")
    audit: bool = Field(False, description="write the keys of every step to RUN/audit/rank-R.jsonl")


class HangConfig(_Section):
    """How long a process may stand still, besides `data.patience_seconds`, before it ends with a message."""

    first_step_seconds: float = Field(1800.0, gt=0, description="until a stage's first step is done")
    step_seconds: float = Field(300.0, gt=0, description="between any two signs of progress after that")
    leave_seconds: float = Field(25.0, gt=0, description="after a signal, in all; launchers kill after 30 s")


_SPEED_AND_PLACE: dict[str, Any] = {
    "manifest": True,
    "workers": True,
    "worker_kind": True,
    "background_cache_mb": True,
    "on_bad_sample": True,
    "max_bad_samples": True,
    "cache_dir": True,
    "cache_size": True,
    "connections": True,
    "patience_seconds": True,
    "stream": {"train", "test", "test_samples"},
}
"""Keys of `DataConfig` that change nothing of what is computed from whole samples, as pydantic's `exclude`."""


class Config(_Section):
    """A whole run."""

    run: Path = Field(description="the run folder")
    data: DataConfig
    stages: tuple[StageConfig, ...]
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    max_micro_batch: int = Field(
        1024, ge=1, description="samples at a time on one device; a larger share of the batch is accumulated"
    )
    sync_batch_norm: bool = Field(False, description="statistics over the global batch; needs GPUs")
    deterministic: bool = Field(False, description="the same bits on a GPU each time, where torch can; slower")
    max_nonfinite_steps: int = Field(10, ge=0, description="skipped steps in the whole run; one more stops it")
    seed: int = Field(0, ge=0, lt=2**32)
    init_from: str | None = Field(None, description="run folder, checkpoint or .safetensors file to start weights from")
    hang: HangConfig = HangConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="before")
    @classmethod
    def _sections_are_mappings(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            raise ValueError("expected a mapping of keys to values")
        return values

    @field_validator("run", mode="before")
    @classmethod
    def _run_has_a_name(cls, value: Any) -> Any:
        if value == "":
            raise ValueError("expected the path of a folder")
        return value

    @field_validator("stages")
    @classmethod
    def _at_least_one_stage(cls, value: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        if not value:
            raise ValueError("expected one stage or more")
        return value

    @model_validator(mode="after")
    def _losses_have_room(self) -> "Config":
        reduction = SIZE_DIVISOR if self.model.name == "shrink" else 1
        for number, stage in enumerate(self.stages):
            side = stage.loss_size or stage.size // reduction
            for name in {**self.loss.depth, **self.loss.mask}:
                if side < (smallest := SMALLEST_SIDE.get(name, 1)):
                    raise PydanticCustomError(
                        _NO_ROOM,
                        "stages.{number}.size: the loss {name} needs {smallest} pixels a side, but is taken at {side}; "
                        "larger images, or a loss_size, give it room",
                        {"number": number, "name": name, "smallest": smallest, "side": side},
                    )
        return self

    def to_yaml(self) -> str:
        """The resolved configuration with every key, readable by `load_config`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def identity(self) -> dict[str, Any]:
        """The keys that decide what is computed, flat ("optimizer.name"); a resumed run must have the same ones."""
        chosen = self.model_dump(
            mode="json",
            exclude={
                "run": True,
                "data": _SPEED_AND_PLACE,
                "max_micro_batch": True,
                "deterministic": True,
                "max_nonfinite_steps": True,
                "hang": True,
                "checkpoint": True,
                "evaluate": True,
                "log": True,
            },
        )
        return {"order": ORDER_VERSION, **_flatten(chosen)}


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply overrides such as ["--stages.0.size", "64", "--seed=1"].

    A file may begin with `extends: OTHER.yaml`, and then says only what differs from that one.

    An override's value is plain text, from which the key takes its number, except for `null` and for what begins as
    a list, a mapping or a quoted text of YAML does.
    Raises UserError that names the file or option, the key, what was expected and what was given.
    """
    values = _read_values(path)
    for key, value in _parse_overrides(overrides):
        path_of_key = ["model", "name"] if key == "model" and isinstance(value, str) else key.split(".")
        _set(values, path_of_key, value, f"--{key}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = "\n".join("  " + _explain(problem) for problem in error.errors())
        raise UserError(f"{path}: not a valid configuration:\n{problems}") from None


def _read_values(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a file says, on top of the one that it `extends`, if any."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        by = f", which {extended_by[-1]} extends" if extended_by else ", for instance configs/demo.yaml"
        raise UserError(f"{path}: no such file; expected a run configuration{by}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, as in configs/demo.yaml")
    if isinstance(values.get("model"), str):
        values["model"] = {"name": values["model"]}
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: extends: expected the path of another configuration, from this file's folder")
    if (path.parent / base).resolve() in [each.resolve() for each in (*extended_by, path)]:
        raise UserError(f"{path}: extends: {base} extends this file in turn")
    merged: dict[str, Any] = _merge(_read_values(path.parent / base, (*extended_by, path)), values)
    return merged


def _merge(base: Any, values: Any) -> Any:
    """`values` on top of `base`: sections key by key, all else as a whole."""
    if isinstance(base, dict) and isinstance(values, dict):
        return {**base, **{key: _merge(base.get(key), value) for key, value in values.items()}}
    return values


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Lines "key: old → new" by key, for two results of `Config.identity`."""
    absent = "(absent)"
    return {
        key: f"{key}: {before.get(key, absent)} → {now.get(key, absent)}"
        for key in {**before, **now}
        if before.get(key, absent) != now.get(key, absent)
    }


def _parse_overrides(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    pairs = []
    remaining = list(arguments)
    while remaining:
        option = remaining.pop(0)
        key, equals, text = option.removeprefix("--").partition("=")
        if not option.startswith("--") or not all(key.split(".")):
            raise UserError(f"{option!r}: expected an option such as --data.workers 4")
        if not equals:
            if not remaining:
                raise UserError(f"{option}: a value is missing")
            text = remaining.pop(0)
        pairs.append((key, _parse_value(text, f"--{key}")))
    return pairs


def _parse_value(text: str, option: str) -> Any:
    if not text:
        raise UserError(f"{option}: a value is missing")
    if text == "null":
        return None
    return _parse_yaml(text, option) if text[0] in "[{'\"" else text


class _Loader(yaml.SafeLoader):
    """Plain data only; refuses a key that is given twice, of which YAML would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: not valid YAML: {error}") from None


def _set(values: Any, path: list[str], value: Any, option: str) -> None:
    *parents, last = path
    for part in parents:
        values = _item(values, part, option) if isinstance(values, list) else values.setdefault(part, {})
        if not isinstance(values, dict | list):
            raise UserError(f"{option}: {part!r} is a value, not a section")
    if isinstance(values, list):
        _item(values, last, option)
        values[int(last)] = value
    else:
        values[last] = value


def _item(values: list[Any], part: str, option: str) -> Any:
    if not part.isdecimal() or int(part) >= len(values):
        raise UserError(f"{option}: {part!r} is no item; there are {len(values)}, counted from 0")
    return values[int(part)]


_RENAMED = {"threads": "workers", "every_steps": "every"}


def _explain(problem: Any) -> str:
    key = ".".join(map(str, problem["loc"])) or "file"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1])
        name = str(problem["loc"][-1])
        near = [_RENAMED[name]] if _RENAMED.get(name) in known else difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if problem["type"] == _MISSING_KEY:
        return f"{key}.{problem['msg']}: is missing"
    if problem["type"] == _NO_ROOM:
        return str(problem["msg"])
    if problem["type"] == "missing":
        return f"{key}: is missing"
    message = _MESSAGES.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    return f"{key}: {message}, got {problem['input']!r}"


_MESSAGES = {
    "byte_size": "expected a size such as 200GB",
    "byte_size_unit": "expected a size such as 200GB",
    "path_type": "expected a path; put a number or a date in quotes",
    "model_type": "expected a section with keys of its own",
    "tuple_type": "expected a list",
}


def _known_keys(path: Sequence[int | str]) -> list[str]:
    model: type[BaseModel] = Config
    for part in path:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            for inner in (annotation, *get_args(annotation)):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    model = inner
    return list(model.model_fields)


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        items = values.items()
    elif isinstance(values, list) and any(isinstance(value, dict) for value in values):
        items = {str(number): value for number, value in enumerate(values)}.items()
    else:
        return {prefix.removesuffix("."): values}
    return {k: v for key, value in items for k, v in _flatten(value, f"{prefix}{key}.").items()}
