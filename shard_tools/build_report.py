"""What is wrong with a source: a table to read and a file with all of it. Decides nothing about the build."""

import json
import re
from collections.abc import Iterable, Sequence

from shard_tools.checks import Problem
from shard_tools.storage import Storage

REPORT_NAME = "build_report.json"
MAX_LINES = 20


def count_tuples(problems: Iterable[Problem]) -> int:
    """How many tuples have a problem."""
    return len({problem.key for problem in problems})


def format_problems(problems: Sequence[Problem]) -> str:
    """A table of the kinds of problems where there are several, then a line a file, the first MAX_LINES of them."""
    grouped = _by_file(problems)
    lines = [
        f"  {file}: {text}" + (f" ({len(keys):,} tuples)" if len(keys) > 1 else "")
        for (file, text), keys in grouped[:MAX_LINES]
    ]
    if len(grouped) > MAX_LINES:
        lines.append(f"  and {len(grouped) - MAX_LINES:,} more")
    return "\n".join(lines + _table(problems))


def _table(problems: Sequence[Problem]) -> list[str]:
    """How many files and tuples have each kind of problem; nothing where one file says it all."""
    kinds = _kinds(problems)
    if sum(kind["files"] for kind in kinds.values()) < 2:
        return []
    header = f"  {'problem':<14}{'files':>10}{'tuples':>10}"
    return [header] + [f"  {name:<14}{kind['files']:>10,}{kind['tuples']:>10,}" for name, kind in kinds.items()]


def report_text(*, found: int, check: str, problems: Sequence[Problem]) -> str:
    """The content of build_report.json: tuples found and bad, kinds of problems, and per bad file its tuples."""
    report = {
        "found": found,
        "check": check,
        "bad": count_tuples(problems),
        "kinds": _kinds(problems),
        "problems": [{"file": file, "problem": text, "tuples": keys} for (file, text), keys in _by_file(problems)],
    }
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"


def write_report(out: Storage, *, found: int, check: str, problems: Sequence[Problem], name: str = REPORT_NAME) -> str:
    """Write the report to `out`; returns where it lies."""
    out.write(name, report_text(found=found, check=check, problems=problems).encode("utf-8", "backslashreplace"))
    return out.path(name)


def _kinds(problems: Sequence[Problem]) -> dict[str, dict[str, int]]:
    files: dict[str, set[str]] = {}
    keys: dict[str, set[str]] = {}
    for problem in problems:
        files.setdefault(problem.kind, set()).add(problem.file)
        keys.setdefault(problem.kind, set()).add(problem.key)
    order = sorted(files, key=lambda kind: (-len(keys[kind]), kind))
    return {kind: {"files": len(files[kind]), "tuples": len(keys[kind])} for kind in order}


def _by_file(problems: Iterable[Problem]) -> list[tuple[tuple[str, str], list[str]]]:
    """Keys of the tuples by (file, text), in the numeric order of the file names."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        grouped.setdefault((problem.file, problem.text), []).append(problem.key)
    return [(place, sorted(grouped[place], key=_natural)) for place in sorted(grouped, key=lambda p: _natural(p[0]))]


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isascii() and part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", text)]
