"""What is wrong with a source: a short list to read and a file with all of it. Decides nothing about the build."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from shard_tools.atomic import write_atomically
from shard_tools.checks import Problem

REPORT_NAME = "build_report.json"
MAX_LINES = 20


def count_tuples(problems: Iterable[Problem]) -> int:
    """How many tuples have a problem."""
    return len({problem.key for problem in problems})


def format_problems(problems: Iterable[Problem]) -> str:
    """One line per file, the first MAX_LINES of them, then how many more there are."""
    grouped = _by_file(problems)
    lines = [
        f"  {file}: {text}" + (f" ({len(keys):,} tuples)" if len(keys) > 1 else "")
        for (file, text), keys in grouped[:MAX_LINES]
    ]
    if len(grouped) > MAX_LINES:
        lines.append(f"  and {len(grouped) - MAX_LINES:,} more")
    return "\n".join(lines)


def write_report(out: Path, *, found: int, problems: Iterable[Problem]) -> Path:
    """Write `out`/build_report.json: tuples found and bad, and per bad file the problem and its tuples."""
    problems = tuple(problems)
    report = {
        "found": found,
        "bad": count_tuples(problems),
        "problems": [{"file": file, "problem": text, "tuples": keys} for (file, text), keys in _by_file(problems)],
    }
    path = out / REPORT_NAME
    write_atomically(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return path


def _by_file(problems: Iterable[Problem]) -> list[tuple[tuple[str, str], list[str]]]:
    """Keys of the tuples by (file, text), in the numeric order of the file names."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        grouped.setdefault((problem.file, problem.text), []).append(problem.key)
    return [(place, sorted(grouped[place], key=_natural)) for place in sorted(grouped, key=lambda p: _natural(p[0]))]


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", text)]
