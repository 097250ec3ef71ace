"""Which experiments a command names, and under which configuration. Reads YAML files; runs nothing."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from dtrain.config import Config, load_config
from shard_tools.errors import UserError

SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Experiment:
    """A configuration file, named after it, and what it comes to with the overrides; `config.run` is OUT/NAME."""

    name: str
    file: Path
    config: Config
    overrides: tuple[str, ...]
    """Those of the command, with the run folder."""


def find_experiments(places: Sequence[Path], out: Path, overrides: Sequence[str] = ()) -> list[Experiment]:
    """Return the experiments in `places`, files or folders, in the order of places and, in a folder, of names.

    Of a folder all YAML files but those that extend nothing while another one in it extends them: what experiments
    share is none itself, unless it is named. `overrides` are for all, as `load_config` takes them. Raises UserError for
    a place that is not there or has no configuration, one that is not valid, and two experiments of one name.
    """
    if any(override == "--run" or override.startswith("--run=") for override in overrides):
        raise UserError("--run: experiments have folders of their own in --out; leave it out")
    found: dict[str, Experiment] = {}
    for file in (file for place in places for file in _files(place)):
        of_this = (*overrides, "--run", str(out / file.stem))
        if file.stem in found:
            raise UserError(f"{file}: {found[file.stem].file} has the same name, and so would its run; rename one")
        found[file.stem] = Experiment(file.stem, file, load_config(file, of_this), of_this)
    return list(found.values())


def choose(experiments: Sequence[Experiment], names: Sequence[str]) -> list[Experiment]:
    """Return those of these names, in their own order; all if there are no names. UserError for an unknown name."""
    known = [experiment.name for experiment in experiments]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(known)}"
            raise UserError(f"--only: no experiment is called {name!r}; {hint}")
    return [experiment for experiment in experiments if not names or experiment.name in names]


def common_size(experiments: Sequence[Experiment]) -> int:
    """Return the largest side that any stage of them has, of its images or of its loss: there all can be judged."""
    return max(max(stage.size, stage.loss_size or 0) for each in experiments for stage in each.config.stages)


def _files(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        yield place
        return
    files = sorted((path for path in place.iterdir() if path.suffix in SUFFIXES), key=lambda path: path.stem)
    extended = {file: _extended(file) for file in files}
    chosen = [file for file, base in extended.items() if base or file.resolve() not in extended.values()]
    if not chosen:
        raise UserError(f"{place}: holds no configuration (*.yaml); expected some, as in configs/experiments")
    yield from chosen


def _extended(file: Path) -> Path | None:
    """The file that this one extends, if any; `load_config` tells what is wrong with either."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    base = values.get("extends") if isinstance(values, dict) else None
    return (file.parent / base).resolve() if isinstance(base, str) else None
