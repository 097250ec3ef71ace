"""What `shard-tools verify` says, in lines and as JSON. Checks nothing."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from shard_tools.check_shard import Finding
from shard_tools.manifest import Manifest

MAX_LISTED = 20
MAX_LISTED_OF_FILE = 5


@dataclass(frozen=True)
class Report:
    """What came of checking all shards of `manifest`. Warnings are no reason to distrust them."""

    location: str
    manifest: Manifest
    decoded: bool
    findings: Sequence[Finding]
    warnings: Sequence[str]

    def as_json(self) -> str:
        """The whole of it, as the text of a JSON object."""
        content = {
            "location": self.location,
            "manifest": self.manifest.digest(),
            "whole": not self.findings,
            "decoded": self.decoded,
            **self._totals(),
            "findings": [finding._asdict() for finding in self.findings],
            "warnings": list(self.warnings),
        }
        return json.dumps(content, indent=1) + "\n"

    def success(self) -> str:
        """What to print where there is no finding."""
        totals = self._totals()
        images = "; every image can be decoded" if self.decoded else "; images were not decoded (--decode)"
        line = (
            f"{self.location} is whole: {totals['tuples']:,} tuples in {totals['shards']:,} shards, "
            f"{totals['bytes'] / 1e6:,.1f} MB; hashes, indexes, keys and counts agree{images}"
        )
        return "\n".join([line, *self._warnings()])

    def failure(self, json_file: Path | None) -> str:
        """What to print else; `json_file` is where the whole report went."""
        shards = len({finding.shard for finding in self.findings})
        heading = f"{self.location} is not whole: {_count(len(self.findings), 'finding')} in {_count(shards, 'file')}"
        lines = self._lines()
        more = [f"  and {len(lines) - MAX_LISTED:,} more lines"] if len(lines) > MAX_LISTED else []
        where = f"The whole report is in {json_file}." if json_file else "--json FILE keeps the whole report."
        way_out = "Copy these files again from where they are whole, or build the shards again into another folder."
        return "\n".join([heading, *lines[:MAX_LISTED], *more, *self._warnings(), f"{way_out} {where}"])

    def _lines(self) -> list[str]:
        """The findings, of each file only the first, so that one that is all wrong hides no other."""
        lines = []
        for shard, group in groupby(self.findings, key=lambda finding: finding.shard):
            findings = list(group)
            lines += [f"  {finding}" for finding in findings[:MAX_LISTED_OF_FILE]]
            if len(findings) > MAX_LISTED_OF_FILE:
                lines.append(f"  {shard}: and {len(findings) - MAX_LISTED_OF_FILE:,} more")
        return lines

    def _warnings(self) -> list[str]:
        lines = [f"warning: {warning}" for warning in self.warnings[:MAX_LISTED]]
        more = len(self.warnings) - len(lines)
        return lines + ([f"warning: and {more:,} more"] if more else [])

    def _totals(self) -> dict[str, int]:
        splits = self.manifest.splits.values()
        shards = [shard for split in splits for shard in split.files]
        return {
            "tuples": sum(split.samples for split in splits),
            "shards": len(shards),
            "bytes": sum(shard.bytes for shard in shards),
        }


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
