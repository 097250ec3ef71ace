"""The statistics of a split as a short table to read. Only text: adds nothing up, prints nothing."""

from shard_tools.stats import ComponentSums, SplitSums

_HEADING = f"{'':7}{'mean':22}{'deviation':22}{'bytes: mean':>12}{'min':>11}{'max':>11}{'total':>17}"


def format_table(name: str, sums: SplitSums) -> str:
    """The table of the split called `name`; mean and deviation are those of the pixels in [0, 1], for R, G, B."""
    if not sums.tuples:
        return f"{name}: no tuples"
    coverage, empty = sums.coverage, sums.coverage.empty
    rows = [_row(component, part) for component, part in sums.components.items()]
    return "\n".join(
        [
            f"{name}: {sums.tuples:,} tuples",
            *(f"  {line}".rstrip() for line in (_HEADING, *rows)),
            f"  mask coverage: mean {coverage.mean:.2%}, from {coverage.min:.2%} to {coverage.max:.2%}; "
            f"empty masks: {empty:,} ({empty / sums.tuples:.2%}); soft pixels: {sums.soft_share:.2%}",
            *(f"  {line}" for line in _sizes(sums)),
        ]
    )


def _row(name: str, sums: ComponentSums) -> str:
    mean, std = (" ".join(f"{value:.4f}" for value in values) for values in (sums.mean, sums.std))
    sizes = f"{sums.bytes_mean:12,.0f}{sums.bytes_min:11,.0f}{sums.bytes_max:11,.0f}{sums.bytes_total:17,}"
    return f"{name:7}{mean:22}{std:22}{sizes}"


def _sizes(sums: SplitSums) -> list[str]:
    """One line for all components whose images have the same sizes."""
    components: dict[str, list[str]] = {}
    for name, part in sums.components.items():
        components.setdefault(_listing(part), []).append(name)
    if len(components) == 1:
        return [f"image size in pixels: {listing}" for listing in components]
    return [f"image size in pixels of {', '.join(names)}: {listing}" for listing, names in components.items()]


def _listing(sums: ComponentSums) -> str:
    sizes = sums.frequent_sizes()
    if len(sizes) == 1:
        (((width, height), _),) = sizes
        return f"{width}×{height}"
    more = f" and {len(sums.sizes) - len(sizes):,} more" if len(sums.sizes) > len(sizes) else ""
    return ", ".join(f"{width}×{height} ({images:,})" for (width, height), images in sizes) + more
