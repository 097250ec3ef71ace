"""A curve of bounded size, made from any number of points. Pure arithmetic; never reads files."""

from bisect import bisect_left
from dataclasses import dataclass

MAX_POINTS = 240
"""A curve keeps at most this many points: about two drawn pixels each."""


@dataclass(frozen=True)
class Points:
    """A thinned curve: x, rising; per point the mean y and the lowest and highest y that went into it."""

    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def at(self, x: float) -> float:
        """Return y at x, by linear interpolation, the nearest end's outside; NaN where there are no points."""
        if not self.x:
            return float("nan")
        right = bisect_left(self.x, x)
        if right == len(self.x) or right == 0:
            return self.y[min(right, len(self.x) - 1)]
        x0, x1 = self.x[right - 1], self.x[right]
        y0, y1 = self.y[right - 1], self.y[right]
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0)

    def with_ends(self, first: tuple[float, float], last: tuple[float, float]) -> "Points":
        """Return the curve with the exact ends (x, y) that thinning has averaged away, where they lie outside it."""
        before = [first] if not self.x or first[0] < self.x[0] else []
        after = [last] if self.x and last[0] > self.x[-1] else []

        def join(values: tuple[float, ...], axis: int) -> tuple[float, ...]:
            return (*(end[axis] for end in before), *values, *(end[axis] for end in after))

        return Points(join(self.x, 0), join(self.y, 1), join(self.low, 1), join(self.high, 1))


@dataclass
class _Bucket:
    last_x: float
    sum_x: float
    sum_y: float
    low: float
    high: float
    count: int = 1

    def take(self, other: "_Bucket") -> None:
        self.last_x = other.last_x
        self.sum_x += other.sum_x
        self.sum_y += other.sum_y
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        self.count += other.count


class Curve:
    """Takes points one by one; holds means over equal stretches of x, longer ones whenever there are too many.

    A point at or before the last x means that a resumed run does those steps again: what it replaces is
    forgotten, to within one stretch. A mean over a value that is not finite is not finite either.
    """

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        self._max_points = max_points
        self._stretch = 0.0
        self._buckets: list[_Bucket] = []

    def add(self, x: float, y: float) -> None:
        """Take one point; x is finite, y may be anything."""
        while self._buckets and self._buckets[-1].last_x >= x:
            self._buckets.pop()
        self._append(_Bucket(x, x, y, y, y))
        if len(self._buckets) > self._max_points:
            self._lengthen()

    def points(self) -> Points:
        """Return the curve so far, at most `max_points` points."""
        return Points(
            x=tuple(bucket.sum_x / bucket.count for bucket in self._buckets),
            y=tuple(bucket.sum_y / bucket.count for bucket in self._buckets),
            low=tuple(bucket.low for bucket in self._buckets),
            high=tuple(bucket.high for bucket in self._buckets),
        )

    def _append(self, bucket: _Bucket) -> None:
        if self._buckets and self._cell(self._buckets[-1]) == self._cell(bucket):
            self._buckets[-1].take(bucket)
        else:
            self._buckets.append(bucket)

    def _cell(self, bucket: _Bucket) -> float:
        """Return the number of the stretch that the bucket ends in; before any thinning, its very x."""
        return bucket.last_x // self._stretch if self._stretch else bucket.last_x

    def _lengthen(self) -> None:
        """Take stretches that are long enough for at most half of the points, and merge into them."""
        extent = self._buckets[-1].last_x - self._buckets[0].last_x
        self._stretch = max(2 * self._stretch, 2 * extent / (self._max_points - 2))
        finer, self._buckets = self._buckets, []
        for bucket in finer:
            self._append(bucket)
