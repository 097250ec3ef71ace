"""The files of an evaluation: its JSON, and pictures by the same name beside it. Never computes a figure."""

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dtrain.evaluation_result import EvaluationResult
from shard_tools.atomic import atomic_file, write_atomically
from shard_tools.errors import UserError


@dataclass(frozen=True)
class EvaluationFiles:
    """evaluation.json (or another name), evaluation.png, evaluation_worst.png, evaluation_best.png."""

    json: Path

    @classmethod
    def named(cls, file: Path) -> "EvaluationFiles":
        """By the option --json. Raises UserError for a name without .json, or in a folder that is not there."""
        if file.suffix != ".json":
            raise UserError(f"--json: expected a file name that ends in .json, got {file}")
        if not file.parent.is_dir():
            raise UserError(f"--json: {file.parent}: no such folder; make it first")
        return cls(file)

    @property
    def picture(self) -> Path:
        return self.json.with_suffix(".png")

    @property
    def worst(self) -> Path:
        return self.json.with_name(f"{self.json.stem}_worst.png")

    @property
    def best(self) -> Path:
        return self.json.with_name(f"{self.json.stem}_best.png")

    def write(self, result: EvaluationResult, panel: Image.Image | None) -> None:
        """Write all of them, the JSON last, so that whoever sees it sees the pictures that belong to it.

        A picture that there is none of now is removed, if an earlier evaluation left it.
        """
        extremes = result.extremes
        _save(self.picture, panel)
        for path, samples in ((self.worst, extremes.worst), (self.best, extremes.best)):
            _save(path, extremes.draw(samples) if samples else None)
        text = json.dumps(result.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(self.json, text + "\n")

    def pictures(self) -> list[Path]:
        """Those that are there."""
        return [path for path in (self.picture, self.worst, self.best) if path.exists()]


def _save(path: Path, picture: Image.Image | None) -> None:
    if picture is None:
        path.unlink(missing_ok=True)
    else:
        with atomic_file(path) as file:
            picture.save(file, "PNG")
