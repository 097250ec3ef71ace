"""What a run wrote down for its audit: when it was started, and what each process consumed. Judges only the form."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dtrain.data.order import Position
from dtrain.plan import RunPlan
from shard_tools.errors import UserError

_CHUNK_BYTES = 2**16


@dataclass(frozen=True)
class RunStart:
    """A start of the run: with how many processes, and where it goes on."""

    number: int
    processes: int
    position: Position
    global_step: int
    place: str
    """File and line, for messages."""


@dataclass(frozen=True)
class GoneBack:
    """What a training with --from-stage forgot: of starts before `start` all from stage `stage` on."""

    start: int
    stage: int

    def forgets(self, start: int, stage: int) -> bool:
        """Whether what that start did in that stage does not count."""
        return start < self.start and stage >= self.stage


class _StartEvent(BaseModel):
    model_config = ConfigDict(strict=True)

    start: int = Field(ge=0)
    processes: int = Field(ge=1)
    data: str
    global_step: int = Field(ge=0)
    stage: int = Field(0, ge=0)
    epoch: int = Field(0, ge=0)
    step: int = Field(0, ge=0)
    from_stage: int | None = Field(None, ge=1)


class AuditLine(BaseModel):
    """A line of RUN/audit/rank-R.jsonl: the rows of one global batch that process R consumed."""

    model_config = ConfigDict(frozen=True, strict=True)

    start: int = Field(ge=0, description="0, and one more whenever the run was gone on with")
    processes: int = Field(ge=1, description="of that start")
    stage: int = Field(ge=0)
    epoch: int = Field(ge=0)
    step: int = Field(ge=0)
    keys: list[str] = Field(description="of the samples that were used, row by row")
    replaced: dict[str, str] = Field(
        {}, description="key of a sample that can't be decoded: key of the one used for it"
    )

    @property
    def epoch_of_start(self) -> tuple[int, int, int]:
        """(start, stage, epoch): the lines of a file are in its order."""
        return self.start, self.stage, self.epoch

    def __str__(self) -> str:
        return f"start {self.start}, stage {self.stage}, epoch {self.epoch}, step {self.step}"


class RankFile:
    """The lines of one file, one after the other. It is open only while a piece of it is read: there may be many."""

    def __init__(self, path: Path, starts: int, gone_back: Sequence[GoneBack], problem: Callable[[str], None]) -> None:
        """`starts`: how many there were; `problem` is told of lines that can't be understood."""
        self._gone_back = gone_back
        self.path = path
        self.torn = 0
        """Lines behind the current one that a kill cut off."""
        self.line: AuditLine | None = None
        """The current line; None behind the last one."""
        self._number = 0
        self._starts = starts
        self._problem = problem
        self._rest = self._lines()
        self.advance()

    @property
    def place(self) -> str:
        """File, line and what the line is about, for messages."""
        return f"{self.path}:{self._number}: {self.line}"

    def advance(self) -> None:
        """Go to the next line."""
        self._number, self.line = next(self._rest, (self._number, None))

    def _lines(self) -> Iterator[tuple[int, AuditLine]]:
        broken: list[int] = []
        start = 0
        for number, data in enumerate(_raw_lines(self.path), start=1):
            try:
                line = AuditLine.model_validate_json(data)
            except ValidationError as error:
                first = error.errors()[0]
                if first["type"] == "json_invalid":
                    broken.append(number)
                else:
                    field = ".".join(map(str, first["loc"])) or "line"
                    self._problem(f"{self.path}:{number}: is no line of an audit: {field}: {first['msg']}")
                continue
            self._judge(broken, line.start - start)
            broken, start = [], line.start
            if not any(back.forgets(line.start, line.stage) for back in self._gone_back):
                yield number, line
        self._judge(broken, self._starts - start)

    def _judge(self, broken: list[int], ended: int) -> None:
        """Lines in a row that are no JSON. Each start that ended there may have left one that a kill cut off."""
        if len(broken) <= ended:
            self.torn += len(broken)
        else:
            self._problem(
                f"{self.path}:{broken[0]}: can't be parsed ({len(broken)} such line(s) in a row); a kill cuts off the "
                f"last line of a start, but {'no' if ended <= 0 else ended} start(s) ended here"
            )


def written_ranks(audit: Path) -> set[int]:
    """The processes that have a file in the folder `audit`."""
    return {int(match[1]) for path in audit.glob("*") if (match := re.fullmatch(r"rank-(\d+)\.jsonl", path.name))}


def read_starts(events: Path, plan: RunPlan, data: str) -> tuple[list[RunStart], list[GoneBack], int]:
    """The starts that `events` (RUN/events.jsonl) tells of, when it went back, and how many lines a kill cut off.

    Without those that began in what was forgotten later.

    Raises UserError that names the line if a start can't be one of a run with this plan on the data with digest `data`.
    """
    found: list[tuple[_StartEvent, str]] = []
    torn = 0
    for number, line in enumerate(_raw_lines(events), start=1):
        try:
            event = json.loads(line)
        except ValueError:
            torn += 1
            continue
        if isinstance(event, dict) and event.get("event") in ("start", "resume"):
            found.append((_parse_start(event, f"{events}:{number}"), f"{events}:{number}"))
    if not found:
        raise UserError(f"{events}: tells of no start of the run, so nothing can be proved; put the file back")
    gone_back = [GoneBack(event.start, event.from_stage) for event, _ in found if event.from_stage is not None]
    starts: list[RunStart] = []
    for start, place in found:
        if not any(back.forgets(start.start, start.stage) for back in gone_back):
            starts.append(_read_start(start, plan, data, starts, place))
    return starts, gone_back, torn


def _parse_start(event: dict[str, Any], place: str) -> _StartEvent:
    try:
        return _StartEvent.model_validate(event)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{place}: the {event['event']} is not as a training with --audit writes it: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None


def _read_start(found: _StartEvent, plan: RunPlan, data: str, before: list[RunStart], place: str) -> RunStart:
    if found.data != data:
        raise UserError(f"{place}: saw another data set than data.manifest lists now; put the shards back as they were")
    position = Position(found.stage, found.epoch, found.step)
    if plan.steps_before(position) != found.global_step:
        raise UserError(
            f"{place}: {position} is global step {plan.steps_before(position)} of this configuration and data set, "
            f"but the event says {found.global_step}; put config.yaml and the shards back as they were"
        )
    if (found.start <= before[-1].number) if before else (found.start, found.global_step) != (0, 0):
        raise UserError(f"{place}: start {found.start} can't come here; starts count from 0, which is at global step 0")
    return RunStart(found.start, found.processes, position, found.global_step, place)


def _raw_lines(path: Path) -> Iterator[bytes]:
    offset = 0
    while path.is_file():
        with path.open("rb") as file:
            file.seek(offset)
            lines = file.readlines(_CHUNK_BYTES)
        if not lines:
            return
        offset += sum(map(len, lines))
        yield from lines
