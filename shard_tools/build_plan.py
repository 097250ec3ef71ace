"""What a build is going to make, worked out from what was found and what was asked for. Writes nothing."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from shard_tools.checks import Problem
from shard_tools.components import COMPONENTS
from shard_tools.encode import DEFAULT_QUALITY, Encoding
from shard_tools.errors import UserError
from shard_tools.estimate import tuples_per_shard
from shard_tools.layouts import Findings, SourceTuple
from shard_tools.pack import OnBad, ShardTask, StoredComponent
from shard_tools.plan import PlannedShard, plan_shards
from shard_tools.source_images import Check, ImageRules
from shard_tools.split import SplitRule, split_tuples
from shard_tools.storage import Storage

Backgrounds = Literal["sample", "shared"]

_FORMAT = 2
"""Of everything that turns the same input into other bytes; a higher number refuses what an older version began."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What decides the bytes of the shards, besides the source.

    `shard_size` is in tuples, `shard_bytes` in bytes; with neither, DEFAULT_SHARD_SIZE tuples. `limit` keeps the first
    tuples of the training split. `size` (pixels) and `quality` (1..100) ask for images that are encoded anew.
    """

    layout: str | None = None
    split: SplitRule = field(default_factory=SplitRule)
    limit: int | None = None
    shard_size: int | None = None
    shard_bytes: int | None = None
    seed: int = 0
    check: Check = "header"
    on_bad: OnBad = "fail"
    backgrounds: Backgrounds = "sample"
    size: int | None = None
    quality: int | None = None

    def rules(self) -> ImageRules:
        """How images are looked at and stored. Raises UserError for options that do not go together."""
        if self.size is None:
            if self.quality is not None:
                raise UserError(
                    "--quality: is for --size, which encodes images anew; else their bytes stay as they are"
                )
            return ImageRules(check=self.check)
        quality = DEFAULT_QUALITY if self.quality is None else self.quality
        return ImageRules(check=self.check, encoding=Encoding(self.size, quality))


DEFAULT_SHARD_SIZE = 1000


class PlanShard(BaseModel):
    """A shard to be, by its name without extension; `backgrounds` says that it holds those of its split."""

    model_config = ConfigDict(frozen=True)

    name: str
    split: str
    tuples: int
    backgrounds: bool


class BuildPlan(BaseModel):
    """All that is needed to tell one build from another, and to write its manifest once its shards are there.

    `components` are (name, extension in the shards); `digest` is of the arguments and of all keys and file names.
    """

    model_config = ConfigDict(frozen=True)

    arguments: dict[str, Any]
    digest: str
    shards: tuple[PlanShard, ...]
    components: tuple[tuple[str, str], ...]
    found: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Packing:
    """A plan with what its tasks are made of."""

    plan: BuildPlan
    shards: Sequence[PlannedShard]
    findings: Findings
    options: BuildOptions
    components: tuple[StoredComponent, ...]

    def task(self, shard: PlannedShard, out: Storage) -> ShardTask:
        """The task that makes one shard; its tuples are named only now."""
        tuples = [self.findings.tuples[index] for index in shard.indices.tolist()]
        components = self.components
        if shard.backgrounds:
            tuples = [_background(item) for item in tuples]
            background = components[0]
            components = (StoredComponent(background.name, background.source_extension, background.extension),)
        return ShardTask(
            name=shard.name,
            plan=self.plan.digest,
            root=self.findings.root.absolute(),
            out=out.absolute(),
            tuples=tuple(tuples),
            components=components,
            rules=self.options.rules(),
            on_bad=self.options.on_bad,
        )


def plan_build(
    findings: Findings, source: str, options: BuildOptions, begun_with: Mapping[str, Any] | None = None
) -> Packing:
    """Plan the packing of what was found. `source` is a name for the manifest. Raises UserError.

    Reads a few hundred images where the size of shards is given in bytes, else nothing. `begun_with` are the arguments
    of the build that is there already: the same bytes then mean the same number of tuples.
    """
    rules = options.rules()
    shared = options.backgrounds == "shared"
    components = tuple(
        StoredComponent(
            name, extension, rules.encoding.extension(name, extension) if rules.encoding else extension, stored
        )
        for name, extension, stored in zip(COMPONENTS, findings.extensions, (not shared, True, True, True), strict=True)
    )
    if begun_with and options.shard_bytes is not None and begun_with.get("shard_bytes") == options.shard_bytes:
        shard_size = int(begun_with["shard_size"])
    else:
        shard_size = _shard_size(findings, components, rules, options)
    split = split_tuples(findings, options.split, options.seed)
    shards = plan_shards(
        split.splits,
        shard_size=shard_size,
        seed=options.seed,
        limit=options.limit,
        background_codes=findings.backgrounds.codes if shared else None,
    )
    arguments = {
        "layout": findings.layout,
        "source": source.encode(errors="replace").decode(),
        "split": split.by,
        "train": options.split.train,
        "test": options.split.test,
        "test_share": options.split.test_share,
        "hold_out": list(options.split.hold_out) or None,
        "limit": options.limit,
        "shard_size": shard_size,
        "shard_bytes": options.shard_bytes,
        "seed": options.seed,
        "check": options.check,
        "backgrounds": options.backgrounds,
        "size": options.size,
        "quality": rules.encoding.quality if rules.encoding else None,
    }
    plan = BuildPlan(
        arguments=arguments,
        digest=hashlib.sha256(json.dumps([_FORMAT, arguments, findings.digest], sort_keys=True).encode()).hexdigest(),
        shards=tuple(
            PlanShard(name=shard.name, split=shard.split, tuples=len(shard.indices), backgrounds=shard.backgrounds)
            for shard in shards
        ),
        components=tuple((component.name, component.extension) for component in components),
        found=findings.found,
        problems=findings.problems,
        notes=(*findings.notes, *split.notes),
    )
    return Packing(plan, shards, findings, options, components)


def _shard_size(
    findings: Findings, components: tuple[StoredComponent, ...], rules: ImageRules, options: BuildOptions
) -> int:
    if options.shard_bytes is None:
        return DEFAULT_SHARD_SIZE if options.shard_size is None else options.shard_size
    if options.shard_size is not None:
        raise UserError("--shard-size and --shard-bytes: expected one of them")
    return tuples_per_shard(findings, components, rules, options.shard_bytes)


def _background(item: SourceTuple) -> SourceTuple:
    return SourceTuple(item.background, item.files[:1], f'{{"background":"{item.background}"}}', item.background)
