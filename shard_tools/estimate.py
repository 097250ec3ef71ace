"""How many tuples make a shard of about so many bytes, from a few of them. Never writes."""

import numpy as np

from shard_tools.errors import UserError
from shard_tools.layouts import Findings
from shard_tools.pack import StoredComponent
from shard_tools.source_images import BadImageError, ImageRules, SourceImages
from shard_tools.tar import BLOCK

SAMPLED_TUPLES = 256
METADATA_BYTES = 2 * BLOCK
"""What KEY.json takes in a shard."""


def tuples_per_shard(
    findings: Findings, components: tuple[StoredComponent, ...], rules: ImageRules, shard_bytes: int
) -> int:
    """The number of tuples whose shard has about `shard_bytes`, at least 1.

    Looks at SAMPLED_TUPLES evenly spaced over the source, so the same source gives the same number. Raises UserError
    where not one of them can be read.
    """
    if shard_bytes < 1:
        raise UserError(f"--shard-bytes {shard_bytes}: expected 1 or more")
    images = SourceImages(findings.root, rules)
    loaders = [images.loader(component.name, component.source_extension) for component in components]
    count = len(findings.tuples)
    total = read = 0
    for index in np.unique(np.linspace(0, count - 1, min(SAMPLED_TUPLES, count)).astype(np.int64)).tolist():
        size = METADATA_BYTES
        for component, load, file in zip(components, loaders, findings.tuples[index].files, strict=True):
            try:
                image = load(file)
            except BadImageError:
                break
            if component.stored:
                size += BLOCK + len(image.data) + -len(image.data) % BLOCK
        else:
            total, read = total + size, read + 1
    if not read:
        raise UserError("--shard-bytes: not one of the tuples that were looked at can be read; give --shard-size")
    return max(1, round(shard_bytes * read / total))
