"""What a configuration says, read as plain data: in a few lines, stage by stage, and where several differ.

It does not check a configuration, so that runs of other versions can be shown too. Pure functions; opens no file.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import yaml

from dtrain.loss_names import figure_name
from dtrain.metric_names import metric_name

Settings = Mapping[str, object]
"""A configuration, flat: "optimizer.name", "stages.0.size"; values are those of YAML that hold no others."""

NOTHING = "–"
_MAX_SETTINGS = 10_000
_NO_DIFFERENCE = {"run"}


@dataclass(frozen=True)
class Difference:
    """A key that runs do not agree on, and for each run its value as text."""

    key: str
    values: Sequence[str]


def parse_settings(text: str) -> Settings | None:
    """Return what a YAML mapping says, none for empty text; None if it is no such mapping, or one without end."""
    if not text:
        return {}
    try:
        value = yaml.safe_load(text)
        if not isinstance(value, dict):
            return None
        settings = dict(itertools.islice(_flatten("", value), _MAX_SETTINGS + 1))
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    return settings if len(settings) <= _MAX_SETTINGS else None


def show(value: object) -> str:
    """Return a value as people write it; a dash for none."""
    match value:
        case None:
            return NOTHING
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:g}"
    return str(value)


def summarize(settings: Settings) -> list[tuple[str, str]]:
    """Return the main choices, (name, value) each, as far as they are there."""
    lines = [
        ("Network", _sentence(settings, ("model.name", "{}"), ("model.width", "width {}"))),
        ("Weights from", _sentence(settings, ("init_from", "{}"))),
        ("Loss", describe_loss(settings)),
        (
            "Optimizer",
            _sentence(
                settings,
                ("optimizer.name", "{}"),
                ("optimizer.learning_rate", "learning rate {}"),
                ("optimizer.weight_decay", "weight decay {}"),
                ("optimizer.clip_norm", "gradients clipped to {}"),
                ("optimizer.ema_half_life", "weights averaged over {} samples"),
            ),
        ),
        ("Schedule", _schedule(settings)),
        ("Precision", _sentence(settings, ("precision", "{}"))),
        ("Data", _sentence(settings, ("data.manifest", "{}"), ("data.train_split", "trained on {}"))),
        ("Seed", _sentence(settings, ("seed", "{}"))),
    ]
    return [(name, value) for name, value in lines if value]


def describe_loss(settings: Settings) -> str:
    """Return the loss as a formula: 10 × (Depth MSE + 0.5 × Depth SSIM loss + Mask BCE); empty where not known."""
    terms = [
        ("" if weight == 1 else f"{show(weight)} × ") + _term(task, name)
        for task in ("depth", "mask")
        for name, weight in below(settings, f"loss.{task}").items()
    ]
    if not terms:
        return ""
    scale = settings.get("loss.scale", 1)
    return " + ".join(terms) if scale == 1 else f"{show(scale)} × ({' + '.join(terms)})"


def stages(settings: Settings) -> list[Settings]:
    """Return the settings of each stage, in order, without those that are null."""
    found: list[Settings] = []
    while stage := below(settings, f"stages.{len(found)}"):
        found.append({key: value for key, value in stage.items() if value is not None})
    return found


def below(settings: Settings, section: str) -> dict[str, object]:
    """Return the settings of a section, by the rest of their keys."""
    start = f"{section}."
    return {key.removeprefix(start): value for key, value in settings.items() if key.startswith(start)}


def differences(runs: Sequence[Settings]) -> list[Difference]:
    """Return the keys whose values are not the same in all runs, in order; what is missing is like what is null."""
    longest_first = sorted(runs, key=len, reverse=True)
    keys = dict.fromkeys(key for settings in longest_first for key in settings if key not in _NO_DIFFERENCE)
    rows = [Difference(key, [show(settings.get(key)) for settings in runs]) for key in keys]
    return [row for row in rows if len(set(row.values)) > 1]


def _flatten(key: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for name, entry in entries:
            yield from _flatten(f"{key}.{name}" if key else str(name), entry)
    else:
        yield key, value


def _term(task: str, loss: str) -> str:
    """Return what a term is called in a formula: after the metric of its name, or "loss" where that is another one."""
    name = f"{task}_{loss}"
    title = metric_name(name).title.replace("_", " ")
    return f"{title[:1].upper()}{title[1:]}" + ("" if figure_name(task, loss) == name else " loss")


def _sentence(settings: Settings, *parts: tuple[str, str]) -> str:
    return ", ".join(text.format(show(settings[key])) for key, text in parts if settings.get(key) is not None)


def _schedule(settings: Settings) -> str:
    parts = [("schedule.name", "{}")]
    if settings.get("schedule.name") == "step":
        parts += [("schedule.step_factor", "times {}"), ("schedule.step_samples", "after each {} samples")]
    if settings.get("schedule.name") == "one_cycle":
        parts.append(("schedule.peak", "highest at {} of the way"))
    if settings.get("schedule.warmup_samples"):
        parts.append(("schedule.warmup_samples", "warm-up over {} samples"))
    if settings.get("schedule.span") == "stage":
        parts.append(("schedule.span", "anew in each {}"))
    return _sentence(settings, *parts)
